"""Which system calls a box may make: everything that ordinary programs need, and no way to more power.

It is a second wall. The first is that a box has no capability, and a PID, user and mount namespace of its own; this
one takes away what has been the way through that wall before: new namespaces and mounts, keyrings, BPF, io_uring,
ptrace, exotic sockets.
"""

from __future__ import annotations

import errno
import functools
import platform
from collections.abc import Iterator
from typing import Final

from pytest_netns.errors import UnsupportedError
from pytest_netns.sandbox import bpf
from pytest_netns.sandbox.bpf import ANY_BIT, EQUAL, GREATER, Comparison, Instruction
from pytest_netns.sandbox.calls import NEWEST, NUMBERS

__all__ = ["program"]

# AUDIT_ARCH_*: the filter names the one it was made for, so that calls of another ABI, i386 for one, end the process.
_ARCHITECTURES: Final = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
_X32: Final = 0x4000_0000

#: Refused with EPERM, whatever the arguments.
_REFUSED: Final = (
    # mounts and namespaces
    *("mount", "umount2", "pivot_root", "chroot", "open_tree", "move_mount", "fsopen", "fsconfig", "fsmount"),
    *("fspick", "mount_setattr", "setns"),
    # keyrings, which no namespace keeps apart
    *("add_key", "request_key", "keyctl"),
    # other processes' memory and descriptors
    *("ptrace", "process_vm_readv", "process_vm_writev", "kcmp", "pidfd_getfd", "move_pages", "migrate_pages"),
    # the kernel itself
    *("init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "bpf", "perf_event_open"),
    *("userfaultfd", "lookup_dcookie", "nfsservctl", "uselib", "iopl", "ioperm", "modify_ldt", "syslog"),
    # the machine
    *("acct", "quotactl", "quotactl_fd", "swapon", "swapoff", "reboot", "vhangup", "settimeofday", "clock_settime"),
    *("clock_adjtime", "sethostname", "setdomainname"),
    # files by other ways than their paths
    *("name_to_handle_at", "open_by_handle_at", "fanotify_init"),
    # memory that no limit and no inspection reaches
    "memfd_secret",
)

#: As if the kernel had none of it: programs fall back to older ways. Their arguments lie in memory, out of reach.
_ABSENT: Final = ("clone3", "openat2", "io_uring_setup", "io_uring_enter", "io_uring_register")

#: Needed for a limit where no control group holds it: memory that belongs to no process, and other processors.
_UNCOUNTED: Final = ("memfd_create", "shmget")
_PINNED: Final = ("sched_setaffinity",)

_NEW_NAMESPACES: Final = 0x7E02_0080  # CLONE_NEW*, time included
_NEW_BY_CLONE: Final = 0x7E02_0000  # in clone(2), the bit of the time namespace is part of the signal's number
_SET_ID_BITS: Final = 0o6000
_CREATING: Final = 0o100  # O_CREAT; O_TMPFILE needs none of it, and is a bit of its own
_TMPFILE: Final = 0o20000000

_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK = 1, 2, 10, 16
_NETLINK_ROUTE: Final = 0
_IP_PROTOCOLS: Final = (0, 1, 6, 17, 58)  # what the socket's type says, ICMP, TCP, UDP, ICMPv6
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_PERSONALITIES: Final = (0, 8, 0xFFFF_FFFF)  # Linux, 32-bit Linux, and asking which one it is


@functools.cache
def program(*, counted: bool = True, pinned: bool = False, machine: str | None = None) -> bytes:
    """Return the filter as seccomp(2) and bubblewrap take it.

    Args:
        counted: whether memory is counted by a control group. Where it is not, memory that belongs to no process,
            and which nobody could count, is refused.
        pinned: whether a limit rests on which processors the box may use.
        machine: the architecture, as ``platform.machine()`` has it; None for this machine's.

    Raises:
        UnsupportedError: there is no filter for this architecture.
    """
    machine = platform.machine() if machine is None else machine
    if machine not in _ARCHITECTURES:
        known = ", ".join(_ARCHITECTURES)
        raise UnsupportedError(
            f"a box needs a seccomp filter, and there is none for {machine!r}, only for {known}. "
            "Run the test on one of these, or the command with netns.run(), which confines nothing but its network"
        )
    return bpf.encode(_instructions(machine, counted=counted, pinned=pinned))


def _instructions(machine: str, *, counted: bool, pinned: bool) -> Iterator[Instruction]:
    yield bpf.load(bpf.ARCHITECTURE)
    yield from bpf.when(EQUAL, _ARCHITECTURES[machine], [bpf.verdict(bpf.KILL)], holds=False)
    yield bpf.load(bpf.NUMBER)
    if machine == "x86_64":
        yield from bpf.when(ANY_BIT, _X32, [bpf.verdict(bpf.KILL)])
    yield from bpf.when(GREATER, NEWEST, [bpf.verdict(bpf.errno(errno.ENOSYS))])
    refused = (*_REFUSED, *(() if counted else _UNCOUNTED), *(_PINNED if pinned else ()))
    for names, error in ((refused, errno.EPERM), (_ABSENT, errno.ENOSYS)):
        for name in names:
            yield from _refuse(machine, name, error=error)
    yield from _by_argument(machine)
    yield from _sockets(machine)
    yield bpf.verdict(bpf.ALLOW)


def _by_argument(machine: str) -> Iterator[Instruction]:
    yield from _refuse(machine, "unshare", Comparison(0, ANY_BIT, _NEW_NAMESPACES))
    yield from _refuse(machine, "clone", Comparison(0, ANY_BIT, _NEW_BY_CLONE))
    for request in (_TIOCSTI, _TIOCLINUX, _TIOCSETD):
        yield from _refuse(machine, "ioctl", Comparison(1, EQUAL, request))
    others = [Comparison(0, EQUAL, known, holds=False) for known in _PERSONALITIES]
    yield from _refuse(machine, "personality", *others)
    # Files that change who runs them would be at work outside, where the box's directory is a real one.
    for name, mode in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("fchmodat2", 2), ("creat", 1)):
        yield from _refuse(machine, name, Comparison(mode, ANY_BIT, _SET_ID_BITS))
    for name, mode in (("mknod", 1), ("mknodat", 2)):
        yield from _refuse(machine, name, Comparison(mode, ANY_BIT, _SET_ID_BITS))
    for name, flags in (("open", 1), ("openat", 2)):
        for creating in (_CREATING, _TMPFILE):
            created = (Comparison(flags, ANY_BIT, creating), Comparison(flags + 1, ANY_BIT, _SET_ID_BITS))
            yield from _refuse(machine, name, *created)


def _sockets(machine: str) -> Iterator[Instruction]:
    """Leave Unix sockets, TCP, UDP and ping, and reading what interfaces there are."""
    families = [Comparison(0, EQUAL, family, holds=False) for family in (_AF_UNIX, _AF_INET, _AF_INET6, _AF_NETLINK)]
    yield from _refuse(machine, "socket", *families, error=errno.EAFNOSUPPORT)
    not_route = Comparison(2, EQUAL, _NETLINK_ROUTE, holds=False)
    unsupported = errno.EPROTONOSUPPORT
    yield from _refuse(machine, "socket", Comparison(0, EQUAL, _AF_NETLINK), not_route, error=unsupported)
    others = [Comparison(2, EQUAL, protocol, holds=False) for protocol in _IP_PROTOCOLS]
    for family in (_AF_INET, _AF_INET6):
        yield from _refuse(machine, "socket", Comparison(0, EQUAL, family), *others, error=unsupported)


def _refuse(machine: str, name: str, *comparisons: Comparison, error: int = errno.EPERM) -> list[Instruction]:
    number: int | None = getattr(NUMBERS[name], machine)
    return [] if number is None else bpf.call(number, bpf.errno(error), comparisons)

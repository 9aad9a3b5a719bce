"""Where the right to make namespaces comes from: being root, or a user namespace of one's own.

An ordinary user enters a user namespace that maps the user to itself, keeps only the capabilities
that the work needs as *permitted* ones, and raises them to *effective* just while one of our own
system calls runs. Test code therefore owns no effective capability, and what it starts owns none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from posix import getegid, geteuid  # tests replace those in os
from typing import Final

from pytest_netns.kernel import syscalls

# Bit numbers from capabilities(7) and <linux/capability.h>.
CAP_KILL: Final = 5
CAP_NET_BIND_SERVICE: Final = 10
CAP_NET_ADMIN: Final = 12
CAP_NET_RAW: Final = 13
CAP_SYS_CHROOT: Final = 18
CAP_SYS_PTRACE: Final = 19
CAP_SYS_ADMIN: Final = 21

NEEDED: Final = (
    CAP_KILL,
    CAP_NET_BIND_SERVICE,
    CAP_NET_ADMIN,
    CAP_NET_RAW,
    CAP_SYS_CHROOT,
    CAP_SYS_PTRACE,
    CAP_SYS_ADMIN,
)
_MASK: Final = sum(1 << number for number in NEEDED)


def is_root() -> bool:
    """Tell whether the process is the superuser of its user namespace, and needs no other."""
    return geteuid() == 0


def is_entered() -> bool:
    """Tell whether the process already owns the capabilities, be it as root or in a user namespace."""
    _, permitted, _ = syscalls.capget()
    return permitted & _MASK == _MASK


def enter_user_namespace() -> None:
    """Enter a new user namespace in which the caller keeps its own uid and gid.

    Capabilities are left permitted and ambient, so that processes that are started from here
    (pytest-xdist's workers, the gateway) own them too, but not effective.

    Raises:
        KernelError: user namespaces are forbidden or used up, or the process has threads (EINVAL).
    """
    enter_plain_user_namespace()
    _pass_on()


def _pass_on() -> None:
    syscalls.capset(0, _MASK, _MASK)
    for number in NEEDED:
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)


@contextlib.contextmanager
def inheritable() -> Iterator[None]:
    """Pass the capabilities on to programs that are started in the block; then do again as before."""
    _, permitted, inherited = syscalls.capget()
    if is_root() or inherited or permitted & _MASK != _MASK:
        yield
        return
    _pass_on()
    try:
        yield
    finally:
        disinherit()


def disinherit() -> None:
    """Stop passing capabilities on to the programs that this process starts."""
    if not is_root():
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        syscalls.capset(0, _MASK, 0)


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Make the permitted capabilities effective for the calling thread while the block runs, then what was before."""
    if is_root():
        yield
        return
    effective, permitted, inheritable = syscalls.capget()
    syscalls.capset(permitted, permitted, inheritable)
    try:
        yield
    finally:
        syscalls.capset(effective, permitted, inheritable)


def renounce() -> None:
    """Give up all capabilities for good."""
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    syscalls.capset(0, 0, 0)


def enter_plain_user_namespace() -> None:
    """Enter a new user namespace that maps the caller to itself, with every capability there, effective at once.

    Raises:
        KernelError: user namespaces are forbidden or used up, or the process has threads (EINVAL).
    """
    uid, gid = geteuid(), getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/thread-self/{name}", "w", encoding="ascii") as file:
            file.write(text)

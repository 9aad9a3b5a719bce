"""Play a machine that lacks something, then run a command on it: ``python machines.py SCENARIO... -- COMMAND``.

Each scenario takes away from this process, and so from the command, what such a machine would: by a
seccomp filter, Landlock, dropped capabilities, limits of a user namespace, mounts. Nothing outside
the process changes. Scenarios apply in order.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from pytest_netns.kernel import syscalls

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

#: System call number, errno, and tests of arguments: index, BPF operation, operand.
Conditions: TypeAlias = list[tuple[int, int, list[tuple[int, int, int]]]]

# Without the other plugins that are installed here, whose import would be most of the work.
PYTEST = [sys.executable, "-mpytest", "-pno:cacheprovider", "-ppytest_netns.plugin", "-c/dev/null", "--netns"]
DOCTOR = [sys.executable, "-m", "pytest_netns", "doctor"]

NUMBERS = {
    "x86_64": {"clone": 56, "mount": 165, "umount2": 166, "unshare": 272, "setns": 308, "socket": 41},
    "aarch64": {"clone": 220, "mount": 40, "umount2": 39, "unshare": 97, "setns": 268, "socket": 198},
}
CLONE3 = 435  # the same everywhere, as all newer ones are
LANDLOCK_CREATE_RULESET, LANDLOCK_ADD_RULE, LANDLOCK_RESTRICT_SELF = 444, 445, 446
LANDLOCK_WRITE_FILE = 1 << 1
LANDLOCK_WRITABLE = ("/tmp", "/var/tmp", "/dev")

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, PR_CAPBSET_DROP = 38, 22, 24
SECCOMP_MODE_FILTER = 2
SECCOMP_ALLOW, SECCOMP_ERRNO = 0x7FFF_0000, 0x0005_0000
BPF_LOAD, BPF_EQUAL, BPF_ANY_BIT, BPF_RETURN = 0x20, 0x15, 0x45, 0x06
NAMESPACE_FLAGS = 0x7E02_0000
CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWCGROUP = 0x0400_0000, 0x0800_0000, 0x0200_0000
NETLINK_NETFILTER = 12
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1

# What a container of Docker has: https://docs.docker.com/engine/security/
DOCKER_CAPABILITIES = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
LAST_CAPABILITY = 40
STRANGER = 20000


def call(number: int, *arguments: int | ctypes.Array[ctypes.c_char]) -> int:
    """Make a system call by number."""
    result: int = _libc.syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


def refuse(conditions: Conditions) -> None:
    """Install a seccomp filter."""
    program = [(BPF_LOAD, 0, 0, 0)]
    for number, error, tests in conditions:
        block = [(BPF_LOAD, 0, 0, 0), (BPF_EQUAL, 0, 2 * len(tests) + 1, number)]
        for index, (argument, operation, operand) in enumerate(tests):
            block += [(BPF_LOAD, 0, 0, 16 + 8 * argument), (operation, 0, 2 * (len(tests) - index) - 1, operand)]
        program += [*block, (BPF_RETURN, 0, 0, SECCOMP_ERRNO | error)]
    program.append((BPF_RETURN, 0, 0, SECCOMP_ALLOW))
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = ctypes.create_string_buffer(struct.pack("HP", len(program), ctypes.addressof(buffer)))
    syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


def docker_seccomp() -> None:
    """Refuse what Docker's default profile refuses without CAP_SYS_ADMIN."""
    numbers = NUMBERS[platform.machine()]
    named: Conditions = [(numbers[name], errno.EPERM, []) for name in ("unshare", "setns", "mount", "umount2")]
    clones: Conditions = [
        (numbers["clone"], errno.EPERM, [(0, BPF_ANY_BIT, NAMESPACE_FLAGS)]),
        (CLONE3, errno.ENOSYS, []),
    ]
    refuse([*named, *clones])


def podman_seccomp() -> None:
    """Refuse what Podman's default profile refuses without CAP_SYS_ADMIN: setns alone."""
    refuse([(NUMBERS[platform.machine()]["setns"], errno.EPERM, [])])


def no_netfilter() -> None:
    """Play a kernel without netfilter's netlink."""
    tests = [(0, BPF_EQUAL, 16), (2, BPF_EQUAL, NETLINK_NETFILTER)]
    refuse([(NUMBERS[platform.machine()]["socket"], errno.EPROTONOSUPPORT, tests)])


def docker_capabilities() -> None:
    """Keep the capabilities that root has in a container of Docker."""
    for number in set(range(LAST_CAPABILITY + 1)) - set(DOCKER_CAPABILITIES):
        syscalls.prctl(PR_CAPBSET_DROP, number)


def docker_grants() -> None:
    """Keep the capabilities that root has in a container of Docker with the two that are asked for."""
    for number in set(range(LAST_CAPABILITY + 1)) - {*DOCKER_CAPABILITIES, 12, 21}:
        syscalls.prctl(PR_CAPBSET_DROP, number)


def no_net_admin() -> None:
    """Take CAP_NET_ADMIN from root."""
    syscalls.prctl(PR_CAPBSET_DROP, 12)


def landlock() -> None:
    """Let a security module forbid to write to files outside /tmp and /dev, /proc/self/uid_map among them."""
    handled = ctypes.create_string_buffer(struct.pack("=Q", LANDLOCK_WRITE_FILE), 8)
    ruleset = call(LANDLOCK_CREATE_RULESET, handled, 8, 0)
    for path in filter(os.path.isdir, LANDLOCK_WRITABLE):
        fd = os.open(path, os.O_PATH)
        rule = ctypes.create_string_buffer(struct.pack("=Qi", LANDLOCK_WRITE_FILE, fd), 12)
        call(LANDLOCK_ADD_RULE, ruleset, 1, rule, 0)
        os.close(fd)
    syscalls.prctl(PR_SET_NO_NEW_PRIVS, 1)
    call(LANDLOCK_RESTRICT_SELF, ruleset, 0)


def nested_root() -> None:
    """Become root of a new user namespace."""
    _map(0)


def stranger() -> None:
    """Become an ordinary user whom nobody knows; root's to play."""
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)


def nested_user() -> None:
    """Become uid 1000 of a new user namespace, owning nothing once the command runs."""
    _map(1000)


def _map(inside: int) -> None:
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{inside} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{inside} {gid} 1")


def _private_mounts() -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def read_only_sysctls() -> None:
    """Mount /proc/sys read-only, as container engines do."""
    _private_mounts()
    syscalls.mount("/proc/sys", "/proc/sys", None, syscalls.MS_BIND | syscalls.MS_REC)
    _remount_read_only("/proc/sys", syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC)


def _remount_read_only(path: str, flags: int = 0) -> None:
    flags |= syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    syscalls.mount("none", path, None, flags)


def masked_sys() -> None:
    """Cover a part of /sys, as container engines do."""
    _private_mounts()
    syscalls.mount("tmpfs", "/sys/kernel", "tmpfs", syscalls.MS_RDONLY)


def container() -> None:
    """Become what an engine starts privileged: namespaces of one's own, a network with loopback alone."""
    _private_mounts()
    syscalls.unshare(syscalls.CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP)
    _raise_loopback()


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def no_ipv6() -> None:
    """Switch IPv6 off in a network of one's own, as administrators do."""
    syscalls.unshare(syscalls.CLONE_NEWNET)
    for name in ("all", "default", "lo"):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    _raise_loopback()


def read_only_root() -> None:
    """Make the root file system read-only but for /tmp."""
    _private_mounts()
    syscalls.mount("/tmp", "/tmp", None, syscalls.MS_BIND)
    _remount_read_only("/")


def chroot() -> None:
    """Make a directory of /tmp the root, with the machine's directories in it."""
    _private_mounts()
    root = tempfile.mkdtemp(prefix="root-")
    syscalls.mount("none", root, "tmpfs", 0)
    for name in sorted(os.listdir("/")):
        old, new = Path("/", name), Path(root, name)
        if old.is_symlink():
            new.symlink_to(old.readlink())
        elif old.is_dir():
            new.mkdir()
            syscalls.mount(str(old), str(new), None, syscalls.MS_BIND | syscalls.MS_REC)
    Path(root, "own").touch()
    where = os.getcwd()
    os.chroot(root)
    os.chdir(where)


def _with_etc(change: Callable[[Path], None]) -> Callable[[], None]:
    def cover() -> None:
        _private_mounts()
        copy = tempfile.mkdtemp(prefix="etc-")
        syscalls.mount("none", copy, "tmpfs", 0)
        for entry in os.scandir("/etc"):
            if entry.is_file() and os.access(entry.path, os.R_OK):
                shutil.copy(entry.path, copy)
        change(Path(copy))
        syscalls.mount(copy, "/etc", None, syscalls.MS_BIND)

    return cover


def _linked(etc: Path) -> None:
    etc.joinpath("resolv.conf").unlink(missing_ok=True)
    etc.joinpath("resolv.conf").symlink_to("../run/systemd/resolve/stub-resolv.conf")


def _missing(etc: Path) -> None:
    etc.joinpath("resolv.conf").unlink(missing_ok=True)


def _emptied(path: str) -> Callable[[], None]:
    def cover() -> None:
        _private_mounts()
        if os.path.isdir(path):
            syscalls.mount("none", path, "tmpfs", 0)

    return cover


def cgroup2() -> None:
    """Have version 2 of control groups alone."""
    _emptied("/sys/fs/cgroup")()
    syscalls.mount("none", "/sys/fs/cgroup", "cgroup2", 0)


def _no_more(name: str) -> Callable[[], None]:
    def limit() -> None:
        Path("/proc/sys/user", name).write_text("0")

    return limit


SCENARIOS: dict[str, Callable[[], None]] = {
    "docker-seccomp": docker_seccomp,
    "podman-seccomp": podman_seccomp,
    "no-netfilter": no_netfilter,
    "docker-capabilities": docker_capabilities,
    "docker-grants": docker_grants,
    "no-net-admin": no_net_admin,
    "landlock": landlock,
    "nested-root": nested_root,
    "nested-user": nested_user,
    "read-only-sysctls": read_only_sysctls,
    "masked-sys": masked_sys,
    "stranger": stranger,
    "container": container,
    "no-ipv6": no_ipv6,
    "read-only-root": read_only_root,
    "chroot": chroot,
    "linked-resolv-conf": _with_etc(_linked),
    "missing-resolv-conf": _with_etc(_missing),
    "no-tun": _emptied("/dev/net"),
    "no-cgroups": _emptied("/sys/fs/cgroup"),
    "cgroup2": cgroup2,
    "no-user-namespaces": _no_more("max_user_namespaces"),
    "no-net-namespaces": _no_more("max_net_namespaces"),
    "no-mnt-namespaces": _no_more("max_mnt_namespaces"),
}


def open_to_strangers() -> bool:
    """Tell whether every user may run this interpreter, and read what it imports."""
    found = {Path(os.path.realpath(sys.executable)), Path(sys.executable), Path(syscalls.__file__)}
    return all(place.stat().st_mode & 0o5 for path in found for place in (path, *path.parents))


def on(*scenarios: str, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, the doctor unless told otherwise, on a machine that lacks something."""
    return ran([*player(*scenarios), *(command or [*DOCTOR, "--json"])])


def player(*scenarios: str) -> list[str]:
    """Return what stands before a command that is run on such a machine, which is nothing where it lacks nothing."""
    return [sys.executable, __file__, *scenarios, "--"] if scenarios else []


def ran(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that finds the package which is tested, installed or not, and has temporary files of its own."""
    where = str(Path(syscalls.__file__).parents[2])
    with tempfile.TemporaryDirectory() as directory:  # root of a user namespace would share root's otherwise
        Path(directory).chmod(0o1777)
        environment = os.environ | {"PYTHONPATH": where, "TMPDIR": directory} | variables
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


if __name__ == "__main__":
    split = sys.argv.index("--")
    for scenario in sys.argv[1:split]:
        SCENARIOS[scenario]()
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])

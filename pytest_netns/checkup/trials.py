"""Everything that isolation needs from the machine, each thing done once.

This module is what ``kernel.probe`` runs in a process of its own: it enters namespaces and does not
come back from them. Rulesets, messages and system calls are those of a test run.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import secrets
import shutil
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_netns.checkup import names
from pytest_netns.gateway import paths
from pytest_netns.kernel import mounts, privilege, syscalls
from pytest_netns.kernel.probe import NotNeededError, RefusedError, Remark, Trial, perform

if TYPE_CHECKING:
    from pytest_netns.checkup.bench import Bench

_LIMITS: Final = ("max_user_namespaces", "max_net_namespaces", "max_mnt_namespaces")
_RULES: Final = (names.LEAF_RULES, names.HUB_RULES, names.QUEUE)
_PARTS: Final = (names.ADDRESSES, names.ROUTING, *_RULES, names.TRANSPARENT, names.SYSCTLS, names.FILES)
_LIMIT_LOW: Final = 256  # each leaf takes a net and a mnt namespace, and the kernel clears dead ones late


def main() -> None:
    """Make all trials and report them on standard output."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    user, network, veth = (names.USER,), (names.NETWORK, names.PACKAGES), (names.VETH,)
    perform(
        [
            Trial(names.PACKAGES, packages),
            Trial(names.RUN_DIRECTORY, run_directory, (names.PACKAGES,)),
            Trial(names.LIMITS, limits),
            Trial(names.USER, user_namespace),
            Trial(names.MOUNT, mount_namespace, user),
            Trial(names.NETWORK, lambda: _bench().network(), (names.USER, names.PACKAGES)),
            Trial(names.LOOPBACK, lambda: _bench().loopback(), network),
            Trial(names.VETH, lambda: _bench().veth(), (names.LOOPBACK,)),
            Trial(names.ADDRESSES, lambda: _bench().addresses(), veth),
            Trial(names.ROUTING, lambda: _bench().routing(), veth),
            Trial(names.LEAF_RULES, lambda: _bench().leaf_rules(), network),
            Trial(names.HUB_RULES, lambda: _bench().hub_rules(), network),
            Trial(names.QUEUE, lambda: _bench().queue(), network),
            Trial(names.TRANSPARENT, lambda: _bench().transparent(), network),
            Trial(names.SYSCTLS, lambda: _bench().sysctls(), network),
            Trial(names.PORT, lambda: _bench().port(), (names.SYSCTLS, names.LOOPBACK)),
            Trial(names.PING, lambda: _bench().ping(), (names.SYSCTLS, names.LOOPBACK)),
            Trial(names.FILES, files, (names.MOUNT,)),
            Trial(names.SYS, sys_mount, (names.MOUNT, names.NETWORK)),
            Trial(names.WHOLE, lambda: _bench().whole(), _PARTS),
        ]
    )


@functools.cache
def _bench() -> Bench:
    from pytest_netns.checkup.bench import Bench  # noqa: PLC0415 - needs pyroute2, which may be missing

    return Bench()


def packages() -> str:
    """Import what the gateway imports."""
    import filelock  # noqa: PLC0415
    import pyroute2  # noqa: PLC0415

    return f"pyroute2 {pyroute2.__version__}, filelock {filelock.__version__}"


def run_directory() -> str:
    """Make a run directory as the gateway's are, lock in it and listen in it."""
    from filelock import FileLock  # noqa: PLC0415

    path = paths.run_directory(f"doctor-{secrets.token_hex(4)}")
    try:
        with (
            FileLock(path / paths.LOCK_NAME, timeout=1),
            paths.short_path(path / paths.SOCKET_NAME) as address,
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        ):
            listener.bind(address)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # in use by a run
            path.parent.rmdir()
    return f"{path.parent} is private, takes a lock and a socket"


def limits() -> str:
    """Read how many namespaces this user may have."""
    found = {f"user.{name}": int(Path("/proc/sys/user", name).read_text(encoding="ascii")) for name in _LIMITS}
    if privilege.is_root() or privilege.is_entered():
        del found["user.max_user_namespaces"]
    for name, value in found.items():
        if value == 0:
            raise RefusedError(name, OSError(errno.ENOSPC, "is 0"))
    text = ", ".join(f"{name} is {value}" for name, value in found.items())
    lowest = min(found, key=lambda name: found[name])
    if found[lowest] < _LIMIT_LOW:
        raise Remark(f"{text}; a run with many workers may need {_LIMIT_LOW}", lowest)
    return text


def user_namespace() -> str:
    """Become owner of a user namespace in which the user keeps its number."""
    if privilege.is_root():
        raise NotNeededError("not needed as root")
    if privilege.is_entered():
        raise NotNeededError("entered already")
    if not Path("/proc/self/uid_map").read_text(encoding="ascii").strip():
        raise RefusedError("uid_map", OSError(errno.EPERM, "entered a user namespace, was refused to be someone there"))
    before = os.stat("/proc/self/ns/user").st_ino
    try:
        privilege.enter_user_namespace()
    except OSError as error:
        made = os.stat("/proc/self/ns/user").st_ino != before
        raise RefusedError("uid_map" if made else "unshare", error) from error
    return f"uid {os.geteuid()} is still uid {os.geteuid()}"


def mount_namespace() -> str:
    """Make a mount namespace whose changes stay in it."""
    with privilege.raised():
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    return "made, changes stay inside"


def files() -> str:
    """Give the mount namespace the files that a leaf has."""
    with privilege.raised():
        mounts.prepare_template("nameserver 198.18.0.1\n", hide_resolvers=True)
    return "/etc/resolv.conf, /etc/hosts and /etc/nsswitch.conf"


def sys_mount() -> str:
    """Mount the /sys that shows a leaf's own interfaces."""
    with privilege.raised():
        mounted = mounts.fresh_sysfs(mounts.sysfs())
    shown = ", ".join(sorted(os.listdir("/sys/class/net"))) if os.path.isdir("/sys/class/net") else "nothing"
    if not mounted:
        raise Remark(f"the kernel allows no /sys of one's own; the old one shows {shown}")
    return f"shows {shown}"

"""What a leaf's mount namespace holds that the host's does not.

All functions change the mount namespace of the calling thread, which must be a leaf's own. They
write nothing to any disk: private files live in memory for as long as the namespace.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pytest_netns.errors import KernelError, NetnsError, UnsupportedError
from pytest_netns.kernel import privilege, resolver, syscalls
from pytest_netns.kernel.mountinfo import mounts_below, read_only, staging

__all__ = ["Sysfs", "add_host", "bind", "fresh_sysfs", "hide", "prepare_template", "sysfs", "sysfs_submounts", "tmpfs"]

HOSTS: Final = "/etc/hosts"
RESOLV_CONF: Final = "/etc/resolv.conf"
_NSSWITCH: Final = ("/etc/nsswitch.conf", "/usr/etc/nsswitch.conf")
_DAEMONS: Final = ("/run/nscd", "/var/run/nscd", "/run/avahi-daemon", "/var/run/avahi-daemon")
_RESOLVED: Final = "/run/systemd/resolve"
_DBUS: Final = "/run/dbus/system_bus_socket"
_MIRRORED: Final = ".netns-host"
_INERT: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV
_SIZE: Final = re.compile(r"\d+[kKmMgG%]?")


class Sysfs(NamedTuple):
    """A /sys as it is mounted: with which flags of mount(2), and what is mounted directly below it."""

    flags: int
    submounts: tuple[str, ...]


def hide(path: str) -> None:
    """Cover a file by an empty one, a directory by an empty one; neither can be written to.

    A socket that is covered refuses connections.
    """
    if stat.S_ISDIR(_mode("hide", path)):
        with _told(f"hide {path!r}"):
            flags = _INERT | syscalls.MS_NOEXEC | syscalls.MS_RDONLY
            syscalls.mount("pytest-netns", path, "tmpfs", flags, "mode=555")
    else:
        _cover(path, "", 0o666)  # Without the right to write, connecting to it as a socket would be "denied".


def tmpfs(path: str, size: str = "64M") -> None:
    """Cover a directory by an empty one in memory that can be written to; it keeps the directory's mode and owner."""
    mode = _mode("put a tmpfs on", path)
    if not _SIZE.fullmatch(size):
        raise NetnsError(f"cannot put a tmpfs on {path!r}: {size!r} is no size. Give one such as '64M' or '1G'")
    options = f"size={size},mode={stat.S_IMODE(mode):o}"
    if privilege.is_root():
        owner = os.stat(path)
        options += f",uid={owner.st_uid},gid={owner.st_gid}"
    with _told(f"put a tmpfs on {path!r}"):
        syscalls.mount("pytest-netns", path, "tmpfs", _INERT, options)


def bind(source: str, target: str, *, readonly: bool = False) -> None:
    """Show a file or directory, with all that is mounted under it, at a second place as well."""
    _mode("bind", source)
    _mode(f"bind {source!r} to", target)
    with _told(f"bind {source!r} to {target!r}"):
        syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)
        if readonly:
            read_only(target)


def add_host(name: str, addresses: Iterable[str]) -> None:
    """Add a name to the leaf's own /etc/hosts, ahead of what the file says already."""
    lines = resolver.entry(name, addresses)
    _cover(HOSTS, lines + Path(HOSTS).read_text(encoding="utf-8", errors="surrogateescape"))


def prepare_template(resolv_conf: str | None, hide_resolvers: bool) -> None:
    """Turn a mount namespace that was just unshared into the one that leaves are copied from.

    Nothing mounted later spreads to or from the host. Name resolution goes through ``resolv_conf``
    (None: the host's file stays) and a reduced /etc/hosts; nscd, Avahi and systemd-resolved, which would
    answer from the host's network, cannot be reached. ``hide_resolvers`` takes the system's D-Bus
    socket away too, through which systemd-resolved can be asked as well as much that is no resolver.

    Raises:
        UnsupportedError: a file is missing and cannot be made to appear.
    """
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    _cover_resolved(resolv_conf)
    for path in {os.path.realpath(path) for path in _DAEMONS if os.path.isdir(path)}:
        hide(path)
    if hide_resolvers and os.path.exists(_DBUS):
        hide(_DBUS)
    if resolv_conf is not None:
        _provide(RESOLV_CONF, resolv_conf)
    _provide(HOSTS, resolver.hosts(_text(HOSTS), platform.node()))
    for path in filter(os.path.isfile, _NSSWITCH):
        _cover(path, resolver.nsswitch(_text(path)))


def sysfs_submounts() -> tuple[str, ...]:
    """List what is mounted directly below /sys."""
    tops: list[str] = []
    for target in sorted({mount.target for mount in mounts_below("/sys")} - {"/sys"}):
        if not tops or not target.startswith(tops[-1] + "/"):
            tops.append(target)
    return tuple(tops)


def sysfs() -> Sysfs | None:
    """Look at /sys, for ``fresh_sysfs``: it is the same for all leaves of a template. None where there is none."""
    if not os.path.ismount("/sys"):
        return None
    flags = os.statvfs("/sys").f_flag & (_INERT | syscalls.MS_NOEXEC | syscalls.MS_RDONLY)
    return Sysfs(flags, sysfs_submounts())


def fresh_sysfs(old: Sysfs | None) -> bool:
    """Mount a /sys that shows the calling thread's network namespace, with the same mounts below it.

    Returns False, and changes nothing, where there is no /sys or the kernel refuses a new one: in a
    user namespace it does so if parts of the old one are masked, as container engines do.
    """
    if old is None:
        return False
    with contextlib.ExitStack() as stack:
        opened = {target: _opened(target, stack) for target in old.submounts}
        try:
            syscalls.mount("sysfs", "/sys", "sysfs", old.flags)
        except KernelError:
            return False
        for target, source in opened.items():
            with contextlib.suppress(KernelError):  # A mount that may not be copied is not worth the leaf.
                syscalls.mount(source, target, None, syscalls.MS_BIND | syscalls.MS_REC)
    return True


def _opened(path: str, stack: contextlib.ExitStack) -> str:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    stack.callback(os.close, fd)
    return f"/proc/self/fd/{fd}"


def _mode(doing: str, path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError as error:
        remedy = "A mount covers what exists: create it first, in a directory that tmpfs() covers if need be"
        raise KernelError(error.errno or 0, f"cannot {doing} {path!r}: {error.strerror}. {remedy}") from error


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """Say in an error of the block what was being done, in the caller's words."""
    try:
        yield
    except KernelError as error:
        number = error.errno or 0
        cause = "a file only goes on a file, a directory on a directory" if number == errno.ENOTDIR else error.strerror
        raise KernelError(number, f"cannot {what}: {cause}") from error


def _cover(path: str, text: str, mode: int = 0o444) -> None:
    """Put a write-protected private file over an existing one, or over what a symbolic link leads to."""
    with staging() as stage, _told(f"cover {path!r}"):
        file = stage / "file"
        file.write_text(text, encoding="utf-8", errors="surrogateescape")
        file.chmod(mode)
        syscalls.mount(str(file), path, None, syscalls.MS_BIND)
    read_only(path)


def _provide(path: str, text: str) -> None:
    """Make the path lead to a private file, also where it is missing or a link that leads nowhere."""
    real = Path(os.path.realpath(path))
    try:
        if not real.exists():
            _mirror(next(parent for parent in real.parents if parent.is_dir()), real)
        _cover(str(real), text)
    except OSError as error:
        raise UnsupportedError(
            f"{path} leads to {real}, which is missing, and no private one could be put there: {error}. "
            f"Create {real}, if only as an empty file"
        ) from error


def _mirror(directory: Path, wanted: Path) -> None:
    """Cover the directory by one in memory that shows the same entries, through links, and can get another one."""
    if (directory / _MIRRORED).is_dir():
        _make_empty(wanted)
        return
    with staging() as stage:
        for name in os.listdir(directory):
            (stage / name).symlink_to(f"{_MIRRORED}/{name}")
        (stage / _MIRRORED).mkdir()
        syscalls.mount(str(directory), str(stage / _MIRRORED), None, syscalls.MS_BIND | syscalls.MS_REC)
        _make_empty(stage / wanted.relative_to(directory))
        syscalls.mount(str(stage), str(directory), None, syscalls.MS_BIND | syscalls.MS_REC)


def _make_empty(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def _cover_resolved(resolv_conf: str | None) -> None:
    """Cover systemd-resolved's directory, sockets and all; only its resolv.conf files appear again."""
    if not os.path.isdir(_RESOLVED):
        return
    files = {path.name: _text(str(path)) for path in Path(_RESOLVED).glob("*.conf")}
    syscalls.mount("pytest-netns", _RESOLVED, "tmpfs", _INERT | syscalls.MS_NOEXEC, "mode=755")
    for name, text in files.items():
        Path(_RESOLVED, name).write_text(text if resolv_conf is None else resolv_conf, encoding="utf-8")
    read_only(_RESOLVED)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""

"""Typed wrappers of the system calls by which a process gives up what it may do, or moves files under other owners.

Names, arguments and constants are the kernel's: open_tree(2), move_mount(2), mount_setattr(2),
landlock_create_ruleset(2), prctl(2), time_namespaces(7). The numbers of these system calls are the same on
every architecture.
"""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

from pytest_netns.errors import KernelError

CLONE_NEWTIME: Final = 0x80

PR_SET_DUMPABLE: Final = 4
PR_SET_NO_NEW_PRIVS: Final = 38
PR_SET_CHILD_SUBREAPER: Final = 36

_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE_RULESET, _LANDLOCK_RESTRICT_SELF = 444, 446
_LANDLOCK_CREATE_RULESET_VERSION: Final = 1
_LANDLOCK_SCOPES: Final = 0b11  # abstract Unix sockets, and signals
_LANDLOCK_ABI_OF_SCOPES: Final = 6

_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_AT_FDCWD: Final = -100
_MOUNT_ATTR_IDMAP: Final = 0x0010_0000

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _call(number: int, *arguments: int | bytes | None, what: str) -> int:
    words = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    result: int = _syscall(ctypes.c_long(number), *words)
    if result < 0:
        errno = ctypes.get_errno()
        raise KernelError(errno, f"{what}: {os.strerror(errno)}")
    return result


def open_tree(fd: int, *, recursive: bool) -> int:
    """Return a descriptor of a copy of the mount that ``fd`` is in, from ``fd`` on down; it is mounted nowhere yet."""
    flags = _AT_EMPTY_PATH | _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _call(_OPEN_TREE, fd, b"", flags, what="open_tree()")


def move_mount(fd: int, target: str) -> None:
    """Attach what ``open_tree`` returned."""
    arguments = (fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)
    _call(_MOVE_MOUNT, *arguments, what=f"move_mount({target!r})")


def map_owners(fd: int, userns_fd: int, *, recursive: bool) -> None:
    """Show the files of a mount that is attached nowhere yet under the owners that a user namespace maps them to."""
    attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, userns_fd)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call(_MOUNT_SETATTR, fd, b"", flags, attributes, len(attributes), what="mount_setattr(MOUNT_ATTR_IDMAP)")


def has_scopes() -> bool:
    """Tell whether Landlock can keep a process from the abstract Unix sockets of others (Linux 6.12)."""
    try:
        version = _call(
            _LANDLOCK_CREATE_RULESET, None, 0, _LANDLOCK_CREATE_RULESET_VERSION, what="landlock_create_ruleset()"
        )
    except KernelError:
        return False
    return version >= _LANDLOCK_ABI_OF_SCOPES


def scope() -> None:
    """Keep the calling thread, and all that it starts, from signalling others and from their abstract Unix sockets.

    Others are whoever did not descend from the thread after this call. ``PR_SET_NO_NEW_PRIVS`` must be set.
    """
    attributes = struct.pack("=QQQ", 0, 0, _LANDLOCK_SCOPES)
    ruleset = _call(_LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0, what="landlock_create_ruleset()")
    try:
        _call(_LANDLOCK_RESTRICT_SELF, ruleset, 0, what="landlock_restrict_self()")
    finally:
        os.close(ruleset)


def shift_clocks(boot: float, monotonic: float) -> None:
    """Have what the calling process starts see other clocks, by so many seconds, in a new time namespace.

    The caller must have CAP_SYS_ADMIN and CAP_SYS_TIME in its user namespace.
    """
    if _libc.unshare(CLONE_NEWTIME) < 0:
        errno = ctypes.get_errno()
        raise KernelError(errno, f"unshare(CLONE_NEWTIME): {os.strerror(errno)}")
    lines = [f"{name} {_timespec(offset)}" for name, offset in (("boottime", boot), ("monotonic", monotonic))]
    try:
        with open("/proc/self/timens_offsets", "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")
    except OSError as error:
        shift = f"boot_offset={boot}, monotonic_offset={monotonic}"
        raise KernelError(
            error.errno or 0, f"{shift}: {error.strerror}; no clock goes back to before the machine's start"
        ) from error


def _timespec(seconds: float) -> str:
    whole, fraction = divmod(round(seconds * 10**9), 10**9)
    return f"{whole} {fraction}"

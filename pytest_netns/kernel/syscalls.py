"""Typed wrappers of the system calls that Python lacks, with one error path.

Names, arguments and constants are the kernel's (unshare(2), setns(2), mount(2), umount2(2),
pivot_root(2), prctl(2), capset(2)). Python gained ``os.unshare`` and ``os.setns`` in 3.12; the project supports 3.10.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from pytest_netns.errors import KernelError

CLONE_FS: Final = 0x0000_0200
CLONE_NEWNS: Final = 0x0002_0000
CLONE_NEWUSER: Final = 0x1000_0000
CLONE_NEWNET: Final = 0x4000_0000

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x4_0000
MS_SLAVE: Final = 0x8_0000
MNT_DETACH: Final = 0x2

PR_SET_PDEATHSIG: Final = 1
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
_libc.mount.argtypes = [ctypes.c_char_p] * 3 + [ctypes.c_ulong, ctypes.c_char_p]


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise KernelError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name for new ones."""
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def setns(fd: int, nstype: int) -> None:
    """Enter the namespace that ``fd`` refers to."""
    _check(_libc.setns(fd, nstype), f"setns({fd}, {nstype:#x})")


def mount(source: str, target: str, fstype: str | None, flags: int = 0, data: str | None = None) -> None:
    """Attach a file system, a bind or a new propagation type."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        fstype.encode() if fstype else None,
        flags,
        data.encode() if data else None,
    )
    _check(result, f"mount({source!r}, {target!r}, {fstype!r}, {flags:#x}, {data!r})")


def umount2(target: str, flags: int = 0) -> None:
    """Detach what is mounted on ``target``."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount2({target!r}, {flags:#x})")


def pivot_root(new_root: str, put_old: str) -> None:
    """Make ``new_root`` the root of the mount namespace, and mount the old one at ``put_old``."""
    _check(_libc.pivot_root(os.fsencode(new_root), os.fsencode(put_old)), f"pivot_root({new_root!r}, {put_old!r})")


def prctl(option: int, arg2: int = 0, arg3: int = 0) -> int:
    """Operate on the calling process or thread."""
    result: int = _libc.prctl(option, arg2, arg3, 0, 0)
    _check(result, f"prctl({option}, {arg2}, {arg3})")
    return result


class _CapHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapData(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


_LINUX_CAPABILITY_VERSION_3: Final = 0x2008_0522


def capget() -> tuple[int, int, int]:
    """Return the calling thread's effective, permitted and inheritable sets as bit masks."""
    header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    _check(_libc.capget(ctypes.byref(header), data), "capget()")
    low, high = data
    return (
        low.effective | high.effective << 32,
        low.permitted | high.permitted << 32,
        low.inheritable | high.inheritable << 32,
    )


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the calling thread's capability sets."""
    header = _CapHeader(_LINUX_CAPABILITY_VERSION_3, 0)
    data = (_CapData * 2)()
    for word, shift in ((data[0], 0), (data[1], 32)):
        word.effective = effective >> shift & 0xFFFF_FFFF
        word.permitted = permitted >> shift & 0xFFFF_FFFF
        word.inheritable = inheritable >> shift & 0xFFFF_FFFF
    _check(_libc.capset(ctypes.byref(header), data), f"capset({effective:#x}, {permitted:#x}, {inheritable:#x})")

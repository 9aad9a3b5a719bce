"""Moving a thread between network and mount namespaces, whole or not at all.

setns(2) of a mount namespace also moves root and working directory to the root of that namespace,
so the working directory is found again by its path. A hop is one run of C calls: Python gets no
chance to run a signal handler inside it, so Ctrl-C or a timeout can neither leave the thread with
effective capabilities nor with its network in one place and its mounts in another.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
from typing import Final

from pytest_netns.errors import KernelError
from pytest_netns.kernel import privilege, syscalls

__all__ = ["Position", "hop", "hop_to"]

_Call = functools.partial[int]
_LINUX_CAPABILITY_VERSION_3: Final = 0x2008_0522

_CAUSES: Final = {
    errno.EPERM: ". A process of an ordinary user that has left the host's network can't go back to it; "
    "start what needs the host before, or run as root"
}

# Work that is handed to a pool makes positions in the midst of a test, which may have replaced these.
_getcwd, _open, _close = os.getcwd, os.open, os.close

_libc = ctypes.CDLL(None, use_errno=True)
# setns(CLONE_NEWNS) wants a root and working directory of the thread's own; threads that it starts share them again.
_unshare_fs: Final[_Call] = functools.partial(_libc.unshare, syscalls.CLONE_FS)
_errno: Final[_Call] = functools.partial(ctypes.get_errno)


def _cwd() -> str:
    try:
        return _getcwd()
    except OSError:
        return "/"


@functools.lru_cache(maxsize=8)
def _capset(effective: int, permitted: int, inheritable: int) -> _Call:
    sets = (effective, permitted, inheritable)
    words = [word >> shift & 0xFFFF_FFFF for shift in (0, 32) for word in sets]
    return functools.partial(
        _libc.capset, (ctypes.c_uint32 * 2)(_LINUX_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)(*words)
    )


def _in_one_go(*calls: _Call) -> list[int]:
    """Make the calls one after the other, with no bytecode and so no signal handler in between."""
    return list(map(functools.partial.__call__, calls))


def _move(net_fd: int, mnt_fd: int, cwd: str) -> bool:
    net: _Call = functools.partial(_libc.setns, net_fd, syscalls.CLONE_NEWNET)
    mnt: _Call = functools.partial(_libc.setns, mnt_fd, syscalls.CLONE_NEWNS)
    chdir: _Call = functools.partial(_libc.chdir, os.fsencode(cwd))
    if privilege.is_root():
        _, in_net, in_mnt, number, in_cwd = _in_one_go(_unshare_fs, net, mnt, _errno, chdir)
    else:
        effective, permitted, inheritable = syscalls.capget()
        up, down = (_capset(bits, permitted, inheritable) for bits in (permitted, effective))
        _, _, in_net, in_mnt, number, _, in_cwd = _in_one_go(_unshare_fs, up, net, mnt, _errno, down, chdir)
    if in_net < 0 or in_mnt < 0:
        failed = " and ".join(["setns(net)"] * (in_net < 0) + ["setns(mnt)"] * (in_mnt < 0))
        raise KernelError(number, f"{failed}: {os.strerror(number)}{_CAUSES.get(number, '')}")
    return in_cwd == 0


class Position:
    """The namespaces and the working directory that the calling thread is in, to come back to.

    It holds two file descriptors until ``close()``.
    """

    __slots__ = ("cwd", "mnt_fd", "net_fd")

    def __init__(self) -> None:
        """Remember where the calling thread is."""
        self.net_fd = self.mnt_fd = -1
        self.cwd = _cwd()
        self.net_fd = _open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.mnt_fd = _open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        except BaseException:
            self.close()
            raise

    def hop_to(self, net_fd: int, mnt_fd: int) -> None:
        """Move the calling thread there, keeping its working directory, or else to ``/`` where that is missing.

        Raises:
            KernelError: the kernel refused; the thread is back at this position.
        """
        try:
            _move(net_fd, mnt_fd, self.cwd)
        except KernelError:
            self.restore()
            raise

    def restore(self) -> None:
        """Bring the calling thread back, working directory included; doing so twice is harmless."""
        _move(self.net_fd, self.mnt_fd, self.cwd)

    def close(self) -> None:
        """Forget the position; doing so twice is harmless."""
        fds, self.net_fd, self.mnt_fd = (self.net_fd, self.mnt_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                _close(fd)


def hop(origin: tuple[int, int], goal: tuple[int, int]) -> bool:
    """Move the calling thread for good, keeping its working directory, between two known pairs of namespaces.

    Args:
        origin: descriptors of the network and the mount namespace that it is in.
        goal: of those that it shall be in.

    Returns:
        Whether the working directory is there, too; the thread is in ``/`` where it is not, or was removed before.

    Raises:
        KernelError: the kernel refused; the thread is where it was.
    """
    cwd, known = "/", False
    with contextlib.suppress(OSError):
        cwd, known = _getcwd(), True
    try:
        return _move(*goal, cwd) and known
    except KernelError:
        _move(*origin, cwd)
        raise


def hop_to(net_fd: int, mnt_fd: int) -> None:
    """Move the calling thread to these namespaces for good, wherever it is, keeping its working directory.

    Raises:
        KernelError: the kernel refused; the thread is where it was.
    """
    origin = Position()
    try:
        origin.hop_to(net_fd, mnt_fd)
    finally:
        origin.close()

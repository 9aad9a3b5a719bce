"""Why the kernel probably refused a call, and what to do, told by the number of its error and by what was tried."""

from __future__ import annotations

import errno
from typing import Final

from pytest_netns.errors import KernelError

__all__ = ["advice", "in_full", "told"]

_NAMESPACES: Final = (
    "as many namespaces exist as may (those that have ended count until the kernel has cleared them); "
    "raise user.max_net_namespaces and user.max_mnt_namespaces with sysctl, or run fewer workers"
)
_DISK: Final = "the disk is full; free some space, or set TMPDIR to a directory on another"
_MEMORY: Final = "memory is used up, or what the container may have of it; run fewer workers, or give it more"
_ADVICE: Final = {
    errno.EMFILE: "this process has as many files open as it may; close some, or raise the limit with ulimit -n",
    errno.ENFILE: "all processes together have as many files open as may be; raise fs.file-max with sysctl",
    errno.EDQUOT: "the user's share of the disk is full; free some space, or set TMPDIR to a directory on another",
    errno.EROFS: "the file system is read-only; set TMPDIR to a directory that can be written to",
    errno.ENOMEM: _MEMORY,
    errno.ENOBUFS: _MEMORY,
    errno.EAGAIN: "as many processes run as may; raise the limit with ulimit -u, or the container's pids limit",
    errno.ETIMEDOUT: "the machine may be overloaded, or was asleep; run again, with fewer workers",
    errno.EPERM: "something forbids it (seccomp, AppArmor or SELinux may); python -m pytest_netns doctor looks for it",
    errno.EACCES: "the permissions forbid it; python -m pytest_netns doctor looks for what is in the way",
}
_CHECK: Final = "python -m pytest_netns doctor looks for the cause"
_OF_NAMESPACES: Final = ("unshare(", "setns(")


def advice(error: BaseException) -> str:
    """Return the likely cause of an ``OSError`` and the remedy; nothing for other errors."""
    if not isinstance(error, OSError) or error.errno is None:
        return ""
    if error.errno in (errno.ENOSPC, errno.EUSERS):
        return _NAMESPACES if any(call in str(error) for call in _OF_NAMESPACES) else _DISK
    return _ADVICE.get(error.errno, _CHECK)


def in_full(error: BaseException) -> str:
    """Return what failed, why, and the remedy."""
    text = (error.strerror or str(error)) if isinstance(error, KernelError) else str(error)
    why = advice(error)
    return f"{text}: {why}" if why else text


def told(error: BaseException) -> str:
    """Return what a user reads of an error that a test met with on its way in or out."""
    return f"netns: {in_full(error)}"

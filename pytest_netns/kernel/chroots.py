"""What becomes of a chroot: setns(2) leads to the root of the mount namespace, and so out of it, unseen."""

from __future__ import annotations

import contextlib
import os

from pytest_netns.errors import KernelError
from pytest_netns.kernel import syscalls

__all__ = ["settle"]


def settle() -> bool:
    """Make the root that chroot(2) gave to this thread the root of a mount namespace of its own.

    From then on, moving between namespaces keeps to it. The working directory stays. Elsewhere than in a chroot
    nothing changes.

    Returns:
        Whether the thread was in a chroot.

    Raises:
        KernelError: it is in one, and the kernel refused; then it is in ``/`` of that chroot.
    """
    with contextlib.ExitStack() as stack:
        here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, here)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, root)
        namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, namespace)
        syscalls.unshare(syscalls.CLONE_FS)
        try:
            syscalls.setns(namespace, syscalls.CLONE_NEWNS)
        except KernelError:  # the namespace is another user's: the thread is where it was, and can't be led out
            return False
        try:
            os.fchdir(root)
            place = os.getcwd()
            if place == "/":
                os.fchdir(here)
                return False
            cwd = _below(place, here)
            _make_root(place)
        except OSError:
            os.fchdir(root)
            os.chroot(".")
            raise
        with contextlib.suppress(OSError):  # it was removed
            os.chdir(cwd)
        return True


def _below(root: str, directory: int) -> str:
    os.fchdir(directory)
    try:
        return os.getcwd().removeprefix(root) or "/"
    except FileNotFoundError:
        return "/"


def _make_root(place: str) -> None:
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount(place, place, None, syscalls.MS_BIND | syscalls.MS_REC)
    os.chdir(place)
    syscalls.pivot_root(".", ".")  # the old root lies on the new one, until it is gone: pivot_root(2)
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")

"""User namespaces that map one user to another, and the way to become that user."""

from __future__ import annotations

import os
from collections.abc import Iterable

from pytest_netns.errors import KernelError
from pytest_netns.kernel import syscalls


def mapping(users: Iterable[str], groups: Iterable[str]) -> int:
    """Return a descriptor of a new user namespace with these mappings, as /proc/<pid>/uid_map and gid_map have them.

    Nobody is in it. The caller must be root, and have no threads.

    Raises:
        KernelError: the kernel makes no user namespaces.
    """
    ready, told = os.pipe()
    done, end = os.pipe()
    child = os.fork()
    if not child:
        _linger(told, done, end)
    os.close(told)
    os.close(done)
    try:
        said = os.read(ready, 8)
        if said != b"ok":
            errno = int(said or b"1")
            raise KernelError(errno, f"unshare(CLONE_NEWUSER): {os.strerror(errno)}")
        for name, lines in (("uid_map", users), ("gid_map", groups)):
            with open(f"/proc/{child}/{name}", "w", encoding="ascii") as file:
                file.write("\n".join(lines) + "\n")
        return os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(ready)
        os.close(end)
        os.waitpid(child, 0)


def _linger(told: int, done: int, end: int) -> None:
    """Be in a new user namespace until the parent has seen it."""
    try:
        os.close(end)
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
        except KernelError as error:
            os.write(told, str(error.errno).encode())
        else:
            os.write(told, b"ok")
            os.read(done, 1)
    finally:
        os._exit(0)


def become(uid: int) -> None:
    """Become another user, and its group, for good; the caller must be root."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)

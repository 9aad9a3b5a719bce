"""Bring what a box has done to its working directory into the real one."""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
import stat
from collections.abc import Iterable
from typing import IO, Final

from pytest_netns.errors import SandboxError
from pytest_netns.sandbox import strange
from pytest_netns.sandbox.changes import Change
from pytest_netns.sandbox.snapshot import ABSENT, DIRECTORY, FILE, LINK

__all__ = ["apply"]

_WRITE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def apply(changes: Iterable[Change], upper: int, base: int) -> None:
    """Make these changes in the real directory; pipes and sockets are left out.

    Args:
        changes: what is wanted.
        upper: a descriptor of the overlay's upper directory, which nobody writes to any more.
        base: a descriptor of the real directory.

    Raises:
        SandboxError: a link leads out of the directory; then nothing has been done.
        OSError: the directory cannot be written to.
    """
    wanted = sorted(changes, key=lambda change: change.path)
    for change in wanted:
        if change.after.kind == LINK:
            _refuse_escape(change)
    for change in reversed(wanted):
        if change.before.kind not in {ABSENT, change.after.kind}:
            _remove(base, change)
    for change in wanted:
        if change.after.kind in (FILE, DIRECTORY, LINK):
            _put(upper, base, change)
    for change in reversed(wanted):  # a directory may forbid what was just done in it
        if change.after.kind == DIRECTORY:
            _set_mode(base, change)


def _refuse_escape(change: Change) -> None:
    target = os.fsdecode(change.after.data or b"")
    reached = posixpath.normpath(posixpath.join(posixpath.dirname(change.path), target))
    if target.startswith("/") or reached == ".." or reached.startswith("../"):
        raise SandboxError(
            f"{change.path!r} is a link that leads out of the working directory, to {target!r}; nothing was applied: "
            "whoever writes to it later would write there. Name the paths to apply, or discard()"
        )


def _remove(base: int, change: Change) -> None:
    directory, name = strange.opened_parent(base, change.path)
    try:
        with contextlib.suppress(FileNotFoundError):
            (os.rmdir if change.before.kind == DIRECTORY else os.unlink)(name, dir_fd=directory)
    finally:
        os.close(directory)


def _put(upper: int, base: int, change: Change) -> None:
    directory, name = strange.opened_parent(base, change.path)
    try:
        if change.after.kind == LINK:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=directory)
            os.symlink(change.after.data or b"", os.fsencode(name), dir_fd=directory)
        elif change.after.kind == DIRECTORY:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=directory)
            os.chmod(name, (change.after.mode | stat.S_IRWXU) & 0o777, dir_fd=directory)
        else:
            with _opened(upper, change.path) as source:
                _write(source, directory, name, change.after.mode & 0o777)
    finally:
        os.close(directory)


def _set_mode(base: int, change: Change) -> None:
    directory, name = strange.opened_parent(base, change.path)
    try:
        os.chmod(name, change.after.mode & 0o777, dir_fd=directory)
    finally:
        os.close(directory)


def _opened(upper: int, path: str) -> IO[bytes]:
    """Open a file of the box's; its mode may forbid its owner to read it."""
    directory, name = strange.opened_parent(upper, path)
    try:
        fd = strange.opened(directory, name)
    finally:
        os.close(directory)
    if fd is None:
        raise SandboxError(f"{path!r} cannot be read, so it was not applied, and nothing that comes after it")
    return open(fd, "rb")


def _write(source: IO[bytes], directory: int, name: str, mode: int) -> None:
    """Write a file whole or not at all."""
    temporary = f".{secrets.token_hex(8)}"
    fd = os.open(temporary, _WRITE, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            for at, block in strange.filled(source):
                file.seek(at)
                file.write(block)
            file.truncate(os.fstat(source.fileno()).st_size)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong before is to be told
            os.unlink(temporary, dir_fd=directory)
        raise

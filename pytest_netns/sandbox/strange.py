"""Open what a stranger has laid out: no link is followed, nothing blocks, and modes that forbid looking are no help.

Modes that had to be changed for that are given back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import IO, Final, NamedTuple

__all__ = ["Inner", "below", "filled", "opened", "opened_directory", "opened_parent", "readable", "unseen"]

_LOOK: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_BLOCK: Final = 64 << 10  # bytes of a file that are read at once
_PATH: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


#: What a name that somebody chose may lead to; all else, as too many open files, is no property of what is there.
_UNSEEN: Final = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)


@contextlib.contextmanager
def unseen() -> Iterator[None]:
    """Pass over it if what is looked at is not there, is of another kind, or may not be looked at."""
    try:
        yield
    except OSError as error:
        if error.errno not in _UNSEEN:
            raise


class Inner(NamedTuple):
    """An open directory, and the mode to give it back once it has been looked into."""

    fd: int
    mode: int | None = None

    def close(self) -> None:
        """Give the mode back, and close it."""
        if self.mode is not None:
            os.chmod(f"/proc/self/fd/{self.fd}", self.mode)
        os.close(self.fd)


def opened(directory: int, name: str) -> int | None:
    """Open a file of the box's for reading, even where its mode forbids that to its owner; None if that fails."""
    inner = _unlocked(directory, name, 0)
    if inner is None:
        return None
    if inner.mode is not None:
        os.chmod(f"/proc/self/fd/{inner.fd}", inner.mode)
    return inner.fd


def opened_directory(directory: int, name: str) -> Inner | None:
    """Open a directory of the box's, even where its mode forbids that to its owner; None if that fails."""
    inner = _unlocked(directory, name, os.O_DIRECTORY)
    if inner is not None and inner.mode is None and not os.access(f"/proc/self/fd/{inner.fd}", os.R_OK | os.X_OK):
        mode = stat.S_IMODE(os.fstat(inner.fd).st_mode)
        os.chmod(f"/proc/self/fd/{inner.fd}", 0o700)
        return Inner(inner.fd, mode)
    return inner


def _unlocked(directory: int, name: str, flags: int) -> Inner | None:
    """Open what is really there, and tell which mode it had if that had to be changed."""
    with unseen():
        try:
            return Inner(os.open(name, _LOOK | flags, dir_fd=directory))
        except PermissionError:
            pass
        handle = os.open(name, _PATH | flags, dir_fd=directory)
        itself = f"/proc/self/fd/{handle}"
        try:
            mode = stat.S_IMODE(os.fstat(handle).st_mode)
            os.chmod(itself, 0o700)
            return Inner(os.open(itself, (_LOOK | flags) & ~os.O_NOFOLLOW), mode)
        finally:
            os.close(handle)
    return None


def readable(directory: int, name: str) -> int | None:
    """Open a file for reading as it is; None if that fails."""
    with unseen():
        return os.open(name, _LOOK, dir_fd=directory)
    return None


def filled(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield the blocks of a file that are not all zeros, each with its offset; holes cost nothing, and are not read."""
    at = 0
    while True:
        try:
            at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _BLOCK * _BLOCK
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here on
                return
            raise
        block = os.pread(file.fileno(), _BLOCK, at)
        if block.strip(b"\0"):
            yield at, block
        at += _BLOCK


def opened_parent(root: int, path: str) -> tuple[int, str]:
    """Open the directory that a path is in, following no link on the way down, and return it and the last name.

    Raises:
        OSError: there is no such directory.
    """
    *above, name = path.split("/")
    directory = os.dup(root)
    for part in above:
        try:
            below = os.open(part, _PATH | os.O_DIRECTORY, dir_fd=directory)
        finally:
            os.close(directory)
        directory = below
    return directory, name


def below(root: int, path: str) -> Iterator[str]:
    """Yield the paths of everything below a path of a real directory, itself not included."""
    with unseen():
        directory, name = opened_parent(root, path)
        try:
            top = os.open(name, _LOOK | os.O_DIRECTORY, dir_fd=directory)
        finally:
            os.close(directory)
        try:
            for inner in _names(top):
                yield f"{path}/{inner}"
        finally:
            os.close(top)


def _names(root: int) -> Iterator[str]:
    """Yield the paths below a directory, without a look into files."""
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        with unseen():
            directory = os.open(f"./{prefix}", _LOOK | os.O_DIRECTORY, dir_fd=root)
            try:
                for one in os.scandir(directory):
                    yield f"{prefix}{one.name}"
                    if one.is_dir(follow_symlinks=False):
                        waiting.append(f"{prefix}{one.name}/")
            finally:
                os.close(directory)

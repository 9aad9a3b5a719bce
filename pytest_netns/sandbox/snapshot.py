"""What a box has written to its overlay, read without ever following what it may have laid out as a trap.

A box's files are a stranger's: links lead anywhere, pipes block, directories forbid looking in or go down for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pytest_netns.sandbox.strange import Inner, filled, opened, opened_directory, opened_parent, readable, unseen

__all__ = [
    "ABSENT",
    "DIRECTORY",
    "FILE",
    "LINK",
    "NOTHING",
    "OTHER",
    "Entry",
    "Snapshot",
    "entry_at",
]

FILE, DIRECTORY, LINK, OTHER, ABSENT = "file", "directory", "link", "other", "absent"

_OPAQUE: Final = ("user.overlay.opaque", "trusted.overlay.opaque")  # the second where the first can't be had
_KEPT: Final = 1 << 20  # bytes of a text that are kept; of a longer one, its hash is
_LONGEST: Final = 4000  # bytes of a path that is looked into


class Entry(NamedTuple):
    """What is at a path.

    Attributes:
        kind: FILE, DIRECTORY, LINK, OTHER (a pipe, a socket) or ABSENT.
        mode: the permission bits.
        data: a text's content, a link's target; None where a file is too long to be kept, has zero bytes, or could
            not be read.
        digest: the hash of a file that was read and is not kept.
        opaque: whether a directory hides what was there before.
    """

    kind: str
    mode: int = 0
    data: bytes | None = None
    digest: bytes | None = None
    opaque: bool = False

    def same_as(self, other: Entry) -> bool:
        """Tell whether nobody who looks at both sees a difference, times apart."""
        return self[:4] == other[:4]


NOTHING: Final = Entry(ABSENT)


@dataclass
class Snapshot:
    """What an overlay holds at a moment; what is the same as at an earlier one was not read again.

    Attributes:
        touched: by path, from the working directory on down, what is there instead of what was.
    """

    touched: dict[str, Entry] = field(default_factory=dict)
    _read: dict[tuple[int, int, int], Entry] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, upper: int, before: Snapshot | None = None) -> Snapshot:
        """Read the overlay's upper directory, of which this is a descriptor."""
        snapshot = cls()
        known = {} if before is None else before._read  # noqa: SLF001 - its own class
        for path, entry, stamp in _walk(upper, known):
            snapshot.touched[path] = entry
            if stamp is not None:
                snapshot._read[stamp] = entry
        return snapshot

    def look(self, path: str, base: int) -> Entry:
        """Return what is at a path in the box; ``base`` is a descriptor of the real directory."""
        found = self.touched.get(path)
        if found is not None:
            return found
        for parent in _parents(path):
            above = self.touched.get(parent)
            if above is not None and (above.kind != DIRECTORY or above.opaque):
                return NOTHING
        return entry_at(base, path)

    def covering(self) -> Iterator[str]:
        """Yield the paths at which what was below is gone, whatever it was."""
        for path, entry in self.touched.items():
            if entry.kind != DIRECTORY or entry.opaque:
                yield path


def _parents(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


_Found = tuple[str, Entry, "tuple[int, int, int] | None"]


def _walk(root: int, known: dict[tuple[int, int, int], Entry]) -> Iterator[_Found]:
    """Yield what is below a directory, not deeper than paths may be long."""
    waiting = [(Inner(os.dup(root)), "")]
    try:
        while waiting:
            directory, prefix = waiting.pop()
            try:
                for name in sorted(os.listdir(directory.fd)):
                    path = f"{prefix}{name}"
                    with contextlib.suppress(FileNotFoundError):
                        entry, stamp, inner = _read(directory.fd, name, known, deeper=len(path) < _LONGEST)
                        yield path, entry, stamp
                        if inner is not None:
                            waiting.append((inner, f"{path}/"))
            finally:
                directory.close()
    finally:
        for directory, _ in waiting:
            directory.close()


def _read(
    directory: int, name: str, known: dict[tuple[int, int, int], Entry], *, deeper: bool
) -> tuple[Entry, tuple[int, int, int] | None, Inner | None]:
    seen = os.stat(name, dir_fd=directory, follow_symlinks=False)
    mode = stat.S_IMODE(seen.st_mode)
    if stat.S_ISDIR(seen.st_mode):
        inner = opened_directory(directory, name) if deeper else None
        return Entry(DIRECTORY, mode, opaque=inner is not None and _is_opaque(inner.fd)), None, inner
    if not stat.S_ISREG(seen.st_mode):
        return _special(directory, name, seen), None, None
    stamp = (seen.st_ino, seen.st_ctime_ns, seen.st_size)
    entry = known.get(stamp)
    return (_file(mode, opened(directory, name)) if entry is None else entry), stamp, None


def _special(directory: int, name: str, seen: os.stat_result) -> Entry:
    if stat.S_ISLNK(seen.st_mode):
        return Entry(LINK, 0o777, os.fsencode(os.readlink(name, dir_fd=directory)))
    if stat.S_ISCHR(seen.st_mode) and seen.st_rdev == 0:  # how an overlay notes that something was deleted
        return NOTHING
    return Entry(OTHER, stat.S_IMODE(seen.st_mode))


def _file(mode: int, fd: int | None) -> Entry:
    """Read a file, of which no more is kept than it takes of the box's disk: a text's bytes, and else a hash."""
    if fd is None:
        return Entry(FILE, mode)
    with open(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if size == 0 or (size <= _KEPT and os.lseek(fd, 0, os.SEEK_HOLE) >= size):
            data = os.pread(fd, _KEPT, 0)
            if b"\0" not in data:
                return Entry(FILE, mode, data)
        digest = hashlib.sha256(b"%d" % size)
        for at, block in filled(file):
            digest.update(b"%d:" % at + block)
        return Entry(FILE, mode, digest=digest.digest())


def _is_opaque(directory: int) -> bool:
    for name in _OPAQUE:
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"y":
                return True
    return False


def entry_at(root: int, path: str) -> Entry:
    """Return what is at a path below a real directory, in which nothing is touched."""
    with unseen():
        directory, name = opened_parent(root, path)
        try:
            seen = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(seen.st_mode):
                return Entry(DIRECTORY, stat.S_IMODE(seen.st_mode))
            if not stat.S_ISREG(seen.st_mode):
                return _special(directory, name, seen)
            return _file(stat.S_IMODE(seen.st_mode), readable(directory, name))
        finally:
            os.close(directory)
    return NOTHING

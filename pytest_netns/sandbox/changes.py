"""What has become of a working directory: files created, modified and deleted, each with a unified diff."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pytest_netns.sandbox import strange
from pytest_netns.sandbox.snapshot import ABSENT, FILE, LINK, NOTHING, Entry, Snapshot

__all__ = ["CREATED", "DELETED", "MODIFIED", "Change", "between"]

CREATED, MODIFIED, DELETED = "created", "modified", "deleted"

_MOST_LINES: Final = 2000  # of a part that is compared line by line: more takes time without end, if so laid out
_TYPES: Final = {FILE: "100", LINK: "120"}


@dataclass(frozen=True, slots=True)
class Change:
    """What has become of one path.

    Attributes:
        path: the path, relative to the working directory.
        kind: ``created``, ``modified`` or ``deleted``.
        before: what was there.
        after: what is there.
    """

    path: str
    kind: str
    before: Entry = field(repr=False, compare=False)
    after: Entry = field(repr=False, compare=False)

    @property
    def diff(self) -> str:
        """The change as ``git diff`` has it; empty for what git has no notion of: directories, pipes, sockets."""
        before, after = (entry if entry.kind in _TYPES else NOTHING for entry in (self.before, self.after))
        if before.kind != after.kind:  # git, too, has one thing go, and the other come
            return "".join((*_diff(self.path, before, NOTHING), *_diff(self.path, NOTHING, after)))
        return "".join(_diff(self.path, before, after))

    def __str__(self) -> str:
        """Return the kind and the path."""
        return f"{self.kind} {self.path}"


def between(before: Snapshot, after: Snapshot, base: int) -> list[Change]:
    """Return what differs between two moments of an overlay, by path.

    Args:
        before: the earlier one.
        after: the later one.
        base: a descriptor of the real directory.
    """
    paths = {*before.touched, *after.touched}
    for covered in {*before.covering(), *after.covering()}:
        paths.update(strange.below(base, covered))
    changes = []
    for path in sorted(paths):
        old, new = before.look(path, base), after.look(path, base)
        if not old.same_as(new):
            kind = CREATED if old.kind == ABSENT else DELETED if new.kind == ABSENT else MODIFIED
            changes.append(Change(path, kind, old, new))
    return changes


def _diff(path: str, before: Entry, after: Entry) -> Iterator[str]:
    """Yield the difference of two files, or two links, one of which may be absent."""
    if before.same_as(after):
        return
    old, new = _quoted(f"a/{path}"), _quoted(f"b/{path}")
    yield f"diff --git {old} {new}\n"
    if before.kind == ABSENT:
        yield f"new file mode {_mode(after)}\n"
        old = "/dev/null"
    elif after.kind == ABSENT:
        yield f"deleted file mode {_mode(before)}\n"
        new = "/dev/null"
    elif _mode(before) != _mode(after):
        yield f"old mode {_mode(before)}\nnew mode {_mode(after)}\n"
        if (before.data, before.digest) == (after.data, after.digest):
            return
    lines, others = _lines(before), _lines(after)
    if lines is None or others is None:
        yield f"Binary files {old} and {new} differ\n"
    elif lines != others:
        yield f"--- {old}\n+++ {new}\n"
        yield from _hunks(lines, others)


def _mode(entry: Entry) -> str:
    return f"{_TYPES[entry.kind]}{entry.mode & 0o777 if entry.kind == FILE else 0:03o}"


def _lines(entry: Entry) -> list[str] | None:
    """Return the lines of a text, or None for what is none."""
    if entry.kind == ABSENT:
        return []
    if entry.data is None:
        return None
    try:
        return _split(entry.data.decode())
    except UnicodeDecodeError:
        return None


def _split(text: str) -> list[str]:
    return [f"{line}\n" for line in text.split("\n")[:-1]] + ([last] if (last := text.rpartition("\n")[2]) else [])


def _hunks(old: list[str], new: list[str]) -> Iterator[str]:
    if max(len(old), len(new)) > _MOST_LINES:
        yield from _replaced(old, new)
        return
    for line in list(difflib.unified_diff(old, new))[2:]:
        yield _ended(line)


def _replaced(old: list[str], new: list[str]) -> Iterator[str]:
    """Show all lines that differ as replaced, which takes no longer than reading them."""
    shorter = min(len(old), len(new))
    head = next((n for n in range(shorter) if old[n] != new[n]), shorter)
    tail = next((n for n in range(shorter - head) if old[-1 - n] != new[-1 - n]), shorter - head)
    gone, come = old[head : len(old) - tail], new[head : len(new) - tail]
    yield f"@@ -{_range(head, gone)} +{_range(head, come)} @@\n"
    for sign, lines in (("-", gone), ("+", come)):
        for line in lines:
            yield _ended(sign + line)


def _range(start: int, lines: list[str]) -> str:
    return f"{start + 1 if lines else start},{len(lines)}"


def _ended(line: str) -> str:
    return line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"


def _quoted(path: str) -> str:
    """Return a path as git writes it: odd ones in quotes, so that no name is taken for a line of the diff."""
    if path.isprintable() and '"' not in path and "\\" not in path:
        return path
    encoded = path.encode("utf-8", "surrogateescape")
    text = "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in encoded)
    return f'"{text}"'

"""The overlay of a box's working directory, seen from the pytest process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Final

from pytest_netns.sandbox import applying, changes
from pytest_netns.sandbox.changes import Change
from pytest_netns.sandbox.snapshot import Snapshot

__all__ = ["Overlay"]

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Overlay:
    """What a box keeps apart from the real working directory."""

    def __init__(self, stage: int, workdir: str) -> None:
        """Begin with nothing written.

        Args:
            stage: a descriptor of the box's stage.
            workdir: the real directory.
        """
        self._stage = stage
        self._base = os.open(workdir, _DIRECTORY)
        self._state = Snapshot()
        self._lock = threading.Lock()

    def advance(self) -> list[Change]:
        """Return what has changed since this was last called."""
        with self._lock:
            before, self._state = self._state, self._look()
            return changes.between(before, self._state, self._base)

    def pending(self) -> list[Change]:
        """Return what differs from the real directory."""
        return changes.between(Snapshot(), self._look(), self._base)

    def apply(self, wanted: list[Change]) -> None:
        """Make changes in the real directory."""
        with self._upper() as upper:
            applying.apply(wanted, upper, self._base)

    def forget(self) -> None:
        """Take note that the overlay is empty again."""
        self._state = Snapshot()

    def close(self) -> None:
        """Let go of the real directory; doing so twice is harmless."""
        base, self._base = self._base, -1
        if base >= 0:
            os.close(base)

    def _look(self) -> Snapshot:
        with self._upper() as upper:
            return Snapshot.of(upper, self._state)

    @contextlib.contextmanager
    def _upper(self) -> Iterator[int]:
        fd = os.open("upper", _DIRECTORY, dir_fd=self._stage)
        try:
            yield fd
        finally:
            os.close(fd)

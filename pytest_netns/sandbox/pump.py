"""Carry bytes between a box and what it must not hold itself: a file, a terminal, the standard output of pytest."""

from __future__ import annotations

import contextlib
import os
import select
import stat

__all__ = ["Budget", "Pump"]

_CHUNK = 64 * 1024
_SAFE = 4096  # PIPE_BUF: what a pipe or a terminal that polls as writable takes without blocking


class Budget:
    """How many bytes may still pass; None for any number."""

    def __init__(self, left: int | None) -> None:
        self._left = left

    @property
    def spent(self) -> bool:
        """Whether more came than may pass."""
        return self._left is not None and self._left < 0

    def take(self, data: bytes) -> bytes:
        """Return as much of the data as may pass."""
        if self._left is None:
            return data
        passed = data[: max(0, self._left)]
        self._left -= len(data)
        return passed


class Pump:
    """One direction of one stream; it owns both descriptors."""

    def __init__(self, source: int, sink: int, budget: Budget | None = None) -> None:
        self._source = source
        self._sink = sink
        self._budget = budget or Budget(None)
        self._held = b""
        self._at_once = _CHUNK if stat.S_ISREG(os.fstat(sink).st_mode) else _SAFE

    @property
    def over(self) -> bool:
        """Whether nothing will pass any more."""
        return self._source < 0

    def watched(self) -> tuple[int, int]:
        """Return the descriptor to wait for next, and for which event."""
        return (self._sink, select.POLLOUT) if self._held else (self._source, select.POLLIN)

    def attend(self, fd: int) -> None:
        """Do what a descriptor is ready for."""
        if self.over or fd != self.watched()[0]:
            return
        try:
            if self._held:
                self._held = self._held[os.write(self._sink, self._held[: self._at_once]) :]
            else:
                data = os.read(self._source, _CHUNK)
                self._held = self._budget.take(data)
                if not data:
                    self.close()
        except BlockingIOError:
            pass
        except OSError:  # nobody reads on, or the other end is gone: the box gets the same
            self.close()

    def close(self) -> None:
        """Let go of both ends."""
        for fd in {self._source, self._sink} - {-1}:
            with contextlib.suppress(OSError):
                os.close(fd)
        self._source = self._sink = -1
        self._held = b""

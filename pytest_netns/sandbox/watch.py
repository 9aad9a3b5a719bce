"""Look at a box's processes from time to time: how many there are, and what they use where no control group counts."""

from __future__ import annotations

import time
from typing import Final

from pytest_netns.sandbox import meter

__all__ = ["Watch"]

_FIRST: Final = 0.005  # seconds
_CLOSE: Final = 0.01  # seconds between looks where a limit depends on them
_CASUAL: Final = 0.05
_LONGEST: Final = 0.25
_DUTY: Final = 20  # a look takes at most one part of so many of the time


class Watch:
    """What was seen of one command.

    Attributes:
        next: when to look next, by the monotonic clock.
        processes: the most processes and threads that were seen at a time.
        memory: the most memory that was seen in use, in bytes.
    """

    def __init__(self, memory: int | None) -> None:
        """Watch over ``memory`` bytes, or over none."""
        self._limit = memory
        self._pause = _CASUAL if memory is None else _FIRST
        self.next = time.monotonic() + self._pause
        self.processes = 1
        self.memory = 0

    def look(self, init: int) -> bool:
        """Look at the box of which this is the init; return whether it uses more memory than it may."""
        began = time.monotonic()
        members = meter.family(init)[1:]
        self.processes = max(self.processes, len(members))
        over = self._limit is not None and self._weigh(members, self._limit)
        now = time.monotonic()
        self._pause = min(_LONGEST if self._limit is None else _CLOSE, self._pause * 1.5)
        self.next = now + max(self._pause, (now - began) * (_DUTY if self._limit is None else 1))
        return over

    def _weigh(self, members: list[int], limit: int) -> bool:
        """Count shared memory once, but only where counting it for each process makes too much of it."""
        memory = sum(map(meter.resident, members))
        if memory > limit:
            memory = sum(map(meter.proportional, members))
        self.memory = max(self.memory, memory)
        return memory > limit

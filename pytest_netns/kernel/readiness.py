"""Wait for a descriptor, whatever its number is: select(2) knows none above 1023."""

from __future__ import annotations

import select
from typing import Final, Protocol

__all__ = ["LONGEST", "is_readable"]

LONGEST: Final = 2**31 - 1  # milliseconds, 24 days: poll() takes no more


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def is_readable(file: int | _HasFileno, seconds: float | None = 0.0) -> bool:
    """Wait until a read would not block, for so many seconds, or for ever with None; tell whether that is so."""
    poll = select.poll()
    poll.register(file, select.POLLIN)
    return bool(poll.poll(None if seconds is None else min(seconds * 1000, LONGEST)))

"""Wait for descriptors, whatever their numbers are: select(2) knows none above 1023.

The functions are looked up at each call: gevent's and eventlet's, where these have replaced them, let others go on.
"""

from __future__ import annotations

import select
from collections.abc import Iterable
from typing import Final, Protocol

__all__ = ["LONGEST", "is_readable", "readable"]

LONGEST: Final = 2**31 - 1  # milliseconds, 24 days: poll() takes no more


class _HasFileno(Protocol):
    def fileno(self) -> int: ...


def is_readable(file: int | _HasFileno, seconds: float | None = 0.0) -> bool:
    """Wait until a read would not block, for so many seconds, or for ever with None; tell whether that is so."""
    return bool(readable([file if isinstance(file, int) else file.fileno()], seconds))


def readable(descriptors: Iterable[int], seconds: float | None = 0.0) -> list[int]:
    """Wait until some can be read without blocking, for so many seconds, or for ever with None; return these."""
    if not hasattr(select, "poll"):  # eventlet takes it away; its select() knows any number
        return select.select(list(descriptors), (), (), seconds)[0]
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return [descriptor for descriptor, _ in poll.poll(None if seconds is None else min(seconds * 1000, LONGEST))]

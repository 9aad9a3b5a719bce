"""The kernel's clocks, asked in a way that no test replaces: freezing the time is a thing that tests do."""

from __future__ import annotations

import ctypes
import time

__all__ = ["monotonic", "realtime"]

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def monotonic() -> float:
    """Return seconds since a moment that is the same for all processes, as ``time.monotonic()`` does."""
    return _read(time.CLOCK_MONOTONIC)


def realtime() -> float:
    """Return seconds since the epoch, as ``time.time()`` does."""
    return _read(time.CLOCK_REALTIME)


def _read(clock: int) -> float:
    now = _Timespec()
    _libc.clock_gettime(clock, ctypes.byref(now))
    return float(now.seconds + now.nanoseconds / 1e9)

"""The kernel's clocks, asked in a way that no test replaces: freezing the time is a thing that tests do."""

from __future__ import annotations

import ctypes
import os
import time
from typing import Final

from pytest_netns.errors import KernelError

__all__ = ["monotonic", "realtime", "timer"]

_LONGEST: Final = 1e9  # seconds, 32 years

_libc = ctypes.CDLL(None, use_errno=True)


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def monotonic() -> float:
    """Return seconds since a moment that is the same for all processes, as ``time.monotonic()`` does."""
    return _read(time.CLOCK_MONOTONIC)


def realtime() -> float:
    """Return seconds since the epoch, as ``time.time()`` does."""
    return _read(time.CLOCK_REALTIME)


def timer(seconds: float) -> int:
    """Return a descriptor that can be read once so many seconds have passed; it is the caller's to close.

    Raises:
        KernelError: descriptors are used up.
    """
    fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
    left = int(min(max(seconds, 0.0), _LONGEST) * 1e9) or 1  # a timer of 0 never goes off
    once = (_Timespec * 2)(_Timespec(0, 0), _Timespec(*divmod(left, 1_000_000_000)))
    if fd < 0 or _libc.timerfd_settime(fd, 0, once, None) < 0:
        raise KernelError(ctypes.get_errno(), f"timerfd: {os.strerror(ctypes.get_errno())}")
    return fd


def _read(clock: int) -> float:
    now = _Timespec()
    _libc.clock_gettime(clock, ctypes.byref(now))
    return float(now.seconds + now.nanoseconds / 1e9)

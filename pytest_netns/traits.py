"""What a test may change in its process, and leave changed for all that come after it: the umask, and signals.

Much of what is left is there to stay: what a broader fixture has set up, or a handler that a library put in place
when it was first used. Put back is only what nobody else can count on.
"""

from __future__ import annotations

# Its public face makes members of enumerations, which takes twenty times as long.
import _signal  # type: ignore[import-not-found]
import os
import signal
from typing import Any, Final, NamedTuple

import pytest

__all__ = ["Change", "Traits", "put_back"]

_UMASK: Final = 0  # beside the numbers of the signals, which begin with 1
_SIGNALS: Final = range(1, signal.NSIG)
_BLOCKED: Final = signal.NSIG  # after them, the signals that wait; what a process starts has them blocked, too
_DEFAULT: Final = (signal.SIG_DFL, signal.default_int_handler)
_MOCK: Final = "unittest.mock"
_TIMERS: Final = {
    signal.SIGALRM: signal.ITIMER_REAL,
    signal.SIGVTALRM: signal.ITIMER_VIRTUAL,
    signal.SIGPROF: signal.ITIMER_PROF,
}

# A test may have replaced them.
_getsignal, _setsignal, _setitimer, _umask = _signal.getsignal, _signal.signal, signal.setitimer, os.umask
_sigmask, _sigpending = _signal.pthread_sigmask, _signal.sigpending
_sigtimedwait: Any = getattr(_signal, "sigtimedwait", None)  # which macOS lacks, where nothing is isolated


class Change(NamedTuple):
    """What was left changed by the body of a test.

    Attributes:
        before: the umask, what the signal did, or which were blocked, before any test in the same leaf changed it.
        after: what it was after the body.
        item: the test.
    """

    before: Any
    after: Any
    item: pytest.Item


class Traits:
    """Sees what the bodies of tests change, but for what broader fixtures do that are first asked for in there."""

    def __init__(self) -> None:
        """Remember how the process is before its first test; bringing that back leaves nothing changed."""
        mask = _umask(0o077)
        _umask(mask)
        self._initial = _look(mask)
        self._mask = mask
        self._before: list[Any] | None = None

    def begin(self) -> None:
        """Look, before the body of a test."""
        self._before = _look(self._mask)
        self._mask = self._before[_UMASK]

    def end(self, item: pytest.Item, changes: dict[int, Change]) -> None:
        """Look, after the body of a test, and add what it has changed to what there is to be put back."""
        before, self._before = self._before, None
        if before is None:
            return
        after = _look(before[_UMASK])
        if after != before:
            for what, (old, new) in enumerate(zip(before, after, strict=True)):
                if old != new:
                    self._note(changes, what, Change(old, new, item))

    def glimpse(self) -> list[Any] | None:
        """Look, before a fixture that outlives the test is set up, or torn down, in the body of the test."""
        return None if self._before is None else _look(self._mask)

    def spare(self, seen: list[Any] | None) -> None:
        """Take what such a fixture has changed since for what the body came upon; it is the fixture's to put back."""
        if seen is None or self._before is None:
            return
        for what, (old, new) in enumerate(zip(seen, _look(seen[_UMASK]), strict=True)):
            if old != new:
                self._before[what] = new

    def _note(self, changes: dict[int, Change], what: int, change: Change) -> None:
        earlier = changes.pop(what, None)
        if earlier is not None and earlier.after == change.before:
            change = change._replace(before=earlier.before)
        if change.before is None or change.after in (change.before, self._initial[what]):
            return  # None is a handler that isn't Python's, and can't be put back
        if what in (_UMASK, _BLOCKED) or _is_the_tests(change):
            changes[what] = change


def put_back(changes: dict[int, Change]) -> list[tuple[str, pytest.Item]]:
    """Put back what is still as the body of a test has left it; return what that was, in words, each with the test."""
    done = [(_told(what, one), one.item) for what, one in changes.items() if _put_back(what, one)]
    changes.clear()
    return done


def _look(mask: int) -> list[Any]:
    """Return the umask, what each signal does, and which are blocked; nothing is changed where the umask is known."""
    found = _umask(mask)
    if found != mask:
        _umask(found)
    return [found, *map(_getsignal, _SIGNALS), _sigmask(signal.SIG_BLOCK, ())]


def _is_the_tests(change: Change) -> bool:
    """Tell whether a signal is ignored, at its default, or handled by code of the test's own module."""
    after = change.after
    if after == signal.SIG_IGN or after in _DEFAULT:
        return True
    name = getattr(getattr(change.item, "module", None), "__name__", _MOCK)
    return getattr(getattr(after, "func", after), "__module__", None) in (name, _MOCK)


def _put_back(what: int, change: Change) -> bool:
    if what == _UMASK:
        found = _umask(change.before)
        if found != change.after:
            _umask(found)
        return bool(found == change.after)
    if what == _BLOCKED:
        return _unblock(change)
    if _getsignal(what) != change.after:
        return False
    if what in _TIMERS and change.before == signal.SIG_DFL:  # which ends the process
        _setitimer(_TIMERS[signal.Signals(what)], 0)
    try:
        _setsignal(what, change.before)
    except ValueError:  # only the main thread may, and the tests are run by another one
        return False
    return True


def _unblock(change: Change) -> bool:
    if _sigmask(signal.SIG_BLOCK, ()) != change.after:
        return False
    for number in _sigpending() - change.before:
        if _getsignal(number) == signal.SIG_DFL:  # it has waited to end the process
            _sigtimedwait([number], 0)
    _sigmask(signal.SIG_SETMASK, change.before)
    return True


def _told(what: int, change: Change) -> str:
    value = change.after
    if what == _UMASK:
        return f"umask {value:04o}"
    if what == _BLOCKED:
        first, *others = sorted(value ^ change.before)
        more = f" and {len(others)} more" if others else ""
        return f"{_name(first)}{more} {'blocked' if first in value else 'not blocked'}"
    name = _name(what)
    if value == signal.SIG_IGN:
        return f"{name} ignored"
    if value in _DEFAULT:
        return f"{name} at its default"
    return f"{name} handled by {getattr(value, '__qualname__', type(value).__qualname__)}"


def _name(number: int) -> str:
    return next((one.name for one in signal.Signals if one == number), f"signal {number}")

"""Pools of threads and processes that live longer than a test.

A thread stays in the namespaces that it was started in, and pools use theirs again: that of an event
loop for a whole session, say, or trio's, which outlives every loop. Left alone, it would serve the
second test in the network of the first, which is gone. So work takes the namespaces that it was handed
over in along with it, and a thread that picks it up goes there first. A pool of processes, which start
when they are first needed, belongs where it was made, as one that starts them at once does.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any, Final

import pytest

from pytest_netns.kernel.position import Position, hop_to

__all__ = ["Pools"]

# What hands a function to a thread of a pool: the module, the class, the method; its first argument is the function.
_LATER: Final = (("trio._core._thread_cache", "ThreadCache", "start_thread_soon"),)

# Tests replace these, and what follows is called in the midst of tests.
_getcwd, _chdir, _stat = os.getcwd, os.chdir, os.stat


class _Anchor(Position):
    """Namespaces that work is to be done in; it holds on to them for as long as anybody holds on to it."""

    __slots__ = ("__weakref__",)

    def __del__(self) -> None:
        self.close()


class Pools:
    """Makes pools follow the tests, from ``install()`` to ``remove()``."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._patches = pytest.MonkeyPatch()
        self._missing = list(_LATER)
        self._anchors: weakref.WeakValueDictionary[int, _Anchor] = weakref.WeakValueDictionary()
        self._homes: weakref.WeakKeyDictionary[ProcessPoolExecutor, _Anchor] = weakref.WeakKeyDictionary()
        self._known: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._working: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._hopped = threading.local()
        self._arrived: _Anchor | None = None

    def install(self) -> None:
        """Change what hands work to a pool."""
        self._patch(ThreadPoolExecutor, "submit", self._handing_over)
        self._patch(ProcessPoolExecutor, "__init__", self._settling)
        self._patch(ProcessPoolExecutor, "submit", self._staying)
        self._look_again()

    def arrive(self) -> None:
        """Take note of where a test is to run: a test that counts its descriptors shall see none that work brings."""
        self._arrived = self._here()
        self._look_again()

    def depart(self) -> None:
        """Let go of that place, which the kernel may free then."""
        self._arrived = None

    def _look_again(self) -> None:
        """Change what has been imported since, too."""
        for place in self._missing[:]:
            module, owner, method = place
            if module in sys.modules:
                self._missing.remove(place)
                found = getattr(sys.modules[module], owner, None)
                if hasattr(found, method):
                    self._patch(found, method, self._handing_over)

    def remove(self) -> None:
        """Leave everything as it was; doing so twice is harmless."""
        self._patches.undo()

    def is_resting(self, thread: threading.Thread) -> bool:
        """Tell whether a thread waits in its pool for the next work."""
        return thread not in self._working and (thread in self._known or thread in _executors_threads())

    def _patch(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        original = getattr(owner, name)
        self._patches.setattr(owner, name, functools.wraps(original)(make(original)))

    def _handing_over(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def hand_over(pool: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            work = functools.partial(self._work, function, self._here(), _cwd())
            return original(pool, work, *args, **kwargs)

        return hand_over

    def _settling(self, original: Callable[..., None]) -> Callable[..., None]:
        def init(pool: ProcessPoolExecutor, /, *args: Any, **kwargs: Any) -> None:
            self._homes[pool] = self._here()
            original(pool, *args, **kwargs)

        return init

    def _staying(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def submit(pool: ProcessPoolExecutor, /, *args: Any, **kwargs: Any) -> Any:
            with self._visiting(self._homes.get(pool)):
                return original(pool, *args, **kwargs)

        return submit

    def _work(self, function: Callable[..., Any], where: _Anchor, cwd: str | None, /, *args: Any, **kwargs: Any) -> Any:
        """Run the function where it was handed over."""
        thread = threading.current_thread()
        self._known.add(thread)
        self._working.add(thread)
        try:
            if self._here() is not where:
                hop_to(where.net_fd, where.mnt_fd)
                self._hopped.already = True
            if cwd is not None and getattr(self._hopped, "already", False):  # from then on it has one of its own
                with contextlib.suppress(OSError):
                    _chdir(cwd)
            return function(*args, **kwargs)
        finally:
            self._working.discard(thread)

    @contextlib.contextmanager
    def _visiting(self, home: _Anchor | None) -> Iterator[None]:
        here = self._here()
        if home is None or home is here:
            yield
            return
        origin = Position()
        try:
            origin.hop_to(home.net_fd, home.mnt_fd)
            yield
        finally:
            origin.restore()
            origin.close()

    def _here(self) -> _Anchor:
        """Return where the calling thread is, the same object for the same network."""
        inode = _stat("/proc/thread-self/ns/net").st_ino
        anchor = self._anchors.get(inode)
        if anchor is None:
            anchor = self._anchors[inode] = _Anchor()
        return anchor


def _executors_threads() -> Container[threading.Thread]:
    """Return the threads of executors, which may have been started for work that another one did."""
    return getattr(sys.modules[ThreadPoolExecutor.__module__], "_threads_queues", ())


def _cwd() -> str | None:
    try:
        return _getcwd()
    except OSError:
        return None

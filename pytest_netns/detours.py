"""Fixtures and packages that outlive a test: set up and torn down somewhere else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

import pytest

from pytest_netns.settings import Scope

if TYPE_CHECKING:
    from pytest_netns.scoping import Leaf
    from pytest_netns.session import Session

__all__ = ["Detour", "new_threads"]


class Whereabouts(Protocol):
    """Who knows the leaf of the test that is running."""

    session: Session
    leaf: Leaf | None


def outlives(leaf: Leaf, scope: Scope, node: pytest.Item | pytest.Collector) -> bool:
    """Tell whether what is set up with this scope, for this node, outlives the leaf, and so has no place in it."""
    return scope > leaf.scope or leaf.node not in node.listchain()


def new_threads(known: Iterable[threading.Thread]) -> set[threading.Thread]:
    """Return the threads that are running now and were not known; those that Python did not start do not count."""
    found = set(threading.enumerate()).difference(known)
    return {thread for thread in found if not isinstance(thread, threading._DummyThread)}  # noqa: SLF001


def _sparing_threads(leaf: Leaf, back: Callable[[], None]) -> Callable[[], None]:
    """Return ``back``, which then takes what was started until that moment for none of the leaf's business."""
    known = set(threading.enumerate())

    def returning() -> None:
        leaf.threads |= new_threads(known)
        back()

    return returning


class Detour:
    """A stretch of code that runs in another place, once at set-up and once more at tear-down."""

    def __init__(self, where: Whereabouts, scope: Scope, node: pytest.Item | pytest.Collector) -> None:
        """Aim for the current test's leaf, or for the base if what is set up, for this node, outlives that leaf."""
        leaf = where.leaf
        self._where = where
        self._leaf = None if leaf is None or outlives(leaf, scope, node) else leaf
        self._back: Callable[[], None] | None = None
        if self._leaf is not None:
            self._leaf.tenants += 1

    def begin(self) -> None:
        """Go there; the base is wherever it is by then."""
        stay = self._where.session.stay
        if stay is None:
            return
        place = self._leaf.place if self._leaf is not None else stay.traveller.base
        back, current = stay.traveller.visit(place), self._where.leaf
        if current is not None and place is not current.place:
            back = _sparing_threads(current, back)
        self._back = back

    def end(self) -> None:
        """Come back; where it was never begun, do nothing."""
        back, self._back = self._back, None
        if back is not None:
            back()

    def finish(self) -> None:
        """Come back for the last time."""
        if self._leaf is not None:
            self._leaf.tenants -= 1
        self.end()

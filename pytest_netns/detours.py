"""Fixtures and packages that outlive a test: set up and torn down somewhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from pytest_netns.settings import Scope

if TYPE_CHECKING:
    from pytest_netns.scoping import Leaf
    from pytest_netns.session import Session
    from pytest_netns.traits import Traits

__all__ = ["Detour"]


class Whereabouts(Protocol):
    """Who knows the leaf of the test that is running, and sees what its body changes."""

    session: Session
    leaf: Leaf | None
    traits: Traits


def outlives(leaf: Leaf, scope: Scope, node: pytest.Item | pytest.Collector) -> bool:
    """Tell whether what is set up with this scope, for this node, outlives the leaf, and so has no place in it."""
    return scope > leaf.scope or leaf.node not in node.listchain()


class Detour:
    """A stretch of code that runs in another place, once at set-up and once more at tear-down."""

    def __init__(self, where: Whereabouts, scope: Scope, node: pytest.Item | pytest.Collector) -> None:
        """Aim for the current test's leaf, or for the base if what is set up, for this node, outlives that leaf."""
        leaf = where.leaf
        self._where = where
        self._leaf = None if leaf is None or outlives(leaf, scope, node) else leaf
        self._back: Callable[[], None] | None = None
        self._seen: list[Any] | None = None
        if self._leaf is not None:
            self._leaf.tenants += 1

    def begin(self) -> None:
        """Go there; the base is wherever it is by then."""
        stay = self._where.session.stay
        if stay is None:
            return
        self._seen = self._where.traits.glimpse()
        place = self._leaf.place if self._leaf is not None else stay.traveller.base
        self._back = stay.traveller.visit(place)

    def end(self) -> None:
        """Come back; where it was never begun, do nothing."""
        back, self._back = self._back, None
        seen, self._seen = self._seen, None
        self._where.traits.spare(seen)
        if back is not None:
            back()

    def finish(self) -> None:
        """Come back for the last time."""
        if self._leaf is not None:
            self._leaf.tenants -= 1
        self.end()

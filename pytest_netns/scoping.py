"""Who runs where: the base, where the process lives between tests, and the leaves of the tests.

The base is the worker leaf, or the namespace that pytest was started in. A test goes into its leaf
when it is set up and comes back when it has been torn down; what outlives the leaf (broader
fixtures, packages) goes back to the base for as long as it runs, at set-up and at tear-down alike.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from pytest_netns.errors import KernelError
from pytest_netns.kernel.position import Position, hop, hop_to
from pytest_netns.settings import Scope
from pytest_netns.visit import ENVIRONMENT, announce

if TYPE_CHECKING:
    from pytest_netns.gateway.client import LeafGrant
    from pytest_netns.namespace import Namespace
    from pytest_netns.traits import Change

__all__ = ["Leaf", "Place", "Traveller", "leaf_node"]


@dataclass(eq=False)
class Place:
    """A pair of namespaces that the process can be in.

    Attributes:
        name: the leaf's name; None in the namespace that pytest was started in.
        net_fd: the network namespace.
        mnt_fd: the mount namespace.
    """

    name: str | None
    net_fd: int
    mnt_fd: int

    @classmethod
    def here(cls) -> Place:
        """Return where the calling thread is; the descriptors are the caller's to close."""
        position = Position()
        return cls(os.environ.get(ENVIRONMENT), position.net_fd, position.mnt_fd)

    @classmethod
    def of(cls, grant: LeafGrant) -> Place:
        """Return where a leaf is, as long as its handle keeps the descriptors open."""
        return cls(grant.name, grant.net_fd, grant.mnt_fd)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Both descriptors."""
        return self.net_fd, self.mnt_fd

    def is_reachable(self) -> bool:
        """Tell whether the process may go there, by going; right only of where it is already."""
        try:
            hop_to(self.net_fd, self.mnt_fd)
        except KernelError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptors; doing so twice is harmless."""
        fds, self.net_fd, self.mnt_fd = (self.net_fd, self.mnt_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


@dataclass(eq=False)
class Leaf:
    """A test leaf while it lives.

    Attributes:
        place: where it is.
        namespace: the handle that tests are given.
        scope: how long it lives.
        node: the part of the collection tree that it lives for.
        since: the last process id that was given out before it was made.
        tenants: how many fixtures that outlive a test have been set up in it, and not yet torn down.
        starters: the tests that started what is running in it, by process id and by thread, where it is shared.
        seen: the last process id that had been given out when its starters were last looked for.
        changes: what the bodies of its tests have left changed in the process, to be put back with its end.
    """

    place: Place
    namespace: Namespace
    scope: Scope
    node: pytest.Item | pytest.Collector
    since: int | None = None
    tenants: int = 0
    starters: dict[int | threading.Thread, pytest.Item] = field(default_factory=dict)
    seen: int | None = None
    changes: dict[int, Change] = field(default_factory=dict)


def leaf_node(item: pytest.Item, scope: Scope) -> pytest.Item | pytest.Collector:
    """Return what a leaf of this scope lives for: the node that a fixture of the same scope would live for."""
    if scope is Scope.FUNCTION:
        return item
    if scope is Scope.CLASS:
        return item.getparent(pytest.Class) or item
    if scope is Scope.MODULE:
        files = (node for node in item.iter_parents() if isinstance(node, pytest.File))
        return item.getparent(pytest.Module) or next(files, item)
    package = item.getparent(pytest.Package) if scope is Scope.PACKAGE else None
    return package or item.session


class Traveller:
    """Moves the process from place to place, and remembers where it is."""

    def __init__(self, base: Place, home: str) -> None:
        """Start out in ``base``; ``home`` is the directory to fall back to."""
        self.base = base
        self.place = base
        self._home = home

    def go(self, place: Place) -> None:
        """Go there for good. The working directory stays, where it exists there."""
        before, self.place = self.place, place
        try:
            stays = hop(before.descriptors, place.descriptors)
        except BaseException:
            self.place = before
            raise
        announce(place.name)
        if not stays:
            os.chdir(self._home)

    def visit(self, place: Place) -> Callable[[], None]:
        """Go there, and return what brings the process back to exactly where it was.

        A directory that was changed into meanwhile is kept.
        """
        if place is self.place:
            return lambda: None
        origin, before = Position(), self.place
        try:
            origin.hop_to(place.net_fd, place.mnt_fd)
        except BaseException:
            origin.close()
            raise
        self.place = place
        announce(place.name)
        arrival = _cwd()

        def back() -> None:
            cwd = _cwd()
            if cwd is not None and cwd != arrival:
                origin.cwd = cwd
            try:
                origin.restore()
            finally:
                origin.close()
            self.place = before
            announce(before.name)

        return back


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:
        return None

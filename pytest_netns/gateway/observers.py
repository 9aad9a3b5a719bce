"""What the commands ask of a run: processes that look inside, but take no part and keep nothing alive.

They connect to a socket of their own. What they may ask for changes nothing of what a leaf may reach: it lists
leaves, hands out a way in, leads the host into a leaf, and lets a held test go on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Protocol

from pytest_netns.gateway import protocol
from pytest_netns.gateway.conversation import Reply, page
from pytest_netns.gateway.publish import Publisher
from pytest_netns.gateway.worker import LiveLeaf, Worker

_REMEMBERED: Final = 1000


class Leaves(Protocol):
    """Who knows the leaves."""

    def live(self) -> Iterable[LiveLeaf]:
        """Return those that are alive."""

    async def listening(self, live: LiveLeaf) -> list[str]:
        """Return what listens in one."""


class Observers:
    """The answers to those who look inside a run."""

    def __init__(self, leaves: Leaves, publisher: Publisher, about: Callable[[], dict[str, int | None]]) -> None:
        """Know of no leaf that has ended.

        Args:
            leaves: who knows the leaves.
            publisher: what opens ports on the host.
            about: returns what is told of the run as a whole: ``pid``, the process that began it, and ``page_port``,
                the port that browsers find the leaves at.
        """
        self._leaves = leaves
        self._publisher = publisher
        self._about = about
        self._ended: dict[str, str] = {}
        self._watched: dict[str, set[Worker]] = {}
        self._forwards: dict[Worker, list[int]] = {}
        self._user_fd = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        self.operations: dict[str, Callable[..., Reply | Awaitable[Reply] | None]] = {
            "list": self._list,
            "fate": self._fate,
            "enter": self._enter,
            "forward": self._forward,
            "watch": self._watch,
            "resume": self._resume,
        }

    def fate(self, name: str) -> str | None:
        """Return the test of a leaf that has ended, as far as it is remembered."""
        return self._ended.get(name)

    def note_end(self, live: LiveLeaf) -> None:
        """Note that a leaf has ended, and tell those who wait for that."""
        self._ended[live.name] = live.test
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]
        for observer in self._watched.pop(live.name, ()):
            with contextlib.suppress(OSError):  # who does not listen is not waited for
                protocol.send(observer.connection, {"ok": True})

    async def bury(self, observer: Worker) -> None:
        """Close what was opened for an observer that has gone."""
        for host_port in self._forwards.pop(observer, ()):
            self._publisher.close_port(host_port)
        for observers in self._watched.values():
            observers.discard(observer)

    def close(self) -> None:
        """Let go of what is handed out."""
        os.close(self._user_fd)

    async def _list(self, observer: Worker, since: int) -> Reply:
        """Return a page of the live leaves, the workers' own first."""
        del observer
        leaves = sorted(self._leaves.live(), key=lambda live: (live.since, live.name))
        rows = [await self._row(live) for live in leaves[since:]]
        return page(rows, lambda row: row, **self._about())

    async def _row(self, live: LiveLeaf) -> dict[str, Any]:
        listening: list[str] = []
        with contextlib.suppress(OSError):  # it has ended meanwhile
            listening = await self._leaves.listening(live)
        return {
            "name": live.name,
            "test": live.test,
            "worker": live is live.owner.own,
            "ipv4": live.addresses[0],
            "ipv6": live.addresses[1],
            "port": live.port,
            "age": round(max(0.0, time.time() - live.since), 3),
            "held": live.held,
            "listening": listening,
        }

    def _fate(self, observer: Worker, leaf: str) -> Reply:
        del observer
        return {"test": self.fate(leaf)}, ()

    def _enter(self, observer: Worker, leaf: str) -> Reply:
        """Hand out the leaf's namespaces, and the user namespace that gives the right to enter them."""
        del observer
        live = self._named(leaf)
        live.visited, found = time.monotonic(), live.leaf
        return {}, (found.net_fd, found.mnt_fd, self._user_fd)

    def _forward(self, observer: Worker, leaf: str, port: int, host_port: int) -> Reply:
        live = self._named(leaf)
        live.visited, opened = time.monotonic(), self._publisher.open(live, port, host_port)
        self._forwards.setdefault(observer, []).append(opened)
        return {"port": opened}, ()

    def _watch(self, observer: Worker, leaf: str) -> None:
        """Answer when the leaf has ended, and listen to the observer until then, so that its own end is noticed."""
        self._watched.setdefault(self._named(leaf).name, set()).add(observer)

    def _resume(self, observer: Worker, leaf: str) -> Reply:
        del observer
        live = self._named(leaf)
        if live.held is None:
            msg = f"{leaf} is not held"
            raise ValueError(msg)
        live.held = None
        return {}, ()

    def _named(self, leaf: str) -> LiveLeaf:
        for live in self._leaves.live():
            if live.name == leaf:
                return live
        msg = f"{leaf} has ended"
        raise ValueError(msg)

"""Leaves that are made ahead of need: how many, and for whom first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Final

from pytest_netns.gateway.factory import Leaf
from pytest_netns.gateway.recipes import Wiring
from pytest_netns.gateway.worker import Worker

_DEEPEST: Final = 8
_AT_ONCE: Final = 2  # one in the making and one to go on with; whoever else needs the factory waits for no more
_TAPPED_DEPTH: Final = 4  # to begin with, where the kernel takes its time
_WINDOW: Final = 16  # leaves after which a stock that was never short of some is reduced by those


@dataclass(eq=False)
class _Shelf:
    """What is kept for one worker, whose leaves are of no use to others.

    Attributes:
        wiring: how its leaves are wired.
        ready: the leaves in stock.
        waiting: who asked while there was none.
        making: how many the factory has been asked for.
        depth: how many are to be in stock.
        spared: how many have always been in stock over the last ``taken``.
        failed: whether the last one could not be made; what kept it from that may be over when one is asked for.
    """

    wiring: Wiring
    ready: deque[Leaf] = field(default_factory=deque)
    waiting: deque[asyncio.Future[Leaf]] = field(default_factory=deque)
    making: int = 0
    depth: int = 1
    spared: int = _DEEPEST
    taken: int = 0
    failed: bool = False

    @property
    def is_urgent(self) -> bool:
        """Whether somebody waits for a leaf that is not even in the making."""
        return len(self.waiting) > self.making

    @property
    def is_short(self) -> bool:
        """Whether there is to be more in stock."""
        return not self.failed and len(self.ready) + self.making < len(self.waiting) + self.depth

    def adapt(self) -> None:
        """Keep more from now on where one has to wait, and less where some have been of no use for a while."""
        if not self.ready:
            self.depth = min(self.depth + 1, _DEEPEST)
        self.spared = min(self.spared, len(self.ready) - 1)
        self.taken += 1
        if self.taken == _WINDOW or self.spared < 1:
            self.depth = max(1, self.depth - max(0, self.spared))
            self.spared, self.taken = _DEEPEST, 0


class Stock:
    """Has leaves made: first those that somebody waits for, then those that somebody will, by turns."""

    def __init__(
        self,
        make: Callable[[Wiring], Future[Leaf]],
        drop: Callable[[Leaf], None],
        finish: Callable[[Leaf], Future[Leaf] | None] = lambda _: None,
    ) -> None:
        """Keep nothing yet.

        Args:
            make: has the factory begin a leaf.
            drop: gives one up.
            finish: begins what remains to be done to one without the factory; None where that is nothing.
        """
        self._make = make
        self._drop = drop
        self._finish = finish
        self._shelves: dict[Worker, _Shelf] = {}
        self._begun: set[Future[Leaf]] = set()
        self._finishing: set[Future[Leaf]] = set()

    def open(self, worker: Worker) -> None:
        """Have leaves ready for a worker from now on."""
        wiring = worker.test_wiring()
        self._shelves[worker] = _Shelf(wiring, depth=_TAPPED_DEPTH if wiring.tapped else 1)
        self._go_on()

    def take(self, worker: Worker) -> Leaf | asyncio.Future[Leaf]:
        """Return a leaf, or what will be one; KernelError or OSError from there where it can't be made.

        Raises:
            ValueError: the worker's leaves are to be wired otherwise than those in stock.
        """
        if worker not in self._shelves:
            self.open(worker)
        shelf = self._shelves[worker]
        if shelf.wiring != worker.test_wiring():
            raise ValueError("leaves were made ahead of time for other wiring")
        shelf.failed = False
        shelf.adapt()
        loop = asyncio.get_running_loop()
        if shelf.ready:
            loop.call_soon(self._go_on)  # the factory would keep this thread from handing the leaf out first
            return shelf.ready.popleft()
        leaf: asyncio.Future[Leaf] = loop.create_future()
        shelf.waiting.append(leaf)
        self._go_on()
        return leaf

    def close(self, worker: Worker) -> None:
        """Keep nothing for a worker any more."""
        shelf = self._shelves.pop(worker, None)
        if shelf is not None:
            for leaf in shelf.ready:
                self._drop(leaf)
            for waiting in shelf.waiting:
                waiting.cancel()

    async def stop(self) -> None:
        """Keep nothing for anybody, once the factory is done."""
        for worker in list(self._shelves):
            self.close(worker)
        while leaves := self._begun | self._finishing:
            await asyncio.wait([asyncio.wrap_future(leaf) for leaf in leaves])

    def _go_on(self) -> None:
        while len(self._begun) < _AT_ONCE:
            shelves = self._shelves.items()
            worker = next((worker for worker, shelf in shelves if shelf.is_urgent), None)
            worker = worker or next((worker for worker, shelf in shelves if shelf.is_short), None)
            if worker is None:
                return
            shelf = self._shelves[worker] = self._shelves.pop(worker)  # the others come first next time
            self._begin(worker, shelf)

    def _begin(self, worker: Worker, shelf: _Shelf) -> None:
        loop = asyncio.get_running_loop()
        begun = self._make(shelf.wiring)
        self._begun.add(begun)
        shelf.making += 1
        begun.add_done_callback(lambda done: loop.call_soon_threadsafe(self._made, worker, shelf, done))

    def _made(self, worker: Worker, shelf: _Shelf, done: Future[Leaf]) -> None:
        self._begun.remove(done)
        leaf = None if done.exception() else done.result()
        rest = None if leaf is None else self._finish(leaf)
        if rest is None:
            self._finished(worker, shelf, done)
            return
        loop = asyncio.get_running_loop()
        self._finishing.add(rest)
        rest.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finished, worker, shelf, done, leaf))
        self._go_on()

    def _finished(self, worker: Worker, shelf: _Shelf, done: Future[Leaf], leaf: Leaf | None = None) -> None:
        """Take in what is ready, or what kept it from that; ``leaf`` is what was made of it by then."""
        self._finishing.discard(done)
        if leaf is not None and done.exception():
            self._drop(leaf)
        shelf.making -= 1
        error = done.exception()
        while shelf.waiting and shelf.waiting[0].done():  # cancelled
            shelf.waiting.popleft()
        if error is not None:
            shelf.failed = not shelf.waiting
            if shelf.waiting:
                shelf.waiting.popleft().set_exception(error)
        elif shelf.waiting:
            shelf.waiting.popleft().set_result(done.result())
        elif self._shelves.get(worker) is shelf:
            shelf.ready.append(done.result())
        else:
            self._drop(done.result())
        self._go_on()

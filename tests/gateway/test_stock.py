"""Leaves ahead of need: whom they are made for first, how many, and what becomes of those that can't be made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv6Address

import pytest

from pytest_netns.addressing import Addresses
from pytest_netns.errors import KernelError
from pytest_netns.gateway.factory import Leaf
from pytest_netns.gateway.recipes import Wiring
from pytest_netns.gateway.stock import Stock
from pytest_netns.gateway.worker import Worker


class Workshop:
    """Stands in for the factory: it makes what it was asked for when it is told to."""

    def __init__(self) -> None:
        self.asked: list[tuple[Wiring, Future[Leaf]]] = []
        self.dropped: list[Leaf] = []
        self.stock = Stock(self._begin, self.dropped.append)
        self.made = 0

    def _begin(self, wiring: Wiring) -> Future[Leaf]:
        future: Future[Leaf] = Future()
        self.asked.append((wiring, future))
        return future

    async def make(self) -> Wiring:
        """Make the leaf that was asked for first, and return what it was asked for with."""
        wiring, future = self.asked.pop(0)
        self.made += 1
        addresses = Addresses(IPv4Address(self.made), IPv6Address(self.made), self.made, f"leaf{self.made}")
        future.set_result(Leaf(addresses, -1, -1))
        await asyncio.sleep(0)
        return wiring

    async def fail(self) -> None:
        """Fail to make the leaf that was asked for first."""
        self.asked.pop(0)[1].set_exception(KernelError(28, "no space"))
        await asyncio.sleep(0)

    async def make_all(self) -> int:
        """Make leaves until no more are asked for; return how many."""
        before = self.made
        await asyncio.sleep(0)  # what is handed out is replaced after that
        while self.asked:
            await self.make()
        return self.made - before


def worker(number: int) -> Worker:
    """Return a client that asks for leaves."""
    with socket.socket() as connection:
        return Worker(number, 0, connection)


def run(test: Callable[[Workshop], Awaitable[None]]) -> Callable[[], None]:
    """Run a test in an event loop."""

    def wrapper() -> None:
        asyncio.run(_run(test))

    wrapper.__doc__, wrapper.__name__ = test.__doc__, getattr(test, "__name__", "test")
    return wrapper


async def _run(test: Callable[[Workshop], Awaitable[None]]) -> None:
    await test(Workshop())


@run
async def test_who_waits_comes_first(shop: Workshop) -> None:
    """The factory is asked for two at a time; those that wait go before any stock, and by turns."""
    one, other, idle = (worker(number) for number in range(3))
    shop.stock.open(idle)
    leaves = [shop.stock.take(which) for which in (one, one, one, other, other, other)]
    assert len(shop.asked) == 2
    order = [await shop.make() for _ in range(7)]
    assert order[0] == idle.test_wiring()
    assert all(order[at] != order[at + 1] for at in range(2, 5))
    assert {order.count(which.test_wiring()) for which in (one, other)} == {3}
    assert all(isinstance(leaf, asyncio.Future) and leaf.done() for leaf in leaves)
    assert isinstance(shop.stock.take(idle), Leaf)


@run
async def test_depth_follows_demand(shop: Workshop) -> None:
    """Whoever has to wait has more kept for it, eight at most; whoever does not need them has fewer after a while."""
    busy = worker(0)
    for _ in range(30):
        leaf = shop.stock.take(busy)
        if isinstance(leaf, asyncio.Future):
            while not leaf.done():
                await shop.make()
    ready = await shop.make_all()
    assert 7 <= ready <= 8
    for _ in range(200):
        assert isinstance(shop.stock.take(busy), Leaf)
        await shop.make_all()
    shop.stock.close(busy)
    assert 1 <= len(shop.dropped) <= 2


@run
async def test_failure_is_for_who_waits(shop: Workshop) -> None:
    """What can't be made ahead of need is not tried for ever, but again when it is needed, and then told."""
    unlucky = worker(0)
    shop.stock.open(unlucky)
    await shop.fail()
    assert shop.asked == []
    leaf = shop.stock.take(unlucky)
    await shop.fail()
    assert isinstance(leaf, asyncio.Future)
    with pytest.raises(KernelError, match="no space"):
        await leaf
    again = shop.stock.take(unlucky)
    await shop.make_all()
    assert isinstance(again, asyncio.Future)
    assert isinstance(await again, Leaf)


@run
async def test_nothing_is_kept_for_who_has_gone(shop: Workshop) -> None:
    """What was in stock, or in the making, is dropped."""
    gone = worker(0)
    shop.stock.open(gone)
    await shop.make()
    shop.stock.take(gone)
    await asyncio.sleep(0)
    shop.stock.close(gone)
    await shop.make_all()
    await shop.stock.stop()
    assert len(shop.dropped) == 1


@run
async def test_what_remains_to_be_done(shop: Workshop) -> None:
    """The factory goes on meanwhile; a leaf is handed out when it is finished, and dropped if it can't be."""
    rest: list[tuple[Leaf, Future[Leaf]]] = []

    def finish(leaf: Leaf) -> Future[Leaf]:
        future: Future[Leaf] = Future()
        rest.append((leaf, future))
        return future

    shop.stock = Stock(shop._begin, shop.dropped.append, finish)
    one = worker(0)
    first, second = shop.stock.take(one), shop.stock.take(one)
    assert isinstance(first, asyncio.Future)
    assert isinstance(second, asyncio.Future)
    assert len(shop.asked) == 2
    await shop.make()
    assert len(shop.asked) == 2
    await shop.make()
    assert not first.done()
    rest[0][1].set_exception(KernelError(12, "no memory"))
    rest[1][1].set_result(rest[1][0])
    await asyncio.sleep(0)
    assert isinstance(first.exception(), KernelError)
    assert second.result() is rest[1][0]
    assert shop.dropped == [rest[0][0]]

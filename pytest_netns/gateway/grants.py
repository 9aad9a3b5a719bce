"""Take workers on, and hand leaves out to them: one of their own, and a fresh one for each test."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from pytest_netns import addressing
from pytest_netns.gateway.conversation import Operation, Reply
from pytest_netns.gateway.factory import Factory, Leaf
from pytest_netns.gateway.flows import OUTSIDE, FlowLog
from pytest_netns.gateway.reach import Reach, parsed
from pytest_netns.gateway.recipes import Wiring, loopback_routes
from pytest_netns.gateway.register import Register
from pytest_netns.gateway.stock import Stock
from pytest_netns.gateway.worker import LiveLeaf, Worker
from pytest_netns.policy import OPEN, Policy

_GATEWAY: Final = {"gateway_ipv4": str(addressing.GATEWAY), "gateway_ipv6": str(addressing.GATEWAY6)}


class Grants:
    """The answers to those who ask for leaves."""

    def __init__(
        self,
        factory: Factory,
        stock: Stock,
        register: Register,
        log: FlowLog,
        reach: Reach,
        *,
        release: Callable[[Worker, str], None],
    ) -> None:
        """Hand nothing out yet; ``release`` takes a worker's leaf back, by its name."""
        self._factory = factory
        self._stock = stock
        self._register = register
        self._log = log
        self._reach = reach
        self._release = release
        self.operations: dict[str, Operation] = {"join": self._join, "lease": self._lease, "label": self._label}

    def _join(self, worker: Worker, **wanted: Any) -> Awaitable[Reply]:
        """Take a client on as a worker; see there."""
        brought: list[int] = []
        joined = self._take_on(worker, brought, **wanted)  # first, as it may be refused at once
        brought += worker.taken_over()
        return joined

    async def _take_on(
        self,
        worker: Worker,
        brought: list[int],
        *,
        worker_name: str,
        open_egress: bool,
        own_leaf: bool,
        rules: list[str],
        record: bool,
        port: int,
        tapped: bool,
    ) -> Reply:
        """Take a client on as a worker, with a leaf of its own or, as a guest of the host, without.

        ``brought`` is empty, or the descriptors of the leaf that it had of a gateway which has ended; they are closed.
        """
        try:
            if worker.name:
                msg = f"{worker.name} has joined already"
                raise ValueError(msg)
            worker.policy = OPEN if open_egress else Policy(parsed(tuple(rules)), everything=record)
            worker.name, worker.opened, worker.record, worker.tapped = worker_name, open_egress, record, tapped
            self._reach.connect(worker)
            if not own_leaf:
                return {}, ()
            leaf = await self._finished(worker.own_wiring(), brought)
        finally:
            for descriptor in brought:
                os.close(descriptor)
        worker.own = self._register.enter(worker, worker_name, leaf, OUTSIDE)
        worker.own.port = port
        self._reach.route_loopback(worker.own, loopback_routes(worker.worker_alias))
        self._reach.apply(worker.own, worker.policy)
        self._stock.open(worker)
        return _granted(worker.own)

    async def _finished(self, wiring: Wiring, brought: Sequence[int]) -> Leaf:
        """Return a new leaf, or the one that these are the descriptors of, once it is ready for use."""
        leaf = await asyncio.wrap_future(self._factory.begin(wiring, *brought))
        rest = self._factory.tap(leaf)
        if rest is not None:
            try:
                await asyncio.wrap_future(rest)
            except BaseException:
                self._factory.drop(leaf)
                raise
        return leaf

    def _lease(
        self,
        worker: Worker,
        test: str = "",
        rules: Sequence[str] = (),
        *,
        sni: bool = True,
        port: int = 8080,
        instead_of: str | None = None,
        further: bool = False,
    ) -> Reply | Awaitable[Reply]:
        """Hand out a fresh leaf for a test, by whose rules it goes, and take one back.

        A ``further`` one is beside the test's own, in which the worker leaf's loopback goes on being continued.
        The leaf is the one that the worker has brought, if it has.
        """
        if not worker.name:
            raise ValueError("a client has to join before it gets leaves")
        if instead_of is not None:
            self._release(worker, instead_of)
        policy = Policy(parsed(tuple(rules)), everything=worker.record, sni=sni)
        if worker.brought:
            adopted = self._adopted(worker, worker.taken_over())
            return self._hand_out_later(worker, adopted, test, policy, port, further=further)
        leaf = self._stock.take(worker)
        if isinstance(leaf, Leaf):
            return self._hand_out(worker, leaf, test, policy, port, further=further)
        return self._hand_out_later(worker, leaf, test, policy, port, further=further)

    async def _adopted(self, worker: Worker, brought: Sequence[int]) -> Leaf:
        try:
            return await self._finished(worker.test_wiring(), brought)
        finally:
            for descriptor in brought:
                os.close(descriptor)

    async def _hand_out_later(
        self, worker: Worker, leaf: Awaitable[Leaf], test: str, policy: Policy, port: int, *, further: bool
    ) -> Reply:
        return self._hand_out(worker, await leaf, test, policy, port, further=further)

    def _hand_out(self, worker: Worker, leaf: Leaf, test: str, policy: Policy, port: int, *, further: bool) -> Reply:
        worker.made += 1
        live = self._register.enter(worker, f"{worker.name}-t{worker.made}", leaf, test)
        live.port = port
        worker.tests[live.name] = live
        self._log.begin(live.name, test)
        self._reach.apply(live, policy)
        if not further:
            self._reach.activate(worker, live.name)
        return _granted(live)

    def _label(
        self, worker: Worker, leaf: str, test: str, rules: list[str], *, port: int | None, sni: bool, wait: bool
    ) -> Reply | None:
        """Let a leaf serve a test, by whose rules it goes from now on."""
        live = worker.named(leaf)
        before = live.test
        live.test, live.port, live.since = test, port or live.port, time.time()
        self._log.begin(leaf, test)
        if live.capture is not None and before:
            live.capture.restart()
        if not (live is worker.own and worker.opened):
            self._reach.apply(live, Policy(parsed(tuple(rules)), everything=worker.record, sni=sni))
        return ({}, ()) if wait else None


def _granted(live: LiveLeaf) -> Reply:
    ipv4, ipv6 = live.addresses
    return {"name": live.name, "ipv4": ipv4, "ipv6": ipv6, **_GATEWAY}, (live.leaf.net_fd, live.leaf.mnt_fd)

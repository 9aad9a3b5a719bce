"""The gateway's main thread: it stays in the host's namespace and grants the pytest processes what they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, ParamSpec, TypeVar

from pytest_netns import addressing
from pytest_netns.errors import NetnsError
from pytest_netns.gateway import listeners
from pytest_netns.gateway.admission import Admission
from pytest_netns.gateway.browsing import Browsing
from pytest_netns.gateway.conversation import Clients, Reply, Run
from pytest_netns.gateway.egress import EgressControl
from pytest_netns.gateway.factory import Factory, Leaf
from pytest_netns.gateway.flows import OUTSIDE, FlowLog
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.names import Names
from pytest_netns.gateway.nameserver import NameServer
from pytest_netns.gateway.obituaries import Obituaries
from pytest_netns.gateway.observers import Observers
from pytest_netns.gateway.publish import Publisher
from pytest_netns.gateway.questions import Questions
from pytest_netns.gateway.reach import Reach, parsed
from pytest_netns.gateway.reaper import reap
from pytest_netns.gateway.recipes import Wiring, loopback_routes
from pytest_netns.gateway.records import Records
from pytest_netns.gateway.register import Register
from pytest_netns.gateway.relay import Relay
from pytest_netns.gateway.resolver import Resolver
from pytest_netns.gateway.services import Services
from pytest_netns.gateway.stock import Stock
from pytest_netns.gateway.worker import LiveLeaf, Worker
from pytest_netns.policy import OPEN, Policy

P = ParamSpec("P")
T = TypeVar("T")

_GATEWAY: Final = {"gateway_ipv4": str(addressing.GATEWAY), "gateway_ipv6": str(addressing.GATEWAY6)}
_RESOLV_CONF: Final = f"nameserver {addressing.GATEWAY}\noptions timeout:5 attempts:2\n"


class Gateway:
    """All that one run needs on this machine: the hub, its leaves, and who uses them."""

    def __init__(self) -> None:
        """Start with nothing; ``start`` makes the hub."""
        self._factory = Factory()
        self._numbers = addressing.Numbers()
        self._stock = Stock(self._begin, self._give_up, self._factory.tap)
        self._register = Register()
        self._log = FlowLog()
        self._questions = Questions()
        self._obituaries = Obituaries(self._log, self._questions, live=self.live, listening=self.listening)
        self._clients: Clients
        self._watchers: Clients
        self._observers: Observers
        self._browsing: Browsing
        self._burial: asyncio.TimerHandle | None = None
        self._hub: Hub
        self._relay: Relay
        self._reach: Reach
        self._publisher: Publisher

    async def start(self) -> None:
        """Make the hub; KernelError or UnsupportedError where this machine can't."""
        self._hub = await self._in_hub(self._factory.start, _RESOLV_CONF)
        self._relay = Relay(self._hub, self._in_hub, self._log)
        self._reach = Reach(self._hub, self._relay)
        self._publisher = Publisher(self._relay)
        self._browsing = Browsing(self._relay, self)
        self._observers = Observers(self, self._publisher, self._about)
        self._watchers = Clients(self._observers.operations, self._observers.bury)
        operations = {name: getattr(self, f"_{name}") for name in _OPERATIONS}
        records = Records(self._log, self._questions, self._obituaries, self._catch_up)
        services = Services(self._publisher, self._browsing)
        operations |= {**self._reach.operations, **records.operations, **services.operations}
        self._clients = Clients(operations, self._bury)
        names, resolver = Names(), Resolver()
        admission = Admission(self._relay, self._log, names=names, resolver=resolver, leaf_of=self._find)
        self._control = EgressControl(self._hub, self._relay, admission, self._find)
        self._name_server = NameServer(
            self._hub, self._log, self._questions, names=names, resolver=resolver, leaf_of=self._find
        )

    def begin(self, listener: socket.socket, observers: socket.socket, run: Run) -> None:
        """Let clients come, and, through ``observers``, those who come to look and count for nothing."""
        self._watchers.listen(observers)
        self._clients.begin(listener, run)

    async def serve(self, listener: socket.socket) -> None:
        """Serve until the run is over."""
        await self._clients.serve(listener)

    def live(self) -> list[LiveLeaf]:
        """Return the leaves that are alive."""
        return self._register.live()

    def _about(self) -> dict[str, int | None]:
        return {"pid": self._clients.first_pid, "page_port": self._browsing.port}

    def fate(self, name: str) -> str | None:
        """Return the test of a leaf that has ended not long ago."""
        return self._observers.fate(name)

    async def listening(self, live: LiveLeaf) -> list[str]:
        """Return what listens in a leaf."""
        return list(await self._in_hub(listeners.inside, live.leaf.net_fd, self._hub.netns))

    async def stop(self) -> None:
        """Let go of everything; the kernel takes down what no process holds."""
        await self._stock.stop()
        await self._control.stop()
        await self._name_server.stop()
        self._observers.close()
        self._hub.close()
        self._factory.stop()

    async def _in_hub(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._factory.submit(job, *args, **kwargs))

    def _find(self, key: int | str) -> LiveLeaf | None:
        """Return the leaf that something came from, once all is known that its worker had said of it by then."""
        live = self._register.find(key)
        if live is not None:
            self._clients.catch_up(live.owner)
        return self._register.find(key)

    async def _bury(self, worker: Worker) -> None:
        """End what a client that has gone left behind."""
        self._stock.close(worker)
        self._catch_up()
        await self._obituaries.write(worker)
        await asyncio.gather(*(self._clear(worker, live) for live in worker.leaves))

    async def _clear(self, worker: Worker, live: LiveLeaf) -> None:
        with contextlib.suppress(NetnsError, OSError, RuntimeError):  # the last where no thread can be started
            await asyncio.get_running_loop().run_in_executor(None, reap, live.net_inode, worker.pid)
        self._drop(worker, live)

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
        if len(brought) == 2:
            leaf = await self._in_hub(self._factory.adopt, self._numbers.take(), wiring, *brought)
        else:
            leaf = await self._in_hub(self._factory.make, self._numbers.take(), wiring)
        rest = self._factory.tap(leaf)
        if rest is not None:
            try:
                await asyncio.wrap_future(rest)
            except BaseException:
                self._give_up(leaf)
                raise
        return leaf

    def _begin(self, wiring: Wiring) -> Future[Leaf]:
        return self._factory.submit(self._factory.make, self._numbers.take(), wiring)

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

    def _release(self, worker: Worker, leaf: str) -> None:
        live = next((live for live in worker.leaves if live.name == leaf), None)
        if live is not None:
            asyncio.get_running_loop().call_soon(self._release_now, worker, live)

    def _release_now(self, worker: Worker, live: LiveLeaf) -> None:
        self._catch_up()
        if live in worker.leaves:
            self._drop(worker, live)

    def _catch_up(self) -> None:
        """Judge what leaves have sent by now, so that nothing of it is missing from what is told or let go."""
        self._name_server.read()
        for _ in range(_READS):
            if not self._control.read():
                break

    def _drop(self, worker: Worker, live: LiveLeaf) -> None:
        worker.tests.pop(live.name, None)
        if worker.own is live:
            worker.own = None
        if worker.current is live:
            worker.current = None
        if live.asks:
            self._reach.ask_of(live, asks=False)
        self._publisher.close(live)
        self._relay.cut(live.address)
        self._register.strike(live)
        if all(other.name != live.name for other in self.live()):  # nobody keeps a stranger from taking a worker's name
            self._observers.note_end(live)
            self._log.forget(live.name)
            self._questions.forget(live.name)
        self._give_up(live.leaf)
        if self._burial is None:
            self._burial = asyncio.get_running_loop().call_later(_BURIAL, self._hold_burial)

    def _give_up(self, leaf: Leaf) -> None:
        self._numbers.give_back(leaf.addresses)
        self._factory.drop(leaf)

    def _hold_burial(self) -> None:
        self._burial = None
        self._factory.bury()


_READS: Final = 1024
_BURIAL: Final = 0.05  # seconds that a leaf which was given up may wait for others
_OPERATIONS: Final = ("join", "lease", "release", "label")


def _granted(live: LiveLeaf) -> Reply:
    ipv4, ipv6 = live.addresses
    return {"name": live.name, "ipv4": ipv4, "ipv6": ipv6, **_GATEWAY}, (live.leaf.net_fd, live.leaf.mnt_fd)

"""The gateway's main thread, which stays in the host's namespace: what it is made of, and how leaves end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

from pytest_netns import addressing
from pytest_netns.errors import NetnsError
from pytest_netns.gateway import listeners
from pytest_netns.gateway.admission import Admission
from pytest_netns.gateway.browsing import Browsing
from pytest_netns.gateway.conversation import Clients, Run
from pytest_netns.gateway.egress import EgressControl
from pytest_netns.gateway.factory import Factory
from pytest_netns.gateway.flows import FlowLog
from pytest_netns.gateway.grants import Grants
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.names import Names
from pytest_netns.gateway.nameserver import NameServer
from pytest_netns.gateway.obituaries import Obituaries
from pytest_netns.gateway.observers import Observers
from pytest_netns.gateway.publish import Publisher
from pytest_netns.gateway.questions import Questions
from pytest_netns.gateway.reach import Reach
from pytest_netns.gateway.reaper import reap
from pytest_netns.gateway.records import Records
from pytest_netns.gateway.register import Register
from pytest_netns.gateway.relay import Relay
from pytest_netns.gateway.resolver import Resolver
from pytest_netns.gateway.services import Services
from pytest_netns.gateway.stock import Stock
from pytest_netns.gateway.worker import LiveLeaf, Worker

P = ParamSpec("P")
T = TypeVar("T")

_READS: Final = 1024
_BURIAL: Final = 0.05  # seconds that a leaf which was given up may wait for others
_RESOLV_CONF: Final = f"nameserver {addressing.GATEWAY}\noptions timeout:5 attempts:2\n"


class Gateway:
    """All that one run needs on this machine: the hub, its leaves, and who uses them."""

    def __init__(self) -> None:
        """Start with nothing; ``start`` makes the hub."""
        self._factory = Factory()
        self._stock = Stock(self._factory.begin, self._factory.drop, self._factory.tap)
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
        grants = Grants(self._factory, self._stock, self._register, self._log, self._reach, release=self._release)
        records = Records(self._log, self._questions, self._obituaries, self._catch_up)
        services = Services(self._publisher, self._browsing)
        self._clients = Clients(
            {
                "release": self._release,
                **grants.operations,
                **self._reach.operations,
                **records.operations,
                **services.operations,
            },
            self._bury,
        )
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
        self._factory.drop(live.leaf)
        if self._burial is None:
            self._burial = asyncio.get_running_loop().call_later(_BURIAL, self._hold_burial)

    def _hold_burial(self) -> None:
        self._burial = None
        self._factory.bury()

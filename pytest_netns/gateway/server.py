"""The gateway's main thread: it stays in the host's namespace and serves the pytest processes.

It ends when the last of them has gone, whatever ended that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final, ParamSpec, TypeVar

from pytest_netns import addressing
from pytest_netns.errors import NetnsError, describe
from pytest_netns.gateway import protocol, rulesets
from pytest_netns.gateway.egress import EgressControl
from pytest_netns.gateway.factory import Factory, Leaf
from pytest_netns.gateway.flows import FlowLog
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.protocol import Message
from pytest_netns.gateway.publish import Publisher
from pytest_netns.gateway.reaper import reap
from pytest_netns.gateway.recipes import Address, Wiring, loopback_routes
from pytest_netns.gateway.relay import Relay
from pytest_netns.gateway.worker import LiveLeaf, Worker
from pytest_netns.policy import Egress

P = ParamSpec("P")
T = TypeVar("T")
Reply = tuple[Message, tuple[int, ...]]

_SO_PEERCRED: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid; see unix(7)
_FIRST_CLIENT_TIMEOUT: Final = 30.0  # seconds
_RESOLV_CONF: Final = f"nameserver {addressing.GATEWAY}\noptions timeout:2 attempts:1\n"


class Gateway:
    """All that one run needs on this machine: the hub, its leaves, and who uses them."""

    def __init__(self) -> None:
        """Start with nothing; ``start`` makes the hub."""
        self._factory = Factory()
        self._numbers = itertools.count(1)
        self._worker_numbers = itertools.count()
        self._workers: dict[socket.socket, Worker] = {}
        self._spares: dict[Worker, asyncio.Task[tuple[Leaf, Wiring]]] = {}
        self._by_key: dict[int | str, LiveLeaf] = {}
        self._log = FlowLog()
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hub: Hub
        self._relay: Relay
        self._publisher: Publisher

    async def start(self) -> None:
        """Make the hub; KernelError or UnsupportedError where this machine can't."""
        self._hub = await self._in_hub(self._factory.start, _RESOLV_CONF)
        self._relay = Relay(self._hub, self._in_hub)
        self._publisher = Publisher(self._relay)
        self._control = EgressControl(self._hub, self._relay, self._log, self._by_key.get)

    async def serve(self, listener: socket.socket) -> None:
        """Serve until the last client has gone."""
        loop = asyncio.get_running_loop()
        loop.add_reader(listener, self._accept, listener)
        lonely = loop.call_later(_FIRST_CLIENT_TIMEOUT, self._end_if_unused)
        await self._ended.wait()
        lonely.cancel()
        loop.remove_reader(listener)

    async def stop(self) -> None:
        """Let go of everything; the kernel takes down what no process holds."""
        for spare in self._spares.values():
            with contextlib.suppress(NetnsError, OSError):
                (await spare)[0].close()
        await self._control.stop()
        self._hub.close()
        self._factory.stop()

    async def _in_hub(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.wrap_future(self._factory.submit(job, *args, **kwargs))

    def _end_if_unused(self) -> None:
        if not self._workers:
            self._ended.set()

    def _accept(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED.size)
        pid, uid, _ = _SO_PEERCRED.unpack(credentials)
        if uid != os.geteuid():
            connection.close()
            return
        connection.setblocking(False)
        worker = self._workers[connection] = Worker(next(self._worker_numbers), pid)
        task = asyncio.create_task(self._converse(connection, worker))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, connection: socket.socket, worker: Worker) -> None:
        """Answer one client's requests in order, until it has gone or makes no sense."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(connection, readable.set)
        try:
            with contextlib.suppress(OSError, ValueError):
                while await readable.wait():
                    readable.clear()
                    try:
                        request, descriptors = protocol.receive(connection)
                    except BlockingIOError:  # told twice of one message
                        continue
                    for descriptor in descriptors:  # no request carries any
                        os.close(descriptor)
                    if request is None:
                        break
                    if request.get("op") == "release":  # nobody waits for it
                        await self._release(worker, str(request.get("leaf")))
                        continue
                    number = request.pop("number", None)
                    answer, attached = await self._answer(worker, request)
                    protocol.send(connection, {**answer, "number": number}, attached)
        finally:
            loop.remove_reader(connection)
            connection.close()
            try:
                await self._bury(worker)
            finally:  # whatever came of it, the gateway ends with its last client
                del self._workers[connection]
                self._end_if_unused()

    async def _bury(self, worker: Worker) -> None:
        """End what a client that has gone left behind."""
        spare = self._spares.pop(worker, None)
        if spare is not None:
            with contextlib.suppress(NetnsError, OSError):
                (await spare)[0].close()
        await asyncio.gather(*(self._clear(worker, live) for live in worker.leaves))

    async def _clear(self, worker: Worker, live: LiveLeaf) -> None:
        with contextlib.suppress(NetnsError, OSError):
            await asyncio.get_running_loop().run_in_executor(None, reap, live.net_inode, worker.pid)
        await self._drop(worker, live)

    async def _answer(self, worker: Worker, request: Message) -> Reply:
        operation = _OPERATIONS.get(str(request.pop("op", "")))
        if operation is None:
            return {"ok": False, "error": "no such operation"}, ()
        try:
            answer, attached = await operation(self, worker, **request)
        except (NetnsError, OSError, KeyError, TypeError, ValueError) as error:
            return {
                "ok": False,
                "error": describe(error),
                "errno": getattr(error, "errno", None),
            }, ()
        return {"ok": True, **answer}, attached

    async def _hello(self, worker: Worker) -> Reply:
        """Show that the gateway serves, and does not just end with a connection waiting at its socket."""
        del worker
        return {}, ()

    async def _join(self, worker: Worker, worker_name: str, *, open_egress: bool, own_leaf: bool) -> Reply:
        """Take a client on as a worker, with a leaf of its own or, as a guest of the host, without."""
        if worker.name:
            msg = f"{worker.name} has joined already"
            raise ValueError(msg)
        worker.name = worker_name
        worker.egress = Egress.OPEN if open_egress else Egress.CLOSED
        self._hub.filter.request(rulesets.peers(worker.number), "let a worker reach its tests")
        if not own_leaf:
            return {}, ()
        wiring = worker.own_wiring()
        leaf = await self._in_hub(self._factory.make, next(self._numbers), wiring)
        worker.own = self._register(worker, worker_name, leaf, worker.egress, "(outside of any test)")
        self._route_loopback(worker.own, worker.worker_alias)
        self._prepare(worker)
        return _granted(worker.own)

    async def _lease(self, worker: Worker, test: str) -> Reply:
        """Hand out a fresh test leaf, and start making the next."""
        if worker not in self._spares:
            self._prepare(worker)
        leaf, wiring = await self._spares.pop(worker)
        if wiring != worker.test_wiring():
            msg = "a leaf was made ahead of time for other wiring"
            raise ValueError(msg)
        worker.made += 1
        live = self._register(worker, f"{worker.name}-t{worker.made}", leaf, Egress.CLOSED, test)
        worker.tests[live.name] = live
        await self._activate(worker, live.name)
        self._prepare(worker)
        return _granted(live)

    def _prepare(self, worker: Worker) -> None:
        wiring = worker.test_wiring()

        async def make() -> tuple[Leaf, Wiring]:
            return await self._in_hub(self._factory.make, next(self._numbers), wiring), wiring

        self._spares[worker] = asyncio.create_task(make())

    async def _activate(self, worker: Worker, leaf: str) -> Reply:
        """Make a leaf the one that the worker leaf's loopback is continued in."""
        worker.current = worker.tests[leaf]
        self._route_loopback(worker.current, worker.test_alias)
        return {}, ()

    def _route_loopback(self, live: LiveLeaf, alias: tuple[Address, Address]) -> None:
        self._hub.switch.request(loopback_routes(live.leaf.addresses, alias), "route a shared loopback")

    async def _label(self, worker: Worker, leaf: str, test: str) -> Reply:
        self._named(worker, leaf).test = test
        return {}, ()

    async def _release(self, worker: Worker, leaf: str) -> None:
        live = next((live for live in worker.leaves if live.name == leaf), None)
        if live is not None:
            await self._drop(worker, live)

    async def _drop(self, worker: Worker, live: LiveLeaf) -> None:
        worker.tests.pop(live.name, None)
        if worker.own is live:
            worker.own = None
        if worker.current is live:
            worker.current = None
        self._publisher.close(live.name)
        for address in live.addresses:
            self._relay.cut(address)
        for key in (live.leaf.addresses.hub_ifindex, live.address):
            self._by_key.pop(key, None)
        self._log.forget(live.name)
        self._factory.drop(live.leaf)

    async def _flows(self, worker: Worker, leaf: str) -> Reply:
        self._named(worker, leaf)
        return {"flows": [flow.to_dict() for flow in self._log.of(leaf)[-_FLOWS_AT_MOST:]]}, ()

    async def _blocked(self, worker: Worker) -> Reply:
        del worker
        rows = [[row.endpoint, row.count, row.first_test] for row in self._log.blocked()]
        return {"blocked": rows[:_FLOWS_AT_MOST], "more": max(0, len(rows) - _FLOWS_AT_MOST)}, ()

    async def _publish(self, worker: Worker, leaf: str, port: int) -> Reply:
        return {"port": self._publisher.open(self._named(worker, leaf), port)}, ()

    async def _unpublish(self, worker: Worker, port: int) -> Reply:
        del worker
        self._publisher.close_port(port)
        return {}, ()

    def _named(self, worker: Worker, leaf: str) -> LiveLeaf:
        return {live.name: live for live in worker.leaves}[leaf]

    def _register(self, worker: Worker, name: str, leaf: Leaf, egress: Egress, test: str) -> LiveLeaf:
        live = LiveLeaf(name, leaf, worker, egress, test)
        self._by_key[leaf.addresses.hub_ifindex] = live
        self._by_key[live.address] = live
        return live


_FLOWS_AT_MOST: Final = 200
_OPERATIONS: Final[dict[str, Callable[..., Awaitable[Reply]]]] = {
    "hello": Gateway._hello,  # noqa: SLF001
    "join": Gateway._join,  # noqa: SLF001
    "lease": Gateway._lease,  # noqa: SLF001
    "activate": Gateway._activate,  # noqa: SLF001
    "label": Gateway._label,  # noqa: SLF001
    "flows": Gateway._flows,  # noqa: SLF001
    "blocked": Gateway._blocked,  # noqa: SLF001
    "publish": Gateway._publish,  # noqa: SLF001
    "unpublish": Gateway._unpublish,  # noqa: SLF001
}


def _granted(live: LiveLeaf) -> Reply:
    addresses = live.leaf.addresses
    answer: dict[str, Any] = {
        "name": live.name,
        "ipv4": str(addresses.ipv4),
        "ipv6": str(addresses.ipv6),
        "gateway_ipv4": str(addressing.GATEWAY),
        "gateway_ipv6": str(addressing.GATEWAY6),
    }
    return answer, (live.leaf.net_fd, live.leaf.mnt_fd)

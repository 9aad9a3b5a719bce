"""Judge what leaves try: every new flow that the hub queues, and every name they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Final

from pytest_netns import addressing, policy
from pytest_netns.gateway import dns, listeners, packet
from pytest_netns.gateway.flows import ALLOWED, BLOCKED, Flow, FlowLog
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.packet import Endpoints
from pytest_netns.gateway.relay import Relay, Target
from pytest_netns.gateway.rulesets import MARK_BLOCKED, MARK_RESET
from pytest_netns.gateway.worker import LiveLeaf
from pytest_netns.kernel.queue import NF_DROP, NF_REPEAT, Queued
from pytest_netns.policy import Egress, Verdict

_HOST_LOOPBACK: Final = {addressing.HOST_LOOPBACK: "127.0.0.1", addressing.HOST_LOOPBACK6: "::1"}
_DNS_BYTES: Final = 65535
_DNS_TIMEOUT: Final = 10.0  # seconds; a client of the TCP service that says nothing is hung up on
_PTR: Final = 12
_OWN_REVERSE_ZONES: Final = ("18.198.in-addr.arpa", "19.198.in-addr.arpa", "127.in-addr.arpa", ".ip6.arpa")


class EgressControl:
    """The readers of the hub's queue and name service."""

    def __init__(self, hub: Hub, relay: Relay, log: FlowLog, leaf_of: Callable[[int | str], LiveLeaf | None]) -> None:
        """Start reading; ``leaf_of`` finds a leaf by its interface in the hub or by its address."""
        self._hub = hub
        self._relay = relay
        self._log = log
        self._leaf_of = leaf_of
        self._last_query: tuple[str, str, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        loop = asyncio.get_running_loop()
        loop.add_reader(hub.queue, self._read_queue)
        loop.add_reader(hub.dns_udp, self._answer_datagram)
        self._spawn(self._serve_dns_tcp())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """Stop reading; what is queued from now on is dropped by the kernel."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._hub.queue)
        loop.remove_reader(self._hub.dns_udp)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _read_queue(self) -> None:
        for queued in self._hub.queue.read():
            self._judge(queued)

    def _judge(self, queued: Queued) -> None:
        leaf = self._leaf_of(queued.ifindex)
        flow = packet.parse(queued.payload)
        if leaf is None or flow is None:
            self._hub.queue.judge(queued, NF_DROP)
        elif flow.protocol == packet.TCP and not flow.is_syn:
            self._hub.queue.judge(queued, NF_REPEAT, MARK_RESET)
        elif self._relay.is_connecting(flow):
            self._hub.queue.judge(queued, NF_DROP)
        elif flow.destination in _HOST_LOOPBACK:
            self._spawn(self._to_host_loopback(queued, leaf, flow))
        elif policy.decide(leaf.egress, flow.protocol_name, flow.destination) is Verdict.BLOCK:
            self._block(queued, leaf, flow)
        else:
            target = Target(str(flow.destination), flow.destination_port)
            self._spawn(self._relay_to(queued, leaf, flow, [target]))

    def _block(self, queued: Queued, leaf: LiveLeaf, flow: Endpoints) -> None:
        self._record(leaf, flow, BLOCKED)
        self._hub.queue.judge(queued, NF_REPEAT, MARK_BLOCKED)

    def _record(self, leaf: LiveLeaf, flow: Endpoints, verdict: str) -> None:
        address, port = str(flow.destination), flow.destination_port or None
        self._log.add(Flow(time.time(), leaf.name, leaf.test, flow.protocol_name, None, address, port, verdict))

    async def _relay_to(self, queued: Queued, leaf: LiveLeaf, flow: Endpoints, targets: list[Target]) -> None:
        self._record(leaf, flow, ALLOWED)
        connect = self._relay.connect if flow.protocol == packet.TCP else self._relay.connect_udp
        mark = await connect(flow, targets)
        if mark is None:
            self._hub.queue.judge(queued, NF_DROP)
        else:
            self._hub.queue.judge(queued, NF_REPEAT, mark)

    async def _to_host_loopback(self, queued: Queued, leaf: LiveLeaf, flow: Endpoints) -> None:
        """Continue a leaf's loopback in the host's: for an open leaf wholly, else for the worker's own servers."""
        host = Target(_HOST_LOOPBACK[flow.destination], flow.destination_port)
        if leaf.egress is Egress.OPEN:
            test = leaf.owner.current
            in_test = [Target(test.address, host.port, in_hub=True)] if test and flow.protocol == packet.TCP else []
            await self._relay_to(queued, leaf, flow, [*in_test, host])
        elif leaf.owner.own is None and listeners.owned(leaf.owner.pid, flow.protocol_name, host.port):
            await self._relay_to(queued, leaf, flow, [host])
        else:  # nobody listens there as far as this leaf can know: what loopback itself would say
            self._hub.queue.judge(queued, NF_REPEAT, MARK_RESET)

    def _answer_datagram(self) -> None:
        with contextlib.suppress(OSError):
            query, client = self._hub.dns_udp.recvfrom(_DNS_BYTES)
            answer = self._answer(query, client)
            if answer is not None:
                self._hub.dns_udp.sendto(answer, client)

    def _answer(self, query: bytes, client: tuple[str, int]) -> bytes | None:
        question = dns.parse(query)
        leaf = self._leaf_of(client[0])
        if question is None or leaf is None:
            return None
        if not (question.kind == _PTR and question.name.endswith(_OWN_REVERSE_ZONES)):
            self._record_name(leaf, question.name, client[1])
        return dns.refuse(question)

    def _record_name(self, leaf: LiveLeaf, name: str, port: int) -> None:
        # A resolver asks for A and AAAA from one port: that is one attempt.
        if self._last_query != (leaf.name, name, port):
            self._last_query = (leaf.name, name, port)
            self._log.add(Flow(time.time(), leaf.name, leaf.test, "dns", name, None, None, BLOCKED))

    async def _serve_dns_tcp(self) -> None:
        server = await asyncio.start_server(self._dns_client, sock=self._hub.dns_tcp)
        async with server:
            await server.serve_forever()

    async def _dns_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client: tuple[str, int] = writer.get_extra_info("peername")
        with contextlib.suppress(OSError, EOFError, asyncio.TimeoutError):
            while True:
                size = int.from_bytes(await asyncio.wait_for(reader.readexactly(2), _DNS_TIMEOUT), "big")
                query = await asyncio.wait_for(reader.readexactly(size), _DNS_TIMEOUT)
                answer = self._answer(query, client)
                if answer is None:
                    break
                writer.write(len(answer).to_bytes(2, "big") + answer)
                await asyncio.wait_for(writer.drain(), _DNS_TIMEOUT)
        writer.close()

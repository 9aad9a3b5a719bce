"""The hub's name server: it tells a leaf of the names that its rules allow, and that no other exists.

A query for another name goes nowhere. Of an allowed one the host looks up the addresses, and those are
asked for again by the gateway when it connects: what the leaf is told stands for the name alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Final, TypeAlias

from pytest_netns import addressing, policy
from pytest_netns.gateway import boxes, dns
from pytest_netns.gateway.accepting import accept
from pytest_netns.gateway.dns import Question
from pytest_netns.gateway.flows import BLOCKED, Flow, FlowLog
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.names import BLOCK6, BLOCKS, Names
from pytest_netns.gateway.questions import Questions
from pytest_netns.gateway.resolver import LookupFailedError, Resolver
from pytest_netns.gateway.worker import LiveLeaf
from pytest_netns.hostnames import is_loopback, normal_name
from pytest_netns.policy import Address

Answer: TypeAlias = "bytes | Coroutine[None, None, bytes] | None"

_PORT: Final = 53
_DATAGRAM: Final = 65535
_TIMEOUT: Final = 10.0  # seconds; a client of the TCP service that says nothing is hung up on
_CLIENTS: Final = 64  # of the TCP service, at once, from one leaf
_TTL: Final = 5  # seconds
_AT_ONCE: Final = 32
_ADDRESSES: Final = (dns.A, dns.AAAA, dns.HTTPS, dns.SVCB)
_ONLY_ADDRESSES: Final = "only addresses are looked up"
_OWN_NETWORKS: Final = (
    *("198.18.0.0/16", "198.19.0.0/16", "127.0.0.0/8", "::/124", "fe80::/12"),
    *map(str, (addressing.LEAVES6, *BLOCKS, BLOCK6)),
)


def _reverse_zone(text: str) -> str:
    """Return what the names for reverse look-ups end in; the network has whole bytes, or half ones in IPv6."""
    network = ipaddress.ip_network(text)
    labels = network.network_address.reverse_pointer.split(".")
    each = 8 if network.version == 4 else 4
    return "." + ".".join(labels[(network.max_prefixlen - network.prefixlen) // each :])


_OWN_REVERSE_ZONES: Final = tuple(map(_reverse_zone, _OWN_NETWORKS))


class NameServer:
    """The reader of the hub's sockets for port 53."""

    def __init__(
        self,
        hub: Hub,
        log: FlowLog,
        questions: Questions,
        *,
        names: Names,
        resolver: Resolver,
        leaf_of: Callable[[int | str], LiveLeaf | None],
    ) -> None:
        """Start reading; ``leaf_of`` finds a leaf by its address."""
        self._hub = hub
        self._log = log
        self._questions = questions
        self._names = names
        self._resolver = resolver
        self._leaf_of = leaf_of
        self._last_refused: tuple[str, str, int] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: dict[LiveLeaf, dict[asyncio.Task[None], None]] = {}
        loop = asyncio.get_running_loop()
        loop.add_reader(hub.dns_udp, self.read)
        loop.add_reader(hub.dns_tcp, self._accept)

    async def stop(self) -> None:
        """Stop reading."""
        for opened in (self._hub.dns_udp, self._hub.dns_tcp):
            asyncio.get_running_loop().remove_reader(opened)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def read(self) -> None:
        """Answer the datagrams that wait, as many as one turn may take."""
        for _ in range(_AT_ONCE):
            try:
                query, client = self._hub.dns_udp.recvfrom(_DATAGRAM)
            except OSError:
                return
            answer = self._answer(query, client)
            if isinstance(answer, Coroutine):
                self._spawn(self._send_later(answer, client))
            elif answer is not None:
                self._send(answer, client)

    async def _send_later(self, answer: Coroutine[None, None, bytes], client: tuple[str, int]) -> None:
        self._send(await answer, client)

    def _send(self, answer: bytes, client: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            self._hub.dns_udp.sendto(answer, client)

    def _answer(self, query: bytes, client: tuple[str, int]) -> Answer:
        question = dns.parse(query)
        leaf = self._leaf_of(client[0])
        if question is None:
            return None
        if leaf is None:
            return dns.refuse(question, "the test is over")
        if question.kind == dns.PTR and question.name.lower().endswith(_OWN_REVERSE_ZONES):
            return dns.refuse(question)
        name = normal_name(question.name)
        if name is not None and question.is_lookup and is_loopback(name):  # /etc/hosts has it without a final dot only
            return dns.answer(question, (addressing.LOOPBACK, addressing.LOOPBACK6), _TTL)
        if name is None or not policy.may_resolve(leaf.policy, name):
            # A rule would not help where it is not an address that was asked for.
            self._record(leaf, question.name, client, None if question.kind in _ADDRESSES else _ONLY_ADDRESSES)
            return dns.refuse(question)
        return self._answer_allowed(leaf, question, name, client)

    def _answer_allowed(self, leaf: LiveLeaf, question: Question, name: str, client: tuple[str, int]) -> Answer:
        if not question.is_lookup:
            return dns.decline(question)
        if question.kind in (dns.HTTPS, dns.SVCB):  # what they would tell, only the host may follow
            return dns.answer(question, (), _TTL)
        if question.kind not in _ADDRESSES:
            self._record(leaf, name, client, "an allowed name, but only its addresses are looked up")
            return dns.refuse_kind(question)
        return self._look_up(leaf, question, name, client)

    async def _look_up(self, leaf: LiveLeaf, question: Question, name: str, client: tuple[str, int]) -> bytes:
        try:
            found = await self._resolver.look_up(name, leaf)
        except LookupFailedError as error:
            self._questions.add(leaf.name, leaf.test, name, f"could not be looked up: {error}")
            return dns.fail(question, str(error))
        if not found:
            self._questions.add(leaf.name, leaf.test, name, "allowed, but the host knows no such name")
            return dns.missing(question)
        permitted = [
            address for address, own in found if policy.rules_to_stand_for(leaf.policy, address, own=own) is not None
        ]
        if not permitted:
            reason = f"an allowed name, but it is {found[0].address}, which takes a rule of its own"
            self._record(leaf, name, client, reason)
            return dns.refuse(question, reason)
        versions = {address.version for address in permitted}
        stand_ins: tuple[Address, ...] = self._names.addresses(name, leaf.policy.rules)
        told = [address for address in stand_ins if address.version in versions]
        self._questions.add(leaf.name, leaf.test, name, f"{_listed(permitted)}, known inside as {_listed(told)}")
        return dns.answer(question, told, _TTL)

    def _record(self, leaf: LiveLeaf, name: str, client: tuple[str, int], reason: str | None = None) -> None:
        # A resolver asks for A and AAAA from one port: that is one attempt.
        if self._last_refused != (leaf.name, name, client[1]):
            self._last_refused = (leaf.name, name, client[1])
            box = boxes.box_of(leaf, "dns", client[1])
            flow = Flow(time.time(), leaf.name, leaf.test, "dns", name, None, None, BLOCKED, reason=reason, sandbox=box)
            key = client[0], client[1], str(addressing.GATEWAY), _PORT
            self._log.add(flow, leaf.owner.name, key=key)
            self._questions.add(leaf.name, leaf.test, name, reason or "not on the test's allow-list", refused=True)

    def _accept(self) -> None:
        """Take a client on; one too many from the same leaf has the oldest hung up on."""
        accepted = accept(self._hub.dns_tcp, self._accept)
        if accepted is None:
            return
        connection, client = accepted
        leaf = self._leaf_of(client[0])
        if leaf is None:
            connection.close()
            return
        clients = self._clients.setdefault(leaf, {})
        if len(clients) >= _CLIENTS:
            oldest = next(iter(clients))
            del clients[oldest]
            oldest.cancel()

        def finish(task: asyncio.Task[None]) -> None:
            connection.close()
            clients.pop(task, None)
            if not clients and self._clients.get(leaf) is clients:
                del self._clients[leaf]

        task = self._spawn(self._serve_client(connection, client))
        clients[task] = None
        task.add_done_callback(finish)

    async def _serve_client(self, connection: socket.socket, client: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()

        async def read(size: int) -> bytes:
            data = bytearray()
            while len(data) < size:
                piece = await loop.sock_recv(connection, size - len(data))
                if not piece:
                    raise EOFError
                data += piece
            return bytes(data)

        with contextlib.suppress(OSError, EOFError, asyncio.TimeoutError):
            while True:
                size = int.from_bytes(await asyncio.wait_for(read(2), _TIMEOUT), "big")
                query = await asyncio.wait_for(read(size), _TIMEOUT)
                answer = self._answer(query, client)
                if isinstance(answer, Coroutine):
                    answer = await answer
                if answer is None:
                    break
                sized = len(answer).to_bytes(2, "big") + answer
                await asyncio.wait_for(loop.sock_sendall(connection, sized), _TIMEOUT)


def _listed(addresses: Iterable[Address]) -> str:
    return ", ".join(map(str, addresses))

"""Carry allowed flows between a leaf and the host, with ordinary sockets on the host's side.

A connection's first packet waits in the hub's queue while the upstream connection is made, so that
what the client is told at connect is what the upstream said.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
from collections.abc import Coroutine, Iterable
from typing import Any, Final

from pytest_netns.gateway import datagrams, icmp, listeners, packet
from pytest_netns.gateway.accepting import rest
from pytest_netns.gateway.datagrams import Claim
from pytest_netns.gateway.dials import CUT_SHORT, Dials, InHub, Rules, Target, dial, socket_for
from pytest_netns.gateway.factory import Leaf
from pytest_netns.gateway.flows import FlowLog, Key
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.hub_ruleset import MARK_BLOCKED, MARK_RELAY, MARK_RESET, MARK_UNREACHABLE
from pytest_netns.gateway.packet import Endpoints
from pytest_netns.gateway.pipes import Pipes
from pytest_netns.gateway.pump import carry, reset
from pytest_netns.gateway.upstreams import Passage, Upstream, Upstreams
from pytest_netns.policy import Policy

_SHARE: Final = 4  # a leaf may hold one in so many of the gateway's descriptors


def goes_on(policy: Policy, rules: Rules) -> bool:
    """Tell whether a policy still allows what an earlier one of its leaf did; without a rule, that was for good."""
    return policy.everything or all(rule in policy.rules for rule in rules)


class Relay:
    """The flows in progress of one hub."""

    def __init__(self, hub: Hub, in_hub: InHub, log: FlowLog) -> None:
        """Listen for accepted connections; ``in_hub(function, *args)`` runs a call in the hub's namespace."""
        self._hub = hub
        self._in_hub = in_hub
        self._log = log
        self._pipes = Pipes()
        self._at_most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE
        self._dials = Dials()
        self._upstreams = Upstreams(self.end)
        self._claims: dict[Key, Claim] = {}
        self._flows: dict[str, dict[asyncio.Task[None], Passage]] = {}
        loop = asyncio.get_running_loop()
        for listener in hub.relay_listeners:
            loop.add_reader(listener, self._accept, listener)

    async def admit_tcp(self, flow: Endpoints, target: Target, passage: Passage) -> int:
        """Connect to a target, and wait for the client after that; return the mark for its first packet.

        Raises:
            OSError: as the client's own call would.
        """
        key = key_of(flow)
        upstream = await self._dials.wait(dial(target, self._in_hub), passage.leaf, passage.rules)
        self._make_room(passage.leaf)
        self._upstreams.add(key, Upstream(upstream, passage, flow.sequence))
        return MARK_RELAY

    async def admit_udp(self, flow: Endpoints, target: Target, passage: Passage) -> int:
        """Make both sides of a UDP exchange with a target; return the mark for its first packet.

        Raises:
            OSError: as the client's own call would.
        """
        key = key_of(flow)
        upstream = await socket_for(target, socket.SOCK_DGRAM, self._in_hub)
        try:
            upstream.connect(target[:2])
            datagrams.make_room(upstream)
            inner = await self._dials.wait(self._in_hub(datagrams.socket_for, key), passage.leaf, passage.rules)
        except BaseException:
            upstream.close()
            raise
        self._claims[key] = claim = Claim(inner, passage.leaf, passage.rules, self._hub.queue.has_waiting)
        claim.begin()
        self._start(self._exchange(key, claim, upstream, passage), passage, (inner, upstream))
        return MARK_RELAY

    async def takes_datagrams(self, leaf: Leaf, port: int, version: int) -> bool:
        """Tell whether there is a socket in a leaf for datagrams to its loopback; a server gives no other sign."""
        return bool(await self._in_hub(listeners.takes_datagrams, leaf.net_fd, self._hub.netns, port, version))

    def expects(self, flow: Endpoints) -> bool:
        """Tell whether a packet that came through the queue belongs to a flow that has been admitted by now.

        A client on a busy machine says again that it wants to connect, which must not become a second connection.
        """
        key = key_of(flow)
        if flow.protocol == packet.TCP:
            return self._upstreams.has_begun(key, flow.sequence)
        claim = self._claims.get(key)
        if claim is not None:
            claim.busy = True
        return claim is not None

    async def forward(self, client: socket.socket, addresses: tuple[str, str], port: int) -> None:
        """Carry a connection from the host into the leaf with these addresses."""
        try:
            inner = await self.reach(addresses, port)
        except OSError:
            reset(client)
            return
        passage = Passage(addresses[0])
        self._start(self._carry(client, Upstream(inner, passage)), passage, (client, inner))

    async def reach(self, addresses: tuple[str, str], port: int) -> socket.socket:
        """Connect to a port of a leaf, by its IPv4 address or, for a server that is at ::1 only, by the other.

        Raises:
            OSError: as connect(2) gives it, by IPv4.
        """
        try:
            return await dial(Target(addresses[0], port, in_hub=True), self._in_hub)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                return await dial(Target(addresses[1], port, in_hub=True), self._in_hub)
            raise

    def accompany(
        self, leaf_address: str, work: Coroutine[Any, Any, None], sockets: tuple[socket.socket, socket.socket]
    ) -> None:
        """Let a connection from the host into a leaf be carried; it is cut with the leaf, and its sockets are reset."""
        self._start(work, Passage(leaf_address), sockets)

    def cut(self, leaf: str, policy: Policy | None = None) -> None:
        """Reset a leaf's connections, those that are being made included; it is known by its IPv4 address.

        With ``policy``, those that it allows go on.
        """

        def cuts(rules: Rules) -> bool:
            return policy is None or not goes_on(policy, rules)

        self._dials.cut(leaf, cuts)
        self._upstreams.cut(leaf, cuts)
        for key in [key for key, claim in self._claims.items() if claim.leaf == leaf and cuts(claim.rules)]:
            del self._claims[key]
        for task, passage in list(self._flows.get(leaf, {}).items()):
            if cuts(passage.rules):
                task.cancel()

    def _start(
        self, work: Coroutine[Any, Any, None], passage: Passage, sockets: Iterable[socket.socket]
    ) -> asyncio.Task[None]:
        self._make_room(passage.leaf)
        tasks = self._flows.setdefault(passage.leaf, {})

        def finish(task: asyncio.Task[None]) -> None:
            tasks.pop(task, None)
            if not tasks and self._flows.get(passage.leaf) is tasks:
                del self._flows[passage.leaf]
            for opened in sockets:  # a task that is cancelled before it begins does not close them
                reset(opened)
            self.end(passage, CUT_SHORT)

        task = asyncio.create_task(work)
        tasks[task] = passage
        task.add_done_callback(finish)
        return task

    def _make_room(self, leaf: str) -> None:
        """Let a leaf that has its share of descriptors end something: others need some, too.

        That is its oldest exchange of datagrams, or else what has waited longest for its client, or a connection.
        """
        tasks = self._flows.get(leaf, {})
        if 2 * len(tasks) + self._upstreams.count(leaf) + 2 <= self._at_most:
            return
        oldest = next((task for task, passage in tasks.items() if passage.datagrams), None)
        if oldest is None and self._upstreams.give_up_one(leaf=leaf):
            return
        oldest = oldest or next(iter(tasks), None)
        if oldest is not None:
            del tasks[oldest]
            oldest.cancel()

    def _accept(self, listener: socket.socket) -> None:
        try:
            inner, peer = listener.accept()
            destination = inner.getsockname()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # out of descriptors
            if self._upstreams.give_up_one(error.strerror or str(error)):  # whose descriptor it gets then
                return
            rest(listener, self._accept, listener)
            return
        key = peer[0], peer[1], destination[0], destination[1]
        waiting = self._upstreams.take(key)
        if waiting is None:
            reset(inner)
            return
        inner.setblocking(False)
        task = self._start(self._carry(inner, waiting), waiting.passage, (inner, waiting.upstream))
        task.add_done_callback(lambda _: self._upstreams.over(key, waiting.sequence))

    async def _carry(self, client: socket.socket, waiting: Upstream) -> None:
        passage = waiting.passage
        reason: str | None = CUT_SHORT
        try:
            await carry(client, waiting.upstream, passage.volume, passage.inspect, self._pipes)
            reason = None
        finally:
            self.end(passage, reason)

    def end(self, passage: Passage, reason: str | None = None) -> None:
        """Note that a flow is over, where it is on record."""
        if passage.entry is not None:
            self._log.end(passage.entry, reason)

    async def _exchange(self, key: Key, claim: Claim, upstream: socket.socket, passage: Passage) -> None:
        try:
            await datagrams.exchange(claim.inner, upstream, passage.volume, lambda error: self._tell(key, error))
        finally:
            if self._claims.get(key) is claim:
                del self._claims[key]
            self.end(passage)

    def _tell(self, key: Key, error: int) -> None:
        """Tell a UDP client what its server's host said, or the way there."""
        message = icmp.unreachable(*key, error)
        sender = self._hub.icmp6 if ":" in key[0] else self._hub.icmp
        if message is not None and sender is not None:
            with contextlib.suppress(OSError):
                sender.sendto(message, (key[0], 0))


def key_of(flow: Endpoints) -> Key:
    """Return what tells one flow from every other."""
    return (str(flow.source), flow.source_port, str(flow.destination), flow.destination_port)


def mark_for(error: OSError, flow: Endpoints) -> int | None:
    """Return the mark that makes a client see the error that the upstream gave; None where it would see none."""
    if error.errno == errno.ETIMEDOUT:
        return None
    if error.errno == errno.ECONNREFUSED:
        return MARK_RESET
    if error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL):
        return MARK_BLOCKED
    # "Host unreachable" is a passing fault to a UDP socket, which would not be told of it.
    return MARK_UNREACHABLE if flow.protocol == packet.TCP else MARK_BLOCKED

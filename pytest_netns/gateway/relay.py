"""Carry allowed flows between a leaf and the host, with ordinary sockets on the host's side.

A connection's first packet waits in the hub's queue while the upstream connection is made, so that
what the client is told at connect is what the upstream said.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias

from pytest_netns.gateway import datagrams, icmp
from pytest_netns.gateway.flows import Entry, FlowLog, Volume
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.packet import Endpoints
from pytest_netns.gateway.pipes import Pipes
from pytest_netns.gateway.pump import Inspect, carry, reset
from pytest_netns.gateway.rulesets import MARK_BLOCKED, MARK_RELAY, MARK_RESET, MARK_UNREACHABLE
from pytest_netns.policy import Policy
from pytest_netns.rules import EgressRule

Key: TypeAlias = tuple[str, int, str, int]
InHub: TypeAlias = Callable[..., Awaitable[socket.socket]]


class Target(NamedTuple):
    """Where a flow is to be carried: an endpoint as the host sees it, or as the hub does."""

    host: str
    port: int
    in_hub: bool = False

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET6 for an IPv6 address, else AF_INET."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


@dataclass(frozen=True)
class Passage:
    """What an allowed flow takes along.

    Attributes:
        entry: its record; None for one that does not leave the leaves.
        rule: the rule that it rests on, if any.
        inspect: the judge of what the client says.
    """

    entry: Entry | None = None
    rule: EgressRule | None = None
    inspect: Inspect | None = None

    @property
    def volume(self) -> Volume:
        """Where its bytes are counted."""
        return Volume() if self.entry is None else self.entry.volume


@dataclass(frozen=True)
class _Waiting:
    upstream: socket.socket
    passage: Passage


_CONNECT_TIMEOUT: Final = 130.0  # seconds; the kernel's own gives up after some 127
_CLAIM_TIMEOUT: Final = 10.0
_BREATHER: Final = 0.1
_CUT_SHORT: Final = "cut off: the test that it was allowed to has ended"


def key_of(flow: Endpoints) -> Key:
    """Return what tells one flow from every other."""
    return (str(flow.source), flow.source_port, str(flow.destination), flow.destination_port)


class Relay:
    """The flows in progress of one hub."""

    def __init__(self, hub: Hub, in_hub: InHub, log: FlowLog) -> None:
        """Listen for accepted connections; ``in_hub(function, *args)`` runs a call in the hub's namespace."""
        self._hub = hub
        self._in_hub = in_hub
        self._log = log
        self._pipes = Pipes()
        self._waiting: dict[Key, _Waiting] = {}
        self._flows: dict[str, dict[asyncio.Task[None], EgressRule | None]] = {}
        loop = asyncio.get_running_loop()
        for listener in hub.relay_listeners:
            loop.add_reader(listener, self._accept, listener)

    def admit(self, flow: Endpoints, upstream: socket.socket, passage: Passage) -> int:
        """Wait for the client of a connection that has been made upstream; return the mark for its first packet."""
        key = key_of(flow)
        self._waiting[key] = _Waiting(upstream, passage)
        asyncio.get_running_loop().call_later(_CLAIM_TIMEOUT, self._expire, key, upstream)
        return MARK_RELAY

    async def admit_udp(self, flow: Endpoints, target: Target, passage: Passage) -> int:
        """Make both sides of a UDP exchange with a target; return the mark for its first packet.

        Raises:
            OSError: as the client's own call would.
        """
        key = key_of(flow)
        upstream = socket.socket(target.family, socket.SOCK_DGRAM)
        try:
            upstream.setblocking(False)
            upstream.connect(target[:2])
            inner = await self._in_hub(datagrams.socket_for, key)
        except BaseException:
            upstream.close()
            raise
        self._start(key[0], self._exchange(key, inner, upstream, passage), passage, (inner, upstream))
        return MARK_RELAY

    async def forward(self, client: socket.socket, leaf_address: str, port: int) -> None:
        """Carry a connection from the host into a leaf."""
        try:
            inner = await self.dial(Target(leaf_address, port, in_hub=True))
        except OSError:
            reset(client)
            return
        passage = Passage()
        self._start(leaf_address, self._carry(client, _Waiting(inner, passage)), passage, (client, inner))

    def cut(self, leaf_address: str, policy: Policy | None = None) -> None:
        """Reset the connections of one of a leaf's addresses, those that are being made included.

        With ``policy``, those that it allows go on.
        """

        def goes_on(rule: EgressRule | None) -> bool:
            return policy is not None and (policy.everything if rule is None else rule in policy.rules)

        for key in [key for key in self._waiting if key[0] == leaf_address]:
            if not goes_on(self._waiting[key].passage.rule):
                self._give_up(key)
        for task, rule in list(self._flows.get(leaf_address, {}).items()):
            if not goes_on(rule):
                task.cancel()

    def _start(
        self, leaf_address: str, work: Coroutine[Any, Any, None], passage: Passage, sockets: Iterable[socket.socket]
    ) -> None:
        tasks = self._flows.setdefault(leaf_address, {})

        def finish(task: asyncio.Task[None]) -> None:
            tasks.pop(task, None)
            if not tasks and self._flows.get(leaf_address) is tasks:
                del self._flows[leaf_address]
            for opened in sockets:  # a task that is cancelled before it begins does not close them
                reset(opened)
            self._end(passage, _CUT_SHORT)

        task = asyncio.create_task(work)
        tasks[task] = passage.rule
        task.add_done_callback(finish)

    async def dial(self, target: Target) -> socket.socket:
        """Connect to a TCP endpoint; OSError as connect(2) would give it."""
        if target.in_hub:
            upstream = await self._in_hub(socket.socket, target.family, socket.SOCK_STREAM)
        else:
            upstream = socket.socket(target.family, socket.SOCK_STREAM)
        upstream.setblocking(False)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(upstream, target[:2]), _CONNECT_TIMEOUT)
        except asyncio.TimeoutError as error:
            upstream.close()
            raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from error
        except BaseException:
            upstream.close()
            raise
        return upstream

    def _accept(self, listener: socket.socket) -> None:
        try:
            inner, peer = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError:  # out of descriptors: the connection waits until some are free
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(_BREATHER, loop.add_reader, listener, self._accept, listener)
            return
        destination = inner.getsockname()
        waiting = self._waiting.pop((peer[0], peer[1], destination[0], destination[1]), None)
        if waiting is None:  # nobody decided on it
            reset(inner)
            return
        inner.setblocking(False)
        self._start(peer[0], self._carry(inner, waiting), waiting.passage, (inner, waiting.upstream))

    async def _carry(self, client: socket.socket, waiting: _Waiting) -> None:
        passage = waiting.passage
        reason: str | None = _CUT_SHORT
        try:
            await carry(client, waiting.upstream, passage.volume, passage.inspect, self._pipes)
            reason = None
        finally:
            self._end(passage, reason)

    def _end(self, passage: Passage, reason: str | None = None) -> None:
        if passage.entry is not None:
            self._log.end(passage.entry, reason)

    async def _exchange(self, key: Key, inner: socket.socket, upstream: socket.socket, passage: Passage) -> None:
        try:
            await datagrams.exchange(inner, upstream, passage.volume, lambda error: self._tell(key, error))
        finally:
            self._end(passage)

    def _tell(self, key: Key, error: int) -> None:
        """Tell a UDP client what its server's host said, or the way there."""
        packet = icmp.unreachable(*key, error)
        sender = self._hub.icmp6 if ":" in key[0] else self._hub.icmp
        if packet is not None and sender is not None:
            with contextlib.suppress(OSError):
                sender.sendto(packet, (key[0], 0))

    def _expire(self, key: Key, upstream: socket.socket) -> None:
        waiting = self._waiting.get(key)
        if waiting is not None and waiting.upstream is upstream:
            self._give_up(key)

    def _give_up(self, key: Key) -> None:
        waiting = self._waiting.pop(key)
        waiting.upstream.close()
        self._end(waiting.passage, "the client went away before it was connected")


def mark_for(error: OSError) -> int | None:
    """Return the mark that makes a client see the error that the upstream gave; None where it would see none."""
    if error.errno == errno.ETIMEDOUT:
        return None
    if error.errno == errno.ECONNREFUSED:
        return MARK_RESET
    if error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL):
        return MARK_BLOCKED
    return MARK_UNREACHABLE

"""Carry allowed flows between a leaf and the host, with ordinary sockets on the host's side.

A connection's first packet waits in the hub's queue while the upstream connection is made, so that
what the client is told at connect is what the upstream said.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeAlias

from pytest_netns.gateway import hub as hub_module
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.packet import Endpoints
from pytest_netns.gateway.rulesets import MARK_BLOCKED, MARK_CLAIMED, MARK_RELAY, MARK_RESET, MARK_UNREACHABLE

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


_CHUNK: Final = 256 * 1024
_CONNECT_TIMEOUT: Final = 130.0  # seconds; the kernel's own gives up after some 127
_CLAIM_TIMEOUT: Final = 10.0
_UDP_IDLE: Final = 120.0
_DATAGRAM: Final = 65536
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


def key_of(flow: Endpoints) -> Key:
    """Return what tells one flow from every other."""
    return (str(flow.source), flow.source_port, str(flow.destination), flow.destination_port)


class Relay:
    """The flows in progress of one hub."""

    def __init__(self, hub: Hub, in_hub: InHub) -> None:
        """Listen for accepted connections; ``in_hub(function, *args)`` runs a call in the hub's namespace."""
        self._in_hub = in_hub
        self._waiting: dict[Key, socket.socket] = {}
        self._connecting: set[Key] = set()
        self._flows: dict[str, set[asyncio.Task[None]]] = {}
        loop = asyncio.get_running_loop()
        for listener in hub.relay_listeners:
            loop.add_reader(listener, self._accept, listener)

    def is_connecting(self, flow: Endpoints) -> bool:
        """Tell whether this is a repetition of a packet whose upstream connection is being made."""
        return key_of(flow) in self._connecting

    async def connect(self, flow: Endpoints, targets: list[Target]) -> int | None:
        """Connect to the first target that does not refuse.

        Returns the mark for the connection's first packet; None where it is to be dropped.
        """
        key = key_of(flow)
        self._connecting.add(key)
        try:
            upstream = await self._dial_first(targets)
        except OSError as error:
            return mark_for(error)
        finally:
            self._connecting.discard(key)
        self._waiting[key] = upstream
        asyncio.get_running_loop().call_later(_CLAIM_TIMEOUT, self._expire, key, upstream)
        return MARK_RELAY

    async def connect_udp(self, flow: Endpoints, targets: list[Target]) -> int | None:
        """Make both sides of a UDP exchange with the first target; return the mark for its first packet."""
        target = targets[0]
        key = key_of(flow)
        self._connecting.add(key)
        upstream = socket.socket(target.family, socket.SOCK_DGRAM)
        upstream.setblocking(False)
        try:
            upstream.connect(target[:2])
            inner = await self._in_hub(_udp_to_leaf, key)
        except OSError as error:
            upstream.close()
            return mark_for(error)
        finally:
            self._connecting.discard(key)
        self._start(key[0], _exchange(inner, upstream))
        return MARK_RELAY

    async def forward(self, client: socket.socket, leaf_address: str, port: int) -> None:
        """Carry a connection from the host into a leaf."""
        try:
            inner = await self._dial_first([Target(leaf_address, port, in_hub=True)])
        except OSError:
            reset(client)
            return
        self._start(leaf_address, _carry(client, inner))

    def cut(self, leaf_address: str) -> None:
        """Reset every connection of one of a leaf's addresses, those that are being made included."""
        for key in [key for key in self._waiting if key[0] == leaf_address]:
            self._waiting.pop(key).close()
        for task in self._flows.pop(leaf_address, ()):
            task.cancel()

    def _start(self, leaf_address: str, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        tasks = self._flows.setdefault(leaf_address, set())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _dial_first(self, targets: list[Target]) -> socket.socket:
        for target in targets[:-1]:
            with contextlib.suppress(ConnectionRefusedError):
                return await self._dial(target)
        return await self._dial(targets[-1])

    async def _dial(self, target: Target) -> socket.socket:
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
            raise TimeoutError(errno.ETIMEDOUT, "timed out") from error
        except BaseException:
            upstream.close()
            raise
        return upstream

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            inner, peer = listener.accept()
            destination = inner.getsockname()
            upstream = self._waiting.pop((peer[0], peer[1], destination[0], destination[1]), None)
            if upstream is None:  # nobody decided on it
                reset(inner)
                return
            inner.setblocking(False)
            self._start(peer[0], _carry(inner, upstream))

    def _expire(self, key: Key, upstream: socket.socket) -> None:
        if self._waiting.get(key) is upstream:
            del self._waiting[key]
            upstream.close()


async def _carry(one: socket.socket, other: socket.socket) -> None:
    """Copy both ways until both have said their last; a reset on one side, or being cut off, resets the other."""
    directions = [asyncio.create_task(_copy(one, other)), asyncio.create_task(_copy(other, one))]
    whole = False
    try:
        done, pending = await asyncio.wait(directions, return_when=asyncio.FIRST_EXCEPTION)
        whole = not pending and not any(task.exception() for task in done)
    finally:
        await _end(directions)
        for opened in (one, other):
            opened.close() if whole else reset(opened)


async def _exchange(inner: socket.socket, upstream: socket.socket) -> None:
    directions = [asyncio.create_task(_copy_datagrams(*pair)) for pair in ((inner, upstream), (upstream, inner))]
    try:
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _end(directions)
        inner.close()
        upstream.close()


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    """End the tasks before their sockets are closed: the loop would take the next of that number for the old one."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def mark_for(error: OSError) -> int | None:
    """Return the mark that makes a client see the error that the upstream gave; None where it would see none."""
    if error.errno == errno.ECONNREFUSED:
        return MARK_RESET
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH):
        return MARK_UNREACHABLE
    if error.errno in (errno.EACCES, errno.EPERM, errno.EINVAL):
        return MARK_BLOCKED
    return None


def reset(opened: socket.socket) -> None:
    """Close a connection so that the other end sees a reset."""
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    opened.close()


def _udp_to_leaf(key: Key) -> socket.socket:
    source, source_port, destination, destination_port = key
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    opened = hub_module.transparent(family, socket.SOCK_DGRAM, (destination, destination_port))
    opened.connect((source, source_port))
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_CLAIMED)
    return opened


async def _copy(source: socket.socket, destination: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while data := await loop.sock_recv(source, _CHUNK):
        await loop.sock_sendall(destination, data)
    with contextlib.suppress(OSError):
        destination.shutdown(socket.SHUT_WR)


async def _copy_datagrams(source: socket.socket, destination: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        try:
            data = await asyncio.wait_for(loop.sock_recv(source, _DATAGRAM), _UDP_IDLE)
            with contextlib.suppress(BlockingIOError):
                destination.send(data)
        except (OSError, asyncio.TimeoutError):
            return

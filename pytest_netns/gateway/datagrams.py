"""Carry UDP between a leaf's socket and a server, each pair of them by two sockets of their own."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pytest_netns.gateway import hub
from pytest_netns.gateway.dials import Rules
from pytest_netns.gateway.flows import Volume
from pytest_netns.gateway.hub_ruleset import MARK_CLAIMED

IDLE: Final = 120.0  # seconds
UNANSWERED: Final = 30.0  # seconds; both are what the kernel's connection tracking takes

_DATAGRAM: Final = 65536
_AT_ONCE: Final = 16
_ROOM: Final = 4 << 20
_QUIET: Final = 0.002  # seconds
_PATIENCE: Final = 0.5  # seconds


def socket_for(key: tuple[str, int, str, int]) -> socket.socket:
    """Open the socket that speaks to a client in its server's name; called in the hub's namespace."""
    source, source_port, destination, destination_port = key
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    opened = hub.transparent(family, socket.SOCK_DGRAM, (destination, destination_port))
    try:
        opened.connect((source, source_port))
    except BaseException:
        opened.close()
        raise
    make_room(opened)
    return opened


def make_room(opened: socket.socket) -> None:
    """Let a socket hold as much as this machine lets one hold."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)


@dataclass(eq=False)
class Claim:
    """A client's socket in the hub, which its packets are to reach without passing through the packet queue.

    They do so from a moment on at which none is in the queue: later ones would overtake it.

    Attributes:
        inner: the socket.
        leaf: the IPv4 address of the client's leaf.
        rules: what the exchange rests on.
        has_queued: tells whether packets, of whatever flow, wait in the queue right now.
        busy: whether packets came through the queue lately.
    """

    inner: socket.socket
    leaf: str
    rules: Rules
    has_queued: Callable[[], bool]
    busy: bool = True

    def begin(self) -> None:
        """Wait for that moment, but not for ever."""
        loop = asyncio.get_running_loop()
        loop.call_later(_QUIET, self._look, loop.time() + _PATIENCE)

    def _look(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        if self.inner.fileno() < 0:
            return
        if (self.busy or self.has_queued()) and loop.time() < until:
            self.busy = False
            loop.call_later(_QUIET, self._look, until)
        else:
            self.inner.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK_CLAIMED)


async def exchange(inner: socket.socket, upstream: socket.socket, volume: Volume, tell: Callable[[int], None]) -> None:
    """Pass datagrams on both ways until none has come for IDLE seconds, or UNANSWERED if the server never spoke.

    Both sockets are closed at the end.

    Args:
        inner: connected to the client.
        upstream: connected to the server.
        volume: where bytes are counted.
        tell: is called with the ``errno`` of what the server's host, or the way there, said to a datagram.
    """
    loop = asyncio.get_running_loop()
    last = loop.time()

    def out() -> None:
        nonlocal last
        last = loop.time()
        for data in _waiting(inner, None):
            volume.add_sent(_send(upstream, data, tell))

    def back() -> None:
        nonlocal last
        last = loop.time()
        for data in _waiting(upstream, tell):
            volume.add_received(_send(inner, data, None))

    loop.add_reader(inner, out)
    loop.add_reader(upstream, back)
    try:
        while (left := last + (IDLE if volume.received else UNANSWERED) - loop.time()) > 0:  # noqa: ASYNC110 - nothing but time ends it
            await asyncio.sleep(left)
    finally:
        for opened in (inner, upstream):
            loop.remove_reader(opened)
            opened.close()


def _waiting(source: socket.socket, tell: Callable[[int], None] | None) -> list[bytes]:
    """Return what has arrived, up to a bound: others have their turn after that."""
    found: list[bytes] = []
    while len(found) < _AT_ONCE:
        try:
            found.append(source.recv(_DATAGRAM))
        except BlockingIOError:
            break
        except OSError as error:  # of an earlier datagram; it is told once
            if tell is not None and error.errno is not None:
                tell(error.errno)
            break
    return found


def _send(sink: socket.socket, data: bytes, tell: Callable[[int], None] | None) -> int:
    """Send one datagram, past the error of an earlier one; what finds no room is lost, as on any network."""
    for _ in range(2):
        try:
            return sink.send(data)
        except BlockingIOError:
            break
        except OSError as error:
            if tell is not None and error.errno is not None:
                tell(error.errno)
    return 0

"""``--netns-publish``: one port of the host's loopback that leads into each leaf by the name in a request's Host.

A connection carries one request. Its head is read and sent on, asking the server to close the connection
afterwards; from then on bytes are relayed. What a client says after the end of its request, which may be for
another leaf, is never passed on: the connection is closed, and the client makes a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, Final, Protocol

from pytest_netns.errors import KernelError
from pytest_netns.gateway import heads, pages
from pytest_netns.gateway.accepting import accept
from pytest_netns.gateway.flows import Volume
from pytest_netns.gateway.heads import Body, Head, RequestError
from pytest_netns.gateway.publish import listen
from pytest_netns.gateway.pump import CHUNK, Inspect, Judgement, carry
from pytest_netns.gateway.relay import Relay
from pytest_netns.gateway.worker import LiveLeaf

USUAL_PORT: Final = 8321
_DOMAIN: Final = ".localhost"
_NAME: Final = re.compile(r"(?:(\d{1,5})\.)?(.+)\.localhost")
_INDEX: Final = frozenset({"localhost", "127.0.0.1"})
_HEAD_TIMEOUT: Final = 30.0  # seconds; browsers open connections ahead of need
_LINGER: Final = 1.0
_SWITCHED: Final = b"101"


class Leaves(Protocol):
    """Who knows the leaves."""

    def live(self) -> Iterable[LiveLeaf]:
        """Return those that are alive."""

    def fate(self, name: str) -> str | None:
        """Return the test of a leaf that has ended not long ago."""

    async def listening(self, live: LiveLeaf) -> list[str]:
        """Return what listens in one."""


class Browsing:
    """The port that browsers connect to; there is none before ``open``."""

    def __init__(self, relay: Relay, leaves: Leaves) -> None:
        """Serve nobody yet; ``relay`` carries the connections."""
        self._relay = relay
        self._leaves = leaves
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int | None:
        """The port; None where there is none."""
        if self._listener is None:
            return None
        port: int = self._listener.getsockname()[1]
        return port

    def open(self, port: int) -> int:
        """Listen on a port of the host's 127.0.0.1, 0 for the usual one or else a free one; return which it is.

        Raises:
            KernelError: the port is taken, or not for this user.
        """
        if self._listener is None:
            self._listener = _listen(port)
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
        return self._listener.getsockname()[1]  # type: ignore[no-any-return]

    def _accept(self, listener: socket.socket) -> None:
        accepted = accept(listener, self._accept, listener)
        if accepted is not None:
            self._spawn(self._serve(accepted[0]))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: socket.socket) -> None:
        try:
            head, rest = await asyncio.wait_for(_read_head(client), _HEAD_TIMEOUT)
            try:
                live, upstream = await self._reach(head)
            except _OwnAnswerError as own:
                await _answer(client, own.response(head))
                return
        except RequestError as error:
            page = pages.plain("No request that can be served", str(error))
            await _answer(client, pages.response(error.status, page))
        except (OSError, asyncio.TimeoutError):
            client.close()
        except BaseException:
            client.close()
            raise
        else:
            self._relay.accompany(live.address, _carry(client, upstream, head, rest), (client, upstream))

    async def _reach(self, head: Head) -> tuple[LiveLeaf, socket.socket]:
        """Connect to the leaf that a request is for; where that can't be, raise what to say instead."""
        live, port = self._leaf_for(head)
        try:
            return live, await self._relay.reach(live.addresses, port)
        except (OSError, OverflowError) as error:
            listening = await self._leaves.listening(live)
            page = pages.silent(live, port, getattr(error, "strerror", None) or str(error), listening, self.port or 0)
            raise _OwnAnswerError(HTTPStatus.BAD_GATEWAY, page) from error

    def _leaf_for(self, head: Head) -> tuple[LiveLeaf, int]:
        """Return whom a request is for, and the port there.

        A name that is not below ``localhost`` may be one by which a web site makes a browser take us for its own.
        """
        if head.host in _INDEX:
            raise self._index(head)
        if not head.host.endswith(_DOMAIN):
            text = f"The leaves are called <leaf>{_DOMAIN}, and nothing else is served here."
            raise _OwnAnswerError(HTTPStatus.MISDIRECTED_REQUEST, pages.plain(f"Not for {head.host}", text))
        found = _NAME.fullmatch(head.host)
        port, name = found.groups() if found else (None, head.host.removesuffix(_DOMAIN))
        leaves = list(self._leaves.live())
        live = next((one for one in leaves if one.name.lower() == name), None)
        if live is None:
            page = pages.unknown(name, self._leaves.fate(name), leaves, self.port or 0)
            raise _OwnAnswerError(HTTPStatus.NOT_FOUND, page)
        return live, int(port) if port else live.port

    def _index(self, head: Head) -> _OwnAnswerError:
        if head.path.partition("?")[0] != "/":
            page = pages.plain("Nothing is here", f"The index is http://localhost:{self.port}/")
            return _OwnAnswerError(HTTPStatus.NOT_FOUND, page)
        if head.method not in {"GET", "HEAD"}:
            return _OwnAnswerError(
                HTTPStatus.METHOD_NOT_ALLOWED, pages.plain("This page can only be read", head.method)
            )
        return _OwnAnswerError(HTTPStatus.OK, pages.index(self._leaves.live(), self.port or 0), renews=True)


class _OwnAnswerError(Exception):
    """It is not for a leaf to answer; this is what to say."""

    def __init__(self, status: HTTPStatus, page: str, *, renews: bool = False) -> None:
        super().__init__(status)
        self._status, self._page, self._renews = status, page, renews

    def response(self, head: Head) -> bytes:
        return pages.response(self._status, self._page, head=head, renews=self._renews)


def _listen(port: int) -> socket.socket:
    try:
        return listen(port or USUAL_PORT)
    except KernelError:
        if port:
            raise
    return listen(0)


async def _read_head(client: socket.socket) -> tuple[Head, bytes]:
    loop, data = asyncio.get_running_loop(), b""
    while (found := heads.parse(data)) is None:
        piece = await loop.sock_recv(client, CHUNK)
        if not piece:
            raise ConnectionResetError("the client left before it had asked")
        data += piece
    return found


async def _answer(client: socket.socket, answer: bytes) -> None:
    """Send an answer of our own, and let the client finish what it says: a reset would take the answer from it."""
    loop = asyncio.get_running_loop()
    with contextlib.closing(client), contextlib.suppress(OSError, asyncio.TimeoutError):
        await asyncio.wait_for(loop.sock_sendall(client, answer), _HEAD_TIMEOUT)
        client.shutdown(socket.SHUT_WR)
        await asyncio.wait_for(_drain(client), _LINGER)


async def _drain(client: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(client, CHUNK):
        pass


async def _carry(client: socket.socket, upstream: socket.socket, head: Head, rest: bytes) -> None:
    """Pass on one request and its answer; where both agree on it, whatever they have to say to each other then."""
    loop, judge = asyncio.get_running_loop(), _judge(head)
    inspect: Inspect | None = judge
    if rest and judge(rest) is Judgement.REFUSE:
        return
    await loop.sock_sendall(upstream, head.forwarded() + rest)
    if head.upgrades:
        begin = await _first_line(upstream)
        await loop.sock_sendall(client, begin)
        if begin.split(b" ")[1:2] == [_SWITCHED]:
            inspect = None
    await carry(client, upstream, Volume(), inspect, to_the_end=True)


def _judge(head: Head) -> Callable[[bytes], Judgement]:
    body = Body(head.length)
    return lambda data: Judgement.PASS if body.holds(data) else Judgement.REFUSE


async def _first_line(upstream: socket.socket) -> bytes:
    data = b""
    while b"\r\n" not in data and len(data) < CHUNK:
        piece = await asyncio.get_running_loop().sock_recv(upstream, CHUNK)
        if not piece:
            break
        data += piece
    return data

"""Carry one TCP connection between two sockets: little data at little delay, much of it at little cost.

What a direction moves at first goes through the process; once it has moved much, through a pipe that the
kernel fills and empties. A pipe is borrowed for as long as something is in it, so that connections that
are open and silent cost none.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import fcntl
import socket
import struct
from collections.abc import Callable
from typing import Final, TypeAlias

from pytest_netns.gateway.flows import Volume
from pytest_netns.gateway.pipes import Pipe, Pipes

CHUNK: Final = 64 * 1024  # bytes that are read at once, and that an inspection is shown at most

_BULK: Final = 256 * 1024  # bytes after which a direction counts as one that moves much
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_SIOCATMARK: Final = 0x8905
_NOT_AT_MARK: Final = bytes(4)


class Judgement(enum.Enum):
    """What becomes of what a client said."""

    HOLD = "hold"
    """It is kept back until there is more."""

    PASS = "pass"  # noqa: S105 - no password
    """It is passed on, and what follows is to be judged as well."""

    DONE = "done"
    """It is passed on, and so is all that follows."""

    REFUSE = "refuse"
    """Both sides are reset."""


Inspect: TypeAlias = Callable[[bytes], Judgement]


def reset(opened: socket.socket) -> None:
    """Close a connection so that the other end sees a reset; harmless when done twice."""
    if opened.fileno() < 0:
        return
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    opened.close()


async def carry(
    client: socket.socket,
    upstream: socket.socket,
    volume: Volume,
    inspect: Inspect | None = None,
    pipes: Pipes | None = None,
    *,
    to_the_end: bool = False,
) -> bool:
    """Copy both ways until both have said their last; a reset on one side, or being cancelled, resets the other.

    The sockets are connected and non-blocking, and closed at the end. ``inspect`` is called with each piece of what
    the client says before it is passed on, until it has said that it is done, or much has passed and not ``to_the_end``
    was asked for. CHUNK bytes that are kept back are refused; at the client's end they are passed on. Urgent data is
    refused until then, which an empty piece tells ``inspect`` of.

    Returns False where the inspection refused, else True. Connections that share ``pipes`` get along with few.
    """
    shared = _Shared(Pipes() if pipes is None else pipes)
    there = _Direction(client, upstream, volume.add_sent, shared, inspect)
    there.inspects_all = to_the_end and inspect is not None
    back = _Direction(upstream, client, volume.add_received, shared)
    end: Exception | None = InterruptedError()
    try:
        there.start()
        back.start()
        end = await shared.ended
    finally:
        there.stop()
        back.stop()
        if pipes is None:
            shared.pipes.close()
        for opened in (client, upstream):
            opened.close() if end is None else reset(opened)
    if end is None or isinstance(end, OSError):
        return True
    if isinstance(end, _RefusedError):
        return False
    raise end


class _RefusedError(Exception):
    """The inspection said no."""


class _Block:
    """What one side said and the other has not taken yet; no more is read before that is gone."""

    __slots__ = ("_data", "_inspect", "_urgent", "held")

    def __init__(self, inspect: Inspect | None = None) -> None:
        self._inspect, self._data, self._urgent = inspect, b"", False
        self.held = 0  # what may be passed on: nothing while the inspection waits for more

    def room(self) -> int:
        return 0 if self.held else CHUNK - len(self._data)

    def fill(self, source: socket.socket) -> int:
        source.recv(1, socket.MSG_PEEK)  # a byte that has come is urgent or not; one that comes after this look may be
        urgent = _is_at_mark(source)
        data = source.recv(1 if urgent else CHUNK - len(self._data))
        if urgent and data and self._inspect is not None:  # the other end may take it for a part of the rest, or not
            self._inspect(b"")
            raise _RefusedError
        self._urgent = urgent
        self._data += data
        if self._inspect is None or self._passes(self._inspect, data):
            self.held = len(self._data)
        return len(data)

    def drain(self, sink: socket.socket) -> int:
        given = sink.send(self._data, socket.MSG_OOB if self._urgent else 0)
        self._data = self._data[given:]
        self.held -= given
        return given

    def _passes(self, inspect: Inspect, data: bytes) -> bool:
        judgement = inspect(data) if data else Judgement.DONE
        if judgement is Judgement.REFUSE or (judgement is Judgement.HOLD and not self.room()):
            raise _RefusedError
        if judgement is Judgement.DONE:
            self._inspect = None
        return judgement is not Judgement.HOLD


def _is_at_mark(source: socket.socket) -> bool:
    """Tell whether the next byte is an urgent one; nothing reads past it at once, see sockatmark(3)."""
    return fcntl.ioctl(source.fileno(), _SIOCATMARK, _NOT_AT_MARK) != _NOT_AT_MARK


class _Shared:
    """What the two directions of a connection have in common."""

    __slots__ = ("_going_on", "ended", "pipes")

    def __init__(self, pipes: Pipes) -> None:
        self.pipes = pipes
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._going_on = 2

    def finish_one(self) -> None:
        """Note that one direction has passed on all that there was; the connection ends with the second."""
        self._going_on -= 1
        if not self._going_on:
            self.end()

    def end(self, error: Exception | None = None) -> None:
        """End the connection; the first end that it comes to is the one."""
        if not self.ended.done():
            self.ended.set_result(error)


class _Direction:
    """What one side says to the other."""

    def __init__(
        self,
        source: socket.socket,
        sink: socket.socket,
        count: Callable[[int], None],
        shared: _Shared,
        inspect: Inspect | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._sink, self._count, self._shared = source, sink, count, shared
        self._store: _Block | Pipe = _Block(inspect)
        self._moved, self._bulk = 0, _BULK
        self.inspects_all = False
        self._eof = self._stuck = self._reading = self._writing = False

    def start(self) -> None:
        """Begin; what the sink is given goes out at once, since its sender has waited already if it wanted to."""
        with contextlib.suppress(OSError):
            self._sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._source.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)  # urgent bytes keep their place
        self._turn()

    def stop(self) -> None:
        """Leave the loop: it would take the next socket of this number for the old one."""
        self._watch(reading=False, writing=False)
        self._return_pipe()

    def _turn(self) -> None:
        """Move one piece, and let others have their turn; called when the source has some or a full sink has room."""
        if self._shared.ended.done():
            return
        try:
            self._borrow_pipe()
            self._fill(self._store)
            self._drain(self._store)
            self._settle(self._store)
        except Exception as error:  # noqa: BLE001 - who awaits the end gets it, an inspection's own too
            self._shared.end(error)

    def _fill(self, store: _Block | Pipe) -> None:
        self._stuck = True
        if self._eof or not store.room():
            return
        taken = self._take(store)
        if not taken and isinstance(store, Pipe) and _is_at_mark(self._source):  # which splice(2) never gets past
            if store.held:
                return
            self._return_pipe()
            self._bulk = self._moved + _BULK
            taken = self._take(self._store)
        if taken is not None:
            self._stuck, self._eof = False, not taken

    def _take(self, store: _Block | Pipe) -> int | None:
        try:
            return store.fill(self._source)
        except BlockingIOError:
            return None

    def _drain(self, store: _Block | Pipe) -> None:
        if not store.held:
            return
        try:
            given = store.drain(self._sink)
        except BlockingIOError:
            return
        self._moved += given
        self._count(given)

    def _settle(self, store: _Block | Pipe) -> None:
        if store.held:
            # A pipe that took nothing may be full whatever its size: it has so many pages, some of a few bytes only.
            self._watch(reading=not self._eof and not self._stuck and store.room() > 0, writing=True)
            return
        self._return_pipe()
        self._watch(reading=not self._eof, writing=False)
        if self._eof:
            self._sink.shutdown(socket.SHUT_WR)
            self._shared.finish_one()

    def _watch(self, *, reading: bool, writing: bool) -> None:
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._source.fileno(), self._turn)
            else:
                self._loop.remove_reader(self._source.fileno())
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._sink.fileno(), self._turn)
            else:
                self._loop.remove_writer(self._sink.fileno())

    def _borrow_pipe(self) -> None:
        if self._moved < self._bulk or self._store.held or self.inspects_all:
            return
        pipe = self._shared.pipes.lend()
        if pipe is None:
            self._bulk = self._moved + (_BULK << 4)  # ask again later, not each time
        else:
            self._store = pipe

    def _return_pipe(self) -> None:
        if isinstance(self._store, Pipe):
            self._shared.pipes.take_back(self._store)
            self._store = _Block()

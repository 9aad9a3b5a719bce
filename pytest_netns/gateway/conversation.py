"""Serve the processes of a user that connect: take requests, and answer each client's in order.

``serve`` ends when the last client has gone, whatever ended that one, and no other is to come.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from pytest_netns.errors import NetnsError, describe
from pytest_netns.gateway import protocol
from pytest_netns.gateway.accepting import accept
from pytest_netns.gateway.protocol import Message
from pytest_netns.gateway.worker import Worker

T = TypeVar("T")

Reply: TypeAlias = tuple[Message, tuple[int, ...]]
Operation: TypeAlias = Callable[..., "Reply | Awaitable[Reply] | None"]

_SO_PEERCRED: Final = struct.Struct("iII")  # struct ucred: pid, uid, gid; see unix(7)
_FIRST_CLIENT_TIMEOUT: Final = 30.0  # seconds
_PAGE_BYTES: Final = 64 * 1024
_REFUSED: Final = (NetnsError, OSError, KeyError, TypeError, ValueError)


@dataclass
class Run:
    """How a gateway can tell that nobody needs it any more.

    Attributes:
        starter: a pidfd of the process that started the run's first gateway.
        deserted: is called when the last client has gone, before what it left is seen to.
        awaited: that process, where it will come, at its end at the latest, to a gateway that has taken over: until it
            has been here, or is gone, tests of others may go on that have not noticed yet. None where it need not.
    """

    starter: int
    deserted: Callable[[], None]
    awaited: int | None = None


class Clients:
    """Those that are connected."""

    def __init__(self, operations: Mapping[str, Operation], bury: Callable[[Worker], Awaitable[None]]) -> None:
        """Serve nobody yet.

        Args:
            operations: what can be asked for, by name; each is called with the client and the request's fields. None
                is no answer.
            bury: is called with a client that has gone.
        """
        self._operations = operations
        self._bury = bury
        self._numbers = itertools.count()
        self._workers: set[Worker] = set()
        self._ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._run = Run(starter=-1, deserted=lambda: None)

    def begin(self, listener: socket.socket, run: Run) -> None:
        """Take on whoever connects, for a run."""
        self._run = run
        self.listen(listener)
        asyncio.get_running_loop().add_reader(run.starter, self._starter_gone)

    async def serve(self, listener: socket.socket) -> None:
        """Serve until the last client has gone, or nobody comes: who started the run has ended, or takes too long."""
        loop = asyncio.get_running_loop()
        lonely = loop.call_later(_FIRST_CLIENT_TIMEOUT, self._end_if_unused)
        await self._ended.wait()
        lonely.cancel()
        loop.remove_reader(self._run.starter)
        loop.remove_reader(listener)

    def listen(self, listener: socket.socket) -> None:
        """Take on whoever connects here, from now on."""
        asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    @property
    def first_pid(self) -> int | None:
        """The process that connected first of those that are connected: the controller, where there is one."""
        first = min(self._workers, key=lambda worker: worker.number, default=None)
        return None if first is None else first.pid

    def catch_up(self, worker: Worker) -> None:
        """Carry out all that a client has asked for by now."""
        while worker.heard and self._read(worker):
            pass

    def _starter_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._run.starter)
        self._run.awaited = None
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if not self._workers and self._run.awaited is None:
            self._ended.set()

    def _accept(self, listener: socket.socket) -> None:
        accepted = accept(listener, self._accept, listener)
        if accepted is None:
            return
        connection, _ = accepted
        try:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED.size)
        except OSError:  # who it is can't be told
            connection.close()
            return
        pid, uid, _ = _SO_PEERCRED.unpack(credentials)
        if uid != os.geteuid():
            connection.close()
            return
        if self._run.awaited == pid:
            self._run.awaited = None
        worker = Worker(next(self._numbers), pid, connection)
        self._workers.add(worker)
        self._attend(worker)

    def _attend(self, worker: Worker) -> None:
        worker.heard = True
        # By number: the loop looks up what it has not heard of, and to say so would describe a socket at length.
        asyncio.get_running_loop().add_reader(worker.connection.fileno(), self._read, worker)

    def _ignore(self, worker: Worker) -> None:
        worker.heard = False
        asyncio.get_running_loop().remove_reader(worker.connection.fileno())

    def _read(self, worker: Worker) -> bool:
        """Answer a client's next request, at once if that can be; return whether there was one.

        A client that has gone, or makes no sense, is hung up on.
        """
        try:
            request, descriptors = protocol.receive(worker.connection)
        except BlockingIOError:
            return False
        except (OSError, ValueError):
            self._hang_up(worker)
            return False
        worker.brought = descriptors
        reply = None
        try:
            if request is None:
                self._hang_up(worker)
                return False
            number = request.pop("number", None)
            reply = self._answer(worker, request)
        finally:
            for descriptor in worker.taken_over():  # by nobody, as most requests have none
                os.close(descriptor)
        if isinstance(reply, Awaitable):
            self._ignore(worker)  # requests are answered in order
            self._spawn(self._answer_later(worker, number, reply))
        elif reply is not None:
            self._send(worker, number, reply)
        return True

    def _answer(self, worker: Worker, request: Message) -> Reply | Awaitable[Reply] | None:
        name = request.pop("op", "")
        if name == "hello":  # shows that the gateway serves, and does not just end with a connection at its door
            return {}, ()
        operation = self._operations.get(str(name))
        if operation is None:
            return _refusal(ValueError("no such operation"))
        try:
            return operation(worker, **request)
        except _REFUSED as error:
            return _refusal(error)

    async def _answer_later(self, worker: Worker, number: int | None, reply: Awaitable[Reply]) -> None:
        try:
            answer = await reply
        except _REFUSED as error:
            answer = _refusal(error)
        if self._send(worker, number, answer):
            self._attend(worker)

    def _send(self, worker: Worker, number: int | None, reply: Reply) -> bool:
        answer, attached = reply
        try:
            protocol.send(worker.connection, {"ok": True, **answer, "number": number}, attached)
        except ValueError as error:  # it does not fit a packet
            return self._send(worker, number, _refusal(error))
        except OSError:
            self._hang_up(worker)
            return False
        return True

    def _hang_up(self, worker: Worker) -> None:
        self._ignore(worker)
        worker.connection.close()
        self._spawn(self._take_leave(worker))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_leave(self, worker: Worker) -> None:
        if self._workers == {worker} and self._run.awaited is None:
            self._run.deserted()
        try:
            await self._bury(worker)
        finally:  # whatever came of it, the gateway ends with its last client
            self._workers.discard(worker)
            self._end_if_unused()


def page(records: Iterable[T], row_of: Callable[[T], Any], **more_fields: Any) -> Reply:
    """Return as many records as fit a message well, each as JSON can carry it, and whether there are more."""
    rows: list[Any] = []
    size, more = 0, False
    for record in records:
        row = row_of(record)
        size += len(json.dumps(row))
        more = bool(rows) and size > _PAGE_BYTES
        if more:
            break
        rows.append(row)
    return {"rows": rows, "more": more, **more_fields}, ()


def _refusal(error: Exception) -> Reply:
    return {"ok": False, "error": describe(error), "errno": getattr(error, "errno", None)}, ()

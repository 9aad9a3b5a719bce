"""A connection to the gateway: requests and their answers, by number."""

from __future__ import annotations

import _socket
import os
import select
from typing import Any, TypeAlias

from pytest_netns.errors import GatewayError, KernelError
from pytest_netns.gateway import protocol
from pytest_netns.gateway.launch import SILENCE, TIMEOUT

__all__ = ["Line", "Received"]

_poll = getattr(select, "poll", None)  # tests replace it, and eventlet takes it away

Received: TypeAlias = tuple[dict[str, Any], list[int]]
_Purpose: TypeAlias = tuple[str, tuple[str, ...], bool, int]


class Line:
    """What each request goes by, and each answer comes by; nothing waits longer than TIMEOUT seconds."""

    def __init__(self, connection: _socket.socket) -> None:
        """Take over a connected socket."""
        self._begin(connection)

    def _begin(self, connection: _socket.socket) -> None:
        protocol.limit(connection, TIMEOUT)
        self._connection = connection
        self._lost = False
        self._number = 0
        self._ordered: int | None = None
        self._ordered_for: _Purpose | None = None
        self._given_up = ""
        self._delivered: Received | None = None

    @property
    def lost(self) -> bool:
        """Whether the gateway has ended, and with it the way out of every leaf."""
        if not self._lost and self._connection.fileno() >= 0 and _poll is not None:
            poll = _poll()
            poll.register(self._connection, 0)  # that the other end has gone is told in any case
            self._lost = bool(poll.poll(0))
        return self._lost

    def fileno(self) -> int:
        """Return the connection's descriptor."""
        return self._connection.fileno()

    def _let_go(self) -> None:
        self._connection.close()
        _, descriptors = self._delivered or ({}, [])
        self._delivered = None
        for descriptor in descriptors:
            os.close(descriptor)

    def _rows(self, **request: Any) -> list[Any]:
        """Return all rows of an answer that comes in pages."""
        rows: list[Any] = []
        while True:
            page = self._ask(**request, since=len(rows))
            rows += page["rows"]
            if not page["more"]:
                return rows

    def _ask(self, **request: Any) -> dict[str, Any]:
        return self._answer(request["op"], self._send(**request))[0]

    def _send(self, descriptors: tuple[int, ...] = (), /, **request: Any) -> int:
        """Send one request and return its number."""
        self._number += 1
        try:
            protocol.send(self._connection, {**request, "number": self._number}, descriptors)
        except (OSError, ValueError) as error:
            raise self._loss(request["op"], error) from error
        return self._number

    def _answer(self, operation: str, number: int) -> Received:
        """Return the answer to a request of ours and the descriptors with it."""
        try:
            answer, descriptors = self._receive(number)
        except BlockingIOError as error:
            raise GatewayError(f"the gateway did not answer {operation!r} within {TIMEOUT:.0f} s{SILENCE}") from error
        except (OSError, ValueError) as error:
            raise self._loss(operation, error) from error
        if not answer:
            self._lost = True
            raise GatewayError(f"the gateway has ended; {operation!r} got no answer")
        if not answer.pop("ok"):
            raise _refusal(operation, answer)
        return answer, descriptors

    def _loss(self, operation: str, error: Exception) -> GatewayError:
        self._lost = self._lost or isinstance(error, ConnectionError)
        return GatewayError(f"lost the gateway at {operation!r}: {error}")

    def _receive(self, number: int) -> Received:
        """Receive the answer to one request; empty at the end of the connection.

        A leaf that was ordered is kept until it is asked for; an answer that an exception kept from being
        read, as Ctrl-C may, is passed over.
        """
        while True:
            if number == self._ordered and self._delivered is not None:
                return self._delivered
            answer, descriptors = protocol.receive(self._connection)
            if answer is None:
                return {}, descriptors
            told = answer.pop("number", None)
            if told is not None and told == self._ordered:
                self._delivered = answer, descriptors
            if told == number:
                return answer, descriptors
            if told != self._ordered:
                for descriptor in descriptors:
                    os.close(descriptor)
                if descriptors:
                    self._send(op="release", leaf=answer["name"])


def _refusal(operation: str, answer: dict[str, Any]) -> Exception:
    text = f"the gateway could not {operation}: {answer['error']}"
    return KernelError(answer["errno"], text) if answer.get("errno") else GatewayError(text)

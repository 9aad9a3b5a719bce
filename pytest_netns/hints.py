"""What a failure smells of: a service that the host has, and the test's network has not.

Pure but for what it is told of who listens where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Final

from pytest_netns.kernel.sockets import Listener

__all__ = ["hints", "mentioned"]

_REFUSED: Final = re.compile(r"refused|ECONNREFUSED|could ?n[o']t connect|failed to connect", re.IGNORECASE)
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
# localhost:5432, ('127.0.0.1', 5432), host='localhost', port=5432, "localhost" (127.0.0.1), port 5432
_ENDPOINT: Final = re.compile(r"(?:localhost|127\.0\.0\.1|::1)[\"')\], :]{1,5}(?:port\W{1,2})?(\d{1,5})\b")
_MAX_PORT: Final = 65_535
_AT_MOST: Final = 5


def mentioned(text: str, traceback: TracebackType | None = None) -> set[int]:
    """Return the ports of loopback that a failure speaks of, in its text or in the variables of its frames."""
    ports = {int(port) for port in _ENDPOINT.findall(text)}
    while traceback is not None:
        ports |= {port for value in traceback.tb_frame.f_locals.values() if (port := _port_of(value)) is not None}
        traceback = traceback.tb_next
    return {port for port in ports if 0 < port <= _MAX_PORT}


def _port_of(value: object) -> int | None:
    if type(value) is tuple and len(value) >= 2 and type(value[0]) is str and type(value[1]) is int:
        return value[1] if value[0] in _LOOPBACK else None
    return None


def hints(
    text: str,
    traceback: TracebackType | None,
    inside: Iterable[Listener],
    outside: Callable[[Iterable[int]], Collection[int]],
) -> list[str]:
    """Return what to say of a failure.

    Args:
        text: what is told of it, captured output included.
        traceback: where it was raised.
        inside: who listens by TCP, in the test's network or in its worker's.
        outside: returns those of some ports on which somebody listens at the host's loopback.
    """
    if not _REFUSED.search(text):
        return []
    ports, served = sorted(mentioned(text, traceback)), list(inside)
    unserved = [port for port in ports if all(one.port != port for one in served)][:_AT_MOST]
    at_host = outside(unserved) if unserved else ()
    # A port that is served now was refused too early, or at another address, if no other comes into question.
    return [_hint(port, served, at_host) for port in unserved or ports[:_AT_MOST]]


def _hint(port: int, inside: Iterable[Listener], at_host: Collection[int]) -> str:
    where = f"connection refused on localhost:{port}"
    if served := [one.endpoint for one in inside if one.port == port]:
        return (
            f"{where}; {', '.join(dict.fromkeys(served))} listens now: connect to that address, and wait for a service "
            "that comes up late, as netns_service.wait() does at the service port"
        )
    if port in at_host:
        rule = f'"localhost:{port}"'
        return f"{where}; the host has a listener there: allow = [{rule}], or --netns-allow=localhost:{port}"
    return f"{where}; nobody listens there now, in this network, the worker's, or the host's"

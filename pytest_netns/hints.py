"""What a failure smells of: a service that the host has, and the test's network has not.

Pure but for what it is told of who listens where.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from types import TracebackType
from typing import Final

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
    inside: Collection[int],
    outside: Callable[[Iterable[int]], Collection[int]],
) -> list[str]:
    """Return what to say of a failure.

    Args:
        text: what is told of it, captured output included.
        traceback: where it was raised.
        inside: the TCP ports on which somebody listens, in the test's network or in its worker's.
        outside: returns those of some ports on which somebody listens at the host's loopback.
    """
    if not _REFUSED.search(text):
        return []
    ports = sorted(mentioned(text, traceback))
    unserved = [port for port in ports if port not in inside][:_AT_MOST]
    at_host = outside(unserved) if unserved else ()
    # A port that is served now was refused too early, if it is the only one that comes into question.
    return [_hint(port, inside, at_host) for port in unserved or ports[:_AT_MOST]]


def _hint(port: int, inside: Collection[int], at_host: Collection[int]) -> str:
    where = f"connection refused on localhost:{port}"
    if port in inside:
        return f"{where}; somebody listens there now, so wait for the service first: netns_service.wait()"
    if port in at_host:
        rule = f'"localhost:{port}"'
        return f"{where}; the host has a listener there: allow = [{rule}], or --netns-allow=localhost:{port}"
    return f"{where}; nobody listens there now, in this network, the worker's, or the host's"

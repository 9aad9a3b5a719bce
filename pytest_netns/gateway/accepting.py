"""Take clients on, and rest where there is no descriptor for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

__all__ = ["accept", "rest"]

_BREATHER: Final = 0.1  # seconds


def accept(listener: socket.socket, callback: Callable[..., object], *args: Any) -> tuple[socket.socket, Any] | None:
    """Return the next client, which does not block, and its address; None where nobody waits.

    Where descriptors are used up clients wait until some are free, and ``callback`` is called again a little later.
    """
    try:
        connection, client = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    except OSError:
        rest(listener, callback, *args)
        return None
    connection.setblocking(False)
    return connection, client


def rest(listener: socket.socket, callback: Callable[..., object], *args: Any) -> None:
    """Leave a listener alone for a moment: it is ready as long as nobody is taken on."""
    loop = asyncio.get_running_loop()

    def go_on() -> None:
        if listener.fileno() >= 0:  # not closed meanwhile
            loop.add_reader(listener, callback, *args)

    loop.remove_reader(listener)
    loop.call_later(_BREATHER, go_on)

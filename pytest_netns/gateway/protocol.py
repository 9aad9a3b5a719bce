"""How pytest processes and the gateway talk: one JSON object to a packet, descriptors alongside.

Over a Unix socket of type SOCK_SEQPACKET, so that a message arrives whole or not at all.
A request is ``{"op": name, "number": n, ...}``; its answer, ``{"ok": true, ...}`` or ``{"ok": false, "error": text}``,
repeats the number.
Two requests have no answer, ``release`` and ``label``.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Final

Message = dict[str, Any]

MAX_BYTES: Final = 128 * 1024
MAX_DESCRIPTORS: Final = 4


def pack(message: Message) -> bytes:
    """Encode a message; ValueError where it would not fit a packet."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise ValueError(f"message of {len(data)} bytes is over the limit of {MAX_BYTES}")
    return data


def send(connection: socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message, with copies of open descriptors."""
    socket.send_fds(connection, [pack(message)], list(descriptors))


def receive(connection: socket.socket) -> tuple[Message | None, list[int]]:
    """Receive one message and the descriptors with it; None at the end of the connection.

    Raises:
        ValueError: what arrived is cut short or is no JSON object; descriptors were closed.
    """
    data, descriptors, flags, _ = socket.recv_fds(connection, MAX_BYTES + 1, MAX_DESCRIPTORS)
    if not data:
        return None, descriptors
    message = None if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) else _decode(data)
    if message is None:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ValueError("a message arrived cut short or was no JSON object")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return message, descriptors


def _decode(data: bytes) -> Message | None:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError):  # the latter for brackets that open without end
        return None
    return message if isinstance(message, dict) else None

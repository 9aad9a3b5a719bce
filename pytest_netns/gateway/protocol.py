"""How pytest processes and the gateway talk: one JSON object to a packet, descriptors alongside.

Over a Unix socket of type SOCK_SEQPACKET, so that a message arrives whole or not at all.
A request is ``{"op": name, "number": n, ...}``; its answer, ``{"ok": true, ...}`` or ``{"ok": false, "error": text}``,
repeats the number.
Two requests have no answer: ``release``, and ``label`` unless it has ``wait``.
"""

from __future__ import annotations

import _socket
import json
import os
import socket
import struct
from typing import Any, Final

Message = dict[str, Any]

MAX_BYTES: Final = 128 * 1024
MAX_DESCRIPTORS: Final = 4
_ROOM: Final = socket.CMSG_SPACE(4 * MAX_DESCRIPTORS)
_CUT_SHORT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_encode: Final = json.JSONEncoder(separators=(",", ":")).encode
_decode: Final = json.JSONDecoder().decode


def pack(message: Message) -> bytes:
    """Encode a message; ValueError where it would not fit a packet."""
    data = _encode(message).encode()
    if len(data) > MAX_BYTES:
        raise ValueError(f"message of {len(data)} bytes is over the limit of {MAX_BYTES}")
    return data


def limit(connection: _socket.socket, seconds: float) -> None:
    """Let no call on a connection block longer; it then raises BlockingIOError.

    A time limit of Python's, as ``settimeout`` sets it, would cost a call of poll(2) before each.
    """
    connection.settimeout(None)  # which socket.setdefaulttimeout() may have set
    value = struct.pack("@ll", int(seconds), int(seconds % 1 * 1e6))  # struct timeval
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        connection.setsockopt(socket.SOL_SOCKET, option, value)


def send(connection: _socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message, with copies of open descriptors."""
    if descriptors:
        socket.send_fds(connection, [pack(message)], list(descriptors))  # type: ignore[arg-type] # it asks for less than typeshed does
    else:
        connection.send(pack(message))


def receive(connection: _socket.socket) -> tuple[Message | None, list[int]]:
    """Receive one message and the descriptors with it; None at the end of the connection.

    Raises:
        BlockingIOError: nothing has arrived, by now or within the time that ``limit`` has set.
        ValueError: what arrived is cut short or is no JSON object; descriptors were closed.
    """
    # socket.recv_fds() takes flags, too, but does not pass them on.
    data, attached, flags, _ = connection.recvmsg(MAX_BYTES + 1, _ROOM, socket.MSG_CMSG_CLOEXEC)
    descriptors = [
        descriptor
        for level, kind, content in attached
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (descriptor,) in struct.iter_unpack("@i", content[: len(content) & ~3])
    ]
    if not data:
        return None, descriptors
    message = None if flags & _CUT_SHORT else _unpack(data)
    if message is None:
        for descriptor in descriptors:
            os.close(descriptor)
        raise ValueError("a message arrived cut short or was no JSON object")
    return message, descriptors


def _unpack(data: bytes) -> Message | None:
    try:
        message = _decode(data.decode())
    except (ValueError, RecursionError):  # the latter for brackets that open without end
        return None
    return message if isinstance(message, dict) else None

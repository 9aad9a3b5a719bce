"""How the pytest process talks to its warden, and to the keeper of each box.

As with the gateway: one JSON object to a packet, descriptors alongside; what may be long travels in a file in memory.
"""

from __future__ import annotations

import _socket  # tests replace what is in socket, and so do gevent and eventlet
import json
import os
import socket
from typing import Any, Final

__all__ = ["MAX_DESCRIPTORS", "Message", "pair", "read_file", "receive", "send", "write_file"]

Message = dict[str, Any]

MAX_DESCRIPTORS: Final = 16
_MAX_BYTES: Final = 64 * 1024


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Return both ends of a new channel."""
    ends = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.settimeout(None)  # which socket.setdefaulttimeout() may have set
    return ends


def send(channel: _socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send one message, with copies of open descriptors."""
    socket.send_fds(channel, [json.dumps(message).encode()], list(descriptors))  # type: ignore[arg-type] # it asks for less than typeshed does


def receive(channel: _socket.socket) -> tuple[Message | None, list[int]]:
    """Receive one message and the descriptors with it; None at the end of the channel."""
    try:
        data, descriptors, _, _ = socket.recv_fds(channel, _MAX_BYTES, MAX_DESCRIPTORS)  # type: ignore[arg-type]
    except ConnectionResetError:
        return None, []
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return (json.loads(data) if data else None), descriptors


def write_file(data: bytes, name: str) -> int:
    """Return the descriptor of a file in memory with these bytes, to be read from its beginning."""
    descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def read_file(descriptor: int) -> bytes:
    """Return what is in a file in memory, and close it."""
    data = b""
    try:
        while more := os.pread(descriptor, os.fstat(descriptor).st_size - len(data), len(data)):
            data += more
    finally:
        os.close(descriptor)
    return data

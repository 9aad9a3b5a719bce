"""The server that egress.py's clients talk to."""

from __future__ import annotations

import contextlib
import functools
import resource
import selectors
import socket
import threading
from collections.abc import Callable
from typing import Final

ECHO, SINK, SOURCE = 7007, 7009, 7019  # ports

_PIECE: Final = bytes(128 * 1024)


def many_files() -> None:
    """Raise the limit of open files as far as we may."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


def serve(host: str) -> None:
    """Echo TCP and UDP, take without end, and give without end; does not return."""
    many_files()
    for port, talk in ((SINK, _take), (SOURCE, _give)):
        listener = socket.create_server((host, port), backlog=128)
        threading.Thread(target=_accept, args=(listener, talk), daemon=True).start()
    _echo(host)


def _accept(listener: socket.socket, talk: Callable[[socket.socket], None]) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            talk(connection)


def _take(connection: socket.socket) -> None:
    buffer = bytearray(len(_PIECE))
    while connection.recv_into(buffer):
        pass
    connection.sendall(b".")


def _give(connection: socket.socket) -> None:
    while True:
        connection.sendall(_PIECE)


def _echo(host: str) -> None:
    """Serve with one thread and no buffers: what is echoed is small."""
    selector = selectors.EpollSelector()
    datagrams = socket.socket(type=socket.SOCK_DGRAM)
    datagrams.bind((host, ECHO))
    listener = socket.create_server((host, ECHO), backlog=1024)
    for opened, answer in ((datagrams, _echo_datagram), (listener, functools.partial(_welcome, selector))):
        opened.setblocking(False)
        selector.register(opened, selectors.EVENT_READ, answer)
    while True:
        for key, _ in selector.select():
            key.data(key.fileobj)


def _echo_datagram(opened: socket.socket) -> None:
    data, client = opened.recvfrom(65536)
    with contextlib.suppress(OSError):
        opened.sendto(data, client)


def _welcome(selector: selectors.BaseSelector, listener: socket.socket) -> None:
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    selector.register(connection, selectors.EVENT_READ, functools.partial(_echo_some, selector))


def _echo_some(selector: selectors.BaseSelector, connection: socket.socket) -> None:
    try:
        data = connection.recv(65536)
        connection.sendall(data)
    except OSError:
        data = b""
    if not data:
        selector.unregister(connection)
        connection.close()

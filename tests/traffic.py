"""Servers and clients that tests let talk to each other."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
import struct
import threading
import time
from typing import NamedTuple

STREAM, DATAGRAM = socket.SOCK_STREAM, socket.SOCK_DGRAM
_CHUNK = 1 << 18


def family_of(host: str) -> socket.AddressFamily:
    """Return the address family of a literal."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def opened(host: str, kind: int = STREAM) -> socket.socket:
    """Open a socket for this address's family, that waits for 5 s at most."""
    one = socket.socket(family_of(host), kind)
    one.settimeout(5)
    return one


def listen(host: str, port: int = 0, kind: int = STREAM) -> socket.socket:
    """Open a server's socket."""
    one = opened(host, kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((host, port))
    if kind == STREAM:
        one.listen(200)
    return one


def port_of(one: socket.socket) -> int:
    """Return the port that a socket is bound to."""
    return int(one.getsockname()[1])


def dial(host: str, port: int, kind: int = STREAM) -> socket.socket:
    """Connect."""
    one = opened(host, kind)
    try:
        one.connect((host, port))
    except BaseException:
        one.close()
        raise
    return one


class Outcome(NamedTuple):
    """What a client was told, None for a success, and after how many seconds."""

    error: str | None
    seconds: float


def attempt(host: str, port: int, kind: int = STREAM, timeout: float = 5) -> Outcome:
    """Connect; over UDP send a datagram, and read what comes back."""
    begin = time.monotonic()
    try:
        with opened(host, kind) as one:
            one.settimeout(timeout)
            one.connect((host, port))
            if kind == DATAGRAM:
                one.send(b"attempt")
                one.recv(100)
    except OSError as error:
        name = "TIMEOUT" if error.errno is None else errno.errorcode[error.errno]
        return Outcome(name, time.monotonic() - begin)
    return Outcome(None, time.monotonic() - begin)


def refusals(host: str, kind: int = STREAM) -> set[str]:
    """Return what a blocked client is told; a connected UDP socket is told the other code in IPv6."""
    return {"EHOSTUNREACH"} if kind == STREAM or ":" not in host else {"EHOSTUNREACH", "EACCES"}


def exchange(client: socket.socket, server: socket.socket) -> None:
    """Say something each way."""
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"answer")
    assert client.recv(100) == b"answer"


def start(target: object, *args: object) -> threading.Thread:
    """Start a thread that ends with the process."""
    assert callable(target)
    thread = threading.Thread(target=target, args=args, daemon=True)
    thread.start()
    return thread


def echo(listener: socket.socket) -> None:
    """Send back what comes, in a thread; each TCP connection until its other end has said its last."""
    listener.settimeout(None)
    start(_echo_stream if listener.type == STREAM else _echo_datagrams, listener)


def served(host: str, port: int = 0, kind: int = STREAM) -> int:
    """Serve an echo where we are, and return its port."""
    echo(listener := listen(host, port, kind))
    return port_of(listener)


def reset(one: socket.socket) -> None:
    """Close a connection so that its other end sees a reset."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()


def was_reset(one: socket.socket) -> bool:
    """Read on until the connection ends, and tell whether that was by a reset."""
    one.settimeout(5)
    try:
        while one.recv(_CHUNK):
            pass
    except ConnectionResetError:
        return True
    return False


def _echo_stream(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            start(_echo_one, listener.accept()[0])


def _echo_one(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection:
        while data := connection.recv(_CHUNK):
            connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)


def _echo_datagrams(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            data, peer = listener.recvfrom(65536)
            listener.sendto(data, peer)


def transfer(connection: socket.socket, size: int) -> None:
    """Send so much to an echo, close this direction, and check that the same comes back, to the end."""
    block = os.urandom(_CHUNK)
    connection.settimeout(20)

    def send() -> None:
        for _ in range(size // _CHUNK):
            connection.sendall(block)
        connection.shutdown(socket.SHUT_WR)

    sender = start(send)
    received, digest = 0, hashlib.blake2b()
    while data := connection.recv(_CHUNK):
        received += len(data)
        digest.update(data)
    sender.join()
    expected = hashlib.blake2b()
    for _ in range(size // _CHUNK):
        expected.update(block)
    assert received == size
    assert digest.digest() == expected.digest()

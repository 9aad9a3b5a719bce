"""What egress.py measures: clients of its server, each for a process of its own."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from typing import Final, NamedTuple

from egress_server import ECHO, SINK, SOURCE, many_files

CROWD: Final = 500

_WRITE: Final = bytes(128 * 1024)
_PING: Final = b"x" * 64
_CROWD_PAYLOAD: Final = b"x" * 1024
_STAMP: Final = struct.Struct("d")
_DATAGRAM: Final = 1400
_PATIENCE: Final = 10.0  # seconds
_LATE: Final = 0.5  # seconds after the last datagram was sent

Address = tuple[str, int]


def upload(host: str, seconds: float) -> float:
    """Write for some seconds; return the Gbit/s until the server has taken it all."""
    with socket.create_connection((host, SINK), _PATIENCE) as connection:
        written, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            connection.sendall(_WRITE)
            written += len(_WRITE)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)
        return written * 8e-9 / (time.perf_counter() - began)


def download(host: str, seconds: float) -> float:
    """Read for some seconds; return the Gbit/s."""
    buffer = bytearray(len(_WRITE))
    with socket.create_connection((host, SOURCE), _PATIENCE) as connection:
        taken, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            taken += connection.recv_into(buffer)
        return taken * 8e-9 / passed


def round_trips(host: str, seconds: float) -> list[float]:
    """Return how many microseconds each 64 bytes took there and back, over one connection."""
    found = []
    with socket.create_connection((host, ECHO), _PATIENCE) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            connection.sendall(_PING)
            _read(connection, len(_PING))
            found.append((time.perf_counter() - began) * 1e6)
    return found


def _read(connection: socket.socket, size: int) -> None:
    while size:
        data = connection.recv(size)
        if not data:
            raise ConnectionError("the server went away")
        size -= len(data)


def connections(host: str, begin: float, seconds: float) -> int:
    """Connect, have one byte echoed and close, from a moment on for some seconds; return how often."""
    time.sleep(max(begin - time.monotonic(), 0))
    count = 0
    while time.monotonic() < begin + seconds:
        with socket.create_connection((host, ECHO), _PATIENCE) as connection:
            connection.sendall(b"x")
            _read(connection, 1)
        count += 1
    return count


class Crowd(NamedTuple):
    """What became of many connections at once: how many were lost, and how long the rest took in seconds."""

    lost: int
    seconds: float


def crowd(host: str) -> Crowd:
    """Open many connections at once, have 1 KB echoed on each while all are open, and close them."""
    many_files()
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(socket.socket()) for _ in range(CROWD)]
        for connection in opened:
            connection.setblocking(False)
            connection.connect_ex((host, ECHO))
        connected = [connection for connection in opened if _asks(connection, began + _PATIENCE)]
        answered = [connection for connection in connected if _is_answered(connection)]
        return Crowd(CROWD - len(answered), time.perf_counter() - began)


def _asks(connection: socket.socket, deadline: float) -> bool:
    """Wait until it is connected, and send."""
    select.select([], [connection], [], max(deadline - time.perf_counter(), 0))
    connection.settimeout(_PATIENCE)
    try:
        connection.sendall(_CROWD_PAYLOAD)
    except OSError:
        return False
    return True


def _is_answered(connection: socket.socket) -> bool:
    try:
        _read(connection, len(_CROWD_PAYLOAD))
    except OSError:
        return False
    return True


class Exchange(NamedTuple):
    """What became of datagrams: how many were sent, and the microseconds that each answer took."""

    sent: int
    trips: list[float]


def datagrams(host: str, rate: int, seconds: float) -> Exchange:
    """Send datagrams of 1,400 bytes at a steady rate, and read their echoes."""
    sent, trips = 0, list[float]()
    with socket.socket(type=socket.SOCK_DGRAM) as opened:
        opened.connect((host, ECHO))
        opened.settimeout(_PATIENCE)
        opened.send(bytes(_DATAGRAM))  # the first waits for a decision on the flow
        opened.recv(_DATAGRAM)
        opened.settimeout(_LATE)
        receiver = threading.Thread(target=_receive, args=(opened, trips))
        receiver.start()
        began = time.perf_counter()
        while sent < rate * seconds:
            time.sleep(max(began + sent / rate - time.perf_counter(), 0))
            opened.send(_STAMP.pack(time.perf_counter()).ljust(_DATAGRAM, b"x"))
            sent += 1
        receiver.join()
    return Exchange(sent, trips)


def _receive(opened: socket.socket, trips: list[float]) -> None:
    with contextlib.suppress(TimeoutError):
        while True:
            began = _STAMP.unpack_from(opened.recv(_DATAGRAM))[0]
            trips.append((time.perf_counter() - began) * 1e6)


def refusals(address: Address, count: int) -> list[float]:
    """Return how many milliseconds it took each time until a connect was refused as unreachable."""
    found = []
    for _ in range(count):
        with socket.socket() as attempt:
            attempt.settimeout(_PATIENCE)
            began = time.perf_counter()
            number = attempt.connect_ex(address)
            found.append((time.perf_counter() - began) * 1e3)
        if number != errno.EHOSTUNREACH:
            raise OSError(number, f"not refused as unreachable: {os.strerror(number)}")
    return found


def failed_lookups(name: str, count: int) -> list[float]:
    """Return how many milliseconds it took each time until getaddrinfo said that there is no such name."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        try:
            socket.getaddrinfo(name, 443)
        except socket.gaierror:
            found.append((time.perf_counter() - began) * 1e3)
        else:
            raise AssertionError(f"{name} was found")
    return found

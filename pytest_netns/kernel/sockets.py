"""What listens in a network namespace, as /proc/net tells it; see proc_pid_net(5)."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pytest_netns.kernel import privilege

__all__ = ["Listener", "holders", "listeners"]

_BIG_ENDIAN: Final = sys.byteorder == "big"
_LISTEN: Final = "0A"
_UNCONNECTED: Final = "07"
_TABLES: Final = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6")}
_MAPPED: Final = bytes(10) + b"\xff\xff"


class Listener(NamedTuple):
    """A TCP socket that listens, or a UDP socket that takes datagrams of everybody."""

    protocol: str
    host: str
    port: int
    inode: int

    @property
    def endpoint(self) -> str:
        """What a person would call it, for example ``tcp [::1]:8080``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.protocol} {host}:{self.port}"


def listeners(*protocols: str) -> list[Listener]:
    """List who listens in the calling thread's network namespace, by ``tcp`` and ``udp`` or one of them."""
    return [one for protocol in protocols or _TABLES for table in _TABLES[protocol] for one in _rows(protocol, table)]


def _rows(protocol: str, table: str) -> Iterator[Listener]:
    state = _LISTEN if protocol == "tcp" else _UNCONNECTED
    try:
        with open(f"/proc/thread-self/net/{table}", encoding="ascii") as file:
            rows = [line.split() for line in file][1:]
    except FileNotFoundError:  # no IPv6 in this kernel
        return
    for row in rows:
        if row[3] == state:
            yield Listener(protocol, *_endpoint(row[1]), int(row[9]))


def _endpoint(text: str) -> tuple[str, int]:
    """Decode the kernel's form: 32-bit words in the machine's byte order, then the port.

    A socket of IPv6 at an address such as ``::ffff:127.0.0.1``, where Java's and gRPC's servers are, takes IPv4 alone.
    """
    digits, _, port = text.partition(":")
    words = (bytes.fromhex(digits[start : start + 8]) for start in range(0, len(digits), 8))
    packed = b"".join(word if _BIG_ENDIAN else word[::-1] for word in words).removeprefix(_MAPPED)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed), int(port, 16)


def holders(inodes: Iterable[int], pids: Iterable[int]) -> dict[int, list[int]]:
    """Find which of the processes hold which of the sockets.

    Args:
        inodes: the sockets' inode numbers.
        pids: the processes to look at; those that have ended meanwhile hold nothing.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, list[int]] = {}
    for pid in pids if wanted else ():
        for inode in {wanted[link] for link in _links(pid) if link in wanted}:
            found.setdefault(inode, []).append(pid)
    return found


def _links(pid: int) -> list[str]:
    try:
        return list(_read_links(pid))
    except PermissionError:
        with contextlib.suppress(OSError), privilege.raised():
            return list(_read_links(pid))
    except OSError:
        pass
    return []


def _read_links(pid: int) -> Iterator[str]:
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            yield os.readlink(f"/proc/{pid}/fd/{descriptor}")

"""Read packets that a ruleset queued, and say what becomes of them.

Messages and numbers are those of <linux/netfilter/nfnetlink_queue.h>. A packet that nobody judges is
dropped: that is what makes the hub fail closed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NLM_F_REQUEST, NetlinkSocket
from pytest_netns.kernel.readiness import is_readable

NF_DROP: Final = 0
NF_REPEAT: Final = 4

_SUBSYSTEM: Final = 3 << 8  # NFNL_SUBSYS_QUEUE
_PACKET, _VERDICT, _CONFIG = 0, 1, 2
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN = 1, 2, 3
_CMD_BIND: Final = 1
_COPY_PACKET: Final = 2
_COPY_BYTES: Final = 0xFFFF
_MAX_WAITING: Final = 8192
_ATTR_PACKET_HDR, _ATTR_VERDICT_HDR, _ATTR_MARK, _ATTR_INDEV, _ATTR_PAYLOAD = 1, 2, 3, 5, 10
_SOL_NETLINK: Final = 270
_NETLINK_NO_ENOBUFS: Final = 5
_RECEIVE_BUFFER: Final = 4 * 1024 * 1024
_RECEIVE_BYTES: Final = 128 * 1024


@dataclass(frozen=True, slots=True)
class Queued:
    """A packet that waits for its verdict.

    Attributes:
        number: what the verdict refers to.
        ifindex: the interface that it came in by.
        payload: the packet, from its IP header on.
        hook: where it was queued, ``nft.PREROUTING`` or another.
    """

    number: int
    ifindex: int
    payload: bytes
    hook: int = 0


class PacketQueue:
    """The reader of one queue of the network namespace in which it was made."""

    def __init__(self, number: int) -> None:
        """Bind to queue ``number``; KernelError where the kernel has no queues."""
        self._number = number
        self._netlink = NetlinkSocket(NETLINK_NETFILTER)
        self._netlink.request(self._config(_CFG_CMD, struct.pack("!BBH", _CMD_BIND, 0, 0)), "bind packet queue")
        copy = struct.pack("!IB", _COPY_BYTES, _COPY_PACKET)
        self._netlink.request(self._config(_CFG_PARAMS, copy), "set what the packet queue copies")
        self._netlink.request(self._config(_CFG_MAXLEN, struct.pack("!I", _MAX_WAITING)), "set packet queue length")
        self._socket = socket.socket(fileno=os.dup(self._netlink.fileno()))
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_NO_ENOBUFS, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor, readable when packets wait."""
        return self._socket.fileno()

    def has_waiting(self) -> bool:
        """Tell whether a read would bring something."""
        return is_readable(self._socket)

    def read(self) -> Iterator[Queued]:
        """Yield the packets that one read brings; nothing where none waits."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno == errno.ENOBUFS:  # some were dropped, which is what unread packets get
                return
            raise
        yield from parse(data)

    def judge(self, packet: Queued, verdict: int, mark: int = 0) -> None:
        """Send the verdict on a packet, with a mark for it to carry on."""
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, self._number)
        body += struct.pack("=HH", 12, _ATTR_VERDICT_HDR) + struct.pack("!II", verdict, packet.number)
        body += struct.pack("=HH", 8, _ATTR_MARK) + struct.pack("!I", mark)
        self._socket.send(struct.pack("=IHHII", 16 + len(body), _SUBSYSTEM | _VERDICT, NLM_F_REQUEST, 0, 0) + body)

    def close(self) -> None:
        """Stop reading: whatever is queued from now on is dropped."""
        self._socket.close()
        self._netlink.close()

    def _config(self, attribute: int, value: bytes) -> bytes:
        body = struct.pack("!BBH", socket.AF_UNSPEC, 0, self._number)
        body += struct.pack("=HH", 4 + len(value), attribute) + value + bytes(-len(value) % 4)
        return struct.pack("=IHHII", 16 + len(body), _SUBSYSTEM | _CONFIG, NLM_F_REQUEST, 0, 0) + body


def parse(data: bytes) -> Iterator[Queued]:
    """Yield the queued packets in what a read of the socket returned; malformed messages are passed over."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, _, _ = struct.unpack_from("=IHHII", data, offset)
        if length < 16:
            return
        if kind == _SUBSYSTEM | _PACKET:
            packet = _parse_packet(data[offset + 20 : offset + length])
            if packet is not None:
                yield packet
        offset += (length + 3) & ~3


def _parse_packet(attributes: bytes) -> Queued | None:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, offset)
        if length < 4:
            return None
        found[kind & 0x3FFF] = attributes[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    header = found.get(_ATTR_PACKET_HDR, b"")
    indev = found.get(_ATTR_INDEV, b"")
    if len(header) < 7 or len(indev) != 4:
        return None
    return Queued(
        number=int.from_bytes(header[:4], "big"),
        ifindex=int.from_bytes(indev, "big"),
        payload=found.get(_ATTR_PAYLOAD, b""),
        hook=header[6],
    )

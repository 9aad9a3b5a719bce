"""See every packet of a network namespace: a packet socket whose ring the kernel fills by itself.

See packet(7) and Documentation/networking/packet_mmap.rst. Nobody has to read while packets come: as long as nothing
is asked of a tap, it costs what the kernel's copying does. A ring that is full takes no more packets, and counts them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pytest_netns.errors import KernelError

__all__ = ["FEWER_BLOCKS", "LOOPBACK", "Block", "Packet", "Tap", "packets"]

LOOPBACK: Final = 1  # the number of ``lo`` in every network namespace

_NO_PROTOCOL, _ETH_P_ALL = 0, 3
_SO_ATTACH_FILTER: Final = 26
_SOL_PACKET: Final = 263
_PACKET_RX_RING, _PACKET_STATISTICS, _PACKET_VERSION = 5, 6, 10
_TPACKET_V3: Final = 2
_STATUS_USER: Final = 1

BLOCK_BYTES: Final = 128 * 1024  # so that the largest packet, of 64 KiB, fits
_BLOCKS: Final = 8
FEWER_BLOCKS: Final = 4  # the kernel clears them beforehand, which takes most of what an unused ring costs
_FRAME_BYTES: Final = 2048  # of no consequence: packets are as long as they are
_NEVER: Final = 3_600_000  # milliseconds until the kernel hands over a block that is not full
_REQUEST: Final = struct.Struct("=7I")  # struct tpacket_req3
_BLOCK: Final = struct.Struct("=8xIIIIQ")  # struct tpacket_block_desc: status, packets, first, length, number
_FRAME: Final = struct.Struct("=IIIIIIHH")  # struct tpacket3_hdr
_LINK: Final = struct.Struct("=HHiHB")  # struct sockaddr_ll, which follows at
_LINK_OFFSET: Final = 48
_EVERYWHERE: Final = struct.Struct("=HHi12x")  # the same whole, with no interface in particular
_STATISTICS: Final = struct.Struct("=III")

# Classic BPF, see Documentation/networking/filter.rst. Loopback shows each packet twice: as it leaves, and as it comes.
_ABSOLUTE_BYTE, _ABSOLUTE_WORD, _JUMP_EQUAL, _RETURN = 0x30, 0x20, 0x15, 0x06
_PACKET_TYPE, _INTERFACE = 0xFFFF_F004, 0xFFFF_F008
_OUTGOING: Final = 4
_WHOLE: Final = 0x4_0000
_ONCE: Final = (
    (_ABSOLUTE_BYTE, 0, 0, _PACKET_TYPE),
    (_JUMP_EQUAL, 0, 2, _OUTGOING),
    (_ABSOLUTE_WORD, 0, 0, _INTERFACE),
    (_JUMP_EQUAL, 1, 0, LOOPBACK),
    (_RETURN, 0, 0, _WHOLE),
    (_RETURN, 0, 0, 0),
)
_NOTHING: Final = ((_RETURN, 0, 0, 0),)


_libc = ctypes.CDLL(None, use_errno=True)


class Packet(NamedTuple):
    """A packet as it was seen.

    Attributes:
        time: nanoseconds since the epoch.
        interface: the number of the interface.
        length: its bytes on the wire, from the Ethernet header on.
        data: those that were kept.
    """

    time: int
    interface: int
    length: int
    data: bytes


class Block(NamedTuple):
    """Packets in the kernel's form, a block of the ring: ``packets`` takes them apart."""

    number: int
    packets: int
    data: bytes


class Tap:
    """The packets of the network namespace in which it was made; everything but that works from any other."""

    def __init__(self, blocks: int = _BLOCKS) -> None:
        """Open the socket, which takes CAP_NET_RAW; nothing is seen before ``start``.

        Args:
            blocks: how many blocks of 128 KiB the ring has.
        """
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NO_PROTOCOL)
        self._size = BLOCK_BYTES * blocks
        self._ring: mmap.mmap | None = None
        self._lost = 0
        self._taken = 0

    def fileno(self) -> int:
        """Return the descriptor, which is readable when there is a whole block to ``take``."""
        return self._socket.fileno()

    def start(self) -> None:
        """Begin to see packets. Waits for the kernel for about 20 ms."""
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VERSION, _TPACKET_V3)
        blocks, frames = self._size // BLOCK_BYTES, self._size // _FRAME_BYTES
        request = _REQUEST.pack(BLOCK_BYTES, blocks, _FRAME_BYTES, frames, _NEVER, 0, 0)
        # Python's own call would keep its other threads waiting, too.
        if _libc.setsockopt(self._socket.fileno(), _SOL_PACKET, _PACKET_RX_RING, request, len(request)) < 0:
            number = ctypes.get_errno()
            raise KernelError(number, f"set up a ring of {self._size} bytes for packets: {os.strerror(number)}")
        self._filter(_ONCE)
        self._bind()

    def stop(self) -> None:
        """See no more packets; those that were seen stay."""
        self._filter(_NOTHING)

    def take(self) -> list[Block]:
        """Return the blocks that are full, oldest first, and have them filled again."""
        found = []
        for block, offset, status in self._blocks():
            if status & _STATUS_USER:
                found.append(block)
                self._taken = block.number
                struct.pack_into("=I", self._mapped(), offset + 8, 0)
        return found

    def rest(self) -> list[Block]:
        """Return what has not been taken, oldest first, the block that is being filled included; it all stays."""
        blocks = list(self._blocks())
        return [
            block
            for index, (block, _, status) in enumerate(blocks)
            if status & _STATUS_USER or index == len(blocks) - 1
        ]

    @property
    def lost(self) -> int:
        """How many packets found no room by now."""
        _, dropped, _ = _STATISTICS.unpack(self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, _STATISTICS.size))
        self._lost += dropped
        return self._lost

    def close(self) -> None:
        """Give the ring back; harmless when done twice. Waits for the kernel for about 20 ms."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        self._socket.close()

    def _filter(self, program: tuple[tuple[int, int, int, int], ...]) -> None:
        code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), ctypes.addressof(code))
        )

    def _bind(self) -> None:
        """Bind to all interfaces, for which Python's own call has no way to say."""
        address = _EVERYWHERE.pack(socket.AF_PACKET, socket.htons(_ETH_P_ALL), 0)
        if _libc.bind(self._socket.fileno(), address, len(address)) < 0:
            number = ctypes.get_errno()
            raise KernelError(number, f"see the packets of all interfaces: {os.strerror(number)}")

    def _mapped(self) -> mmap.mmap:
        if self._ring is None:
            self._ring = mmap.mmap(self._socket.fileno(), self._size)
        return self._ring

    def _blocks(self) -> list[tuple[Block, int, int]]:
        """Return the blocks that hold what has not been taken, oldest first, each with its place and status."""
        ring, found = self._mapped(), []
        for offset in range(0, len(ring), BLOCK_BYTES):
            status, count, _, length, number = _BLOCK.unpack_from(ring, offset)
            if number > self._taken:  # a block that was taken keeps its content until it is filled again
                found.append((Block(number, count, bytes(ring[offset : offset + length])), offset, status))
        return sorted(found, key=lambda one: one[0].number)


def packets(blocks: Iterable[Block]) -> Iterator[Packet]:
    """Take blocks apart."""
    for _, count, data in blocks:
        _, _, offset, _, _ = _BLOCK.unpack_from(data)
        for _ in range(count):
            step, seconds, nanoseconds, kept, length, _, start, _ = _FRAME.unpack_from(data, offset)
            _, _, interface, _, _ = _LINK.unpack_from(data, offset + _LINK_OFFSET)
            content = data[offset + start : offset + start + kept]
            yield Packet(seconds * 1_000_000_000 + nanoseconds, interface, length, content)
            offset += step

"""Packets and frames made by hand, sent past a leaf's own routing and filter, and heard where they come in."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct

from pytest_netns import addressing
from pytest_netns.kernel import privilege

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
MARKER = b"attack"
HUB_MAC = bytes.fromhex(addressing.mac(addressing.GATEWAY).replace(":", ""))
_PACKET_OUTGOING = 4


def packed(address: str) -> bytes:
    """Return an address as it stands in a packet."""
    return ipaddress.ip_address(address).packed


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _summed(ends: tuple[str, str], protocol: int, segment: bytes, at_byte: int) -> bytes:
    pseudo = packed(ends[0]) + packed(ends[1]) + struct.pack("!II", len(segment), protocol)
    total = struct.pack("!H", checksum(pseudo + segment))
    return segment[:at_byte] + total + segment[at_byte + 2 :]


def udp(ends: tuple[str, str], port: int, data: bytes = MARKER, source_port: int = 40_000) -> bytes:
    """Return a UDP datagram between two addresses, without its IP header."""
    return _summed(ends, UDP, struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data, 6)


def tcp(
    ends: tuple[str, str],
    port: int,
    flags: int = SYN,
    data: bytes = b"",
    *,
    source_port: int = 40_001,
    numbers: tuple[int, int] = (1, 0),
) -> bytes:
    """Return a TCP segment without its IP header; ``numbers`` are those of sequence and acknowledgement."""
    head = struct.pack("!HHIIBBHHH", source_port, port, *numbers, 0x50, flags, 65535, 0, 0)
    return _summed(ends, TCP, head + data, 16)


def icmp(kind: int, code: int, rest: int, quoted: bytes) -> bytes:
    """Return an ICMP message."""
    body = struct.pack("!BBHI", kind, code, 0, rest) + quoted
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def icmp6(ends: tuple[str, str], kind: int, code: int, rest: int, quoted: bytes) -> bytes:
    """Return an ICMPv6 message."""
    return _summed(ends, ICMPV6, struct.pack("!BBHI", kind, code, 0, rest) + quoted, 2)


def ip(
    ends: tuple[str, str], protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0, hops: int = 64
) -> bytes:
    """Return an IP packet; IPv4's ``fragment`` are the flags and the offset in units of eight bytes."""
    one, other = packed(ends[0]), packed(ends[1])
    if len(one) == 16:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + one + other + payload
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), 7, fragment, hops, protocol, 0)
    head += one + other + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def datagram(ends: tuple[str, str], port: int, data: bytes = MARKER, source_port: int = 40_000) -> bytes:
    """Return a UDP datagram with its IP header."""
    return ip(ends, UDP, udp(ends, port, data, source_port))


def segment(ends: tuple[str, str], port: int, flags: int = SYN, data: bytes = b"", source_port: int = 40_001) -> bytes:
    """Return a TCP segment with its IP header."""
    return ip(ends, TCP, tcp(ends, port, flags, data, source_port=source_port))


def extension(following: int, body: bytes = b"\1\4\0\0\0\0") -> bytes:
    """Return an IPv6 extension header; its body is padding unless given."""
    body += bytes(-(len(body) + 2) % 8)
    return bytes([following, (len(body) + 2) // 8 - 1]) + body


def fragment_header(following: int, offset: int, *, more: bool) -> bytes:
    """Return an IPv6 fragment header; the offset is in units of eight bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | int(more), 7)


def send(*packets: bytes, mac: bytes = HUB_MAC) -> None:
    """Put packets on the leaf's wire past its own routing and filter."""
    with privilege.raised():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    with wire:
        for packet in packets:
            kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
            wire.sendto(packet, ("eth0", kind, 0, 0, mac))


def send_frames(*frames: bytes) -> None:
    """Put whole Ethernet frames on the leaf's wire."""
    with privilege.raised():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with wire:
        for frame in frames:
            wire.sendto(frame, ("eth0", 0))


def eavesdrop() -> socket.socket:
    """Open a socket that hears the packets which come in by the leaf's wire."""
    with privilege.raised():
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        ear.bind(("eth0", 3))
    ear.setblocking(False)
    return ear


def heard(ear: socket.socket) -> list[bytes]:
    """Return what has come in meanwhile."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, (_, _, kind, *_) = ear.recvfrom(65536)
            if kind != _PACKET_OUTGOING:
                found.append(packet)
    return found

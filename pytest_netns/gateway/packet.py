"""Read from an IP packet who sends what to whom: pure, and never raises on any bytes."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field
from typing import Final, TypeAlias

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

TCP: Final = 6
UDP: Final = 17
_NAMES: Final = {1: "icmp", TCP: "tcp", UDP: "udp", 58: "icmp", 132: "sctp"}
# IPv6 extension headers that may stand before the transport header (RFC 8200, section 4.1).
_EXTENSIONS: Final = frozenset({0, 43, 60})
_FRAGMENT: Final = 44


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Source and destination of a packet; ports are 0 where the protocol has none, and so is TCP's sequence number."""

    protocol: int
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    is_syn: bool = False
    sequence: int = field(default=0, compare=False)

    @property
    def protocol_name(self) -> str:
        """The protocol's name, or ``ip-<number>`` where it has none that people know."""
        return _NAMES.get(self.protocol, f"ip-{self.protocol}")


def parse(packet: bytes) -> Endpoints | None:
    """Return the packet's endpoints, or None where it is no whole IPv4 or IPv6 header."""
    parts = _split(packet)
    return None if parts is None else _transport(*parts)


def payload(packet: bytes) -> bytes:
    """Return what TCP or UDP carries in a packet; nothing where it is of another protocol, or cut short."""
    parts = _split(packet)
    protocol, _, _, segment = parts or (0, None, None, b"")
    if protocol == UDP:
        return segment[8:]
    return segment[(segment[12] >> 4) * 4 :] if protocol == TCP and len(segment) >= 20 else b""


def _split(packet: bytes) -> tuple[int, Address, Address, bytes] | None:
    """Return protocol, source, destination, and what follows the IP header."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        header = (packet[0] & 0xF) * 4
        if header < 20:
            return None
        later_fragment = struct.unpack_from("!H", packet, 6)[0] & 0x1FFF
        source, destination = ipaddress.IPv4Address(packet[12:16]), ipaddress.IPv4Address(packet[16:20])
        return packet[9], source, destination, b"" if later_fragment else packet[header:]
    if version == 6 and len(packet) >= 40:
        source6, destination6 = ipaddress.IPv6Address(packet[8:24]), ipaddress.IPv6Address(packet[24:40])
        protocol, rest = _skip_extensions(packet[6], packet[40:])
        return protocol, source6, destination6, rest
    return None


def _skip_extensions(protocol: int, rest: bytes) -> tuple[int, bytes]:
    while protocol in _EXTENSIONS and len(rest) >= 8:
        protocol, rest = rest[0], rest[(rest[1] + 1) * 8 :]
    if protocol == _FRAGMENT and len(rest) >= 8:
        first = struct.unpack_from("!H", rest, 2)[0] & 0xFFF8 == 0
        return rest[0], rest[8:] if first else b""
    return protocol, rest


def _transport(protocol: int, source: Address, destination: Address, segment: bytes) -> Endpoints:
    if protocol not in (TCP, UDP) or len(segment) < 8:
        return Endpoints(protocol, source, 0, destination, 0)
    source_port, destination_port = struct.unpack_from("!HH", segment)
    syn = protocol == TCP and len(segment) >= 14 and segment[13] & 0x12 == 0x02
    sequence = int.from_bytes(segment[4:8], "big") if protocol == TCP else 0
    return Endpoints(protocol, source, source_port, destination, destination_port, syn, sequence)

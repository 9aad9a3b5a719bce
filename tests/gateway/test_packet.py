"""Reading who sends what to whom from IP packets."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_netns.gateway import packet
from pytest_netns.gateway.packet import Endpoints

SOURCE, DESTINATION = ipaddress.ip_address("198.18.0.16"), ipaddress.ip_address("203.0.113.5")
SOURCE6, DESTINATION6 = ipaddress.ip_address("fd00::16"), ipaddress.ip_address("2001:db8::5")
SYN, SYN_ACK, ACK, RST = 0x02, 0x12, 0x10, 0x04


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    """Return an IPv4 packet."""
    words, length = 5 + len(options) // 4, 20 + len(options) + len(payload)
    header = struct.pack("!BBHHHBBH", 0x40 | words, 0, length, 1, fragment, 64, protocol, 0)
    return header + SOURCE.packed + DESTINATION.packed + options + payload


def ipv6(protocol: int, payload: bytes) -> bytes:
    """Return an IPv6 packet."""
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + SOURCE6.packed + DESTINATION6.packed + payload


def tcp(flags: int) -> bytes:
    """Return a TCP segment from port 40000 to 443."""
    return struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 0x50, flags, 65535, 0, 0)


UDP = struct.pack("!HHHH", 40000, 53, 8, 0)


def extension(following: int, length: int = 8) -> bytes:
    """Return an IPv6 extension header of so many bytes."""
    return bytes([following, length // 8 - 1]) + bytes(length - 2)


def fragment6(following: int, offset: int) -> bytes:
    """Return an IPv6 fragment header."""
    return struct.pack("!BBHI", following, 0, offset << 3 | 1, 7)


@given(st.binary(max_size=200))
@example(b"\x45" + bytes(19))
@example(b"\x4f" + bytes(19))
@example(b"\x60" + bytes(39))
@example(ipv6(0, b"\x00\xff" + bytes(6)))
def test_never_raises(data: bytes) -> None:
    """Any bytes whatever are read, or are no packet."""
    assert packet.parse(data) is None or isinstance(packet.parse(data), Endpoints)


def test_header_that_is_too_short_by_its_own_word() -> None:
    """An IPv4 header that says that it has fewer than five words is none."""
    whole = bytearray(ipv4(17, bytes(8)))
    whole[0] = 0x44
    assert packet.parse(bytes(whole)) is None


@given(st.binary(max_size=80), st.sampled_from([0x45, 0x4F, 0x60]), st.sampled_from([0, 6, 17, 43, 44, 60]))
def test_never_raises_on_what_begins_well(data: bytes, first: int, protocol: int) -> None:
    """A header that makes sense may be followed by anything."""
    whole = bytearray(bytes([first]) + bytes(39) + data)
    whole[6 if first == 0x60 else 9] = protocol
    found = packet.parse(bytes(whole))
    assert found is not None
    assert found.protocol_name


@pytest.mark.parametrize(
    ("data", "protocol", "ports"),
    [
        (ipv4(17, UDP), "udp", (40000, 53)),
        (ipv4(6, tcp(SYN)), "tcp", (40000, 443)),
        (ipv4(17, UDP, options=bytes(8)), "udp", (40000, 53)),
        (ipv4(17, UDP, fragment=0x2000), "udp", (40000, 53)),
        (ipv4(17, b"not a header", fragment=0x2001), "udp", (0, 0)),
        (ipv4(1, UDP), "icmp", (0, 0)),
        (ipv4(132, UDP), "sctp", (0, 0)),
        (ipv4(47, b""), "ip-47", (0, 0)),
        (ipv4(17, b"short"), "udp", (0, 0)),
        (ipv6(17, UDP), "udp", (40000, 53)),
        (ipv6(6, tcp(ACK)), "tcp", (40000, 443)),
        (ipv6(58, UDP), "icmp", (0, 0)),
        (ipv6(0, extension(60) + extension(43, 24) + extension(17) + UDP), "udp", (40000, 53)),
        (ipv6(44, fragment6(17, 0) + UDP), "udp", (40000, 53)),
        (ipv6(44, fragment6(17, 185) + b"payload which looks like ports"), "udp", (0, 0)),
    ],
)
def test_endpoints(data: bytes, protocol: str, ports: tuple[int, int]) -> None:
    """Addresses, protocol and, in a packet that begins a datagram, the ports are read."""
    found = packet.parse(data)
    assert found is not None
    assert (found.protocol_name, found.source_port, found.destination_port) == (protocol, *ports)
    addresses = (SOURCE, DESTINATION) if data[0] >> 4 == 4 else (SOURCE6, DESTINATION6)
    assert (found.source, found.destination) == addresses


@pytest.mark.parametrize(
    ("flags", "is_syn"), [(SYN, True), (SYN | 0xC0, True), (SYN_ACK, False), (ACK, False), (RST, False), (0, False)]
)
def test_syn(flags: int, is_syn: bool) -> None:
    """Only a segment that opens a connection counts as one that does."""
    for data in (ipv4(6, tcp(flags)), ipv6(6, tcp(flags))):
        found = packet.parse(data)
        assert found is not None
        assert found.is_syn is is_syn


@pytest.mark.parametrize("data", [b"", b"\x45" + bytes(18), b"\x60" + bytes(38), b"\x50" + bytes(60)])
def test_no_packet(data: bytes) -> None:
    """What is cut short in the header, or of another version, is none."""
    assert packet.parse(data) is None


@pytest.mark.parametrize(
    ("content", "carried"),
    [
        (ipv4(packet.UDP, UDP + b"data"), b"data"),
        (ipv4(packet.TCP, tcp(ACK) + b"data"), b"data"),
        (ipv6(packet.TCP, tcp(ACK)), b""),
        (ipv4(1, b"12345678"), b""),
        (ipv4(packet.TCP, b"short"), b""),
        (b"", b""),
    ],
)
def test_payload(content: bytes, carried: bytes) -> None:
    """What TCP and UDP carry begins after their headers."""
    assert packet.payload(content) == carried

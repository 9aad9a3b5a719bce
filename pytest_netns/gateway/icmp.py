"""Write the ICMP errors that a host sends when nobody takes a datagram: pure.

See RFC 792 and RFC 4443. What is quoted is the header of the datagram in question, by which the client's
kernel finds the socket that sent it.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from typing import Final

_UDP: Final = 17
_ICMP, _ICMPV6 = 1, 58
_HOPS: Final = 64
# Type and code, in either family, of the message that makes a client's call fail with this error.
_MESSAGES: Final = {
    errno.ECONNREFUSED: ((3, 3), (1, 4)),
    errno.EHOSTUNREACH: ((3, 1), (1, 3)),
    errno.ENETUNREACH: ((3, 0), (1, 0)),
}


def unreachable(source: str, source_port: int, destination: str, destination_port: int, error: int) -> bytes | None:
    """Return the packet that tells a client that its datagram came to nothing; None for an error without one.

    Args:
        source: the client's address; the packet is for it.
        source_port: the client's port.
        destination: the address that the client wrote to; the packet comes from there.
        destination_port: the port that it wrote to.
        error: what a call of the client's shall fail with.
    """
    message = _MESSAGES.get(error)
    if message is None:
        return None
    client, server = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    quoted_segment = struct.pack("!HHHH", source_port, destination_port, 8, 0)
    if client.version == 4:
        quoted = _header4(client.packed, server.packed, _UDP, 8) + quoted_segment
        body = _icmp(*message[0], quoted, b"")
        return _header4(server.packed, client.packed, _ICMP, len(body)) + body
    quoted = _header6(client.packed, server.packed, _UDP, 8) + quoted_segment
    pseudo = server.packed + client.packed + struct.pack("!II", 8 + len(quoted), _ICMPV6)
    body = _icmp(*message[1], quoted, pseudo)
    return _header6(server.packed, client.packed, _ICMPV6, len(body)) + body


def _icmp(kind: int, code: int, quoted: bytes, pseudo: bytes) -> bytes:
    blank = struct.pack("!BBHI", kind, code, 0, 0) + quoted
    return struct.pack("!BBHI", kind, code, _checksum(pseudo + blank), 0) + quoted


def _header4(source: bytes, destination: bytes, protocol: int, size: int) -> bytes:
    def header(checksum: int) -> bytes:
        return struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 0, 0, _HOPS, protocol, checksum) + source + destination

    return header(_checksum(header(0)))


def _header6(source: bytes, destination: bytes, protocol: int, size: int) -> bytes:
    return struct.pack("!IHBB", 6 << 28, size, protocol, _HOPS) + source + destination


def _checksum(data: bytes) -> int:
    """Return the Internet checksum, RFC 1071; every part here has an even length."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

"""Write nftables rulesets as Python values.

The expressions are those that ``nft --debug=netlink`` prints: each loads registers, compares them
or ends in a verdict. Numbers come from <linux/netfilter/nf_tables.h>.
"""

from __future__ import annotations

import struct
from typing import Final

from pytest_netns.kernel import nft_wire

Rule = list[bytes]
"""The encoded expressions of one rule, evaluated in order."""

NFPROTO_INET: Final = 1
NFPROTO_IPV4: Final = 2
NFPROTO_IPV6: Final = 10

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)

_REGISTER: Final = 1  # NFT_REG_1: 16 bytes
_REGISTER32: Final = 8  # NFT_REG32_00, the first 4 bytes of the same
_META: Final = {"mark": 3, "iif": 4, "oif": 5, "nfproto": 15, "l4proto": 16, "iifgroup": 21, "oifgroup": 22}
_NETWORK: Final = 1
_TRANSPORT: Final = 2
ADDRTYPE: Final = {"unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5}


def _compare(data: bytes, *, equal: bool = True) -> bytes:
    return nft_wire.expression("cmp", sreg=_REGISTER, op=0 if equal else 1, data=nft_wire.value(data))


def _immediate(data: bytes, register: int = _REGISTER) -> bytes:
    return nft_wire.expression("immediate", dreg=register, data=nft_wire.value(data))


def _masked(mask: bytes) -> bytes:
    size = len(mask)
    return nft_wire.expression(
        "bitwise", sreg=_REGISTER, dreg=_REGISTER, len=size, mask=nft_wire.value(mask), xor=nft_wire.value(bytes(size))
    )


def _load(base: int, offset: int, length: int) -> bytes:
    return nft_wire.expression("payload", dreg=_REGISTER, base=base, offset=offset, len=length)


def verdict(code: int) -> bytes:
    """End the rule with a verdict: 0 drops, 1 accepts."""
    return nft_wire.expression("immediate", dreg=0, data=nft_wire.nested(2, nft_wire.integer(1, code)))


DROP: Final = verdict(0)
ACCEPT: Final = verdict(1)


def meta(key: str, value: bytes, *, equal: bool = True) -> Rule:
    """Match packet metadata; interface indexes, groups and marks are in host byte order."""
    return [nft_wire.expression("meta", dreg=_REGISTER, key=_META[key]), _compare(value, equal=equal)]


def mark(value: int, *, equal: bool = True) -> Rule:
    """Match the packet's mark."""
    return meta("mark", struct.pack("=I", value), equal=equal)


def set_mark(value: int) -> Rule:
    """Set the packet's mark."""
    return [_immediate(struct.pack("=I", value)), nft_wire.expression("meta", key=_META["mark"], sreg=_REGISTER)]


def iif(index: int, *, equal: bool = True) -> Rule:
    """Match the index of the interface that the packet came in by."""
    return meta("iif", struct.pack("=I", index), equal=equal)


def oif(index: int) -> Rule:
    """Match the index of the interface that the packet goes out by."""
    return meta("oif", struct.pack("=I", index))


def l4proto(protocol: int, *, equal: bool = True) -> Rule:
    """Match the transport protocol's number."""
    return meta("l4proto", bytes([protocol]), equal=equal)


def nfproto(packed: bytes) -> int:
    """Return the address family of a packed address."""
    return NFPROTO_IPV4 if len(packed) == 4 else NFPROTO_IPV6


def family(number: int) -> Rule:
    """Match the address family, in a table of family inet."""
    return meta("nfproto", bytes([number]))


def dport(port: int) -> Rule:
    """Match the destination port of TCP or UDP."""
    return [_load(_TRANSPORT, 2, 2), _compare(struct.pack("!H", port))]


def transport_bytes(offset: int, mask: bytes, value: bytes, *, equal: bool = True) -> Rule:
    """Match bytes of the transport header under a mask."""
    return [_load(_TRANSPORT, offset, len(mask)), _masked(mask), _compare(value, equal=equal)]


def fragment6() -> Rule:
    """Match fragments, in a table of family ip6."""
    return [_load(_NETWORK, 6, 1), _compare(b"\x2c")]


def _address_offset(address: bytes, *, destination: bool) -> int:
    if len(address) == 4:
        return 16 if destination else 12
    return 24 if destination else 8


def address(packed: bytes, *, destination: bool, prefix: int | None = None, equal: bool = True) -> Rule:
    """Match the source or destination address against an address or, with ``prefix``, a network."""
    size = len(packed)
    load = _load(_NETWORK, _address_offset(packed, destination=destination), size)
    if prefix is None:
        return [load, _compare(packed, equal=equal)]
    mask = ((1 << 8 * size) - (1 << 8 * size - prefix)).to_bytes(size, "big")
    return [load, _masked(mask), _compare(packed, equal=equal)]


def rewrite_address(packed: bytes, *, destination: bool) -> Rule:
    """Overwrite an address in the packet, without connection tracking, and mend the checksums."""
    offset = _address_offset(packed, destination=destination)
    header = (
        {"csum_type": 1, "csum_offset": 10} if len(packed) == 4 else {"csum_type": 0}
    )  # IPv6 has no header checksum
    write = nft_wire.expression(
        "payload", sreg=_REGISTER, base=_NETWORK, offset=offset, len=len(packed), **header, csum_flags=1
    )
    return [_immediate(packed), write]


def rewrite_icmp_inner(source: bytes, destination: bytes) -> Rule:
    """Overwrite both addresses of the packet that an ICMP error quotes, and mend the ICMP checksum."""
    # The quoted header follows the 8 bytes of the ICMP header.
    offset = 8 + _address_offset(source, destination=False)
    rule: Rule = []
    for start, data in ((offset, source), (offset + len(source), destination)):
        write = nft_wire.expression(
            "payload", sreg=_REGISTER, base=_TRANSPORT, offset=start, len=len(data), csum_type=1, csum_offset=2
        )
        rule += [_immediate(data), write]
    return rule


def has_socket() -> Rule:
    """Match packets for which this namespace has a socket, be it listening, connected or closing."""
    # Loading fails, and the rule with it, where there is no socket: nothing is left to compare.
    return [nft_wire.expression("socket", key=0, dreg=_REGISTER)]


def transparent_socket() -> Rule:
    """Match packets for which there is a socket with IP_TRANSPARENT."""
    return [nft_wire.expression("socket", key=0, dreg=_REGISTER), _compare(b"\1")]


def socket_mark(value: int) -> Rule:
    """Match packets for which there is a socket with this SO_MARK."""
    return [nft_wire.expression("socket", key=1, dreg=_REGISTER), _compare(struct.pack("=I", value))]


def fib_local(kind: str) -> Rule:
    """Match the type of the destination address in the routing table: local, broadcast, multicast ..."""
    result = nft_wire.expression("fib", dreg=_REGISTER, result=3, flags=1 << 1)
    return [result, _compare(struct.pack("=I", ADDRTYPE[kind]))]


def fib_spoofed() -> Rule:
    """Match packets whose source is not routed back by the interface that they came in by."""
    result = nft_wire.expression("fib", dreg=_REGISTER, result=1, flags=1 << 0 | 1 << 3)
    return [result, _compare(struct.pack("=I", 0))]


def ct_state(bits: int) -> Rule:
    """Match the connection's state: 2 is established, 4 is related, 8 is new, 64 is not to be tracked."""
    mask = struct.pack("=I", bits)
    return [nft_wire.expression("ct", dreg=_REGISTER, key=0), _masked(mask), _compare(bytes(len(mask)), equal=False)]


def ct_original_destination(packed: bytes) -> Rule:
    """Match the destination address that the connection's first packet carried."""
    key = 0x14 if len(packed) == 4 else 0x16
    return [nft_wire.expression("ct", dreg=_REGISTER, key=key, direction=0), _compare(packed)]


def set_ct_zone(zone: int) -> Rule:
    """Have the packet's connection looked for in a zone of its own; it must not be tracked yet."""
    return [_immediate(struct.pack("=H", zone)), nft_wire.expression("ct", sreg=_REGISTER, key=17)]


def ct_zone(zone: int) -> Rule:
    """Match the zone that the packet's connection was found in."""
    return [nft_wire.expression("ct", dreg=_REGISTER, key=17), _compare(struct.pack("=H", zone))]


def nat(packed: bytes, *, destination: bool) -> Rule:
    """Translate the source or destination address of the connection."""
    return [
        _immediate(packed),
        nft_wire.expression(
            "nat", type=1 if destination else 0, family=nfproto(packed), reg_addr_min=_REGISTER, flags=1
        ),
    ]


def dup_to(packed: bytes, ifindex: int) -> Rule:
    """Send a copy of the packet to the neighbour ``packed`` on the interface ``ifindex``."""
    return [
        _immediate(packed),
        _immediate(struct.pack("=I", ifindex), register=_REGISTER + 1),
        nft_wire.expression("dup", sreg_addr=_REGISTER, sreg_dev=_REGISTER + 1),
    ]


def tproxy(packed: bytes, port: int) -> Rule:
    """Hand the packet to the transparent socket that listens on this address and port."""
    return [
        _immediate(packed),
        _immediate(struct.pack("!H", port), register=_REGISTER + 1),
        nft_wire.expression("tproxy", family=nfproto(packed), reg_addr=_REGISTER, reg_port=_REGISTER + 1),
    ]


def reject_admin_prohibited() -> Rule:
    """Answer with ICMP "administratively prohibited", which connect(2) reports as EHOSTUNREACH."""
    return [nft_wire.expression("reject", type=2, icmp_code=3)]


def reject_host_unreachable() -> Rule:
    """Answer with ICMP "host unreachable"."""
    return [nft_wire.expression("reject", type=2, icmp_code=2)]


def reject_port_unreachable() -> Rule:
    """Answer with ICMP "port unreachable"."""
    return [nft_wire.expression("reject", type=2, icmp_code=1)]


def reject_tcp_reset() -> Rule:
    """Answer a TCP segment with a reset."""
    return [nft_wire.expression("reject", type=1)]


def queue(number: int) -> Rule:
    """Hand the packet to the program that reads queue ``number``; it is dropped where none does."""
    return [nft_wire.expression("queue", num=number, total=1, flags=0)]


def queue_xtables(number: int) -> Rule:
    """Do the same with the older xtables target, for kernels built without the native expression."""
    # Revision 1 of struct xt_NFQ_info: queue number, count of queues.
    info = struct.pack("=HH", number, 1)
    return [nft_wire.expression("target", name=b"NFQUEUE\0", rev=1, info=info)]


def iif_in_set(name: str, *, inverted: bool = False) -> Rule:
    """Match packets whose interface's index is in the set, or is not."""
    lookup = nft_wire.expression("lookup", set=name.encode() + b"\0", sreg=_REGISTER, flags=int(inverted))
    return [nft_wire.expression("meta", dreg=_REGISTER, key=_META["iif"]), lookup]


def groups_in_set(name: str) -> Rule:
    """Match packets whose pair of interface groups, in and out, is in the set."""
    return [
        nft_wire.expression("meta", dreg=_REGISTER32, key=_META["iifgroup"]),
        nft_wire.expression("meta", dreg=_REGISTER32 + 1, key=_META["oifgroup"]),
        nft_wire.expression("lookup", set=name.encode() + b"\0", sreg=_REGISTER32),
    ]

"""Write nftables rulesets as Python values and encode them for the kernel.

The expressions are those that ``nft --debug=netlink`` prints: each loads registers, compares them
or ends in a verdict. Numbers come from <linux/netfilter/nf_tables.h>. pyroute2's own encoder has
most of the expressions, but takes ``fib`` results and set flags for other numbers than the kernel
does and cannot write xtables targets, so the attributes are packed here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final

from pytest_netns.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_REQUEST

Rule = list[bytes]
"""The encoded expressions of one rule, evaluated in order."""

NFPROTO_INET: Final = 1
NFPROTO_IPV4: Final = 2
NFPROTO_IPV6: Final = 10

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)

_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_BEGIN, _END = 0x10, 0x11
_NEWTABLE, _NEWCHAIN, _NEWRULE, _NEWSET, _NEWSETELEM = 0, 3, 6, 9, 12
_NESTED: Final = 0x8000
_REGISTER: Final = 1  # NFT_REG_1: 16 bytes
_REGISTER32: Final = 8  # NFT_REG32_00, the first 4 bytes of the same
_META: Final = {"mark": 3, "iif": 4, "nfproto": 15, "l4proto": 16, "iifgroup": 21, "oifgroup": 22}
_NETWORK: Final = 1
_TRANSPORT: Final = 2
ADDRTYPE: Final = {"unicast": 1, "local": 2, "broadcast": 3, "anycast": 4, "multicast": 5}

# The attributes of each expression in the kernel's order: the first is number 1.
_ATTRIBUTES: Final = {
    "bitwise": ("sreg", "dreg", "len", "mask", "xor"),
    "cmp": ("sreg", "op", "data"),
    "ct": ("dreg", "key", "direction"),
    "dup": ("sreg_addr", "sreg_dev"),
    "fib": ("dreg", "result", "flags"),
    "immediate": ("dreg", "data"),
    "lookup": ("set", "sreg"),
    "meta": ("dreg", "key", "sreg"),
    "nat": ("type", "family", "reg_addr_min", "reg_addr_max", "reg_proto_min", "reg_proto_max", "flags"),
    "payload": ("dreg", "base", "offset", "len", "sreg", "csum_type", "csum_offset", "csum_flags"),
    "queue": ("num", "total", "flags"),
    "reject": ("type", "icmp_code"),
    "socket": ("key", "dreg"),
    "target": ("name", "rev", "info"),
    "tproxy": ("family", "reg_addr", "reg_port"),
}
_NARROW: Final = {
    ("ct", "direction"): 1,
    ("reject", "icmp_code"): 1,
    ("queue", "num"): 2,
    ("queue", "total"): 2,
    ("queue", "flags"): 2,
}


def _attribute(number: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("=HH", length, number) + payload + bytes(-length % 4)


def _string(number: int, text: str) -> bytes:
    return _attribute(number, text.encode() + b"\0")


def _integer(number: int, value: int) -> bytes:
    return _attribute(number, struct.pack("!i" if value < 0 else "!I", value))


def _nested(number: int, *attributes: bytes) -> bytes:
    return _attribute(number | _NESTED, b"".join(attributes))


def _expression(name: str, /, **attributes: int | bytes) -> bytes:
    """Encode one expression; integers are big-endian, of 4 bytes unless ``_NARROW`` says fewer."""
    parts = []
    for key, value in attributes.items():
        if isinstance(value, int):
            value = value.to_bytes(_NARROW.get((name, key), 4), "big")  # noqa: PLW2901
        number = _ATTRIBUTES[name].index(key) + 1
        parts.append(_attribute(number | _NESTED if key in {"data", "mask", "xor"} else number, value))
    return _nested(1, _string(1, name), _nested(2, *parts))


def _value(data: bytes) -> bytes:
    return _attribute(1, data)


def _compare(data: bytes, *, equal: bool = True) -> bytes:
    return _expression("cmp", sreg=_REGISTER, op=0 if equal else 1, data=_value(data))


def _immediate(data: bytes, register: int = _REGISTER) -> bytes:
    return _expression("immediate", dreg=register, data=_value(data))


def _masked(mask: bytes) -> bytes:
    size = len(mask)
    return _expression("bitwise", sreg=_REGISTER, dreg=_REGISTER, len=size, mask=_value(mask), xor=_value(bytes(size)))


def _load(base: int, offset: int, length: int) -> bytes:
    return _expression("payload", dreg=_REGISTER, base=base, offset=offset, len=length)


def verdict(code: int) -> bytes:
    """End the rule with a verdict: 0 drops, 1 accepts."""
    return _expression("immediate", dreg=0, data=_nested(2, _integer(1, code)))


DROP: Final = verdict(0)
ACCEPT: Final = verdict(1)


def meta(key: str, value: bytes, *, equal: bool = True) -> Rule:
    """Match packet metadata; interface indexes, groups and marks are in host byte order."""
    return [_expression("meta", dreg=_REGISTER, key=_META[key]), _compare(value, equal=equal)]


def mark(value: int) -> Rule:
    """Match the packet's mark."""
    return meta("mark", struct.pack("=I", value))


def set_mark(value: int) -> Rule:
    """Set the packet's mark."""
    return [_immediate(struct.pack("=I", value)), _expression("meta", key=_META["mark"], sreg=_REGISTER)]


def iif(index: int, *, equal: bool = True) -> Rule:
    """Match the index of the interface that the packet came in by."""
    return meta("iif", struct.pack("=I", index), equal=equal)


def l4proto(protocol: int) -> Rule:
    """Match the transport protocol's number."""
    return meta("l4proto", bytes([protocol]))


def family(nfproto: int) -> Rule:
    """Match the address family, in a table of family inet."""
    return meta("nfproto", bytes([nfproto]))


def dport(port: int) -> Rule:
    """Match the destination port of TCP or UDP."""
    return [_load(_TRANSPORT, 2, 2), _compare(struct.pack("!H", port))]


def transport_bytes(offset: int, mask: bytes, value: bytes, *, equal: bool = True) -> Rule:
    """Match bytes of the transport header under a mask."""
    return [_load(_TRANSPORT, offset, len(mask)), _masked(mask), _compare(value, equal=equal)]


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
    write = _expression(
        "payload", sreg=_REGISTER, base=_NETWORK, offset=offset, len=len(packed), **header, csum_flags=1
    )
    return [_immediate(packed), write]


def rewrite_icmp_inner(source: bytes, destination: bytes) -> Rule:
    """Overwrite both addresses of the packet that an ICMP error quotes, and mend the ICMP checksum."""
    # The quoted header follows the 8 bytes of the ICMP header.
    offset = 8 + _address_offset(source, destination=False)
    rule: Rule = []
    for start, data in ((offset, source), (offset + len(source), destination)):
        write = _expression(
            "payload", sreg=_REGISTER, base=_TRANSPORT, offset=start, len=len(data), csum_type=1, csum_offset=2
        )
        rule += [_immediate(data), write]
    return rule


def has_socket() -> Rule:
    """Match packets for which this namespace has a socket, be it listening, connected or closing."""
    # Loading fails, and the rule with it, where there is no socket: nothing is left to compare.
    return [_expression("socket", key=0, dreg=_REGISTER)]


def transparent_socket() -> Rule:
    """Match packets for which there is a socket with IP_TRANSPARENT."""
    return [_expression("socket", key=0, dreg=_REGISTER), _compare(b"\1")]


def fib_local(kind: str) -> Rule:
    """Match the type of the destination address in the routing table: local, broadcast, multicast ..."""
    result = _expression("fib", dreg=_REGISTER, result=3, flags=1 << 1)
    return [result, _compare(struct.pack("=I", ADDRTYPE[kind]))]


def fib_spoofed() -> Rule:
    """Match packets whose source is not routed back by the interface that they came in by."""
    result = _expression("fib", dreg=_REGISTER, result=1, flags=1 << 0 | 1 << 3)
    return [result, _compare(struct.pack("=I", 0))]


def ct_state(bits: int) -> Rule:
    """Match the connection's state: 2 is established, 4 is related, 8 is new."""
    mask = struct.pack("=I", bits)
    return [_expression("ct", dreg=_REGISTER, key=0), _masked(mask), _compare(bytes(len(mask)), equal=False)]


def ct_original_destination(packed: bytes) -> Rule:
    """Match the destination address that the connection's first packet carried."""
    key = 0x14 if len(packed) == 4 else 0x16
    return [_expression("ct", dreg=_REGISTER, key=key, direction=0), _compare(packed)]


def nat(packed: bytes, *, destination: bool) -> Rule:
    """Translate the source or destination address of the connection."""
    nfproto = NFPROTO_IPV4 if len(packed) == 4 else NFPROTO_IPV6
    return [
        _immediate(packed),
        _expression("nat", type=1 if destination else 0, family=nfproto, reg_addr_min=_REGISTER, flags=1),
    ]


def dup_to(packed: bytes, ifindex: int) -> Rule:
    """Send a copy of the packet to the neighbour ``packed`` on the interface ``ifindex``."""
    return [
        _immediate(packed),
        _immediate(struct.pack("=I", ifindex), register=_REGISTER + 1),
        _expression("dup", sreg_addr=_REGISTER, sreg_dev=_REGISTER + 1),
    ]


def tproxy(packed: bytes, port: int) -> Rule:
    """Hand the packet to the transparent socket that listens on this address and port."""
    nfproto = NFPROTO_IPV4 if len(packed) == 4 else NFPROTO_IPV6
    return [
        _immediate(packed),
        _immediate(struct.pack("!H", port), register=_REGISTER + 1),
        _expression("tproxy", family=nfproto, reg_addr=_REGISTER, reg_port=_REGISTER + 1),
    ]


def reject_admin_prohibited() -> Rule:
    """Answer with ICMP "administratively prohibited", which connect(2) reports as EHOSTUNREACH."""
    return [_expression("reject", type=2, icmp_code=3)]


def reject_host_unreachable() -> Rule:
    """Answer with ICMP "host unreachable"."""
    return [_expression("reject", type=2, icmp_code=2)]


def reject_port_unreachable() -> Rule:
    """Answer with ICMP "port unreachable"."""
    return [_expression("reject", type=2, icmp_code=1)]


def reject_tcp_reset() -> Rule:
    """Answer a TCP segment with a reset."""
    return [_expression("reject", type=1)]


def queue(number: int) -> Rule:
    """Hand the packet to the program that reads queue ``number``; it is dropped where none does."""
    return [_expression("queue", num=number, total=1, flags=0)]


def queue_xtables(number: int) -> Rule:
    """Do the same with the older xtables target, for kernels built without the native expression."""
    # Revision 1 of struct xt_NFQ_info: queue number, count of queues.
    info = struct.pack("=HH", number, 1)
    return [_expression("target", name=b"NFQUEUE\0", rev=1, info=info)]


def groups_in_set(name: str) -> Rule:
    """Match packets whose pair of interface groups, in and out, is in the set."""
    return [
        _expression("meta", dreg=_REGISTER32, key=_META["iifgroup"]),
        _expression("meta", dreg=_REGISTER32 + 1, key=_META["oifgroup"]),
        _expression("lookup", set=name.encode() + b"\0", sreg=_REGISTER32),
    ]


_KEY_BYTES: Final = 8
_TARGET: Final = b"target\0"


@dataclass(frozen=True)
class Chain:
    """A base chain: where it hooks in, when, what it ends in, and its rules in order."""

    name: str
    hook: int
    priority: int
    rules: list[Rule]
    kind: str = "filter"
    policy: int = 1


@dataclass(frozen=True)
class Table:
    """One nftables table with its chains and its sets of 8-byte keys."""

    name: str
    family: int
    chains: list[Chain]
    sets: list[str] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the netlink messages that create the table."""
        parts = [_message(_NEWTABLE, self.family, [_string(1, self.name)])]
        parts += [self._encode_set(name, number) for number, name in enumerate(self.sets, 1)]
        for chain in self.chains:
            parts.append(self._encode_chain(chain))
            parts += [self._encode_rule(chain.name, rule) for rule in chain.rules]
        return b"".join(parts)

    def _encode_set(self, name: str, number: int) -> bytes:
        identity = [_string(1, self.name), _string(2, name), _integer(3, 0)]
        key = [_integer(4, 0), _integer(5, _KEY_BYTES), _integer(10, number)]
        return _message(_NEWSET, self.family, identity + key)

    def _encode_chain(self, chain: Chain) -> bytes:
        hook = _nested(4, _integer(1, chain.hook), _integer(2, chain.priority))
        identity = [_string(1, self.name), _string(3, chain.name), hook]
        return _message(_NEWCHAIN, self.family, [*identity, _integer(5, chain.policy), _string(7, chain.kind)])

    def _encode_rule(self, chain: str, rule: Rule) -> bytes:
        attributes = [_string(1, self.name), _string(2, chain), _nested(4, *rule)]
        if any(_TARGET in expression for expression in rule):  # an xtables target wants to know of which protocol
            attributes.append(_nested(5, _integer(1, 0), _integer(2, 0)))
        return _message(_NEWRULE, self.family, attributes, NLM_F_APPEND)


def element(table: str, nfproto: int, name: str, key: bytes) -> bytes:
    """Return the message that adds one key to a set."""
    entry = _nested(1, _nested(1, _value(key)))
    return _message(_NEWSETELEM, nfproto, [_string(1, table), _string(2, name), _nested(3, entry)])


def transaction(messages: bytes) -> bytes:
    """Frame messages so that the kernel carries out all of them or none."""
    return _frame(_BEGIN) + messages + _frame(_END)


def _frame(kind: int) -> bytes:
    # struct nfgenmsg: family, version, and in network order the subsystem that the batch is for
    return struct.pack("=IHHIIBB", 20, kind, NLM_F_REQUEST, 0, 0, 0, 0) + struct.pack("!H", _SUBSYSTEM)


def _message(kind: int, nfproto: int, attributes: list[bytes], flags: int = 0) -> bytes:
    body = struct.pack("=BBH", nfproto, 0, 0) + b"".join(attributes)
    header = struct.pack("=IHHII", 16 + len(body), _SUBSYSTEM << 8 | kind, NLM_F_REQUEST | NLM_F_CREATE | flags, 0, 0)
    return header + body

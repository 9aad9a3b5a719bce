"""Encode nftables' netlink messages: attributes within attributes, expressions, messages and their frame.

Numbers come from <linux/netfilter/nf_tables.h>. pyroute2's own encoder has most of the expressions,
but takes ``fib`` results and set flags for other numbers than the kernel does and cannot write
xtables targets, so the attributes are packed here.
"""

from __future__ import annotations

import struct
from typing import Final

from pytest_netns.kernel.netlink import NLM_F_CREATE, NLM_F_REQUEST

BATCH_BEGIN, BATCH_END = 0x10, 0x11
NEWTABLE, DELTABLE, NEWCHAIN, NEWRULE, NEWSET, NEWSETELEM, DELSETELEM = 0, 2, 3, 6, 9, 12, 14

_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_NESTED: Final = 0x8000

# The attributes of each expression in the kernel's order: the first is number 1.
_ATTRIBUTES: Final = {
    "bitwise": ("sreg", "dreg", "len", "mask", "xor"),
    "cmp": ("sreg", "op", "data"),
    "ct": ("dreg", "key", "direction", "sreg"),
    "dup": ("sreg_addr", "sreg_dev"),
    "fib": ("dreg", "result", "flags"),
    "immediate": ("dreg", "data"),
    "lookup": ("set", "sreg", "dreg", "set_id", "flags"),
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


def attribute(number: int, payload: bytes) -> bytes:
    """Encode an attribute, padded to four bytes."""
    length = 4 + len(payload)
    return struct.pack("=HH", length, number) + payload + bytes(-length % 4)


def string(number: int, text: str) -> bytes:
    """Encode an attribute that holds text."""
    return attribute(number, text.encode() + b"\0")


def integer(number: int, value: int) -> bytes:
    """Encode an attribute that holds a big-endian number of four bytes."""
    return attribute(number, struct.pack("!i" if value < 0 else "!I", value))


def nested(number: int, *attributes: bytes) -> bytes:
    """Encode an attribute that holds others."""
    return attribute(number | _NESTED, b"".join(attributes))


def expression(name: str, /, **attributes: int | bytes) -> bytes:
    """Encode one expression; integers are big-endian, of 4 bytes unless ``_NARROW`` says fewer."""
    parts = []
    for key, given in attributes.items():
        data = given.to_bytes(_NARROW.get((name, key), 4), "big") if isinstance(given, int) else given
        number = _ATTRIBUTES[name].index(key) + 1
        parts.append(attribute(number | _NESTED if key in {"data", "mask", "xor"} else number, data))
    return nested(1, string(1, name), nested(2, *parts))


def value(data: bytes) -> bytes:
    """Encode data that an expression compares, stores or looks up."""
    return attribute(1, data)


def frame(kind: int) -> bytes:
    """Encode the message that begins or ends a batch."""
    # struct nfgenmsg: family, version, and in network order the subsystem that the batch is for
    return struct.pack("=IHHIIBB", 20, kind, NLM_F_REQUEST, 0, 0, 0, 0) + struct.pack("!H", _SUBSYSTEM)


def message(kind: int, nfproto: int, attributes: list[bytes], flags: int = 0) -> bytes:
    """Encode one message of a batch."""
    body = struct.pack("=BBH", nfproto, 0, 0) + b"".join(attributes)
    header = struct.pack("=IHHII", 16 + len(body), _SUBSYSTEM << 8 | kind, NLM_F_REQUEST | NLM_F_CREATE | flags, 0, 0)
    return header + body

"""Load an nftables ruleset and, where the kernel refuses it, name the part that is to blame.

The kernel takes a ruleset whole or not at all and tells which message it stumbled over by number
only. Loading the messages one by one finds the one, and what it holds names the kernel module.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pytest_netns.errors import KernelError
from pytest_netns.kernel import nft_table
from pytest_netns.kernel.netlink import NetlinkSocket

# From <linux/netfilter/nf_tables.h>.
_SUBSYSTEM: Final = 10
_NEWCHAIN, _NEWRULE = _SUBSYSTEM << 8 | 3, _SUBSYSTEM << 8 | 6
_CHAIN_TYPE: Final = 7  # NFTA_CHAIN_TYPE
_RULE_EXPRESSIONS: Final = 4  # NFTA_RULE_EXPRESSIONS
_HEADER_BYTES: Final = 20  # struct nlmsghdr and struct nfgenmsg
#: Expressions that are part of nf_tables itself, so never what is missing.
_CORE: Final = frozenset({"bitwise", "byteorder", "cmp", "immediate", "lookup", "meta", "payload", "range", "rt"})


class CulpritError(KernelError):
    """The part of a ruleset that the kernel refused."""

    def __init__(self, errno: int, what: str, part: str) -> None:
        """Name the part: an expression such as ``tproxy``, a chain type such as ``nat chain``."""
        super().__init__(errno, what)
        self.part = part

    def __reduce__(self) -> tuple[type[CulpritError], tuple[int | None, str | None, str]]:
        """Keep the part when pickled."""
        return type(self), (self.errno, self.strerror, self.part)


def load(channel: NetlinkSocket, ruleset: bytes) -> None:
    """Load a transaction.

    Raises:
        CulpritError: the kernel refused it; parts before the refused one may have been loaded.
    """
    try:
        channel.request(ruleset, "load the ruleset")
    except KernelError as error:
        framework = b""
        for kind, message in _messages(ruleset):
            try:
                channel.request(nft_table.transaction(framework + message), f"load {_name(kind, message)}")
            except KernelError as refusal:
                raise CulpritError(refusal.errno or 0, refusal.strerror or "", _name(kind, message)) from error
            if kind != _NEWRULE:
                framework += message
        raise CulpritError(error.errno or 0, error.strerror or "", "ruleset") from error


def _messages(ruleset: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the messages of a transaction without its frame."""
    offset = 0
    while offset < len(ruleset):
        length, kind = struct.unpack_from("=IH", ruleset, offset)
        if kind >> 8 == _SUBSYSTEM:
            yield kind, ruleset[offset : offset + length]
        offset += (length + 3) & ~3


def _name(kind: int, message: bytes) -> str:
    attributes = dict(_attributes(message[_HEADER_BYTES:]))
    if kind == _NEWCHAIN:
        return f"{_text(attributes[_CHAIN_TYPE])} chain"
    if kind == _NEWRULE:
        names = [_text(dict(_attributes(one))[1]) for _, one in _attributes(attributes[_RULE_EXPRESSIONS])]
        return " + ".join(dict.fromkeys(name for name in names if name not in _CORE)) or "rule"
    return "table"


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, offset)
        yield number & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode()

"""The hub's name server, as far as it is a matter of bytes: questions read, answers written.

The message format is RFC 1035's; the reason for a refusal travels as an Extended DNS Error (RFC 8914).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pytest_netns.gateway.packet import Address

A: Final = 1
PTR: Final = 12
AAAA: Final = 28
SVCB: Final = 64
HTTPS: Final = 65
IN: Final = 1
QUERY: Final = 0

_HEADER: Final = struct.Struct("!HHHHHH")  # id, flags, and the counts of the four sections
_QR: Final = 0x8000
_OPCODE_AND_RD: Final = 0x7900
_RA: Final = 0x0080
_NOERROR, _SERVFAIL, _NXDOMAIN, _NOTIMP = 0, 2, 3, 4
_MAX_NAME: Final = 255
_QUESTION_NAME: Final = 0xC000 | _HEADER.size  # a compression pointer to where the question begins
_OPT: Final = b"\0\0\x29"  # the root's name, and the type
_UDP_SIZE: Final = 1232
_EDE_OPTION: Final = 15
_BLOCKED, _NO_REACHABLE_AUTHORITY = 15, 22
# With these no answer is longer than the 512 bytes that every client takes over UDP.
_MAX_ADDRESSES: Final = 8
_MAX_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class Question:
    r"""The name and type that a query asks for, and what its answer must repeat.

    Attributes:
        name: in lower case, without the last dot; "." for the root. A byte that belongs into no host name is
            written as in a zone file, ``\DDD``: no two names become one, and none can upset a terminal.
        kind: the type of record.
        section: the question as it came.
        extended: whether the client understands EDNS.
    """

    identifier: int
    flags: int
    name: str
    kind: int
    dns_class: int
    section: bytes
    extended: bool

    @property
    def opcode(self) -> int:
        """What kind of request this is."""
        return self.flags >> 11 & 0xF

    @property
    def is_lookup(self) -> bool:
        """Whether this is an ordinary query for an internet name: nothing else is ever answered with an address."""
        return self.opcode == QUERY and self.dns_class == IN


def parse(query: bytes) -> Question | None:
    """Read a query; None where it is none, or asks for anything but exactly one name."""
    if len(query) < _HEADER.size:
        return None
    identifier, flags, questions, answers, authorities, additional = _HEADER.unpack_from(query)
    if flags & _QR or questions != 1:
        return None
    labels: list[str] = []
    offset = _HEADER.size
    while True:
        if offset >= len(query) or offset - _HEADER.size >= _MAX_NAME:
            return None
        length = query[offset]
        offset += 1
        if length == 0:
            break
        if length > 63 or offset + length > len(query):  # a compressed name has no place in a question
            return None
        labels.append("".join(map(_text, query[offset : offset + length])))
        offset += length
    if offset + 4 > len(query):
        return None
    kind, dns_class = struct.unpack_from("!HH", query, offset)
    section, rest = query[_HEADER.size : offset + 4], query[offset + 4 :]
    extended = bool(additional) and not (answers or authorities) and rest.startswith(_OPT)
    return Question(identifier, flags, ".".join(labels).lower() or ".", kind, dns_class, section, extended)


def answer(question: Question, addresses: Iterable[Address], ttl: int) -> bytes:
    """Return the answer with those addresses that are of the kind asked for; there may be none (NODATA)."""
    wanted = {A: ipaddress.IPv4Address, AAAA: ipaddress.IPv6Address}.get(question.kind) if question.is_lookup else None
    fitting = [address.packed for address in addresses if wanted is not None and isinstance(address, wanted)]
    records = [
        struct.pack("!HHHIH", _QUESTION_NAME, question.kind, IN, ttl, len(packed)) + packed
        for packed in fitting[:_MAX_ADDRESSES]
    ]
    return _message(question, _NOERROR, records)


def refuse(question: Question, reason: str = "not on the test's allow-list") -> bytes:
    """Return the answer that the name does not exist, with the reason for those who understand it."""
    return _message(question, _NXDOMAIN, error=(_BLOCKED, reason))


def refuse_kind(question: Question, reason: str = "only addresses are looked up") -> bytes:
    """Return the answer that the name, an allowed one, has nothing of this kind."""
    return _message(question, _NOERROR, error=(_BLOCKED, reason))


def missing(question: Question) -> bytes:
    """Return the answer that the name, an allowed one, does not exist in truth."""
    return _message(question, _NXDOMAIN)


def fail(question: Question, reason: str = "the host could not look the name up") -> bytes:
    """Return the answer that the name, an allowed one, could not be looked up: the client may try again."""
    return _message(question, _SERVFAIL, error=(_NO_REACHABLE_AUTHORITY, reason))


def decline(question: Question) -> bytes:
    """Return the answer to what is no lookup: a NOTIFY, an UPDATE, or a class other than the internet's."""
    return _message(question, _NOTIMP)


def _text(byte: int) -> str:
    plain = 0x20 < byte < 0x7F and byte not in b'."$();@\\'
    return chr(byte) if plain else f"\\{byte:03}"


def _message(
    question: Question, rcode: int, records: Iterable[bytes] = (), error: tuple[int, str] | None = None
) -> bytes:
    flags = _QR | question.flags & _OPCODE_AND_RD | _RA | rcode
    answers = list(records)
    header = _HEADER.pack(question.identifier, flags, 1, len(answers), 0, int(question.extended))
    options = b""
    if error is not None:
        code, reason = error
        text = reason.encode("utf-8", "replace")[:_MAX_REASON].decode("utf-8", "ignore").encode()
        options = struct.pack("!HHH", _EDE_OPTION, 2 + len(text), code) + text
    # RFC 6891: an OPT record answers one, and only one.
    opt = _OPT + struct.pack("!HIH", _UDP_SIZE, 0, len(options)) + options if question.extended else b""
    return b"".join([header, question.section, *answers, opt])

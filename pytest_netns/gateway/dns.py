"""The hub's name server: every name that nobody listed does not exist, and is said to be blocked.

The message format is RFC 1035's; the reason travels as an Extended DNS Error (RFC 8914).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

_HEADER: Final = struct.Struct("!HHHHHH")  # id, flags, and the counts of the four sections
_QR: Final = 0x8000
_OPCODE_AND_RD: Final = 0x7900
_RA: Final = 0x0080
_NXDOMAIN: Final = 3
_OPT: Final = 41
_UDP_SIZE: Final = 1232
_EDE_OPTION: Final = 15
_EDE_BLOCKED: Final = 15
_MAX_NAME: Final = 255
_REASON: Final = b"not on the test's allow-list"


@dataclass(frozen=True, slots=True)
class Question:
    """The name and type that a query asks for, and what its answer must repeat."""

    identifier: int
    flags: int
    name: str
    kind: int
    section: bytes
    extended: bool


def parse(query: bytes) -> Question | None:
    """Read a query; None where it is none, or asks for anything but exactly one name."""
    if len(query) < _HEADER.size:
        return None
    identifier, flags, questions, _, _, additional = _HEADER.unpack_from(query)
    if flags & _QR or questions != 1:
        return None
    labels: list[str] = []
    offset = _HEADER.size
    while True:
        if offset >= len(query) or offset - _HEADER.size > _MAX_NAME:
            return None
        length = query[offset]
        offset += 1
        if length == 0:
            break
        if length > 63 or offset + length > len(query):  # a compressed name has no place in a question
            return None
        labels.append(query[offset : offset + length].decode("ascii", "backslashreplace"))
        offset += length
    if offset + 4 > len(query):
        return None
    (kind,) = struct.unpack_from("!H", query, offset)
    section = query[_HEADER.size : offset + 4]
    return Question(identifier, flags, ".".join(labels).lower() or ".", kind, section, additional > 0)


def refuse(question: Question) -> bytes:
    """Return the answer that the name does not exist, with the reason for those who understand it."""
    flags = _QR | question.flags & _OPCODE_AND_RD | _RA | _NXDOMAIN
    answer = _HEADER.pack(question.identifier, flags, 1, 0, 0, int(question.extended)) + question.section
    if question.extended:  # RFC 6891: an OPT record answers one, and only one
        option = struct.pack("!HHH", _EDE_OPTION, 2 + len(_REASON), _EDE_BLOCKED) + _REASON
        answer += struct.pack("!BHHIH", 0, _OPT, _UDP_SIZE, 0, len(option)) + option
    return answer

"""Which server a client asks for by name as it begins to speak TLS: pure, and never raises on any bytes.

Records and the ClientHello are RFC 8446's, the server name RFC 6066's. A name that cannot be read for
certain is no name: where servers are known to be more tolerant than the standard, this is not. Three things are
out of sight. A TLS session that follows another protocol on the same connection (STARTTLS); one that begins in
SSLv2's format, which has no room for a name; and a renegotiation, which is encrypted. With Encrypted
ClientHello, the name is the outer one, that of the server which decrypts.
"""

from __future__ import annotations

import enum
import re
from typing import Final, TypeAlias

_HEADER: Final = 5  # of a record: its type, version and length
_TYPES: Final = range(20, 25)
_ALERT: Final = 21
_HANDSHAKE: Final = 22
_MAJOR: Final = 3  # of the version, from SSL 3.0 to TLS 1.3
_MAX_RECORD: Final = 1 << 14
_CLIENT_HELLO: Final = 1
_MAX_HELLO: Final = 1 << 16
_VERSION_AND_RANDOM: Final = 34
_SERVER_NAME: Final = 0
_HOST_NAME: Final = 0
_MAX_NAME: Final = 253
_LABEL: Final = re.compile(r"[a-z0-9_-]{1,63}")


class Hello(enum.Enum):
    """What a client's first bytes are, where they name no server."""

    MORE = "more"
    """Too few to tell."""

    OTHER = "other"
    """Not the beginning of a TLS session, as far as any server is known to take it."""

    NAMELESS = "nameless"
    """A ClientHello without a server name."""

    MALFORMED = "malformed"
    """TLS that breaks its rules, or names no legal host: a server might take it for something else than it seems."""


Asked: TypeAlias = str | Hello


class _MalformedError(Exception):
    pass


class HelloReader:
    """Reads a client's stream for the server names in it, as its bytes come in.

    A server may ask for a second ClientHello, and take the name from that one: hence a stream that was found to
    be TLS is worth watching to its end. It costs a look at each record's header.
    """

    def __init__(self) -> None:
        """Start at the beginning of a stream."""
        self._stream = bytearray()  # what has come and was not looked at
        self._hello = bytearray()  # what is there of a ClientHello that is being read
        self._asked: Asked = Hello.MORE
        self._over = False

    def feed(self, data: bytes) -> Asked:
        """Return the name, or what else is known now that ``data`` has come; call it before passing that on.

        After ``MORE``, the answer is final but for one change: a name, or ``NAMELESS``, turns into ``MALFORMED``
        when a second ClientHello differs.
        """
        if not self._over:
            self._stream += data
        while self._take_record():
            pass
        return self._asked

    def _take_record(self) -> bool:
        """Read the next record; False where it has not come as a whole, or does not matter any more."""
        judged = self._judge_record()
        end = _HEADER + int.from_bytes(self._stream[3:_HEADER], "big")
        if judged is not None and judged is not Hello.MORE:
            self._end(judged)
        if judged is not None or len(self._stream) < end:
            return False
        if self._stream[0] == _HANDSHAKE:
            self._hello += self._stream[_HEADER:end]
            self._read_hello()
        del self._stream[:end]
        return not self._over

    def _judge_record(self) -> Asked | None:
        """Say what the next record settles by how it begins; None where it is to be read, or passed over."""
        stream = self._stream
        if self._asked is Hello.MORE and not self._hello:
            first = _first_look(stream)
            if first is not None:
                return first
        if len(stream) <= _HEADER:
            return Hello.MORE
        length = int.from_bytes(stream[3:_HEADER], "big")
        if self._asked is not Hello.MORE:
            other = stream[0] == _HANDSHAKE and length and not self._hello and stream[_HEADER] != _CLIENT_HELLO
            return self._asked if other else None
        proper = stream[0] == _HANDSHAKE and stream[1] == _MAJOR and 0 < length <= _MAX_RECORD
        return None if proper else Hello.MALFORMED

    def _read_hello(self) -> None:
        end = 4 + int.from_bytes(self._hello[1:4], "big")
        # What follows a first hello may be encrypted, and look like the beginning of a second one for a while.
        size = end if self._asked is Hello.MORE else len(self._hello)
        if len(self._hello) < 4:
            return
        if size > 4 + _MAX_HELLO or end < len(self._hello):  # it is alone in its records
            self._end(Hello.MALFORMED)
        elif end == len(self._hello):
            asked = _asked(bytes(self._hello[4:]))
            self._hello.clear()
            if self._asked is Hello.MORE and asked is not Hello.MALFORMED:
                self._asked = asked
            else:
                self._end(asked if asked == self._asked else Hello.MALFORMED)

    def _end(self, asked: Asked) -> None:
        self._asked, self._over = asked, True
        self._stream, self._hello = bytearray(), bytearray()


def server_name(data: bytes) -> Asked:
    """Return the name of the server that a stream which begins with ``data`` asks for, or why there is none."""
    return HelloReader().feed(data)


def _first_look(stream: bytearray) -> Hello | None:
    """Say what a stream is that does not begin with a ClientHello in a proper record; None where it does.

    Servers differ in what they skip, or overlook, before a ClientHello: OpenSSL skips empty records, Go alerts, and
    Go does not mind the version of a record below 16.0. None of it comes from an honest client.
    """
    if (stream and stream[0] not in _TYPES) or (len(stream) > 1 and stream[1] >= 16):
        return Hello.OTHER
    if len(stream) <= _HEADER:
        return Hello.MORE
    kind, proper, length = stream[0], stream[1] == _MAJOR, int.from_bytes(stream[3:_HEADER], "big")
    if kind == _HANDSHAKE and length and stream[_HEADER] == _CLIENT_HELLO:
        return None if proper else Hello.MALFORMED
    skipped = proper and (kind != _HANDSHAKE or not length)
    return Hello.MALFORMED if skipped or (kind == _ALERT and length == 2) else Hello.OTHER


def _asked(hello: bytes) -> Asked:
    try:
        found = [value for kind, value in _extensions(hello) if kind == _SERVER_NAME]
        if not found:
            return Hello.NAMELESS
        (value,) = found
        names, end = _vector(value, 0, 2)
        name, last = _vector(names, 1, 2)
        if names[0] == _HOST_NAME and end == len(value) and last == len(names):
            return _host_name(name)
    except (_MalformedError, ValueError):
        pass
    return Hello.MALFORMED


def _extensions(hello: bytes) -> list[tuple[int, bytes]]:
    offset = _VERSION_AND_RANDOM
    for width in (1, 2, 1):  # the session's identifier, the cipher suites, the compression methods
        _, offset = _vector(hello, offset, width)
    if offset == len(hello):  # as clients before TLS 1.2 may leave it
        return []
    extensions, end = _vector(hello, offset, 2)
    if end != len(hello):
        raise _MalformedError
    found = []
    offset = 0
    while offset < len(extensions):
        kind = int.from_bytes(extensions[offset : offset + 2], "big")
        value, offset = _vector(extensions, offset + 2, 2)
        found.append((kind, value))
    return found


def _vector(data: bytes, offset: int, width: int) -> tuple[bytes, int]:
    """Return the bytes whose length stands in ``width`` bytes before them, and where they end."""
    start = offset + width
    end = start + int.from_bytes(data[offset:start], "big")
    if max(start, end) > len(data):
        raise _MalformedError
    return data[start:end], end


def _host_name(data: bytes) -> str:
    name = data.decode("ascii").lower().removesuffix(".")
    labels = name.split(".")
    # A last label of digits is an address's (RFC 6066 forbids one, and no top-level domain is a number).
    if len(name) > _MAX_NAME or labels[-1].isdigit() or not all(map(_LABEL.fullmatch, labels)):
        raise _MalformedError
    return name

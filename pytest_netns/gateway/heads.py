"""The heads of HTTP/1 requests: enough to tell whom a request is for, and where it ends. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, TypeAlias

MAX_HEAD: Final = 64 * 1024  # bytes; browsers send a few hundred, and cookies

_Field: TypeAlias = tuple[bytes, bytes]

_END: Final = b"\r\n\r\n"
_START_LINE: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/(\d)\.(\d)")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
_HOST: Final = re.compile(rb"([0-9A-Za-z_.-]+)(?::\d*)?")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;.*)?")
_NUMBER: Final = re.compile(rb"[0-9]{1,18}")
_MAX_LINE: Final = 8 * 1024
_HOP_BY_HOP: Final = frozenset({b"connection", b"keep-alive", b"proxy-connection"})


class RequestError(Exception):
    """A request that cannot be served; the text says what is wrong with it."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Head:
    """The head of a request.

    Attributes:
        method: as it was sent, for example ``GET``.
        path: the target, which begins with a slash or is ``*``.
        host: whom it is for: a name in lower case, without a port and without a dot at its end.
        fields: names and values, as they were sent.
        length: bytes of the body; None where the body comes in chunks that tell its end.
    """

    method: str
    path: str
    host: str
    fields: tuple[_Field, ...]
    length: int | None
    version: bytes = b"HTTP/1.1"

    def value(self, name: str) -> str:
        """Return a field's value, of several the first, or nothing."""
        found = (value for key, value in self.fields if key.lower() == name.encode())
        return next(found, b"").decode("latin-1")

    @property
    def upgrades(self) -> bool:
        """Whether the client wishes to go on in another protocol, such as WebSocket."""
        tokens = {token.strip().lower() for token in self.value("connection").split(",")}
        return "upgrade" in tokens and bool(self.value("upgrade"))

    def forwarded(self) -> bytes:
        """Return the head for the server, which is to close the connection after its answer, unless it is upgraded."""
        fields = self.fields
        if not self.upgrades:
            fields = *(one for one in fields if one[0].lower() not in _HOP_BY_HOP), (b"Connection", b"close")
        lines = [b"%b %b %b" % (self.method.encode(), self.path.encode(), self.version)]
        return b"\r\n".join([*lines, *(b"%b: %b" % field for field in fields)]) + _END


def parse(data: bytes) -> tuple[Head, bytes] | None:
    """Return a request's head and what of its body has come with it; None as long as the head is not complete.

    Raises:
        RequestError: it is no head of an HTTP/1 request, or one that does not say whom it is for.
    """
    data = data.lstrip(b"\r\n")  # some clients send an empty line after a body
    text, end, rest = data.partition(_END)
    if data and not data[:1].isalpha():
        raise RequestError(HTTPStatus.BAD_REQUEST, "this is no HTTP; TLS (https:) is not spoken here")
    if not end:
        if len(data) > MAX_HEAD:
            raise RequestError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head is over {MAX_HEAD} bytes")
        return None
    first, *lines = text.split(b"\r\n")
    start = _START_LINE.fullmatch(first)
    if start is None:
        raise _bad(f"no request line: {_shown(first)}")
    method, target, major, minor = start.groups()
    if major != b"1":
        text_ = "only HTTP/1 tells by name whom it is for; for HTTP/2 use pytest-netns forward"
        raise RequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, text_)
    if not target.startswith(b"/") and target != b"*":
        raise _bad(f"{_shown(target)} is no path, and this is no proxy")
    fields = tuple(_field(line) for line in lines)
    version = b"HTTP/1.%b" % minor
    return Head(method.decode(), target.decode(), _host(fields), fields, _length(fields), version), rest


def _field(line: bytes) -> _Field:
    found = _FIELD.fullmatch(line)
    if found is None:
        raise _bad(f"no header field: {_shown(line)}")
    name, value = found.groups()
    return name, value


def _values(fields: tuple[_Field, ...], name: bytes) -> list[bytes]:
    return [value for key, value in fields if key.lower() == name]


def _host(fields: tuple[_Field, ...]) -> str:
    hosts = _values(fields, b"host")
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if found is None:
        raise _bad(f"not one Host that names a leaf, but {', '.join(map(_shown, hosts)) or 'none'}")
    return found.group(1).decode().lower().rstrip(".")


def _length(fields: tuple[_Field, ...]) -> int | None:
    codings, lengths = _values(fields, b"transfer-encoding"), set(_values(fields, b"content-length"))
    if codings and lengths:
        raise _bad("both Content-Length and Transfer-Encoding")
    if codings:
        if [coding.lower() for coding in codings] != [b"chunked"]:
            raise RequestError(HTTPStatus.NOT_IMPLEMENTED, f"Transfer-Encoding {_shown(b', '.join(codings))}")
        return None
    if not lengths:
        return 0
    length = lengths.pop()
    if lengths or not _NUMBER.fullmatch(length):
        raise _bad("a Content-Length that is no number, or several")
    return int(length)


def _bad(text: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, text)


def _shown(data: bytes) -> str:
    return repr(data[:100].decode("latin-1"))


class Body:
    """Tells where a request's body ends."""

    def __init__(self, length: int | None) -> None:
        """Expect so many bytes, or chunks."""
        self._chunked = length is None
        self._left = length or 0
        self._line = b""
        self._trailer = False
        self._over = False

    def holds(self, data: bytes) -> bool:
        """Take in the next piece; tell whether all of it belongs to the body."""
        if not self._chunked:
            self._left -= len(data)
            return self._left >= 0
        self._line += data
        while self._line and not self._over:
            if not self._step():
                return len(self._line) <= _MAX_LINE
        return not self._line

    def _step(self) -> bool:
        """Pass over a piece of a chunk, or read a line; tell whether there was a whole one."""
        if self._left:
            passed = min(self._left, len(self._line))
            self._left, self._line = self._left - passed, self._line[passed:]
            return True
        line, end, rest = self._line.partition(b"\r\n")
        if not end:
            return False
        self._line = rest
        if self._trailer:
            self._over = not line
            return True
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            self._line, self._over = line + end, True  # what follows makes no sense, and neither does this
            return True
        self._left = int(size.group(1), 16)
        self._trailer = not self._left
        self._left += 2 if self._left else 0  # the line's end after a chunk
        return True

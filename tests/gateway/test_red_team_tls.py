"""What a test that was let through to one name tries in order to be served, at the same place, as another's guest."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Iterable

from attacks import HERE, Siege
from packets import TCP, packed
from worlds import World, at, inside
from zone import Zone

ALLOWED, OTHER = b"api.example.com", b"bad.example.com"
HANDSHAKE, ALERT, CHANGE, DATA = 22, 21, 20, 23


def _record(payload: bytes, kind: int = HANDSHAKE, version: bytes = b"\3\1") -> bytes:
    return bytes([kind]) + version + struct.pack("!H", len(payload)) + payload


def _extension(kind: int, body: bytes) -> bytes:
    return struct.pack("!HH", kind, len(body)) + body


def _names(*names: bytes, kind: int = 0) -> bytes:
    entries = b"".join(struct.pack("!BH", kind, len(name)) + name for name in names)
    return _extension(0, struct.pack("!H", len(entries)) + entries)


def _message(*extensions: bytes, session: bytes = b"") -> bytes:
    joined = b"".join(extensions)
    body = (
        b"\3\3"
        + bytes(32)
        + bytes([len(session)])
        + session
        + b"\0\2\x13\1\1\0"
        + struct.pack("!H", len(joined))
        + joined
    )
    return b"\1" + len(body).to_bytes(3, "big") + body


def _hello(*names: bytes) -> bytes:
    return _record(_message(*map(_names, names)))


def _parts(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def _real(name: str) -> bytes:
    """Return what this Python's own TLS says first."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


GOOD, BAD = _message(_names(ALLOWED)), _message(_names(OTHER))
REFUSED = {
    "plain": [_hello(OTHER)],
    "genuine": [_real(OTHER.decode())],
    "capitals": [_hello(OTHER.upper())],
    "dot": [_hello(OTHER + b".")],
    "byte by byte": _parts(_hello(OTHER), 1),
    "genuine, in pieces": _parts(_real(OTHER.decode()), 100),
    "records": [b"".join(map(_record, _parts(BAD, 7)))],
    "records of one byte": [_record(part) for part in _parts(BAD, 1)],
    "two in a list": [_record(_message(_names(ALLOWED, OTHER)))],
    "two in a list, other order": [_record(_message(_names(OTHER, ALLOWED)))],
    "twice": [_hello(ALLOWED, OTHER)],
    "twice, other order": [_hello(OTHER, ALLOWED)],
    "other kind first": [_record(_message(_names(OTHER, kind=1), _names(ALLOWED)))],
    "other kind": [_record(_message(_names(OTHER, kind=255)))],
    "nul": [_hello(OTHER + b"\0." + ALLOWED)],
    "nul at the end": [_hello(ALLOWED + b"\0" + OTHER)],
    "space": [_hello(OTHER + b" ")],
    "new line": [_hello(ALLOWED + b"\r\n" + OTHER)],
    "below": [_hello(OTHER + b"." + ALLOWED)],
    "above": [_hello(ALLOWED + b"." + OTHER)],
    "two dots": [_hello(OTHER + b"..")],
    "slash": [_hello(ALLOWED + b"/" + OTHER)],
    "port": [_hello(OTHER + b":443")],
    "at": [_hello(ALLOWED + b"@" + OTHER)],
    "wildcard": [_hello(b"*." + OTHER)],
    "long": [_hello(OTHER + b"." + b"x" * 250)],
    "second hello": [_hello(ALLOWED), _hello(OTHER)],
    "second hello after others": [_hello(ALLOWED), _record(b"\1", CHANGE), _record(bytes(99), DATA), _hello(OTHER)],
    "second hello at once": [_hello(ALLOWED) + _hello(OTHER)],
    "second hello in the record": [_record(GOOD + BAD)],
    "second hello begins in the record": [_record(GOOD + BAD[:9]) + _record(BAD[9:])],
    "empty record": [_record(b"") + _hello(OTHER)],
    "alert": [_record(b"\1\0", ALERT) + _hello(OTHER)],
    "change": [_record(b"\1", CHANGE) + _hello(OTHER)],
    "data": [_record(b"x", DATA) + _hello(OTHER)],
    "old version": [_record(BAD, version=b"\3\0")],
    "new version": [_record(BAD, version=b"\3\4")],
    "strange version": [_record(BAD, version=b"\2\0")],
    "too long": [_record(BAD[:1] + b"\0\xff\xff" + BAD[4:])],
    "too short": [_record(BAD[:1] + (len(BAD) - 9).to_bytes(3, "big") + BAD[4:])],
    "session": [_record(_message(_names(OTHER), session=bytes(255)))],
    "hidden by length": [_record(_message(_extension(21, _names(ALLOWED)), _names(OTHER)))],
    "half": [_hello(OTHER)[:-4]],
}
WAITS = {"too long", "half"}  # for more, which never comes


def _payload(packets: Iterable[bytes]) -> bytes:
    """Return what the server on the internet was told over TCP."""
    told = b""
    for packet in packets:
        if packet[0] >> 4 == 4 and packet[9] == TCP and packet[16:20] == packed(HERE):
            start = (packet[0] & 15) * 4
            told += packet[start + (packet[start + 12] >> 4) * 4 : int.from_bytes(packet[2:4], "big")]
    return told


@inside
def test_other_names(world: World) -> None:
    """However a client asks for a name that it was not let through to, the server is not told, nor of its next try."""
    siege = Siege(world, "api.example.com:{port}", Zone(world, {"api.example.com": [HERE]}))
    for variant, parts in REFUSED.items():
        with siege.attack(), socket.create_connection((ALLOWED.decode(), siege.port), 5) as one:
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(0.1)
            with contextlib.suppress(OSError):
                for part in parts:
                    one.sendall(part)
                    time.sleep(0.0005)
                while one.recv(1000):
                    pass
            siege.strangers()
            assert OTHER not in _payload(siege.seen).lower(), variant
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no end of what is held back
        flow = siege.client.flows(siege.leaf.name)[-1]
        assert variant in WAITS or flow.verdict == "blocked", variant


@inside
def test_own_name(world: World) -> None:
    """The name that is allowed is, in capitals, with its dot, in pieces, or not said at all."""
    siege = Siege(world, "api.example.com:{port}", Zone(world, {"api.example.com": [HERE]}))
    good = [_hello(ALLOWED), _hello(ALLOWED.upper()), _hello(ALLOWED + b"."), _real(ALLOWED.decode()), _hello()]
    for hello in [*good, b"".join(map(_record, _parts(GOOD, 7))), b"GET / HTTP/1.1\r\n\r\n"]:
        for size in (1, len(hello)):
            with at(siege.leaf), socket.create_connection((ALLOWED.decode(), siege.port), 5) as one:
                for part in _parts(hello, size):
                    one.sendall(part)
                one.shutdown(socket.SHUT_WR)
                with one.makefile("rb") as stream:
                    assert stream.read() == hello

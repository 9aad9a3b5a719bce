"""The heads of requests: whom one is for, where it ends, and what is passed on."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from pytest_netns.gateway import heads
from pytest_netns.gateway.heads import Body, Head, RequestError


def parsed(data: bytes) -> Head:
    """Return the head of a request that came with its body, or a part of it."""
    found = heads.parse(data)
    assert found is not None
    return found[0]


@pytest.mark.parametrize(
    ("field", "host"),
    [
        (b"Host: main-t1.localhost:8321", "main-t1.localhost"),
        (b"host:MAIN-T1.LocalHost.", "main-t1.localhost"),
        (b"HOST: \t127.0.0.1 ", "127.0.0.1"),
        (b"Host: 3000.gw0.localhost:", "3000.gw0.localhost"),
    ],
)
def test_host(field: bytes, host: str) -> None:
    """The host is told in one form, however it was written."""
    assert parsed(b"GET / HTTP/1.1\r\n%b\r\n\r\n" % field).host == host


@pytest.mark.parametrize("size", [0, 1, 17, 40])
def test_incomplete_head_waits(size: int) -> None:
    """Nothing is made of a head before its end has come; what came with it is returned."""
    data = b"\r\nPOST /x HTTP/1.1\r\nHost: a.localhost\r\nContent-Length: 5\r\n\r\n"
    assert heads.parse(data[:size]) is None
    assert heads.parse(data[:-1]) is None
    found = heads.parse(data + b"abc")
    assert found is not None
    head, rest = found
    assert (head.method, head.path, head.length, rest) == ("POST", "/x", 5, b"abc")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /", 400),
        (b"GET / HTTP/1.1\r\nNot-Host: a", 400),
        (b"GET / HTTP/1.1\r\nHost: a.localhost\r\nHost: b.localhost", 400),
        (b"GET / HTTP/1.1\r\nHost: a b", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nHost: b", 400),
        (b"GET / HTTP/1.1\r\nHost : a", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: b", 400),
        (b"GET http://b.localhost/ HTTP/1.1\r\nHost: a.localhost", 400),
        (b"CONNECT a.localhost:1 HTTP/1.1\r\nHost: a.localhost", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"1" * 5000, 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked", 501),
        (b"PRI * HTTP/2.0", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 431),
    ],
    ids=lambda value: repr(value[:60]) if isinstance(value, bytes) else None,
)
def test_senseless_head_is_refused(head: bytes, status: int) -> None:
    """Whatever two readers might understand in two ways is no request; nor is what has not begun as one."""
    with pytest.raises(RequestError) as caught:
        heads.parse(head if status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE else head + b"\r\n\r\n")
    assert caught.value.status == status
    assert str(caught.value)


def test_forwarded_head_closes_the_connection() -> None:
    """A server is asked to close after its answer; all else is as the client wrote it, in its order."""
    head = parsed(
        b"GET /a?b HTTP/1.0\r\nhOST: x.localhost:1\r\nKeep-Alive: 5\r\nConnection: keep-alive\r\nA:  1\r\n\r\n"
    )
    assert head.forwarded() == b"GET /a?b HTTP/1.0\r\nhOST: x.localhost:1\r\nA: 1\r\nConnection: close\r\n\r\n"


def test_upgrade_is_passed_on() -> None:
    """A request to go on in another protocol keeps its Connection field."""
    data = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"
    head = parsed(data)
    assert head.upgrades
    assert head.forwarded() == data


@pytest.mark.parametrize(
    ("length", "body", "following"),
    [
        (0, b"", b"G"),
        (3, b"abc", b"G"),
        (None, b"0\r\n\r\n", b"G"),
        (None, b"3\r\nabc\r\n0\r\n\r\n", b"GET"),
        (None, b"A;ext=1\r\n0123\r\n6789\r\n1\r\nx\r\n0\r\nTrailer: 1\r\nOther: 2\r\n\r\n", b"\n"),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_body_ends(length: int | None, body: bytes, following: bytes, step: int) -> None:
    """Each byte of a body belongs to it, in whatever pieces it comes, and no byte more."""
    one = Body(length)
    assert all(one.holds(body[start : start + step]) for start in range(0, len(body), step))
    assert not one.holds(following)
    assert not Body(length).holds(body + following)


@pytest.mark.parametrize("body", [b"x\r\n", b"-1\r\n", b"0x1\r\n", b"1_0\r\n", b"\r\n", b"1" * 9000])
def test_senseless_chunk_ends_the_body(body: bytes) -> None:
    """What is no chunk does not belong to a body in chunks."""
    assert not Body(None).holds(body)

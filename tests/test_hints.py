"""What a failure smells of."""

from __future__ import annotations

import pytest

from pytest_netns.hints import hints, mentioned
from pytest_netns.kernel.sockets import Listener

SERVED = (Listener("tcp", "::1", 8080, 1),)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ('connection to server at "localhost" (127.0.0.1), port 5432 failed: Connection refused', {5432}),
        ("OSError: Connect call failed ('127.0.0.1', 5432)", {5432}),
        ("OSError: Connect call failed ('::1', 5432, 0, 0)", {5432}),
        ("HTTPConnectionPool(host='localhost', port=8080): Max retries exceeded", {8080}),
        ("Error 111 connecting to localhost:6379. Connection refused.", {6379}),
        ("curl: (7) Failed to connect to 127.0.0.1 port 5999 after 0 ms: Couldn't connect to server", {5999}),
        ("dial tcp [::1]:5432: connect: connection refused", {5432}),
        ("http://localhost:8080/page/77", {8080}),
        ("localhost:99999 and localhost:0 and 192.0.2.1:80", set()),
        ("a test on localhost took 30 s", set()),
    ],
)
def test_mentioned(text: str, ports: set[int]) -> None:
    """The usual clients' messages tell the port of loopback that they could not connect to."""
    assert mentioned(text) == ports


def _connect(address: object) -> None:
    raise ConnectionRefusedError(111, f"Connection refused at {type(address)}")


@pytest.mark.parametrize(
    ("address", "ports"),
    [(("localhost", 5432), {5432}), (("::1", 5432, 0, 0), {5432}), (("192.0.2.1", 5432), set()), (["no"], set())],
)
def test_mentioned_in_frames(address: object, ports: set[int]) -> None:
    """What the message does not tell stands in a variable."""
    with pytest.raises(ConnectionRefusedError) as caught:
        _connect(address)
    assert mentioned("", caught.tb) == ports


@pytest.mark.parametrize(
    ("port", "said"),
    [
        (
            5432,
            (
                "connection refused on localhost:5432; the host has a listener there: "
                'allow = ["localhost:5432"], or --netns-allow=localhost:5432'
            ),
        ),
        (
            8080,
            (
                "connection refused on localhost:8080; tcp [::1]:8080 listens now: connect to that address, and wait "
                "for a service that comes up late, as netns_service.wait() does at the service port"
            ),
        ),
        (
            1,
            "connection refused on localhost:1; nobody listens there now, in this network, the worker's, or the host's",
        ),
    ],
)
def test_hint(port: int, said: str) -> None:
    """It depends on who listens where."""
    told = hints(f"Connection refused: localhost:{port}", None, SERVED, lambda ports: {5432} & set(ports))
    assert told == [said]


def test_served_meanwhile() -> None:
    """A port that is served now is not what was refused where there is another that nobody serves."""
    told = hints("Serving HTTP on 127.0.0.1 port 8080; Connection refused: localhost:1", None, SERVED, lambda _: ())
    assert [line.partition(";")[0] for line in told] == ["connection refused on localhost:1"]


def test_no_hint() -> None:
    """A failure that is no refusal is left alone, and the host is not asked."""
    assert hints("assert 1 == 2: http://localhost:5432/", None, (), lambda _: pytest.fail("asked")) == []
    assert hints("the user refused", None, (), lambda _: pytest.fail("asked")) == []

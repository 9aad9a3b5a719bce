"""How pytest processes and the gateway talk."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_netns.gateway import protocol

Pair = tuple[socket.socket, socket.socket]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Return two sockets that are connected to each other."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        yield one, other


def open_files() -> int:
    """Count the process's descriptors."""
    return len(os.listdir("/proc/self/fd"))


@settings(max_examples=25)
@given(message=st.dictionaries(st.text(max_size=10), JSON, max_size=5))
def test_arrives_as_it_was_sent(pair: Pair, message: dict[str, object]) -> None:
    """A message arrives whole and alone."""
    protocol.send(pair[0], message)
    assert protocol.receive(pair[1]) == (message, [])


@given(data=st.binary(min_size=1, max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_decode_never_raises_another_error(pair: Pair, data: bytes) -> None:
    """Any packet is a message or a ValueError."""
    pair[0].send(data)
    try:
        message, descriptors = protocol.receive(pair[1])
    except ValueError as error:
        assert "no JSON object" in str(error)
    else:
        assert isinstance(message, dict)
        assert descriptors == []


def test_deep_nesting_is_no_message(pair: Pair) -> None:
    """Brackets that open without end are refused like any other nonsense."""
    pair[0].send(b"[" * 100_000)
    with pytest.raises(ValueError, match="no JSON object"):
        protocol.receive(pair[1])


def test_descriptors_travel_and_are_not_inherited(pair: Pair) -> None:
    """What is sent is a copy, and closes when the receiver starts a program."""
    read, write = os.pipe()
    protocol.send(pair[0], {"op": "x"}, (read, write))
    message, received = protocol.receive(pair[1])
    assert message == {"op": "x"}
    assert [os.get_inheritable(descriptor) for descriptor in received] == [False, False]
    os.write(received[1], b"through")
    assert os.read(read, 10) == b"through"
    for descriptor in (read, write, *received):
        os.close(descriptor)


def test_descriptors_of_a_bad_message_are_closed(pair: Pair) -> None:
    """Descriptors that come with nonsense, or too many of them, do not stay open."""
    read, write = os.pipe()
    before = open_files()
    for data, descriptors in ((b"nonsense", [read]), (b"{}", [read, write] * 4)):
        socket.send_fds(pair[0], [data], descriptors)
        with pytest.raises(ValueError, match="cut short"):
            protocol.receive(pair[1])
    assert open_files() == before
    os.close(read)
    os.close(write)


def test_limit(pair: Pair) -> None:
    """A message over the limit is refused by whoever would send it."""
    protocol.send(pair[0], {"x": "y" * (protocol.MAX_BYTES - 8)})
    message, _ = protocol.receive(pair[1])
    assert message is not None
    with pytest.raises(ValueError, match="over the limit"):
        protocol.pack({"x": "y" * protocol.MAX_BYTES})


def test_end_of_the_connection() -> None:
    """The end is no message."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.close()
    assert protocol.receive(other) == (None, [])
    other.close()

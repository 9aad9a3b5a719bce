"""Every test starts the noticeboard on the same port; none minds how many run at the same time.

Run them with ``pytest --netns -n 4 examples/one_port``.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import noticeboard
import pytest
from clients import ask, look_up

from pytest_netns import Namespace, ServicePort

PROGRAM = Path(noticeboard.__file__)


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def board(request: pytest.FixtureRequest, netns_port: int) -> Iterator[noticeboard.Board]:
    """Serve a board from this very process, on one address and on all of them."""
    with noticeboard.serving(request.param, netns_port) as board:
        yield board


@pytest.fixture(params=["127.0.0.1", "0.0.0.0"])
def program(request: pytest.FixtureRequest, netns_service: ServicePort) -> Iterator[ServicePort]:
    """Start the board as a program, and wait until it listens."""
    command = [sys.executable, PROGRAM, "--host", request.param, "--port", str(netns_service.port)]
    with subprocess.Popen(command) as process:
        netns_service.wait()
        yield netns_service
        process.terminate()


@pytest.mark.parametrize("text", [b"one", b"two", b"three", b"four"])
def test_pin_and_read(board: noticeboard.Board, netns_port: int, text: bytes) -> None:
    """What is pinned over HTTP is read back, and on the board there is nothing else."""
    assert ask("PUT", "note", text, port=netns_port) == (201, b"")
    assert ask("GET", "note", port=netns_port) == (200, text)
    assert board.names() == ["note"]


def test_take_down(board: noticeboard.Board, netns_port: int) -> None:
    """A notice that was taken down is gone."""
    board.pin("note", b"text")
    assert ask("DELETE", "note", port=netns_port) == (200, b"")
    assert ask("GET", "note", port=netns_port) == (404, b"")


def test_look_up(board: noticeboard.Board, netns_port: int) -> None:
    """The same port answers over UDP."""
    board.pin("note", b"by datagram")
    assert look_up("note", port=netns_port) == b"by datagram"


@pytest.mark.parametrize("name", ["one", "two", "three", "four"])
def test_program(program: ServicePort, name: str) -> None:
    """The board that was started as a program answers over TCP and UDP, and starts empty each time."""
    assert ask("GET", "", port=program.port) == (200, b"")
    assert ask("PUT", name, b"text", port=program.port) == (201, b"")
    assert look_up(name, port=program.port) == b"text"


def test_from_outside(program: ServicePort, netns: Namespace) -> None:
    """From the worker's namespace it answers at the test's address, even where it is bound to 127.0.0.1 only."""
    assert netns.worker is not None
    with netns.worker:
        assert ask("GET", "", host=program.address, port=program.port) == (200, b"")


def test_session_server(board: noticeboard.Board, archive: int, netns_port: int) -> None:
    """A server that the session started is at its usual address, beside the test's own."""
    assert ask("GET", "motto", port=archive) == (200, b"one for all")
    assert ask("GET", "motto", port=netns_port) == (404, b"")


def test_session_client(board: noticeboard.Board, visitor: Callable[[int], str], netns_port: int) -> None:
    """A program that the session started finds the board of the test that is running."""
    board.pin("note", b"text")
    assert visitor(netns_port) == "note"


@pytest.mark.netns(port=80)
def test_low_port(board: noticeboard.Board, netns_port: int) -> None:
    """Ports below 1024 are free to use, whoever runs the tests."""
    assert netns_port == 80
    assert ask("GET", "", port=80) == (200, b"")


def test_other_program(netns: Namespace) -> None:
    """A program started through the handle says which network it is in."""
    assert netns.run(["printenv", "PYTEST_NETNS"], capture_output=True, text=True).stdout.strip() == netns.name


@pytest.mark.parametrize("address", ["203.0.113.5", "192.168.0.1"])
def test_nothing_outside(address: str) -> None:
    """Whatever is not in the test's own network is refused at once."""
    with pytest.raises(OSError, match="No route to host"):
        socket.create_connection((address, 443), timeout=5)

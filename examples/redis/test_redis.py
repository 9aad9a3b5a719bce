"""Every test has a Redis of its own, all of them on port 6379.

Run them with ``pytest --netns -n 4 examples/redis``. They need Debian's ``redis-server``.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_netns import ServicePort

REDIS = shutil.which("redis-server")

pytestmark = [
    pytest.mark.netns(port=6379),
    pytest.mark.skipif(REDIS is None, reason="needs Redis: apt-get install redis-server"),
]


class Client:
    """Speaks as much of Redis's protocol as the tests need: inline commands, one-line answers."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Connect."""
        self._socket = socket.create_connection(address, timeout=5)
        self._answers = self._socket.makefile("r", newline="\r\n")

    def close(self) -> None:
        """Close the connection."""
        self._answers.close()
        self._socket.close()

    def __call__(self, command: str) -> str | None:
        """Send a command and return its answer: a text, or None for no value."""
        self._socket.sendall(f"{command}\r\n".encode())
        answer = self._answers.readline().rstrip()
        if answer.startswith("$"):
            return None if answer == "$-1" else self._answers.readline().rstrip()
        return answer[1:]


@pytest.fixture
def redis(netns_service: ServicePort, tmp_path: Path) -> Iterator[Client]:
    """Start Redis and return a client of it."""
    assert REDIS is not None
    with subprocess.Popen([REDIS, "--dir", tmp_path, "--save", ""], stdout=subprocess.DEVNULL) as server:
        netns_service.wait()
        with contextlib.closing(Client((netns_service.host, netns_service.port))) as client:
            yield client
        server.terminate()


@pytest.mark.parametrize("value", ["one", "two", "three", "four", "five", "six"])
def test_starts_empty_and_keeps(redis: Client, value: str) -> None:
    """Nobody else's value is there, and one's own stays."""
    assert redis("GET name") is None
    assert redis(f"SET name {value}") == "OK"
    assert redis("GET name") == value


def test_counts_alone(redis: Client) -> None:
    """A counter counts this test's calls only."""
    assert [redis("INCR counter") for _ in range(3)] == ["1", "2", "3"]


def test_listens_on_the_usual_port(redis: Client, netns_service: ServicePort) -> None:
    """The marker named the port that Redis uses unless told otherwise."""
    assert (netns_service.host, netns_service.port) == ("127.0.0.1", 6379)

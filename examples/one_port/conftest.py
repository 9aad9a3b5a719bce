"""Helpers of the noticeboard's tests that live as long as the run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import noticeboard
import pytest

ARCHIVE_PORT = 9000

VISITOR = """
import http.client, sys
for line in sys.stdin:
    connection = http.client.HTTPConnection("127.0.0.1", int(line), timeout=5)
    connection.request("GET", "/")
    print(connection.getresponse().read().decode(), flush=True)
    connection.close()
"""


@pytest.fixture(scope="session")
def archive() -> Iterator[int]:
    """Run a noticeboard for the whole session, on the worker's loopback, and return its port."""
    with noticeboard.serving("127.0.0.1", ARCHIVE_PORT) as board:
        board.pin("motto", b"one for all")
        yield ARCHIVE_PORT


@pytest.fixture(scope="session")
def visitor() -> Iterator[Callable[[int], str]]:
    """Start a program once for the session, as one would a browser; it reads the front page of a port."""
    command = [sys.executable, "-c", VISITOR]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        stdin, stdout = program.stdin, program.stdout

        def visit(port: int) -> str:
            print(port, file=stdin, flush=True)
            return stdout.readline().strip()

        yield visit

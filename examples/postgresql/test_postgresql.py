"""Every worker has one PostgreSQL for all of its tests, each of them on port 5432.

Run them with ``pytest --netns -n 4 examples/postgresql``. They need Debian's ``postgresql``.

The server is a session-scoped fixture, so it lives in the worker's namespace; each test runs in one of its own, and
finds the server at 127.0.0.1:5432 all the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)

pytestmark = pytest.mark.skipif(PROGRAMS is None, reason="needs PostgreSQL: apt-get install postgresql")

# PostgreSQL refuses to be run by root.
ACCOUNT = "postgres" if os.geteuid() == 0 else None


def program(name: str, *arguments: str | Path) -> list[str | Path]:
    """Return the command line of one of PostgreSQL's programs."""
    assert PROGRAMS is not None
    return [PROGRAMS / name, *arguments]


def sql(text: str) -> str:
    """Run statements at 127.0.0.1:5432, and return what they print."""
    command = program("psql", "-h", "127.0.0.1", "-U", "tests", "-d", "postgres", "-qtAX", "-v", "ON_ERROR_STOP=1")
    return subprocess.run([*command, "-c", text], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture(scope="session")
def server() -> Iterator[None]:
    """Start PostgreSQL once for all tests of the worker."""
    with tempfile.TemporaryDirectory() as folder:
        if ACCOUNT is not None:
            shutil.chown(folder, ACCOUNT)
        initialise = program("initdb", "-D", folder, "-U", "tests", "-A", "trust", "-N")
        subprocess.run(initialise, check=True, user=ACCOUNT, cwd=folder, stdout=subprocess.DEVNULL)
        start = program("postgres", "-D", folder, "-k", "", "-F")
        with subprocess.Popen(start, user=ACCOUNT, cwd=folder, stderr=subprocess.DEVNULL) as postgres:
            while subprocess.run(program("pg_isready", "-q", "-h", "127.0.0.1"), check=False).returncode:
                assert postgres.poll() is None, "PostgreSQL ended at once"
                time.sleep(0.05)
            yield
            postgres.terminate()


@pytest.fixture
def table(server: None) -> Iterator[Callable[[str], str]]:
    """Create a table for one test, and return a way to query it."""
    sql("CREATE TABLE notes (note text)")
    yield sql
    sql("DROP TABLE notes")


@pytest.mark.parametrize("note", ["one", "two", "three", "four", "five", "six", "seven", "eight"])
def test_own_table(table: Callable[[str], str], note: str) -> None:
    """All use the same table name, and no worker sees another's rows."""
    assert table("SELECT count(*) FROM notes") == "0"
    table(f"INSERT INTO notes VALUES ('{note}')")
    assert table("SELECT note FROM notes") == note


def test_usual_address(server: None) -> None:
    """The server has its usual port, and sees the client at 127.0.0.1."""
    assert sql("SELECT inet_server_port(), inet_client_addr()") == "5432|127.0.0.1"

"""The host that the agent may reach: it is started before pytest goes into a namespace, so it is outside of all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SITE = Path(__file__).parent / "site"
_SERVER = pytest.StashKey["subprocess.Popen[str]"]()
_LATE = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Start it, on a port of the host's loopback that is free."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(SITE), "0"]
    config.stash[_LATE] = "PYTEST_NETNS" in os.environ
    config.stash[_SERVER] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop it."""
    with config.stash[_SERVER] as server:
        server.terminate()


@pytest.fixture(scope="session")
def host(pytestconfig: pytest.Config) -> str:
    """Return host and port, as a rule and a URL have them."""
    if pytestconfig.stash[_LATE]:
        pytest.skip("pytest has come upon this folder in its namespace already; name it: pytest --netns examples/agent")
    stdout = pytestconfig.stash[_SERVER].stdout
    assert stdout is not None
    return f"localhost:{stdout.readline().split()[5]}"  # Serving HTTP on 127.0.0.1 port ...

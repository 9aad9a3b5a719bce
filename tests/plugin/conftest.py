"""Runs pytest on small test suites, each run in a process of its own."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator

import pytest
from places import NOTES, Places, Run, read

TOOLS = '''
import os, socket

PORT = int(os.environ["OUTSIDE"])

def dial(host="127.0.0.1", port=PORT):
    """Return what the server of the host says."""
    with socket.create_connection((host, port), timeout=5) as connection:
        return connection.recv(5)

def refused(*where):
    """Tell whether a connection is refused."""
    try:
        dial(*where)
    except OSError:
        return True
    return False
'''


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capable: None) -> Run:
    """Return what runs pytest with these arguments, and with our plugin alone, or with xdist for ``-n``."""
    monkeypatch.setenv("NOTES", str(pytester.path / "notes"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(notes=NOTES)

    def running(*arguments: str) -> pytest.RunResult:
        xdist = ("-p", "xdist") if any(argument.startswith("-n") for argument in arguments) else ()
        plugins = ("-p", "pytest_netns.plugin", "-p", "no:cacheprovider", *xdist)
        return pytester.runpytest_subprocess(*plugins, *arguments)

    return running


@pytest.fixture
def places(pytester: pytest.Pytester) -> Places:
    """Return what reads where the code of the last run ran."""
    return lambda: read(pytester.path / "notes")


class Greeter(socketserver.BaseRequestHandler):
    """Greets whoever connects."""

    def handle(self) -> None:
        """Greet a client."""
        self.request.sendall(b"hello")


@pytest.fixture
def outside(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serve at a port of the host's loopback, which no test gets to by itself, and return the rule that allows it."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        port = server.server_address[1]
        monkeypatch.setenv("OUTSIDE", str(port))
        pytester.makepyfile(tools=TOOLS)
        try:
            yield f"localhost:{port}"
        finally:
            server.shutdown()
            thread.join()

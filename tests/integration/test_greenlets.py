"""eventlet and gevent, which put their own in the place of what blocks: sockets, threads, select()."""

from __future__ import annotations

import pytest
from runs import Suite, requires

SUITE = """
import os, socket, subprocess, threading, time
from concurrent.futures import ThreadPoolExecutor
import pytest
from tools import answer, ask, leaf, listen

DIAL = "import socket; print(socket.create_connection(('127.0.0.1', 8080)).recv(9))"

@pytest.fixture(scope="session")
def server():
    with listen(9000) as server:
        yield answer(server, 2)

@pytest.mark.parametrize("number", range(2))
def test_session(server, number):
    assert ask(9000) == b"hello"

def test_service(netns_service):
    later = threading.Thread(target=lambda: (time.sleep(0.05), answer(listen())))
    later.start()
    netns_service.wait()
    assert ask() == b"hello"

def test_box(netns):
    answer(listen())
    box = netns.sandbox()
    assert box.run(["python3", "-c", DIAL], capture_output=True, timeout=20).stdout == b"b'hello'\\n"
    with pytest.raises(subprocess.TimeoutExpired):
        box.run(["sleep", "60"], timeout=0.1)

def test_executor():
    with ThreadPoolExecutor(1) as executor:
        assert executor.submit(leaf).result() == leaf()

def test_blocked():
    with pytest.raises(OSError):
        socket.create_connection(("192.0.2.1", 80))

def test_left():
    subprocess.Popen(["sleep", "60"])
"""


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param("import eventlet; eventlet.monkey_patch()", marks=requires("eventlet"), id="eventlet"),
        pytest.param("import gevent.monkey; gevent.monkey.patch_all()", marks=requires("gevent"), id="gevent"),
    ],
)
@requires(program="bwrap")
def test_patched(suite: Suite, patch: str) -> None:
    """Where a conftest has either replace everything, tests are isolated, and waiting lets their greenlets go on."""
    suite.write(conftest=patch, test_suite=SUITE)
    result = suite.run("--netns")
    result.assert_outcomes(passed=7)
    result.stdout.fnmatch_lines(
        ["tcp 192.0.2.1:80: 1 time,*", "test_suite.py::test_left left running, ended with SIGTERM*"]
    )

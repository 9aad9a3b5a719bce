"""Libraries that replace the world around a test: freezegun and pyfakefs."""

from __future__ import annotations

import socketserver
import threading

import pytest
from runs import IN_EVERY_WAY, Suite, requires

FROZEN = """
import socket, subprocess, sys
import freezegun, pytest

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(99)"

@pytest.fixture(scope="session", autouse=True)
def frozen():
    with freezegun.freeze_time("2040-01-01"):
        yield

def test_left():
    subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE).stdout.readline()

def test_service(netns_service):
    netns_service.wait(timeout=0.1)

def test_blocked():
    socket.create_connection(("192.0.2.1", 80))
"""
BOXES = """
import asyncio, os, subprocess
import freezegun, pytest

DIAL = "import socket, sys; print(socket.create_connection(sys.argv[1:]).recv(9))"

@pytest.fixture(params=[None, "2020-01-01", "2040-01-01"])
def clock(request):
    if request.param is None:
        yield
    else:
        with freezegun.freeze_time(request.param):
            yield

def test_timeouts(netns, clock):
    box = netns.sandbox()
    with pytest.raises(subprocess.TimeoutExpired):
        box.run(["sleep", "60"], timeout=0.3)
    with pytest.raises(subprocess.TimeoutExpired):
        asyncio.run(box.run_async(["sleep", "60"], timeout=0.3))
    process = box.popen(["sleep", "60"], stdout=subprocess.PIPE)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.1)
    with box.shell() as shell, pytest.raises(subprocess.TimeoutExpired):
        shell.run("sleep 60", timeout=0.3)

def test_network(netns, clock):
    box = netns.sandbox()
    done = box.run(["python3", "-c", DIAL, "localhost", os.environ["PORT"]], capture_output=True, check=True)
    assert done.stdout == b"b'hello'\\n"
    assert (done.usage.sent, done.usage.received) == (0, 5)
    assert box.run(["true"]).usage.received == 0
"""
USER = """
import os, subprocess
from concurrent.futures import ThreadPoolExecutor
import pytest

POOL = ThreadPoolExecutor(1)
OTHER = 0 if os.geteuid() else 1234

@pytest.fixture(scope="module", autouse=True)
def user(module_mocker):
    for name in ("geteuid", "getuid", "getegid", "getgid"):
        module_mocker.patch(f"os.{name}", return_value=OTHER)

@pytest.mark.parametrize("number", range(2))
def test_pool(number):
    assert POOL.submit(os.readlink, "/proc/thread-self/ns/net").result() == os.readlink("/proc/self/ns/net")

def test_handles(netns):
    netns.tmpfs("/mnt")
    with netns.worker:
        pass

def test_box(netns):
    assert netns.sandbox().run(["id", "-u"]).returncode == 0
"""
LIMIT = """
import socket

def pytest_configure():
    socket.setdefaulttimeout(1e-6)
"""
FILES = """
import os
import pytest
from tools import answer, ask, listen

@pytest.fixture(scope="session")
def server():
    with listen(9000) as server:
        answer(server, 2)
        yield

@pytest.mark.parametrize("number", range(2))
def test_function(fs, request, number):
    fs.create_file("/pages/page")
    assert os.listdir("/pages") == ["page"]
    request.getfixturevalue("server")
    assert ask(9000) == b"hello"

@pytest.mark.parametrize("number", range(2))
def test_module(fs_module, number):
    assert not os.path.exists("/proc")
    listen().close()
"""


@requires("freezegun")
def test_frozen_time(suite: Suite) -> None:
    """While the clocks stand, processes are ended, waiting comes to an end, and attempts to leave are told."""
    suite.write(test_frozen=FROZEN)
    result = suite.run("--netns", "--tb=line")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(
        [
            "*ServiceNotReadyError*within 0.1 s*",
            'blocked: tcp 192.0.2.1:80; allow with "192.0.2.1:80"',
            "*test_left left running, ended with SIGKILL*",
        ]
    )


class _Greeting(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"hello")


@requires("freezegun", program="bwrap")
def test_boxes_in_frozen_time(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the clocks say, waiting for a box comes to an end, and what its commands received is told."""
    suite.write(test_boxes=BOXES)
    with socketserver.TCPServer(("127.0.0.1", 0), _Greeting) as server:
        threading.Thread(target=server.serve_forever).start()
        port = server.server_address[1]
        monkeypatch.setenv("PORT", str(port))
        try:
            suite.passes("--netns", f"--netns-allow=localhost:{port}", passed=6)
        finally:
            server.shutdown()


@requires("pytest-mock", program="bwrap")
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_another_user(suite: Suite, workers: tuple[str, ...]) -> None:
    """Code may be told that it runs as root, or as somebody else; what isolates it goes by what is true."""
    suite.write(test_user=USER)
    suite.passes("--netns", *workers, plugins="pytest_mock", passed=4)


@requires(program="bwrap")
def test_time_limit_of_sockets(suite: Suite) -> None:
    """A limit that a suite sets for all sockets is for its own."""
    suite.write(conftest=LIMIT, test_box="def test_box(netns): assert netns.sandbox().run(['true']).returncode == 0")
    suite.passes("--netns", passed=1)


@requires("pyfakefs")
@IN_EVERY_WAY
def test_fake_files(suite: Suite, way: tuple[str, ...]) -> None:
    """Where all files are faked, for a test or a module, tests and fixtures are still brought to where they belong."""
    suite.write(test_files=FILES)
    suite.passes(*way, plugins="fakefs", passed=4)

"""pytest-socket."""

from __future__ import annotations

from runs import IN_EVERY_WAY, Suite, requires

pytestmark = requires("pytest-socket")

SUITE = """
import socket
import pytest, pytest_socket
from tools import answer, ask, listen

def test_disabled():
    with pytest.raises(pytest_socket.SocketBlockedError):
        socket.socket()

@pytest.mark.enable_socket
@pytest.mark.parametrize("number", range(3))
def test_enabled(number):
    with listen() as server:
        answer(server)
        assert ask() == b"hello"

@pytest.mark.allow_hosts(["127.0.0.1", "localhost"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_hosts(host):
    with listen() as server:
        answer(server)
        assert ask(host=host) == b"hello"
    with pytest.raises(pytest_socket.SocketConnectBlockedError):
        socket.create_connection(("192.0.2.1", 80))
"""
HANDLES = """
import sys

SERVER = "import socket, time; time.sleep(0.2); socket.create_server(('127.0.0.1', 8080)).accept()"

def test_service(netns, netns_service):
    service = netns.popen([sys.executable, "-c", SERVER])
    netns_service.wait()
    service.kill()
    service.wait()

def test_blocked(netns, netns_egress):
    connect = "import socket; socket.create_connection(('192.0.2.1', 80))"
    assert netns.run([sys.executable, "-c", connect], capture_output=True).returncode
    assert [flow.address for flow in netns_egress.blocked] == ["192.0.2.1"]
    netns_egress.allow("192.0.2.2:80")
    assert netns.publish(8080)
"""


@IN_EVERY_WAY
def test_restrictions(suite: Suite, way: tuple[str, ...]) -> None:
    """Its restrictions hold, and what it allows works, as they do without us."""
    suite.write(test_socket=SUITE)
    suite.passes(*way, "--disable-socket", plugins="socket", passed=6)


def test_handles(suite: Suite) -> None:
    """Our own handles do what they do, sockets being disabled for the test."""
    suite.write(test_handles=HANDLES)
    suite.run("--netns", "--disable-socket", "-Werror", plugins="socket").assert_outcomes(passed=2)

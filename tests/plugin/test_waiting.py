"""Waiting for a service: who may answer, and who is not to be disturbed."""

from __future__ import annotations

import pytest
from places import Run

SUITE = """
import os, random, signal, socket, time
import pytest
from pytest_netns import ServiceNotReadyError, ServicePort
from tools import PORT

def serve_one(delay, mapped):
    time.sleep(delay)
    with (
        socket.create_server(("::ffff:127.0.0.1", 8080), family=socket.AF_INET6, dualstack_ipv6=True)
        if mapped  # as Java and gRPC do
        else socket.create_server(("127.0.0.1", 8080))
    ) as server:
        connection, _ = server.accept()
        connection.sendall(b"first")
        connection.recv(1)
        connection.close()

def test_only_connection(netns, netns_service):
    for turn in range(60):
        child = os.fork()
        if not child:
            signal.alarm(20)
            with netns:
                serve_one(random.uniform(0, 0.008), turn % 2)
            os._exit(0)
        netns_service.wait()
        with socket.create_connection(("127.0.0.1", 8080), 10) as client:
            assert client.recv(9) == b"first"
            client.sendall(b"!")
            client.recv(1)
        os.waitpid(child, 0)

@pytest.fixture(scope="session")
def database():
    with socket.create_server(("127.0.0.1", 5432)):
        yield

def test_of_the_session(netns, database):
    ServicePort(netns, 5432).wait(1)

@pytest.mark.netns(allow=[f"localhost:{PORT}"])
def test_of_the_host(netns):
    ServicePort(netns, PORT).wait(1)

def test_of_the_host_without_a_rule(netns):
    with pytest.raises(ServiceNotReadyError, match="no program listens on any TCP port"):
        ServicePort(netns, PORT).wait(0.2)
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_wait(pytester: pytest.Pytester, run: Run, outside: str, workers: tuple[str, ...]) -> None:
    """A server that gives one connection keeps it, however it begins; the session's and the host's are found."""
    pytester.makepyfile(test_it=SUITE)
    run("--netns", *workers).assert_outcomes(passed=4)

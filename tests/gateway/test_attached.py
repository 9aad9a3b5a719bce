"""Marked tests as root: the worker stays in the host's network, and its tests share loopback with it alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest
from traffic import DATAGRAM, STREAM, attempt, echo, listen, port_of
from worlds import HOSTS, World, at, inside, nothing_arrived

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0, reason="an ordinary user's process cannot stay in the host's network"
)
LOOPBACKS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])

SERVER = """
import socket, sys
host, kind = sys.argv[1], int(sys.argv[2])
server = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind)
server.bind((host, 0))
if kind == socket.SOCK_STREAM:
    server.listen()
print(server.getsockname()[1], flush=True)
while True:
    if kind == socket.SOCK_STREAM:
        server.accept()[0].close()
    else:
        server.sendto(*server.recvfrom(100))
"""


@inside
@LOOPBACKS
@KINDS
def test_own_server_is_reached(world: World, host: str, kind: int) -> None:
    """A test reaches what its own process serves on the host's loopback."""
    client = world.connect()
    client.attach("w0")
    with at(world.outer):
        echo(listener := listen(host, kind=kind))
    leaf = client.lease("test_it")
    with at(leaf):
        assert attempt(host, port_of(listener), kind).error is None


@inside
@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
@KINDS
def test_childs_server_is_reached(world: World, host: str, kind: int) -> None:
    """A test reaches what a child of its process serves, also where a socket of IPv6 has the IPv4 address."""
    client = world.connect()
    client.attach("w0")
    child = subprocess.Popen([sys.executable, "-c", SERVER, host, str(int(kind))], stdout=subprocess.PIPE)
    assert child.stdout is not None
    port = int(child.stdout.readline())
    leaf = client.lease("test_it")
    with at(leaf):
        assert attempt(host.removeprefix("::ffff:"), port, kind).error is None
    child.kill()


@inside
@LOOPBACKS
@KINDS
def test_strangers_server_is_refused(world: World, host: str, kind: int) -> None:
    """A test is refused where another process of the host serves, which hears nothing of it."""
    listener = listen(host, kind=kind)
    tester = os.fork()
    if not tester:
        status = 1
        try:
            port = port_of(listener)
            listener.close()
            client = world.connect()
            client.attach("w0")
            with at(client.lease("test_it")):
                told = [attempt(host, port, kind), attempt(HOSTS[0], port)]
            status = 0 if [one.error for one in told] == ["ECONNREFUSED", "EHOSTUNREACH"] else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(tester, 0)[1]) == 0
    assert nothing_arrived(listener)


@inside
def test_worker_reaches_the_published_service(world: World) -> None:
    """From the host a test's service is reached by its published port."""
    client = world.connect()
    client.attach("w0")
    leaf = client.lease("test_it")
    with at(leaf):
        echo(listen("127.0.0.1", 8080))
    with socket.create_connection(("127.0.0.1", client.publish(leaf.name, 8080)), timeout=5) as one:
        one.sendall(b"x")
        assert one.recv(1) == b"x"

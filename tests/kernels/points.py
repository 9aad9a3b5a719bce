"""What depends on the kernel, and on the parameters that a machine sets: ``pytest --netns tests/kernels/points.py``.

`run`, beside this file, does so under another kernel. The names of these tests are what such a kernel has to show.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_netns import Namespace

SERVER_PORT = 9000
AT_ONCE = 2.0  # seconds, which an emulated machine needs; a packet that was dropped takes longer in any case
SLOWER = float(os.environ.get("NETNS_EMULATED", "1"))  # how much longer an emulated machine takes than a real one
LOOPBACKS: dict[int, str] = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
OUTSIDE: dict[int, str] = {socket.AF_INET: "203.0.113.5", socket.AF_INET6: "2001:db8::5"}
FAMILIES = pytest.mark.parametrize("family", list(LOOPBACKS), ids=["ipv4", "ipv6"])


def _echo(server: socket.socket, stop: threading.Event) -> None:
    while not stop.is_set():
        with contextlib.suppress(OSError):
            if server.type == socket.SOCK_DGRAM:
                data, client = server.recvfrom(65535)
                server.sendto(data, client)
            else:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(5)
                    connection.sendall(connection.recv(65535))


@contextlib.contextmanager
def echoing(family: int, kind: int, host: str, port: int) -> Iterator[None]:
    """Answer at an address with what is sent there."""
    stop = threading.Event()
    with socket.socket(family, kind) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        if kind == socket.SOCK_STREAM:
            server.listen()
        server.settimeout(0.05)
        thread = threading.Thread(target=_echo, args=(server, stop))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def ask(family: int, kind: int, host: str, port: int) -> bytes:
    """Send one word and return the answer."""
    with socket.socket(family, kind) as client:
        client.settimeout(5)
        client.connect((host, port))
        client.sendall(b"word")
        return client.recv(65535)


@pytest.fixture(scope="session", autouse=True)
def session_servers() -> Iterator[None]:
    """Serve on the worker's loopback, in both families, by TCP and UDP."""
    with contextlib.ExitStack() as stack:
        for family, host in LOOPBACKS.items():
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                stack.enter_context(echoing(family, kind, host, SERVER_PORT))
        yield


@FAMILIES
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
class TestLoopback:
    """Loopback is shared between a test's leaf and its worker's, in the kernel."""

    def test_own(self, family: int, kind: int) -> None:
        """A server in the leaf answers."""
        with echoing(family, kind, LOOPBACKS[family], 8080):
            assert ask(family, kind, LOOPBACKS[family], 8080) == b"word"

    def test_own_first(self, family: int, kind: int) -> None:
        """A server in the leaf is preferred to the session's at the same port."""
        with socket.socket(family, kind) as server:
            server.bind((LOOPBACKS[family], SERVER_PORT))
            if kind == socket.SOCK_STREAM:
                server.listen()
            with pytest.raises(TimeoutError), socket.socket(family, kind) as client:
                client.connect((LOOPBACKS[family], SERVER_PORT))
                client.sendall(b"word")
                client.settimeout(0.2)
                client.recv(16)

    def test_session(self, family: int, kind: int) -> None:
        """The session's server answers at its usual address, many times over."""
        for _ in range(20):
            assert ask(family, kind, LOOPBACKS[family], SERVER_PORT) == b"word"

    def test_from_worker(self, family: int, kind: int, netns: Namespace) -> None:
        """The test's server answers at loopback in the worker's leaf."""
        assert netns.worker is not None
        with echoing(family, kind, LOOPBACKS[family], 8080), netns.worker:
            assert ask(family, kind, LOOPBACKS[family], 8080) == b"word"

    def test_over_veth(self, family: int, kind: int, netns: Namespace) -> None:
        """A server on loopback answers at the leaf's own address, which the worker's leaf reaches."""
        assert netns.worker is not None
        host = netns.ipv4 if family == socket.AF_INET else netns.ipv6
        with echoing(family, kind, LOOPBACKS[family], 8080), netns.worker:
            assert ask(family, kind, host, 8080) == b"word"

    def test_nobody(self, family: int, kind: int) -> None:
        """Where nobody listens a client is told so, fifty times running."""
        for port in range(7000, 7050):
            began = time.monotonic()
            with pytest.raises(ConnectionRefusedError):
                ask(family, kind, LOOPBACKS[family], port)
            assert time.monotonic() - began < AT_ONCE


class TestBlocked:
    """What is outside is refused at once, however often it is tried."""

    @FAMILIES
    def test_connect(self, family: int) -> None:
        """No route to host, two hundred times: ICMP is not rationed."""
        for port in range(1, 201):
            began = time.monotonic()
            with pytest.raises(OSError, match="No route to host"):
                ask(family, socket.SOCK_STREAM, OUTSIDE[family], port)
            assert time.monotonic() - began < AT_ONCE, f"port {port}"

    def test_concurrently(self) -> None:
        """Two hundred connections that are under way together are all refused."""
        poll, clients, errors = select.poll(), {}, set()
        for port in range(1, 201):
            client = socket.socket()
            client.setblocking(False)
            clients[client.fileno()] = client
            client.connect_ex((OUTSIDE[socket.AF_INET], port))
            poll.register(client, select.POLLOUT)
        began = time.monotonic()
        while clients:
            ready = poll.poll(1000 * AT_ONCE)
            assert ready, f"{len(clients)} of 200 got no answer"
            for number, _ in ready:
                poll.unregister(number)
                with clients.pop(number) as client:
                    errors.add(os.strerror(client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)))
        assert errors == {"No route to host"}
        assert time.monotonic() - began < AT_ONCE * SLOWER

    @FAMILIES
    def test_datagram(self, family: int) -> None:
        """A connected UDP socket hears of it."""
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            ask(family, socket.SOCK_DGRAM, OUTSIDE[family], 53)

    def test_name(self) -> None:
        """A name does not exist."""
        began = time.monotonic()
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("www.example.com", 443)
        assert time.monotonic() - began < AT_ONCE

    def test_ping(self, netns: Namespace) -> None:
        """The hub answers a ping, and so does loopback."""
        for address in ("127.0.0.1", netns.gateway):
            done = subprocess.run(["ping", "-c1", "-W5", str(address)], check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr


class TestParameters:
    """A leaf's parameters are its own, not what the machine's are set to."""

    def test_rp_filter(self) -> None:
        """Sources are not checked against routes."""
        for name in ("all", "eth0"):
            assert Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").read_text() == "0\n"

    def test_ipv6(self, netns: Namespace) -> None:
        """Loopback and eth0 have IPv6 addresses."""
        addresses = Path("/proc/net/if_inet6").read_text().split()
        assert {"lo", "eth0"} <= set(addresses)
        assert netns.ipv6 is not None

    def test_interfaces(self) -> None:
        """The low indexes are the kernel's, for the tunnels that some put into each network: sit0, tunl0 ..."""
        assert socket.if_nametoindex("eth0") >= 100

    def test_low_port(self) -> None:
        """Whoever runs the tests may bind port 80."""
        with echoing(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", 80):
            assert ask(socket.AF_INET, socket.SOCK_STREAM, "127.0.0.1", 80) == b"word"


@pytest.mark.parametrize("number", range(20))
def test_one_more(number: int, netns: Namespace) -> None:
    """A leaf is new for each test."""
    assert str(number)
    assert netns.processes() == []

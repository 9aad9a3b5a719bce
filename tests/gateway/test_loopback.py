"""A worker's leaf and its test's leaf share their loopback, without configuration."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from packets import ACK, RST, SYN, tcp
from pyroute2.nftables.main import NFTables
from traffic import DATAGRAM, STREAM, attempt, dial, echo, exchange, listen, port_of, transfer
from worlds import TRACKING, Visit, World, at, inside, new_world

from pytest_netns.kernel import privilege

BOTH = pytest.mark.parametrize("server", ["worker", "test"])
HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])


@pytest.fixture(scope="module", params=["rewritten", "tracked"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """Return a world with each of the two rulesets for leaves, of which a kernel may refuse the first."""
    with new_world(hooks=TRACKING if request.param == "tracked" else None) as made:
        yield made


@inside
def test_ruleset(world: World) -> None:
    """The leaves of these tests have the ruleset that is meant."""
    with at(Visit(world).leaf), privilege.raised(), NFTables() as nftables:
        chains = [chain.get("name") for chain in nftables.get_chains()]
    assert ("readdress" in chains) == (world.hooks == TRACKING)


@inside
@BOTH
@HOSTS
def test_connection(world: World, server: str, host: str) -> None:
    """Who connects to loopback reaches the other leaf's listener, which sees a peer on its own loopback."""
    there, here = Visit(world).sides(server)
    with at(there):
        listener = listen(host)
    with at(here):
        client = dial(host, port_of(listener))
    connection, peer = listener.accept()
    assert peer[:2] == client.getsockname()[:2]
    assert peer[0] == host == client.getpeername()[0]
    assert connection.getsockname()[:2] == (host, port_of(listener))
    exchange(client, connection)
    client.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
    connection.sendall(b"still open")
    connection.close()
    assert client.recv(100) == b"still open"
    assert client.recv(100) == b""


@inside
@BOTH
@HOSTS
def test_datagrams(world: World, server: str, host: str) -> None:
    """UDP goes both ways, up to 60 kB at once, connected or not, and each side sees loopback addresses."""
    there, here = Visit(world).sides(server)
    with at(there):
        listener = listen(host, kind=DATAGRAM)
    with at(here):
        clients = [dial(host, port_of(listener), DATAGRAM) for _ in range(3)]
        unconnected = listen(host, kind=DATAGRAM)
    for client in [*clients, unconnected]:
        for size in (0, 1, 1400, 60_000):
            data = os.urandom(size)
            client.sendto(data, (host, port_of(listener))) if client is unconnected else client.send(data)
            received, peer = listener.recvfrom(65536)
            assert received == data
            assert peer[:2] == client.getsockname()[:2]
            listener.sendto(data[::-1], peer)
            answer, source = client.recvfrom(65536)
            assert answer == data[::-1]
            assert source[:2] == (host, port_of(listener))


@inside
@HOSTS
@pytest.mark.parametrize("name", ["leaf", "worker"])
def test_largest_datagram_from_inside(world: World, host: str, name: str) -> None:
    """The largest datagram that there is reaches a socket of the same leaf, though IPv6 sends it in two fragments."""
    visit = Visit(world)
    data = os.urandom(65_535 - 8 - (0 if ":" in host else 20))
    with at(getattr(visit, name)):
        listener = listen(host, kind=DATAGRAM)
        client = dial(host, port_of(listener), DATAGRAM)
    client.send(data)
    received, peer = listener.recvfrom(65_536)
    assert received == data
    listener.sendto(data, peer)
    assert client.recv(65_536) == data


@inside
@HOSTS
@pytest.mark.parametrize("name", ["leaf", "worker"])
@pytest.mark.parametrize("protocol", [socket.IPPROTO_UDPLITE, socket.IPPROTO_SCTP, 253], ids=["udplite", "sctp", "253"])
def test_other_protocols_from_inside(world: World, host: str, name: str, protocol: int) -> None:
    """What is neither TCP nor UDP reaches a raw socket of the same leaf, and none of the peer's."""
    visit = Visit(world)
    family, peer = socket.AF_INET6 if ":" in host else socket.AF_INET, visit.worker if name == "leaf" else visit.leaf
    data = os.urandom(20)
    with privilege.raised(), at(getattr(visit, name)), socket.socket(family, socket.SOCK_RAW, protocol) as server:
        server.settimeout(5)
        with at(peer), socket.socket(family, socket.SOCK_RAW, protocol) as other:
            with at(getattr(visit, name)), socket.socket(family, socket.SOCK_RAW, protocol) as client:
                client.sendto(data, (host, 0))
            assert server.recv(100)[-len(data) :] == data
            other.settimeout(0.1)
            with pytest.raises(TimeoutError):
                other.recv(100)


@inside
@HOSTS
@pytest.mark.parametrize("name", ["leaf", "worker"])
def test_own_address_from_inside(world: World, host: str, name: str) -> None:
    """A service bound to loopback alone answers at its leaf's own address there, too; where none is, it is refused."""
    visit = Visit(world)
    leaf = getattr(visit, name)
    address = leaf.ipv6 if ":" in host else leaf.ipv4
    with at(leaf):
        listener = listen(host)
        client = dial(address, port_of(listener))
        other = listen(host, kind=DATAGRAM)
        assert attempt(address, port_of(other)).error == "ECONNREFUSED"
        connection, peer = listener.accept()
        assert (peer[0], client.getpeername()[0]) == (address, address)
        exchange(client, connection)
        everywhere = listen(address, port_of(listener))
        dial(address, port_of(listener))
        assert everywhere.accept()[1][0] == address


@inside
@HOSTS
@pytest.mark.parametrize("flags", [ACK, RST, RST | ACK, SYN | ACK])
def test_lone_segment(world: World, host: str, flags: int) -> None:
    """A segment of no connection, by loopback or a leaf's own address, comes by once or twice, and not for ever."""
    visit = Visit(world)
    own, peer = (leaf.ipv6 if ":" in host else leaf.ipv4 for leaf in (visit.leaf, visit.worker))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for source, target in itertools.product((own, host), (own, host, peer)):
        with at(visit.leaf), privilege.raised(), socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            raw.bind((source, 0))
            before = _packets()
            with contextlib.suppress(OSError):  # loopback has no way to the peer's address
                raw.sendto(tcp((source, target), 4002, flags, source_port=4001), (target, 0))
            time.sleep(0.02)
            assert _packets() - before < 10, (source, target)


def _packets() -> int:
    """Return how many packets have come in here, by loopback and by the link."""
    lines = Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines()[2:]
    return sum(int(line.partition(":")[2].split()[1]) for line in lines)


@inside
@BOTH
@HOSTS
@KINDS
def test_local_listener_comes_first(world: World, server: str, host: str, kind: int) -> None:
    """A listener in the same leaf is served, also where the other leaf has one on the same port; then that one."""
    there, here = Visit(world).sides(server)
    with at(there):
        distant = listen(host, kind=kind)
    with at(here):
        local = listen(host, port_of(distant), kind)
        with dial(host, port_of(distant), kind) as client:
            client.send(b"local")
            connection = local.accept()[0] if kind == STREAM else local
            assert connection.recv(100) == b"local"
        connection.close()
        local.close()
        with dial(host, port_of(distant), kind) as client:
            client.send(b"distant")
            connection = distant.accept()[0] if kind == STREAM else distant
            assert connection.recv(100) == b"distant"


@inside
@BOTH
@HOSTS
@KINDS
def test_refused_until_somebody_listens(world: World, server: str, host: str, kind: int) -> None:
    """Without a listener in either leaf a client is refused at once; one that appears is found, until it is gone."""
    there, here = Visit(world).sides(server)
    for _ in range(2):
        with at(here):
            told = attempt(host, 8080, kind)
        assert told.error == "ECONNREFUSED"
        assert told.seconds < 0.5
        with at(there):
            echo(listener := listen(host, 8080, kind))
        with at(here), dial(host, 8080, kind) as client:
            client.send(b"x")
            assert client.recv(1) == b"x"
        with at(there):  # wakes the echo, whose system call would else keep the socket
            listener.shutdown(socket.SHUT_RDWR) if kind == STREAM else listener.sendto(b"", (host, 8080))
        listener.close()
        if kind == DATAGRAM:
            time.sleep(0.05)


@inside
@BOTH
@HOSTS
def test_much_data(world: World, server: str, host: str) -> None:
    """64 MB go there and back unchanged, and either direction is closed by itself."""
    there, here = Visit(world).sides(server)
    with at(there):
        echo(listener := listen(host))
    with at(here), dial(host, port_of(listener)) as client:
        transfer(client, 64 << 20)


@inside
@HOSTS
def test_current_test(world: World, host: str) -> None:
    """The worker's loopback goes on in the test leaf that was leased or activated last."""
    visit = Visit(world)
    first, second = visit.leaf, visit.client.lease("test_next")
    listeners = {}
    for leaf in (first, second):
        with at(leaf):
            listeners[leaf.name] = listen(host, 8080)
    for current in (second, first, second):
        visit.client.activate(current.name)
        with at(visit.worker), dial(host, 8080):
            listeners[current.name].accept()[0].close()
    with at(visit.worker):
        listener = listen(host, 9090)
    for leaf in (first, second):  # the other way, every one of the worker's tests reaches it
        with at(leaf), dial(host, 9090):
            listener.accept()[0].close()
    visit.client.release(second.name)
    visit.client.activate(first.name)
    with at(visit.worker), dial(host, 8080):
        listeners[first.name].accept()[0].close()


@inside
@KINDS
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_service_answers_at_the_leafs_address(world: World, bound: str, kind: int) -> None:
    """Bound to loopback or to all addresses, a test's service answers at its leaf's address, too."""
    visit = Visit(world)
    address = visit.leaf.ipv6 if ":" in bound else visit.leaf.ipv4
    with at(visit.leaf):
        listener = listen(bound, 8080, kind)
    with at(visit.worker):
        client = dial(address, 8080, kind)
    client.send(b"question")
    if kind == STREAM:
        connection, peer = listener.accept()
        assert connection.recv(100) == b"question"
        connection.send(b"answer")
    else:
        question, peer = listener.recvfrom(100)
        assert question == b"question"
        listener.sendto(b"answer", peer)
    assert client.recv(100) == b"answer"
    assert peer[0] == client.getsockname()[0]


@inside
@pytest.mark.parametrize("host", ["ipv4", "ipv6"])
def test_leafs_address_refuses_where_nothing_listens(world: World, host: str) -> None:
    """The address of a leaf in which nothing listens is an ordinary closed port."""
    visit = Visit(world)
    with at(visit.worker):
        for kind in (STREAM, DATAGRAM):
            told = attempt(getattr(visit.leaf, host), 8080, kind)
            assert told.error == "ECONNREFUSED"
            assert told.seconds < 0.5


@inside
@BOTH
def test_many_connections(world: World, server: str) -> None:
    """Connections one after the other and side by side are not mistaken for each other."""
    there, here = Visit(world).sides(server)
    with at(there):
        echo(listener := listen("127.0.0.1"))
    with at(here):
        clients = [dial("127.0.0.1", port_of(listener)) for _ in range(200)]
    for number, client in enumerate(clients):
        client.sendall(str(number).encode())
    for number, client in enumerate(clients):
        assert client.recv(100) == str(number).encode()


def round_trips(host: str, port: int) -> float:
    """Return the median of many round trips, in microseconds."""
    with dial(host, port) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(None)
        times = []
        for _ in range(2000):
            begin = time.perf_counter()
            client.send(b"x" * 100)
            client.recv(200)
            times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


@inside
@HOSTS
def test_latency(world: World, host: str) -> None:
    """A round trip over shared loopback takes at most some twice as long as over plain loopback."""
    visit = Visit(world)
    with at(visit.worker):
        listener = listen(host)
    server = os.fork()  # a process: as a thread it would wait for the interpreter
    if not server:
        echo(listener)
        signal.pause()
    measured = []
    for _ in range(3):
        with at(visit.worker):
            plain = round_trips(host, port_of(listener))
        with at(visit.leaf):
            shared = round_trips(host, port_of(listener))
        measured.append(shared / plain)
        print(f"{host}: plain {plain:.1f} us, shared {shared:.1f} us, ratio {shared / plain:.2f}", flush=True)  # noqa: T201
    os.kill(server, signal.SIGKILL)
    assert min(measured) < 2.5

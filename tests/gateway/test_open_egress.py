"""An open leaf, in which tests that are not isolated run, reaches what the host reaches, and as the host would."""

from __future__ import annotations

import select
import socket
import struct
import time

import pytest
from traffic import DATAGRAM, STREAM, attempt, dial, echo, exchange, listen, opened, port_of, transfer
from worlds import HOSTS, UNREACHABLE, Visit, Witness, World, at, inside, nothing_arrived

TO_HOSTS = pytest.mark.parametrize("host", HOSTS)
LOOPBACKS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])


def opened_to(world: World) -> Visit:
    """Join with egress open."""
    return Visit(world, open_egress=True)


@inside
@TO_HOSTS
def test_much_data(world: World, host: str) -> None:
    """32 MB go out and come back unchanged, and either direction is closed by itself."""
    visit = opened_to(world)
    with at(world.internet):
        echo(listener := listen(host))
    with at(visit.worker), dial(host, port_of(listener)) as client:
        assert client.getpeername()[:2] == (host, port_of(listener))
        transfer(client, 32 << 20)
    (flow,) = visit.flows(visit.worker)
    assert (flow.protocol, flow.address, flow.port, flow.verdict) == ("tcp", host, port_of(listener), "allowed")
    assert all(str(port_of(listener)) not in one.endpoint for one in visit.client.blocked())


@inside
@TO_HOSTS
def test_half_close(world: World, host: str) -> None:
    """What a side says after the other has said its last still arrives, either way round."""
    visit = opened_to(world)
    with at(world.internet):
        listener = listen(host)
    for swapped in (False, True):
        with at(visit.worker):
            client = dial(host, port_of(listener))
        server, _ = listener.accept()
        exchange(client, server)
        first, second = (server, client) if swapped else (client, server)
        first.shutdown(socket.SHUT_WR)
        second.settimeout(5)
        assert second.recv(1) == b""
        second.sendall(b"afterwards")
        assert first.recv(100) == b"afterwards"
        second.close()
        assert first.recv(1) == b""


@inside
@TO_HOSTS
@KINDS
def test_refused(world: World, host: str, kind: int) -> None:
    """A closed port refuses, as it would refuse the host; also a waiter's hundredth try, and then it is open."""
    visit = opened_to(world)
    with at(world.internet):
        probe = listen(host, kind=kind)
    port = port_of(probe)
    probe.close()
    with at(visit.worker):
        for _ in range(20 if kind == STREAM else 1):  # the server's host limits how often it says so of datagrams
            assert attempt(host, port, kind, 1).error == "ECONNREFUSED"
    with at(world.internet):
        echo(listen(host, port, kind))
    with at(visit.worker):
        assert attempt(host, port, kind).error is None


@inside
@pytest.mark.parametrize("host", UNREACHABLE)
def test_unreachable(world: World, host: str) -> None:
    """What the host has no way to is unreachable, and at once."""
    visit = opened_to(world)
    with at(world.outer):
        as_the_host_sees_it = attempt(host, 443).error
    with at(visit.worker):
        told = attempt(host, 443)
    assert as_the_host_sees_it in {"EHOSTUNREACH", "ENETUNREACH"}
    assert told.error in {"EHOSTUNREACH", "ENETUNREACH"}
    assert told.seconds < 0.5


@inside
@TO_HOSTS
@pytest.mark.parametrize("resetter", ["upstream", "client"])
def test_reset(world: World, host: str, resetter: str) -> None:
    """A connection that one side resets is reset for the other."""
    visit = opened_to(world)
    with at(world.internet):
        listener = listen(host)
    with at(visit.worker):
        client = dial(host, port_of(listener))
    server, _ = listener.accept()
    server.settimeout(5)
    exchange(client, server)
    first, second = (server, client) if resetter == "upstream" else (client, server)
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first.close()
    with pytest.raises(ConnectionResetError):
        second.recv(1)


@inside
@TO_HOSTS
def test_slow_reader(world: World, host: str) -> None:
    """Who sends to somebody that does not read has to wait; nothing piles up without end, and all arrives."""
    visit = opened_to(world)
    with at(world.internet):
        listener = listen(host)
    with at(visit.worker):
        client = dial(host, port_of(listener))
    server, _ = listener.accept()
    server.settimeout(5)
    client.setblocking(False)
    sent = 0
    while select.select([], [client], [], 0.3)[1]:
        sent += client.send(bytes(1 << 18))
        assert sent < 100 << 20
    client.close()
    received = 0
    while data := server.recv(1 << 18):
        received += len(data)
    assert received == sent


@inside
@TO_HOSTS
def test_datagrams_of_many_peers(world: World, host: str) -> None:
    """Each of a hundred UDP sockets gets its own answers, from the address that it wrote to."""
    visit = opened_to(world)
    with at(world.internet):
        echo(listener := listen(host, kind=DATAGRAM))
        echo(other := listen(host, kind=DATAGRAM))
    with at(visit.worker):
        clients = [opened(host, DATAGRAM) for _ in range(100)]
    for number, client in enumerate(clients):
        client.sendto(f"peer {number}".encode(), (host, port_of(listener)))
    for number, client in enumerate(clients):
        answer, source = client.recvfrom(100)
        assert answer == f"peer {number}".encode()
        assert source[:2] == (host, port_of(listener))
    client = clients[0]  # one socket talks to two servers
    for server in (other, listener, other):
        client.sendto(b"again", (host, port_of(server)))
        answer, source = client.recvfrom(100)
        assert (answer, source[1]) == (b"again", port_of(server))


@inside
@TO_HOSTS
@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 60_000])
def test_datagram_sizes(world: World, host: str, size: int) -> None:
    """Datagrams of all sizes go there and back whole, in fragments outside where they must."""
    visit = opened_to(world)
    with at(world.internet):
        echo(listener := listen(host, kind=DATAGRAM))
    with at(visit.worker), dial(host, port_of(listener), DATAGRAM) as client:
        client.send(bytes(size))
        assert client.recv(65536) == bytes(size)


@inside
@LOOPBACKS
@KINDS
def test_hosts_loopback(world: World, host: str, kind: int) -> None:
    """A service on the host's loopback is reachable at the same address and port."""
    visit = opened_to(world)
    with at(world.outer):
        echo(listener := listen(host, kind=kind))
    with at(visit.worker), dial(host, port_of(listener), kind) as client:
        client.send(b"hello")
        assert client.recv(100) == b"hello"
        assert client.getpeername()[:2] == (host, port_of(listener))


@inside
@LOOPBACKS
@KINDS
def test_hosts_loopback_refuses(world: World, host: str, kind: int) -> None:
    """Where nobody listens anywhere, loopback refuses."""
    visit = opened_to(world)
    with at(visit.worker):
        assert attempt(host, 4, kind, 1).error == "ECONNREFUSED"


@inside
@LOOPBACKS
@KINDS
def test_local_listener_comes_before_the_hosts(world: World, host: str, kind: int) -> None:
    """A listener in the leaf is served before the host's on the same port."""
    visit = opened_to(world)
    with at(world.outer):
        distant = listen(host, kind=kind)
    with at(visit.worker):
        local = listen(host, port_of(distant), kind)
        with dial(host, port_of(distant), kind) as client:
            client.send(b"local")
            connection = local.accept()[0] if kind == STREAM else local
            assert connection.recv(100) == b"local"
    assert nothing_arrived(distant)


@inside
def test_tests_service_comes_before_the_hosts(world: World) -> None:
    """The current test's service is found at loopback first, and the host's where the test has none."""
    visit = opened_to(world)
    with at(world.outer):
        distant = listen("127.0.0.1")
    with at(visit.leaf):
        service = listen("127.0.0.1", port_of(distant))
    with at(visit.worker):
        client = dial("127.0.0.1", port_of(distant))
    connection, _ = service.accept()
    exchange(client, connection)
    assert nothing_arrived(distant)
    service.close()
    with at(visit.worker):
        client = dial("127.0.0.1", port_of(distant))
    connection, _ = distant.accept()
    exchange(client, connection)


@inside
def test_tests_leaf_stays_closed(world: World) -> None:
    """A worker's open leaf opens nothing for its tests: not outside, not the host's loopback."""
    visit, witness = opened_to(world), Witness(world)
    with at(world.outer):
        distant = listen("127.0.0.1")
    with at(visit.leaf):
        assert attempt(HOSTS[0], 443).error == "EHOSTUNREACH"
        assert attempt("127.0.0.1", port_of(distant)).error == "ECONNREFUSED"
    assert witness.seen() == []
    assert nothing_arrived(distant)


@inside
@TO_HOSTS
def test_hundred_connections_at_once(world: World, host: str) -> None:
    """A hundred clients that connect at the same time are all served, each with its own data."""
    visit = opened_to(world)
    with at(world.internet):
        echo(listener := listen(host))
    with at(visit.worker):
        clients = [opened(host) for _ in range(100)]
    for client in clients:
        client.setblocking(False)
        client.connect_ex((host, port_of(listener)))
    for number, client in enumerate(clients):
        client.settimeout(10)
        select.select([], [client], [], 10)
        client.sendall(str(number).encode())
    for number, client in enumerate(clients):
        assert client.recv(100) == str(number).encode()


@inside
@pytest.mark.parametrize("address", ["224.0.0.251", "255.255.255.255", "198.18.0.77", "198.19.0.9"])
def test_what_stays_closed(world: World, address: str) -> None:
    """Multicast, broadcast and other leaves are closed to an open leaf, too."""
    visit, witness = opened_to(world), Witness(world)
    with at(visit.worker), opened(address, DATAGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sender.sendto(b"x", (address, 5000))
    time.sleep(0.05)
    assert witness.seen() == []


@inside
def test_end_of_a_leaf_cuts_its_connections(world: World) -> None:
    """When a leaf is given up, the upstream side of its connections is reset."""
    visit = opened_to(world)
    with at(world.internet):
        listener = listen(HOSTS[0])
    with at(visit.worker):
        client = dial(HOSTS[0], port_of(listener))
    server, _ = listener.accept()
    server.settimeout(5)
    exchange(client, server)
    visit.client.release(visit.worker.name)
    with pytest.raises(ConnectionResetError):
        server.recv(1)

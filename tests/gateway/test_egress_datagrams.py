"""UDP to what is listed: nothing is lost or out of order that loopback would not lose, and errors come back."""

from __future__ import annotations

import contextlib
import itertools
import socket
import time

import dns.message
import dns.query
import pytest
from outside import NEIGHBOURS, add_address, address_of, new_name, rule_for, sockets_in
from traffic import DATAGRAM, attempt, dial, echo, family_of, listen, opened, port_of, served
from worlds import HOSTS, Visit, World, at, inside, nothing_arrived
from zone import Zone

TO_HOSTS = pytest.mark.parametrize("host", HOSTS)


def roomy(host: str) -> socket.socket:
    """Open a server's socket that holds much."""
    server = listen(host, kind=DATAGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return server


@inside
@TO_HOSTS
@pytest.mark.parametrize("size", [10, 1400], ids=["small", "large"])
def test_bursts(world: World, host: str, size: int) -> None:
    """Fifty datagrams at the very start of a flow arrive, all of them, in order; twenty times over."""
    with at(world.internet):
        server = roomy(host)
    visit = Visit(world, rules=[rule_for(host, port_of(server), DATAGRAM)])
    clients = sockets_in(visit.leaf, family_of(host), 20, DATAGRAM)
    sent = [number.to_bytes(size, "big") for number in range(50)]
    for client in clients:
        client.connect((host, port_of(server)))
        for data in sent:
            client.send(data)
        assert [server.recv(2000) for _ in sent] == sent
    assert len(visit.flows(visit.leaf)) == len(clients)
    assert nothing_arrived(server)


@inside
@TO_HOSTS
def test_stream_of_datagrams(world: World, host: str) -> None:
    """Datagrams that keep coming while the first waits for its verdict all arrive, in one flow, and in order."""
    with at(world.internet):
        server = roomy(host)
    visit = Visit(world, rules=[rule_for(host, port_of(server), DATAGRAM)])
    clients = sockets_in(visit.leaf, family_of(host), 20, DATAGRAM)
    for client in clients:
        client.connect((host, port_of(server)))
        begin, count = time.monotonic(), 0
        while time.monotonic() - begin < 0.02 and count < 2000:
            client.send(count.to_bytes(4, "big"))
            count += 1
            time.sleep(0.00002)
        arrived = [int.from_bytes(server.recv(100), "big") for _ in range(count)]
        assert sorted(arrived) == list(range(count))
        assert sum(later < earlier for earlier, later in itertools.pairwise(arrived)) <= 1
    assert len(visit.flows(visit.leaf)) == len(clients)


@inside
@TO_HOSTS
def test_many_peers(world: World, host: str) -> None:
    """Two hundred sockets get each its own answers, and one socket that talks to three servers gets each one's."""
    add_address(world.internet, NEIGHBOURS[host])
    with at(world.internet):
        servers = [(host, served(host, kind=DATAGRAM)) for _ in range(2)]
        servers.append((NEIGHBOURS[host], served(NEIGHBOURS[host], kind=DATAGRAM)))
    visit = Visit(world, rules=[f"{host}/udp", f"{NEIGHBOURS[host]}/udp"])
    clients = sockets_in(visit.leaf, family_of(host), 200, DATAGRAM)
    for number, client in enumerate(clients):
        client.sendto(f"peer {number}".encode(), servers[number % 3])
    for number, client in enumerate(clients):
        answer, source = client.recvfrom(100)
        assert (answer, source[:2]) == (f"peer {number}".encode(), servers[number % 3])
    for number in range(30):
        clients[0].sendto(f"turn {number}".encode(), servers[number % 3])
        answer, source = clients[0].recvfrom(100)
        assert (answer, source[:2]) == (f"turn {number}".encode(), servers[number % 3])


@inside
@TO_HOSTS
def test_sizes(world: World, host: str) -> None:
    """A datagram of any size goes there and back whole, as the first of its flow and later."""
    with at(world.internet):
        port = served(host, kind=DATAGRAM)
    visit = Visit(world, rules=[rule_for(host, port, DATAGRAM)])
    for size in (0, 1, 1472, 9000, 60_000):
        with at(visit.leaf), dial(host, port, DATAGRAM) as client:
            for _ in range(2):
                client.send(b"x" * size)
                assert client.recv(65_536) == b"x" * size


@inside
@TO_HOSTS
@pytest.mark.parametrize("by_name", [False, True], ids=["address", "name"])
def test_refused(world: World, host: str, by_name: bool) -> None:
    """Where no server has the port the client is told so, and its next datagrams reach one that has come up."""
    if by_name:
        Zone(world, {new_name(): [host]})
    name = new_name() if by_name else host
    with at(world.internet):
        probe = listen(host, kind=DATAGRAM)
    port = port_of(probe)
    probe.close()
    visit = Visit(world, rules=[rule_for(name, port, DATAGRAM)])
    address = address_of(visit.leaf, name)
    with at(visit.leaf):
        client = dial(address, port, DATAGRAM)
    client.send(b"x")
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)
    with at(world.internet):
        echo(listen(host, port, DATAGRAM))
    client.send(b"again")
    assert client.recv(100) == b"again"


@inside
@TO_HOSTS
def test_server_that_goes_away(world: World, host: str) -> None:
    """A client that was served is told when its server has gone, and served by the next."""
    with at(world.internet):
        server = listen(host, kind=DATAGRAM)
    visit = Visit(world, rules=[f"{host}/udp"])
    with at(visit.leaf):
        client = dial(host, port_of(server), DATAGRAM)
    client.send(b"one")
    data, peer = server.recvfrom(100)
    server.sendto(data, peer)
    assert client.recv(100) == b"one"
    port = port_of(server)
    server.close()
    client.send(b"two")
    with pytest.raises(ConnectionRefusedError):
        client.recv(100)
    with at(world.internet):
        echo(listen(host, port, DATAGRAM))
    client.send(b"three")
    assert client.recv(100) == b"three"


@inside
@TO_HOSTS
def test_strangers_answers(world: World, host: str) -> None:
    """Only who was asked is heard: not another port of the server's, nor another host, that guesses the port."""
    add_address(world.internet, NEIGHBOURS[host])
    with at(world.internet):
        server = listen(host, kind=DATAGRAM)
        strangers = [listen(host, kind=DATAGRAM), listen(NEIGHBOURS[host], kind=DATAGRAM)]
    visit = Visit(world, rules=[f"{host}/udp", f"{NEIGHBOURS[host]}/udp"])
    with at(visit.leaf):
        client = opened(host, DATAGRAM)
    client.sendto(b"question", (host, port_of(server)))
    _, peer = server.recvfrom(100)
    for stranger in strangers:
        stranger.sendto(b"forged", peer)
    time.sleep(0.05)
    assert nothing_arrived(client)
    server.sendto(b"answer", peer)
    assert client.recv(100) == b"answer"
    assert nothing_arrived(client)


@inside
def test_listed_name_server(world: World) -> None:
    """A name server that is listed by its address can be asked for any name, over UDP."""
    zone = Zone(world, {"www.example.org": [HOSTS[0]]})
    visit = Visit(world, rules=[f"{HOSTS[0]}:53/udp"])
    with at(visit.leaf):
        for name, found in (("www.example.org", 1), ("none.example.org", 0)):
            answer = dns.query.udp(dns.message.make_query(name, "A"), HOSTS[0], timeout=5)
            assert len(answer.answer) == found
        with contextlib.suppress(socket.gaierror):
            socket.getaddrinfo("other.example.org", 80)
    assert zone.asked == [("www.example.org.", "A"), ("none.example.org.", "A")]


@inside
@TO_HOSTS
def test_server_sends_bursts(world: World, host: str) -> None:
    """Twenty bursts of a hundred datagrams each that a server sends arrive, in order."""
    with at(world.internet):
        server = listen(host, kind=DATAGRAM)
    visit = Visit(world, rules=[f"{host}/udp"])
    with at(visit.leaf):
        client = dial(host, port_of(server), DATAGRAM)
    client.send(b"start")
    _, peer = server.recvfrom(100)
    sent = [number.to_bytes(4, "big") for number in range(100)]
    for _ in range(20):
        for data in sent:
            server.sendto(data, peer)
        assert [client.recv(100) for _ in sent] == sent


@inside
@pytest.mark.parametrize("nowhere", ["198.51.100.1", "2001:db8:dead::1"])
def test_no_way_there(world: World, nowhere: str) -> None:
    """Where the host has no route the client is told, as the host itself would be."""
    visit = Visit(world, rules=[f"{nowhere}/udp"])
    with at(visit.leaf):
        told = attempt(nowhere, 443, DATAGRAM, 1)
    assert told.error in {"EHOSTUNREACH", "ENETUNREACH", "EACCES"}

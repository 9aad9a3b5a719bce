"""What a leaf's rules list by address is reached, and nothing else: asserted by hosts that the gateway reaches."""

from __future__ import annotations

import select
import socket
import time

import pytest
from outside import AT_ONCE, NEIGHBOURS, add_address, lease, rule_for, sockets_in
from traffic import DATAGRAM, STREAM, attempt, dial, echo, exchange, family_of, listen, port_of, refusals, served
from traffic import was_reset as ended_in_a_reset
from worlds import HOSTS, Visit, Witness, World, at, inside, nothing_arrived

TO_HOSTS = pytest.mark.parametrize("host", HOSTS)
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])


def assert_refused(host: str, port: int, kind: int = STREAM) -> None:
    """Try, and be told at once that there is no way."""
    told = attempt(host, port, kind)
    assert told.error in refusals(host, kind)
    assert told.seconds < AT_ONCE


@inside
@TO_HOSTS
@KINDS
def test_listed_endpoint(world: World, host: str, kind: int) -> None:
    """An endpoint that is listed answers; its next port, its other protocol and the address next to it do not."""
    other_kind = DATAGRAM if kind == STREAM else STREAM
    add_address(world.internet, NEIGHBOURS[host])
    with at(world.internet):
        port = served(host, kind=kind)
        others = [
            listen(host, kind=kind),
            listen(host, port, other_kind),
            listen(NEIGHBOURS[host], port, kind),
        ]
    visit = Visit(world, rules=[rule_for(host, port, kind)])
    with at(visit.leaf):
        assert attempt(host, port, kind).error is None
        for other in others:
            assert_refused(other.getsockname()[0], port_of(other), other.type)
        assert attempt(host, port, kind).error is None
    assert nothing_arrived(*others)
    verdicts = [(flow.verdict, flow.rule) for flow in visit.flows(visit.leaf, 5)]
    assert verdicts == [("allowed", rule_for(host, port, kind)), *[("blocked", None)] * 3, *verdicts[:1]]


@inside
@TO_HOSTS
def test_fresh_leaves_hear_at_once(world: World, host: str) -> None:
    """The very first connection of a leaf is answered at once, forty leaves over."""
    with at(world.internet):
        port = served(host)
    visit, slow = Visit(world), []
    for _ in range(40):
        leaf = lease(visit, [rule_for(host, port)])
        with at(leaf):
            told = attempt(host, port)
        if told.error is not None or told.seconds > AT_ONCE:
            slow.append(told)
        visit.client.release(leaf.name)
    assert slow == []


@inside
@TO_HOSTS
@KINDS
def test_ports(world: World, host: str, kind: int) -> None:
    """A range of ports ends with its last one on either side."""
    with at(world.internet):
        listeners = {port: listen(host, port, kind) for port in (20_099, 20_100, 20_105, 20_110, 20_111)}
        for port in (20_100, 20_105, 20_110):
            echo(listeners[port])
    visit = Visit(world, rules=[rule_for(host, "20100-20110", kind)])
    with at(visit.leaf):
        for port in (20_100, 20_105, 20_110):
            assert attempt(host, port, kind).error is None
        for port in (20_099, 20_111):
            assert_refused(host, port, kind)
    assert nothing_arrived(listeners[20_099], listeners[20_111])


@inside
@TO_HOSTS
def test_rule_without_a_port(world: World, host: str) -> None:
    """It opens every TCP port of the address, and no UDP port."""
    with at(world.internet):
        ports = [served(host), served(host, 1), served(host, 65_535)]
        datagrams = listen(host, kind=DATAGRAM)
    visit = Visit(world, rules=[host])
    with at(visit.leaf):
        for port in ports:
            assert attempt(host, port).error is None
        assert_refused(host, port_of(datagrams), DATAGRAM)
    assert nothing_arrived(datagrams)


@inside
@pytest.mark.parametrize(
    ("block", "inner", "beyond"),
    [
        ("203.0.113.4/31", HOSTS[0], NEIGHBOURS[HOSTS[0]]),
        ("203.0.113.6/32", NEIGHBOURS[HOSTS[0]], HOSTS[0]),
        ("2001:db8::4/127", HOSTS[1], NEIGHBOURS[HOSTS[1]]),
        ("2001:db8::6/128", NEIGHBOURS[HOSTS[1]], HOSTS[1]),
        ("0.0.0.0/0", HOSTS[0], HOSTS[1]),
        ("::/0", HOSTS[1], HOSTS[0]),
    ],
)
@KINDS
def test_blocks(world: World, block: str, inner: str, beyond: str, kind: int) -> None:
    """A block opens the addresses in it, and not the next one, nor the other family's."""
    for address in (inner, beyond):
        if address in NEIGHBOURS.values():
            add_address(world.internet, address)
    with at(world.internet):
        port = served(inner, kind=kind)
        other = listen(beyond, port, kind)
    visit = Visit(world, rules=[rule_for(block, port, kind)])
    with at(visit.leaf):
        assert attempt(inner, port, kind).error is None
        assert_refused(beyond, port, kind)
    assert nothing_arrived(other)


@inside
@KINDS
def test_all_addresses_are_those_outside(world: World, kind: int) -> None:
    """Not even a rule for every address opens the host's loopback, another leaf, or a group."""
    neighbour = Visit(world, "w1")
    visit, witness = Visit(world, rules=["0.0.0.0/0", "::/0", "0.0.0.0/0/udp", "::/0/udp"]), Witness(world)
    listeners = []
    for place, hosts in ((world.outer, ("127.0.0.1", "::1")), (neighbour.leaf, ("0.0.0.0",))):
        with at(place):
            listeners += [listen(host, 20_200, kind) for host in hosts]
    with at(visit.leaf):
        for host in ("127.0.0.1", "::1"):
            assert attempt(host, 20_200, kind, 1).error == "ECONNREFUSED"
        for host in (neighbour.leaf.ipv4, neighbour.leaf.ipv6):
            assert_refused(host, 20_200, kind)
        if kind == DATAGRAM:
            assert attempt("224.0.0.251", 5353, kind, 0.1).error is not None
    assert nothing_arrived(*listeners)
    assert witness.seen() == []


@inside
@TO_HOSTS
@KINDS
def test_allow(world: World, host: str, kind: int) -> None:
    """What is allowed as a test runs holds from the next connection on, at once."""
    with at(world.internet):
        port = served(host, kind=kind)
    visit = Visit(world)
    for _ in range(3):
        leaf = lease(visit)
        with at(leaf):
            assert_refused(host, port, kind)
        visit.client.allow(leaf.name, [rule_for(host, port, kind)])
        with at(leaf):
            assert attempt(host, port, kind).error is None


@inside
def test_allow_leaves_a_socket_of_before_usable(world: World) -> None:
    """A UDP socket that was refused gets through once its peer is allowed."""
    with at(world.internet):
        port = served(HOSTS[0], kind=DATAGRAM)
    visit = Visit(world)
    (client,) = sockets_in(visit.leaf, socket.AF_INET, 1, DATAGRAM)
    client.connect((HOSTS[0], port))
    client.send(b"one")
    with pytest.raises(OSError, match="No route to host"):
        client.recv(100)
    visit.client.allow(visit.leaf.name, [rule_for(HOSTS[0], port, DATAGRAM)])
    client.send(b"two")
    assert client.recv(100) == b"two"


@inside
@TO_HOSTS
def test_next_test_has_its_own_rules(world: World, host: str) -> None:
    """A connection that the next test's rules do not list is reset on both sides; one that they list goes on."""
    with at(world.internet):
        first, second = listen(host), listen(host)
    kept, lost = rule_for(host, port_of(first)), rule_for(host, port_of(second))
    visit = Visit(world, rules=[lost, kept])
    with at(visit.leaf):
        keeps, loses = dial(host, port_of(first)), dial(host, port_of(second))
    served_on, cut = first.accept()[0], second.accept()[0]
    exchange(keeps, served_on)
    exchange(loses, cut)
    visit.client.label(visit.leaf.name, "test_next", rules=[kept])
    assert ended_in_a_reset(loses)
    assert ended_in_a_reset(cut)
    exchange(keeps, served_on)
    with at(visit.leaf):
        assert_refused(host, port_of(second))
        assert attempt(host, port_of(first)).error is None
    assert nothing_arrived(second)
    assert [flow.test for flow in visit.flows(visit.leaf, 4)] == ["test_it", "test_it", "test_next", "test_next"]
    (cut_off,) = [flow for flow in visit.flows(visit.leaf) if flow.rule == lost]
    assert "ended" in (cut_off.reason or "")
    visit.client.label(visit.leaf.name, "test_last")
    assert ended_in_a_reset(keeps)


@inside
@TO_HOSTS
def test_next_test_has_its_own_datagrams(world: World, host: str) -> None:
    """An exchange of datagrams that the next test's rules do not list is over: neither side's arrive any more."""
    with at(world.internet):
        server = listen(host, kind=DATAGRAM)
    visit = Visit(world, rules=[rule_for(host, port_of(server), DATAGRAM)])
    with at(visit.leaf):
        client = dial(host, port_of(server), DATAGRAM)
    client.send(b"one")
    data, peer = server.recvfrom(100)
    assert data == b"one"
    visit.client.label(visit.leaf.name, "test_next")
    time.sleep(0.05)
    server.sendto(b"late answer", peer)
    time.sleep(0.05)
    assert nothing_arrived(client)
    client.send(b"two")
    with pytest.raises(OSError, match=r"No route to host|Permission denied"):
        client.recv(100)
    assert nothing_arrived(server)


@inside
@TO_HOSTS
def test_release(world: World, host: str) -> None:
    """A leaf that is given up loses its connections, both sides of them, and reaches nothing any more."""
    with at(world.internet):
        server = listen(host)
        datagrams = listen(host, port_of(server), DATAGRAM)
    visit = Visit(world, rules=[host, rule_for(host, port_of(server), DATAGRAM)])
    with at(visit.leaf):
        client, talker = dial(host, port_of(server)), dial(host, port_of(server), DATAGRAM)
    connection = server.accept()[0]
    exchange(client, connection)
    talker.send(b"one")
    assert datagrams.recv(100) == b"one"
    visit.client.release(visit.leaf.name)
    assert ended_in_a_reset(client)
    assert ended_in_a_reset(connection)
    with at(visit.leaf):
        assert attempt(host, port_of(server), timeout=0.3).error is not None
    talker.send(b"two")
    time.sleep(0.05)
    assert nothing_arrived(server, datagrams)


def has_failed(client: socket.socket) -> bool:
    """Tell whether a socket gets an error within five seconds."""
    poll = select.poll()
    poll.register(client, 0)
    return bool(poll.poll(5000))


@inside
@TO_HOSTS
@KINDS
def test_rules_serve_their_own_leaf_alone(world: World, host: str, kind: int) -> None:
    """At the same moment, from the same ports to the same server, one leaf gets through and four others do not."""
    with at(world.internet):
        server = listen(host, kind=kind)
        if kind == DATAGRAM:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    port, rule = port_of(server), rule_for(host, port_of(server), kind)
    visit, other = Visit(world), Visit(world, "w1", rules=[rule_for(host, 1)])
    allowed, sibling = lease(visit, [rule]), lease(visit)
    leaves = [visit.leaf, other.leaf, allowed, other.worker, sibling]
    clients = [sockets_in(leaf, family_of(host), 40, kind) for leaf in leaves]
    for number in range(40):
        for leaf, client in zip(leaves, [group[number] for group in clients], strict=True):
            client.bind((leaf.ipv6 if ":" in host else leaf.ipv4, 41_000 + number))
            client.setblocking(False)
            client.connect_ex((host, port))
            if kind == DATAGRAM:
                client.send(leaf.name.encode())
    for leaf, group in zip(leaves, clients, strict=True):
        assert leaf is allowed or all(map(has_failed, group))
        told = {client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for client in group}
        assert told == {0} if leaf is allowed else 0 not in told
    if kind == DATAGRAM:
        assert [server.recv(100) for _ in range(40)] == [allowed.name.encode()] * 40
    else:
        for _ in range(40):
            server.accept()[0].close()
    assert nothing_arrived(server)

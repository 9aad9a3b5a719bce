"""With a rule for localhost and a port, the host's loopback continues a leaf's at that port, and at no other."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading

import pytest
from attacks import hub_of
from outside import AT_ONCE, LOOPBACK, lease, rule_for
from traffic import DATAGRAM, STREAM, attempt, dial, echo, exchange, listen, port_of, reset, served, start, was_reset
from worlds import HOSTS, UNREACHABLE, Visit, World, at, inside, nothing_arrived

from pytest_netns.kernel import links, privilege
from pytest_netns.kernel.netlink import NETLINK_ROUTE, NetlinkSocket

LOOPBACKS = pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
LEAVES = pytest.mark.parametrize("name", ["worker", "leaf"])
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user's process cannot stay in the host's network")


def visit_with(world: World, name: str, *rules: str) -> Visit:
    """Return a visit whose worker leaf, or only its test leaf, goes by the rules."""
    return Visit(world, run_wide=rules) if name == "worker" else Visit(world, rules=rules)


@inside
@LOOPBACKS
@KINDS
@LEAVES
def test_host_is_reached(world: World, host: str, kind: int, name: str) -> None:
    """A service on the host's loopback answers at the same address and port, and the flow is on record."""
    with at(world.outer):
        port = served(host, kind=kind)
    visit = visit_with(world, name, rule_for("localhost", port, kind))
    leaf = getattr(visit, name)
    with at(leaf), dial(host, port, kind) as client:
        for data in (b"hello", b"again"):
            client.send(data)
            assert client.recv(100) == data
        assert client.getpeername()[:2] == (host, port)
    (flow,) = visit.flows(leaf)
    assert (flow.verdict, flow.rule, flow.name) == ("allowed", rule_for("localhost", port, kind), None)
    assert (flow.address, flow.port, flow.protocol) == (host, port, "tcp" if kind == STREAM else "udp")


@inside
@LOOPBACKS
def test_routes_that_change(own_world: World, host: str) -> None:
    """A datagram right after the first answer arrives, also where the hub has got a route since."""
    with at(own_world.outer):
        port = served(host, kind=DATAGRAM)
    visit = Visit(own_world, rules=[f"localhost:{port}/udp"])
    with at(hub_of(visit)), privilege.raised():
        route = NetlinkSocket(NETLINK_ROUTE)
    for number in range(100, 110):
        address = ipaddress.ip_address(UNREACHABLE[":" in host]) + number
        with at(visit.leaf):
            client = dial(host, port, DATAGRAM)
        client.send(b"hello")
        assert client.recv(100) == b"hello"
        with privilege.raised():
            route.request(links.add_address(LOOPBACK, address, address.max_prefixlen), "change the hub's routes")
        client.send(b"again")
        assert client.recv(100) == b"again"


@inside
@LOOPBACKS
@KINDS
@LEAVES
def test_other_ports(world: World, host: str, kind: int, name: str) -> None:
    """Neither the next port nor the other protocol of the host's loopback is reached: nobody listens there."""
    other_kind = DATAGRAM if kind == STREAM else STREAM
    with at(world.outer):
        port = served(host, kind=kind)
        others = [listen(host, kind=kind), listen(host, port, other_kind)]
    visit = visit_with(world, name, rule_for("localhost", port, kind))
    with at(getattr(visit, name)):
        for other in others:
            told = attempt(host, port_of(other), other.type)
            assert told.error == "ECONNREFUSED"
            assert told.seconds < AT_ONCE
    assert nothing_arrived(*others)


@inside
@LOOPBACKS
@KINDS
@LEAVES
def test_refused_until_it_is_up(world: World, host: str, kind: int, name: str) -> None:
    """As long as nobody listens on the host, the port refuses."""
    with at(world.outer):
        probe = listen(host, kind=kind)
    port = port_of(probe)
    probe.close()
    visit = visit_with(world, name, rule_for("localhost", port, kind))
    leaf = getattr(visit, name)
    with at(leaf):
        for _ in range(20 if kind == STREAM else 1):
            assert attempt(host, port, kind, 5).error == "ECONNREFUSED"
    with at(world.outer):
        served(host, port, kind)
    with at(leaf):
        assert attempt(host, port, kind).error is None


@inside
@LOOPBACKS
@KINDS
@LEAVES
def test_own_listener_comes_first(world: World, host: str, kind: int, name: str) -> None:
    """What listens in the leaf itself is found before the host's."""
    with at(world.outer):
        distant = listen(host, kind=kind)
    visit = visit_with(world, name, rule_for("localhost", port_of(distant), kind))
    with at(getattr(visit, name)):
        local = served(host, port_of(distant), kind)
        assert attempt(host, local, kind).error is None
    assert nothing_arrived(distant)


@inside
@LOOPBACKS
@KINDS
@LEAVES
def test_peers_listener_comes_before_the_hosts(world: World, host: str, kind: int, name: str) -> None:
    """What listens on the loopback that the leaf shares is found before the host's, and the host's once that ends."""
    with at(world.outer):
        distant = listen(host, kind=kind)
    port = port_of(distant)
    visit = visit_with(world, name, rule_for("localhost", port, kind))
    own, peer = (visit.worker, visit.leaf) if name == "worker" else (visit.leaf, visit.worker)
    with at(peer):
        near = listen(host, port, kind)
    for listener in (near, near, distant):
        if listener is distant:
            near.close()
        with at(own):
            client = dial(host, port, kind)
        client.send(b"question")
        server = listener.accept()[0] if kind == STREAM else listener
        data, address = server.recvfrom(100)
        assert data == b"question"
        server.sendto(b"answer", address) if kind == DATAGRAM else server.send(b"answer")
        assert client.recv(100) == b"answer"
    assert nothing_arrived(distant)


@inside
@LOOPBACKS
@KINDS
def test_tests_service_comes_before_the_hosts(world: World, host: str, kind: int) -> None:
    """An open worker leaf, too, finds what its test serves before what the host does."""
    with at(world.outer):
        distant = listen(host, kind=kind)
    visit = Visit(world, open_egress=True)
    with at(visit.leaf):
        served(host, port_of(distant), kind)
    with at(visit.worker):
        assert attempt(host, port_of(distant), kind).error is None
    assert nothing_arrived(distant)


@inside
@LOOPBACKS
def test_peers_listener_that_the_rule_does_not_name(world: World, host: str) -> None:
    """Loopback is shared with the worker's at every port, whatever the rule says."""
    visit = Visit(world, rules=["localhost:1"])
    for kind in (STREAM, DATAGRAM):
        with at(visit.worker):
            port = served(host, kind=kind)
        with at(visit.leaf):
            assert attempt(host, port, kind).error is None
    with at(visit.leaf):
        port = served(host)
    with at(visit.worker):
        assert attempt(host, port).error is None


@inside
@LOOPBACKS
@KINDS
def test_rule_is_the_tests_own(world: World, host: str, kind: int) -> None:
    """The host's loopback is open to the leaf whose rule it is: not to the worker's, a sibling's or the next test."""
    with at(world.outer):
        distant = listen(host, kind=kind)
    port, rule = port_of(distant), rule_for("localhost", port_of(distant), kind)
    visit, other = Visit(world), Visit(world, "w1")
    allowed, sibling = lease(visit, [rule]), lease(visit)
    with at(world.outer):
        echo(distant)
    with at(allowed):
        assert attempt(host, port, kind).error is None
    for leaf in (visit.worker, visit.leaf, sibling, other.leaf, other.worker):
        with at(leaf):
            assert attempt(host, port, kind, 1).error == "ECONNREFUSED"
    visit.client.label(allowed.name, "test_next")
    with at(allowed):
        assert attempt(host, port, kind, 1).error == "ECONNREFUSED"
    visit.client.allow(allowed.name, [rule])
    with at(allowed):
        assert attempt(host, port, kind).error is None


@inside
@LOOPBACKS
def test_connection_ends_with_the_test(world: World, host: str) -> None:
    """A connection to the host's loopback is reset with the test that it was allowed to."""
    with at(world.outer):
        listener = listen(host)
    visit = Visit(world, rules=[f"localhost:{port_of(listener)}"])
    with at(visit.leaf):
        client = dial(host, port_of(listener))
    server = listener.accept()[0]
    exchange(client, server)
    visit.client.label(visit.leaf.name, "test_next")
    assert was_reset(client)
    assert was_reset(server)


@inside
@LOOPBACKS
def test_resets_and_halves(world: World, host: str) -> None:
    """Half-close and reset pass through to the host's loopback and back."""
    with at(world.outer):
        listener = listen(host)
    visit = Visit(world, rules=["localhost"])
    for resetting in (True, False):
        with at(visit.leaf):
            client = dial(host, port_of(listener))
        server = listener.accept()[0]
        server.settimeout(5)
        if resetting:
            reset(client)
            assert was_reset(server)
            continue
        client.shutdown(socket.SHUT_WR)
        assert server.recv(1) == b""
        server.sendall(b"afterwards")
        assert client.recv(100) == b"afterwards"


@inside
@KINDS
def test_many_at_once(world: World, kind: int) -> None:
    """Hundred clients at once get each its own answer from the host's loopback."""
    with at(world.outer):
        port = served("127.0.0.1", kind=kind)
    visit = Visit(world, rules=[rule_for("localhost", port, kind)])
    with at(visit.leaf):
        clients = [socket.socket(type=kind) for _ in range(100)]
    told: dict[int, bytes] = {}

    def speak(number: int) -> None:
        clients[number].settimeout(5)
        clients[number].connect(("127.0.0.1", port))
        clients[number].send(f"client {number}".encode())
        told[number] = clients[number].recv(100)

    threads: list[threading.Thread] = [start(speak, number) for number in range(100)]
    for thread in threads:
        thread.join(10)
    assert told == {number: f"client {number}".encode() for number in range(100)}


@ROOT_ONLY
@inside
@LOOPBACKS
@KINDS
def test_attached(world: World, host: str, kind: int) -> None:
    """Where the worker stays in the host's network, a rule opens another process's server, at its port alone."""
    with at(world.outer):
        listed, other = listen(host, kind=kind), listen(host, kind=kind)
    port, unlisted, told = port_of(listed), port_of(other), os.pipe()
    if not os.fork():  # what a worker's own descendants serve needs no rule
        answers: list[str | None] = []
        try:
            listed.close()
            other.close()
            client = world.connect()
            client.attach("w0")
            with at(client.lease("test_it", rules=[rule_for("localhost", port, kind)])):
                for address, number in ((host, port), (host, unlisted), (HOSTS[0], port)):
                    answers.append(attempt(address, number, kind).error)
            with at(client.lease("test_next")):
                answers.append(attempt(host, port, kind).error)
        finally:
            os.write(told[1], repr(answers).encode())
            os._exit(0)
    echo(listed)
    os.wait()
    assert os.read(told[0], 1000) == b"[None, 'ECONNREFUSED', 'EHOSTUNREACH', 'ECONNREFUSED']"
    assert nothing_arrived(other)

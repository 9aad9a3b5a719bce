"""A gateway that is stopped, killed or out of descriptors lets nothing out that should not go, and recovers."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from outside import address_of, lease, new_name, rule_for, sockets_in
from traffic import DATAGRAM, STREAM, attempt, dial, exchange, family_of, listen, port_of, served, start
from worlds import HOSTS, Visit, Witness, World, at, inside, nothing_arrived, peer_pid, wait_until
from zone import Zone

from pytest_netns.errors import NetnsError
from pytest_netns.gateway.flows import Flow

TO_HOSTS = pytest.mark.parametrize("host", HOSTS)


@contextlib.contextmanager
def stopped(visit: Visit, seconds: float) -> Iterator[None]:
    """Stop the gateway for that long, and longer if the block takes longer."""
    gateway, begin = peer_pid(visit.client), time.monotonic()
    os.kill(gateway, signal.SIGSTOP)
    try:
        yield
        time.sleep(max(0.0, begin + seconds - time.monotonic()))
    finally:
        os.kill(gateway, signal.SIGCONT)


@inside
@TO_HOSTS
def test_stopped(world: World, host: str) -> None:
    """While the gateway is stopped nothing passes; what is allowed passes after that, and is one connection each."""
    with at(world.internet):
        listener, talker = listen(host), listen(host, kind=DATAGRAM)
    rules = [rule_for(host, port_of(listener)), rule_for(host, port_of(talker), DATAGRAM)]
    visit, witness = Visit(world, rules=rules), Witness(world)
    clients = sockets_in(visit.leaf, family_of(host), 5)
    (sender,) = sockets_in(visit.leaf, family_of(host), 1, DATAGRAM)
    with stopped(visit, 1.3):  # clients try again after a second
        for client in clients:
            client.setblocking(False)
            assert client.connect_ex((host, port_of(listener))) == errno.EINPROGRESS
        sender.sendto(b"held", (host, port_of(talker)))
        assert not select.select([], clients, [], 0.3)[1]
        assert witness.seen() == []
    assert talker.recv(100) == b"held"
    for client in clients:
        assert select.select([], [client], [], 5)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        listener.accept()[0].close()
    time.sleep(0.3)
    assert nothing_arrived(listener, talker)
    assert len(visit.flows(visit.leaf)) == 6


@inside
@TO_HOSTS
def test_stopped_as_a_test_ends(world: World, host: str) -> None:
    """What a test left waiting at a stopped gateway is judged by the next test's rules, if that has begun by then."""
    with at(world.internet):
        listener, talker = listen(host), listen(host, kind=DATAGRAM)
    visit = Visit(world, rules=[rule_for(host, port_of(listener)), rule_for(host, port_of(talker), DATAGRAM)])
    (client,) = sockets_in(visit.leaf, family_of(host), 1)
    (sender,) = sockets_in(visit.leaf, family_of(host), 1, DATAGRAM)
    client.setblocking(False)
    with stopped(visit, 0.2):
        labelling = start(visit.client.label, visit.leaf.name, "test_next")
        time.sleep(0.05)
        client.connect_ex((host, port_of(listener)))
        sender.sendto(b"late", (host, port_of(talker)))
    labelling.join(5)
    assert select.select([], [client], [], 5)[1]
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
    assert [flow.test for flow in visit.flows(visit.leaf, 2)] == ["test_next"] * 2
    assert nothing_arrived(listener, talker)


@inside
def test_stopped_in_the_middle(world: World) -> None:
    """A connection waits for a stopped gateway, and goes on with it."""
    with at(world.internet):
        listener = listen(HOSTS[0])
    visit = Visit(world, rules=[HOSTS[0]])
    with at(visit.leaf):
        client = dial(HOSTS[0], port_of(listener))
    server = listener.accept()[0]
    exchange(client, server)
    with stopped(visit, 0.3):
        client.sendall(b"meanwhile")
        assert not select.select([server], [], [], 0.2)[0]
    server.settimeout(5)
    assert server.recv(100) == b"meanwhile"
    exchange(client, server)


@inside
@TO_HOSTS
def test_killed(own_world: World, host: str) -> None:
    """With the gateway its connections end, on either side, and no new one is made, nor a datagram let out."""
    with at(own_world.internet):
        listener, talker = listen(host), listen(host, kind=DATAGRAM)
    visit = Visit(own_world, rules=[host, f"{host}/udp"])
    with at(visit.leaf):
        client, sender = dial(host, port_of(listener)), dial(host, port_of(talker), DATAGRAM)
    server = listener.accept()[0]
    exchange(client, server)
    sender.send(b"one")
    assert talker.recv(100) == b"one"
    os.kill(peer_pid(visit.client), signal.SIGKILL)
    for one in (server, client):
        one.settimeout(5)
        with contextlib.suppress(ConnectionError):
            assert one.recv(1) == b""
    with contextlib.suppress(OSError):
        sender.send(b"two")
    with at(visit.leaf):
        for kind in (STREAM, DATAGRAM):
            assert attempt(host, port_of(listener), kind, 0.5).error is not None
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo("api.example.com", 443)
    time.sleep(0.1)
    assert nothing_arrived(listener, talker)


@contextlib.contextmanager
def descriptors(gateway: int, spare: int) -> Iterator[None]:
    """Let the gateway open only so many more descriptors."""
    count = max(map(int, os.listdir(f"/proc/{gateway}/fd"))) + 1
    before = resource.prlimit(gateway, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway, resource.RLIMIT_NOFILE, (count + spare, before[1]))
    try:
        yield
    finally:
        resource.prlimit(gateway, resource.RLIMIT_NOFILE, before)


@inside
def test_out_of_descriptors(world: World) -> None:
    """Connections that there are no descriptors for fail in time, others go on, and all is well when there are."""
    name = new_name()
    Zone(world, {name: [HOSTS[0]]})
    with at(world.internet):
        listener = listen(HOSTS[0])
        port, talker = served(HOSTS[0]), served(HOSTS[0], kind=DATAGRAM)
    visit = Visit(world, rules=[HOSTS[0], f"{HOSTS[0]}/udp", name])
    with at(visit.leaf):
        client = dial(HOSTS[0], port_of(listener))
    server = listener.accept()[0]
    exchange(client, server)
    gateway = peer_pid(visit.client)
    for spare in (-10, 0, 1, 2, 5):
        with descriptors(gateway, spare):
            held = sockets_in(visit.leaf, socket.AF_INET, 12)
            outcomes = [outcome(one, port) for one in held]
            assert {"failed"} <= set(outcomes) <= {"failed", "answered"}
            if spare < 1:
                with at(visit.leaf):
                    assert attempt(HOSTS[0], talker, DATAGRAM, 1).error is not None
                    with pytest.raises(socket.gaierror):
                        socket.getaddrinfo(new_name(1), 80)
            exchange(client, server)
            for one in held:
                one.close()
        wait_until(lambda: sum(flow.protocol == "tcp" and flow.duration is None for flow in flows(visit)) == 1, 12)
        with at(visit.leaf):
            assert attempt(HOSTS[0], port).error is None
            assert attempt(HOSTS[0], talker, DATAGRAM).error is None
            assert attempt(address_of(visit.leaf, name), port).error is None
    exchange(client, server)
    with at(lease(visit, [HOSTS[0]])):
        assert attempt(HOSTS[0], port).error is None


@inside
def test_out_of_descriptors_for_a_leaf(world: World) -> None:
    """A leaf that cannot be made is an error; the next one can, and all goes on in the right place meanwhile."""
    with at(world.internet):
        talker = served(HOSTS[0], kind=DATAGRAM)
    visit = Visit(world, rules=[f"{HOSTS[0]}/udp"])
    short = descriptors(peer_pid(visit.client), -10)
    with short, pytest.raises((NetnsError, OSError), match=r"open files|descriptors"):
        for _ in range(50):  # some have been made ahead of need, and there are free descriptors below the limit
            lease(visit)
    with at(visit.leaf):
        assert attempt(HOSTS[0], talker, DATAGRAM).error is None
    with at(lease(visit, [f"{HOSTS[0]}/udp"])):
        assert attempt(HOSTS[0], talker, DATAGRAM).error is None


def flows(visit: Visit) -> list[Flow]:
    """Return what was tried so far."""
    return visit.client.flows(visit.leaf.name)


def outcome(client: socket.socket, port: int) -> str:
    """Connect from the leaf and say something; return what came of it."""
    client.settimeout(1)
    try:
        client.connect((HOSTS[0], port))
        client.sendall(b"x")
        return "answered" if client.recv(1) == b"x" else "ended"
    except TimeoutError:
        return "hung"
    except OSError:
        return "failed"

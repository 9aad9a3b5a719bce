"""What a test does in bulk: nothing that is forbidden gets through on the way, and its neighbours are served."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import socket
import time
from pathlib import Path

import dns.message
import pytest
from attacks import HERE, HERE6, THERE, Siege, deafen
from packets import TCP, UDP, datagram, packed, segment, send
from traffic import DATAGRAM, STREAM, attempt, dial, echo, listen, opened, port_of
from worlds import World, at, inside, nothing_arrived, peer_pid, wait_until
from zone import Zone

from pytest_netns import addressing

GATEWAY = str(addressing.GATEWAY)
SOON = 5.0  # seconds, for a neighbour on a machine under load


class SlowZone(Zone):
    """A zone of which nobody answers for some names."""

    @property
    def silent(self) -> bool:
        """Whether the name that was just asked for is one of them."""
        return bool(self.asked) and self.asked[-1][0].startswith("slow")

    @silent.setter
    def silent(self, value: bool) -> None:
        del value


def _have_many_descriptors() -> None:
    """Have this process hold as many sockets as it may, be they a client's or a server's."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _siege_of_few_descriptors(world: World) -> Siege:
    """Begin a siege of a gateway that may open a thousand files, by a process that may open more."""
    _have_many_descriptors()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1_000, 1_000))
        with contextlib.suppress(BaseException):
            client = world.connect()  # which starts it
            os.write(writer, b"x")
            time.sleep(20)
            client.close()
        os._exit(0)
    os.close(writer)
    assert os.read(reader, 1)
    zone = Zone(world, {"other.example.org": [THERE]})
    siege = Siege(world, zone=zone)
    siege.client.allow(siege.leaf.name, [f"[{HERE6}]:{siege.port}"])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return siege


def _descriptors(siege: Siege) -> int:
    return len(os.listdir(f"/proc/{peer_pid(siege.visit.client)}/fd"))


def _memory(siege: Siege) -> int:
    """Return how many megabytes the gateway takes."""
    fields = Path(f"/proc/{peer_pid(siege.visit.client)}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * resource.getpagesize() >> 20


def _neighbour_is_served(siege: Siege, kind: int = STREAM) -> None:
    """See that a neighbour reaches what it may within some seconds."""
    with at(siege.world.internet):
        echo(server := listen(HERE, kind=kind))
    rule = f"{HERE}:{port_of(server)}" + ("" if kind == STREAM else "/udp")
    siege.neighbour.client.allow(siege.neighbour.leaf.name, [rule])
    siege.known.append((TCP if kind == STREAM else UDP, packed(HERE), port_of(server)))
    with at(siege.neighbour.leaf):
        for _ in range(3):
            told = attempt(HERE, port_of(server), kind, SOON)
            assert told.error is None
            assert told.seconds < SOON


def _neighbour_is_told(siege: Siege, name: str) -> None:
    """See that a neighbour is told of a name that it may know."""
    siege.neighbour.client.allow(siege.neighbour.leaf.name, [name])
    query = dns.message.make_query(name, "A").to_wire()
    with at(siege.neighbour.leaf), dial(GATEWAY, 53, DATAGRAM) as one:
        one.settimeout(1)
        for _ in range(int(SOON)):  # a query may be lost on its way, and is asked again
            with contextlib.suppress(TimeoutError):
                one.send(query)
                assert dns.message.from_wire(one.recv(512)).answer
                return
    raise AssertionError(f"nobody answers for {name}")


def _neighbour_is_told_over_tcp(siege: Siege, name: str) -> None:
    siege.neighbour.client.allow(siege.neighbour.leaf.name, [name])
    with at(siege.neighbour.leaf), dial(GATEWAY, 53) as asking:
        query = dns.message.make_query(name, "A").to_wire()
        asking.sendall(len(query).to_bytes(2, "big") + query)
        assert len(asking.recv(1000)) > len(query)


@inside
def test_queries(world: World) -> None:
    """Ten thousand queries, few of them allowed, keep no neighbour from its names."""
    name = f"busy{os.getpid()}.example.com"
    siege = Siege(world, f"{name}:{{port}}", Zone(world, {name: [HERE], "other.example.org": [THERE]}))
    queries = [dns.message.make_query(f"n{number}.{name}", "A").to_wire() for number in range(100)]
    queries.append(dns.message.make_query(name, "A").to_wire())
    before = _memory(siege)
    with siege.attack():
        with dial(GATEWAY, 53, DATAGRAM) as one:
            for _ in range(100):
                for query in queries:
                    with contextlib.suppress(OSError):
                        one.send(query)
        _neighbour_is_told(siege, "other.example.org")
    assert siege.zone is not None
    assert {asked for asked, _ in siege.zone.asked} <= {f"{name}.", "other.example.org."}
    assert _memory(siege) < before + 100


@inside
def test_unanswered_names(own_world: World) -> None:
    """A thousand names that nobody answers for keep no neighbour from its own, while they are asked for or after."""
    siege = Siege(own_world, "*.example.com:{port}", SlowZone(own_world, {"other.example.org": [THERE]}))
    with siege.attack():
        with dial(GATEWAY, 53, DATAGRAM) as one:
            for number in range(1_000):
                one.send(dns.message.make_query(f"slow{number}.example.com", "A").to_wire())
        _neighbour_is_told(siege, "other.example.org")
    siege.client.release(siege.leaf.name)
    _neighbour_is_served(siege)


@inside
def test_half_open_connections(own_world: World) -> None:
    """Five thousand connections of which only the first packet comes: neighbours are served, and they are given up."""
    _have_many_descriptors()
    siege = Siege(own_world)
    before = _memory(siege)
    with at(siege.leaf):
        deafen()
        ends = (siege.leaf.ipv4, HERE)
        for start in range(40_000, 45_000, 500):
            send(*(segment(ends, siege.port, source_port=port) for port in range(start, start + 500)))
            siege.settle()
    _neighbour_is_served(siege)
    assert _memory(siege) < before + 100
    siege.client.release(siege.leaf.name)
    wait_until(lambda: _descriptors(siege) < 200, 15)


@inside
def test_connections_that_wait(own_world: World) -> None:
    """More connections than the hub's queue holds, to a server that takes none: neighbours are served at once."""
    siege = Siege(own_world)
    with at(own_world.internet):
        full = opened(HERE)
        full.bind((HERE, 0))
        full.listen(0)
    siege.client.allow(siege.leaf.name, [f"{HERE}:{port_of(full)}"])
    with at(siege.leaf):
        deafen()
        ends = (siege.leaf.ipv4, HERE)
        send(*(segment(ends, port_of(full), source_port=port) for port in range(40_000, 50_000)))
    time.sleep(0.5)
    _neighbour_is_served(siege)
    siege.client.release(siege.leaf.name)
    wait_until(lambda: _descriptors(siege) < 200, 10)


@inside
def test_many_sources(own_world: World) -> None:
    """Datagrams from more ports than there are descriptors for: the leaf gets no more, and neighbours are served."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_000, 1_000))  # the gateway, which starts now, has no more
    siege = Siege(own_world, f"{HERE}:{{port}}/udp")
    with at(siege.leaf):
        ends = (siege.leaf.ipv4, HERE)
        for start in range(40_000, 41_000, 50):
            for port in (siege.port, siege.wanted):
                send(*(datagram(ends, port, b"x", source) for source in range(start, start + 50)))
            siege.settle()
    for kind in (STREAM, DATAGRAM):
        _neighbour_is_served(siege, kind)
    assert nothing_arrived(*siege.listeners)
    assert _descriptors(siege) < 1_000
    siege.client.release(siege.leaf.name)
    wait_until(lambda: _descriptors(siege) < 200, 10)


@inside
@pytest.mark.parametrize("what", ["connections that wait", "clients of the name server"])
def test_share_of_descriptors(own_world: World, what: str) -> None:
    """Neither handshakes that are not completed nor silent queries take all the descriptors that the gateway has."""
    siege = _siege_of_few_descriptors(own_world)
    with at(siege.leaf):
        if what == "connections that wait":
            deafen()
            for start in range(40_000, 41_500, 100):
                for own, other in ((siege.leaf.ipv4, HERE), (siege.leaf.ipv6, HERE6)):
                    send(*(segment((own, other), siege.port, source_port=port) for port in range(start, start + 100)))
                siege.settle()
        else:
            clients = [socket.socket() for _ in range(1_500)]
            for one in clients:
                one.setblocking(False)
                one.connect_ex((GATEWAY, 53))
            poll = select.poll()
            for one in clients:
                poll.register(one, select.POLLIN)
            wait_until(lambda: len(poll.poll(0)) > 1_400, 8)  # most are hung up on
    assert _descriptors(siege) < 600
    _neighbour_is_served(siege)
    _neighbour_is_told(siege, "other.example.org")


@inside
def test_half_open_clients_of_the_name_server(world: World) -> None:
    """A thousand clients that begin to connect to the name server, and no more, keep nobody else away."""
    siege = Siege(world, zone=Zone(world, {"other.example.org": [THERE]}))
    with siege.attack():
        deafen()
        ends = (siege.leaf.ipv4, GATEWAY)
        send(*(segment(ends, 53, source_port=port) for port in range(40_000, 41_000)))
        _neighbour_is_told_over_tcp(siege, "other.example.org")


@inside
def test_silent_clients_of_the_name_server(world: World) -> None:
    """Two thousand connections to the name server that say nothing, or one byte of a query, keep nobody else away."""
    _have_many_descriptors()
    siege = Siege(world, zone=Zone(world, {"other.example.org": [THERE]}))
    with siege.attack(), contextlib.ExitStack() as stack:
        for number in range(2_000):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect((GATEWAY, 53))
            if number % 2:
                with contextlib.suppress(OSError):
                    one.send(b"\xff")
        _neighbour_is_told(siege, "other.example.org")
        _neighbour_is_served(siege)
        _neighbour_is_told_over_tcp(siege, "other.example.org")


@inside
def test_blocked_packets(world: World) -> None:
    """A flood of packets that are blocked, each of which the gateway is asked about, delays neighbours but little."""
    siege = Siege(world)
    with siege.attack():
        ends, ports = (siege.leaf.ipv4, THERE), range(20_000, 21_000)
        flood = [make(ends, siege.wanted, source_port=port) for make in (segment, datagram) for port in ports]
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                until = time.monotonic() + 0.5
                while time.monotonic() < until:
                    send(*flood)
            os._exit(0)
        time.sleep(0.05)
        _neighbour_is_served(siege)
        os.waitpid(child, 0)
    siege.still_served()

"""What a test tries against its neighbours: to use what they may reach, to speak to them, and to be taken for them."""

from __future__ import annotations

import contextlib
import itertools
import time

import pytest
from affairs import Affair, errors
from attacks import HERE, HERE6, Siege, poke, processor_seconds
from packets import (
    ACK,
    ICMP,
    ICMPV6,
    MARKER,
    PSH,
    RST,
    SYN,
    TCP,
    datagram,
    eavesdrop,
    heard,
    ip,
    packed,
    segment,
    send,
    tcp,
)
from traffic import DATAGRAM, STREAM, attempt, dial, echo, exchange, listen, opened, port_of, start
from worlds import World, at, inside

from pytest_netns.gateway.client import LeafGrant


@inside
@pytest.mark.parametrize("host", [HERE, HERE6])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_in_the_name_of_a_neighbour(world: World, host: str, kind: int) -> None:
    """Packets with a neighbour's address, ports and all, do not reach the server that it talks to, nor itself."""
    affair = Affair(Siege(world), host, kind)
    siege = affair.siege
    there, back = (affair.own, host), (host, affair.own)
    spoofed = [datagram(there, affair.port, MARKER, affair.client_port), datagram(back, affair.client_port, MARKER)]
    for flags, number in itertools.product((SYN, RST, RST | ACK, ACK, PSH | ACK), range(0, 1 << 32, 1 << 28)):
        for ends, ports in ((there, (affair.port, affair.client_port)), (back, (affair.client_port, affair.port))):
            numbers = (number, number)
            data = MARKER if flags & PSH else b""
            spoofed.append(ip(ends, TCP, tcp(ends, ports[0], flags, data, source_port=ports[1], numbers=numbers)))
    with affair.attacked():
        send(*spoofed, *spoofed)
        own = siege.own(host)
        send(datagram((own, host), affair.port, MARKER, affair.client_port))
        send(segment((own, host), affair.port, SYN, MARKER, affair.client_port))
        with opened(host, kind) as one:
            one.bind((own, affair.client_port))
            one.settimeout(0.1)
            with contextlib.suppress(OSError):
                one.connect((host, affair.port))
                one.send(MARKER)
                assert not one.recv(100)


@inside
def test_while_a_neighbour_is_let_through(world: World) -> None:
    """The moment in which the relay's socket for a neighbour is made, and knows no client yet, is of no use."""
    siege = Siege(world)
    with at(world.internet):
        server = listen(HERE, kind=DATAGRAM)
    siege.neighbour.client.allow(siege.neighbour.leaf.name, [f"{HERE}:{port_of(server)}/udp"])
    flood = [datagram((siege.leaf.ipv4, HERE), port_of(server), MARKER, port) for port in range(40_000, 40_050)]
    with at(siege.leaf):
        going_on = True

        def hammer() -> None:
            while going_on:
                send(*flood)

        hammering = start(hammer)
        with at(siege.neighbour.leaf):
            sockets = [opened(HERE, DATAGRAM) for _ in range(60)]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.sendto(b"neighbour", (HERE, port_of(server)))
            time.sleep(0.005)
        going_on = False
        hammering.join()
    siege.settle()
    server.settimeout(0.2)
    told = []
    with contextlib.suppress(TimeoutError):
        while True:
            told.append(server.recv(100))
    assert set(told) == {b"neighbour"}
    siege.still_served()


@inside
def test_lone_segments_to_other_leaves(own_world: World) -> None:
    """Segments of no connection, to leaves that are none of the sender's, are refused once and are no work for ever."""
    siege = Siege(own_world)
    with siege.attack():
        for flags in (0, ACK, RST, RST | ACK, PSH | ACK, SYN | ACK):
            for leaf in (siege.neighbour.leaf, siege.neighbour.worker, siege.sibling):
                every = ((siege.leaf.ipv4, leaf.ipv4), (siege.leaf.ipv6, leaf.ipv6))
                send(*(segment(ends, siege.wanted, flags) for ends in every))
        time.sleep(0.1)
        before = processor_seconds(siege.visit)
        time.sleep(0.3)
        assert processor_seconds(siege.visit) - before < 0.1
    siege.still_served()


@inside
@pytest.mark.parametrize("version", [4, 6])
def test_forged_error_between_workers(world: World, version: int) -> None:
    """An error about a connection within another worker does not come to its leaves from this one."""
    siege = Siege(world)
    worker, leaf = siege.neighbour.worker, siege.neighbour.leaf
    near, far = (worker.ipv6, leaf.ipv6) if version == 6 else (worker.ipv4, leaf.ipv4)
    with at(worker):
        server = listen(near)
    with at(leaf):
        client = dial(near, port_of(server))
        ear = eavesdrop()
    accepted, _ = server.accept()
    with siege.attack():
        own = siege.own(near)
        client_port = port_of(client)
        sent = ip((far, near), TCP, tcp((far, near), port_of(server), ACK, source_port=client_port))
        answered = ip((near, far), TCP, tcp((near, far), client_port, ACK, source_port=port_of(server)))
        send(*errors((own, far), sent), *errors((own, near), answered), *errors((own, near), sent))
    assert not [packet for packet in heard(ear) if packed(own) in packet]
    exchange(client, accepted)


@inside
def test_neighbours_stay_apart(world: World) -> None:
    """What a neighbour listens on hears nothing of all these packets, not from a sibling of the same worker either."""
    siege = Siege(world)
    leaves: list[LeafGrant] = [siege.neighbour.leaf, siege.neighbour.worker, siege.sibling]
    own = packed(siege.leaf.ipv4), packed(siege.leaf.ipv6)
    ears = []
    for leaf in leaves:
        with at(leaf):
            ears.append(eavesdrop())
    with siege.attack():
        for leaf in leaves:
            for target in (leaf.ipv4, leaf.ipv6):
                ends = (siege.own(target), target)
                send(datagram(ends, 9), segment(ends, 9), segment(ends, 9, ACK), ip(ends, 4, datagram(ends, 9)))
                send(ip(ends, ICMP if "." in target else ICMPV6, b"\x08\0\0\0abcd"))
                poke(target, siege.wanted)
    for ear in ears:
        assert not [packet for packet in heard(ear) if own[0] in packet or own[1] in packet]
    with at(siege.visit.worker):
        echo(served := listen("0.0.0.0"))
    with at(siege.leaf):
        assert attempt(siege.visit.worker.ipv4, port_of(served)).error is None

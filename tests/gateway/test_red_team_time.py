"""What a test leaves behind in order to go on with it when its rules, or its leaf, are gone."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

import dns.message
import pytest
from attacks import (
    ACK,
    HERE,
    HERE6,
    MARKER,
    PSH,
    RST,
    TCP,
    THERE,
    Siege,
    alias_of,
    datagram,
    deafen,
    eavesdrop,
    heard,
    ip,
    segment,
    send,
    take_address,
    tcp,
)
from traffic import DATAGRAM, STREAM, attempt, dial, opened, port_of
from worlds import World, at, inside, nothing_arrived
from zone import Zone

KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
ENDINGS = pytest.mark.parametrize("ending", ["label", "release"])


def _end(siege: Siege, ending: str) -> None:
    """End the test that the leaf serves, and with it what its rules allow."""
    if ending == "label":
        siege.client.label(siege.leaf.name, "test_next")
    else:
        siege.client.release(siege.leaf.name)
    siege.client.flows(siege.sibling.name)
    time.sleep(0.03)
    siege.strangers()
    siege.seen.clear()


def _rule(kind: int, host: str = HERE) -> str:
    return (f"[{host}]" if ":" in host else host) + ":{port}" + ("" if kind == STREAM else "/udp")


def _is_over(siege: Siege, one: socket.socket) -> None:
    """See that nothing which a socket says reaches the server, though it is said."""
    one.settimeout(0.2)
    for _ in range(3):
        with contextlib.suppress(OSError):
            one.send(MARKER)
            assert one.recv(100) != MARKER
    siege.client.flows(siege.sibling.name)
    assert siege.strangers() == []
    assert MARKER not in b"".join(siege.seen)


def _bound_dial(source: str, siege: Siege, port: int = 0) -> socket.socket:
    one = opened(siege.host, siege.kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((source, port, 0, 2) if source.startswith("fe80") else (source, port))
    one.settimeout(0.3)
    one.connect(siege.allowed)
    return one


@inside
@KINDS
@ENDINGS
def test_by_another_source(world: World, kind: int, ending: str) -> None:
    """What was begun from an address that leads back to the leaf, but is not its own, does not outlive the test."""
    siege = Siege(world, _rule(kind))
    alias = alias_of(siege.visit, siege.leaf)
    with at(siege.leaf):
        take_address(alias)
        send(*(datagram((alias, HERE), siege.port), segment((alias, HERE), siege.port)))
        one: socket.socket | None = None
        with contextlib.suppress(OSError):
            one = _bound_dial(alias, siege)
    _end(siege, ending)
    if one is not None:
        _is_over(siege, one)


@inside
def test_alias_of_the_test_before(world: World) -> None:
    """The next test, which has the alias now, cannot go on with what the test before has begun from there."""
    siege = Siege(world, _rule(DATAGRAM))
    alias = alias_of(siege.visit, siege.leaf)
    port = 0
    with at(siege.leaf):
        take_address(alias)
        with contextlib.suppress(OSError), _bound_dial(alias, siege) as one:
            one.send(b"begin")
            port = port_of(one)
    after = siege.client.lease("test_next")
    _end(siege, "release")
    with at(after):
        take_address(alias)
        assert attempt(*siege.allowed, DATAGRAM, 0.5).error is not None
        for source in (alias, after.ipv4):
            with contextlib.suppress(OSError), _bound_dial(source, siege, port) as one:
                _is_over(siege, one)
    assert siege.seen == []


@inside
@KINDS
def test_link_local_source(world: World, kind: int) -> None:
    """A link-local address, which every leaf may have, is no source for what is allowed."""
    siege = Siege(world, _rule(kind, HERE6))
    others = [siege.leaf, siege.neighbour.leaf]
    with siege.attack():
        for leaf in others:
            with at(leaf):
                take_address("fe80::bad", 64)
                send(*(datagram(("fe80::bad", HERE6), siege.port), segment(("fe80::bad", HERE6), siege.port)))
        with contextlib.suppress(OSError), _bound_dial("fe80::bad", siege) as one:
            one.settimeout(0.2)
            one.send(MARKER)
            assert not one.recv(100)
    assert not [packet for packet in siege.seen if MARKER in packet]
    siege.still_served()


@inside
def test_names_that_take_long(world: World) -> None:
    """What waits for its name to be looked up when its test ends is not made any more, and not in its own time."""
    name = f"slow{os.getpid()}.example.com"
    zone = Zone(world, {name: [HERE]})
    sieges = {ending: Siege(world, f"{name}:{{port}}", zone) for ending in ("label", "release")}
    for siege in sieges.values():
        siege.client.allow(siege.leaf.name, [f"{siege.rule}/udp"])
        with at(siege.leaf):
            stand_in = str(socket.getaddrinfo(name, 1, socket.AF_INET, STREAM)[0][4][0])
    time.sleep(2.05)  # the gateway remembers for two seconds
    zone.silent = True
    kept = {ending: _begun(siege, stand_in) for ending, siege in sieges.items()}
    time.sleep(0.1)
    for ending, siege in sieges.items():
        _end(siege, ending)
    zone.silent = False
    time.sleep(1.1)  # the host's resolver asks again after a second
    for ending, siege in sieges.items():
        for one in kept[ending]:
            _is_over(siege, one)
        assert not [packet for packet in siege.seen if packet[9] == TCP]
        assert nothing_arrived(*siege.listeners)


def _begun(siege: Siege, host: str) -> list[socket.socket]:
    """Begin a connection, and an exchange of datagrams, without waiting for what comes of it."""
    with at(siege.leaf):
        kept = [opened(host), opened(host, DATAGRAM)]
    for one in kept:
        one.setblocking(False)
        one.connect_ex((host, siege.port))
    kept[1].send(MARKER)
    return kept


@inside
def test_servers_that_take_long(world: World) -> None:
    """A connection that a full server has not taken when the test ends is never made."""
    sieges = {ending: Siege(world) for ending in ("label", "release")}
    with at(world.internet), opened(HERE) as full:
        full.bind((HERE, 0))
        full.listen(0)
        with at(world.outer):
            fillers = [opened(HERE) for _ in range(2)]
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(full.getsockname())
        time.sleep(0.05)
        kept = {}
        for ending, siege in sieges.items():
            siege.client.allow(siege.leaf.name, [f"{HERE}:{port_of(full)}"])
            with at(siege.leaf):
                one = kept[ending] = opened(HERE)
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        time.sleep(0.1)
        for ending, siege in sieges.items():
            _end(siege, ending)
        full.settimeout(1.5)
        taken = []
        with contextlib.suppress(TimeoutError):
            while True:
                taken.append(full.accept()[0].getpeername())
        assert {port for _, port in taken} == {port_of(filler) for filler in fillers}
    for ending, siege in sieges.items():
        siege.strangers()  # what the fillers said is none's
        siege.seen.clear()
        _is_over(siege, kept[ending])


@inside
def test_label_behind_an_order(world: World) -> None:
    """The end of a test's rules is in force at once, also while the gateway is busy with what was asked before."""
    siege = Siege(world)
    told = []
    for _ in range(15):
        siege.client.label(siege.leaf.name, "test_it", rules=[siege.rule])
        siege.client.order()
        siege.client.label(siege.leaf.name, "test_next")
        with at(siege.leaf):
            told.append(attempt(*siege.allowed).error)
        siege.client.release(siege.client.lease("test_ordered").name)
    assert set(told) == {"EHOSTUNREACH"}


@inside
def test_allowed_and_taken_back(world: World) -> None:
    """A rule that a test was given while it ran ends with it, and so do connections that rest on it."""
    siege = Siege(world)
    siege.client.allow(siege.leaf.name, [f"{HERE}:{siege.wanted}", f"{THERE}:{siege.wanted}/udp"])
    with at(siege.leaf):
        kept = [dial(HERE, siege.wanted), dial(THERE, siege.wanted, DATAGRAM)]
        for one in kept:
            one.send(b"allowed")
    siege.client.label(siege.leaf.name, "test_next", rules=[siege.rule])
    time.sleep(0.05)
    siege.strangers()
    siege.seen.clear()
    siege.listeners = [one for one in siege.listeners if port_of(one) != siege.wanted]
    with siege.attack():
        for one in kept:
            with contextlib.suppress(OSError):
                one.send(MARKER)
        assert attempt(HERE, siege.wanted).error == "EHOSTUNREACH"
        assert attempt(THERE, siege.wanted, DATAGRAM).error == "EHOSTUNREACH"
    siege.still_served()


@inside
@pytest.mark.parametrize("withdrawn", [0, 1])
def test_connection_by_two_rules(world: World, withdrawn: int) -> None:
    """A connection by name to this machine, which takes a rule for the name and one for that, ends with either."""
    name = f"here{os.getpid()}.example.com"
    siege = Siege(world, "localhost:{port}", Zone(world, {name: ["127.0.0.1"]}))
    rules = [siege.rule, f"{name}:{siege.port}"]
    siege.client.label(siege.leaf.name, "test_it", rules=rules)
    with at(siege.leaf):
        one = socket.create_connection((name, siege.port), 5)
    one.sendall(b"x")
    assert one.recv(10) == b"x"
    del rules[withdrawn]
    siege.client.label(siege.leaf.name, "test_next", rules=rules)
    with contextlib.suppress(OSError):
        one.sendall(MARKER)
        assert one.recv(10) == b""


@inside
@pytest.mark.parametrize("completed", [False, True], ids=["half", "whole"])
def test_handshake_by_hand(world: World, completed: bool) -> None:
    """A connection that no kernel of the leaf's knows of, half made or whole, is gone with its test all the same."""
    siege = Siege(world)
    ends = (siege.leaf.ipv4, HERE)

    def say(flags: int, data: bytes, theirs: int) -> bytes:
        return ip(ends, TCP, tcp(ends, siege.port, flags, data, source_port=50_000, numbers=(2, theirs)))

    with at(siege.leaf):
        deafen()
        ear = eavesdrop()
        send(segment(ends, siege.port, source_port=50_000))
        time.sleep(0.1)
        answer = next(
            packet for packet in heard(ear) if packet[0] >> 4 == 4 and packet[9] == TCP and packet[33] == 0x12
        )
        theirs = struct.unpack("!I", answer[24:28])[0] + 1
        if completed:
            send(say(ACK, b"", theirs))
            time.sleep(0.05)
    _end(siege, "label")
    with siege.attack():
        send(say(ACK, b"", theirs), say(PSH | ACK, MARKER, theirs))
        heard(ear)
        send(say(PSH | ACK, MARKER, theirs))
        time.sleep(0.05)
        assert [packet for packet in heard(ear) if packet[0] >> 4 == 4 and packet[9] == TCP and packet[33] & RST]
    assert MARKER not in b"".join(siege.seen)


@inside
def test_leaf_that_was_released(world: World) -> None:
    """Whoever stays in a leaf that was released is told nothing and reaches nobody, by name, address or packet."""
    name = f"late{os.getpid()}.example.com"
    siege = Siege(world, zone=Zone(world, {name: [HERE]}))
    siege.client.allow(siege.leaf.name, [name, f"localhost:{siege.wanted}", f"{HERE}:{siege.port}/udp"])
    with at(siege.leaf):
        kept = [dial(HERE, siege.port), dial(HERE, siege.port, DATAGRAM), opened(HERE), opened(HERE, DATAGRAM)]
        stand_in = str(socket.getaddrinfo(name, 1, socket.AF_INET, STREAM)[0][4][0])
    _end(siege, "release")
    assert siege.zone is not None
    siege.zone.asked.clear()
    with siege.attack():
        for one in kept:
            one.settimeout(0.1)
            with contextlib.suppress(OSError):
                one.send(MARKER)
                assert not one.recv(10)
            with contextlib.suppress(OSError):
                one.connect(siege.allowed)
                one.send(MARKER)
        for host, port in [*siege.targets[::2], siege.allowed, (stand_in, siege.port), ("127.0.0.1", siege.wanted)]:
            assert attempt(host, port, STREAM, 0.02).error is not None
            assert attempt(host, port, DATAGRAM, 0.02).error is not None
        send(*(segment((siege.leaf.ipv4, HERE), siege.port, source_port=port) for port in range(50_000, 50_100)))
        query = dns.message.make_query(name, "A").to_wire()
        with dial(siege.leaf.gateway_ipv4, 53, DATAGRAM) as one, pytest.raises(OSError):
            one.settimeout(0.2)
            one.send(query)
            one.recv(100)
    assert siege.seen == []
    assert siege.zone.asked == []

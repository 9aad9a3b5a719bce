"""What a test leaves behind in order to go on with it when its rules, or its leaf, are gone."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time

import dns.message
import dns.rcode
import pytest
from attacks import HERE, THERE, Siege, deafen
from packets import ACK, MARKER, PSH, RST, TCP, UDP, eavesdrop, heard, ip, packed, segment, send, tcp
from traffic import DATAGRAM, STREAM, attempt, dial, opened, port_of
from worlds import World, at, inside, nothing_arrived
from zone import Zone


@inside
def test_names_that_take_long(world: World) -> None:
    """What waits for its name to be looked up when its test ends is not made any more, and not in its own time."""
    name = f"slow{os.getpid()}.example.com"
    zone = Zone(world, {name: [HERE]})
    sieges = {ending: Siege(world, f"{name}:{{port}}", zone) for ending in ("label", "release")}
    for siege in sieges.values():
        siege.known.append((UDP, packed(HERE), 9))  # by which the witness of the other one counts
        siege.client.allow(siege.leaf.name, [f"{siege.rule}/udp"])
        with at(siege.leaf):
            stand_in = str(socket.getaddrinfo(name, 1, socket.AF_INET, STREAM)[0][4][0])
    time.sleep(1.02)  # the gateway remembers for a second
    zone.silent = True
    kept = {ending: _begun(siege, stand_in) for ending, siege in sieges.items()}
    time.sleep(0.1)
    for ending, siege in sieges.items():
        siege.end(ending)
    zone.silent = False
    time.sleep(1.1)  # the host's resolver asks again after a second
    for ending, siege in sieges.items():
        for one in kept[ending]:
            siege.is_over(one)
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
        full.listen(1)  # of none, some kernels without SYN cookies take nobody
        with at(world.outer):
            fillers = [opened(HERE) for _ in range(3)]
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
            siege.end(ending)
        full.settimeout(1.5)
        taken = []
        with contextlib.suppress(TimeoutError):
            while True:
                taken.append(full.accept()[0].getpeername())
        assert {port for _, port in taken} == {port_of(filler) for filler in fillers}
    for ending, siege in sieges.items():
        siege.strangers()  # what the fillers said is none's
        siege.seen.clear()
        siege.is_over(kept[ending])


@inside
@pytest.mark.parametrize("given", ["from the start", "while it ran"])
def test_datagrams_right_after_the_end(world: World, given: str) -> None:
    """What is said by a socket that was let through, once its test has ended, comes too late, however soon."""
    siege = Siege(world, f"{HERE}:{{port}}/udp")
    siege.client.label(siege.leaf.name, "test_before")
    for _ in range(30):
        if given == "while it ran":
            siege.client.allow(siege.leaf.name, [siege.rule])
        else:
            siege.client.label(siege.leaf.name, "test_it", rules=[siege.rule])
        with at(siege.leaf), dial(*siege.allowed, DATAGRAM) as one:
            one.send(b"in time")
            assert one.recv(100) == b"in time"
            time.sleep(0.01)  # later datagrams do not pass through the gateway's queue
            siege.client.label(siege.leaf.name, "test_next")
            with contextlib.suppress(OSError):
                one.send(MARKER)
        siege.settle()
    siege.strangers()
    assert MARKER not in b"".join(siege.seen)


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
    siege.end("label")
    with siege.attack():
        send(say(ACK, b"", theirs), say(PSH | ACK, MARKER, theirs))
        heard(ear)
        send(say(PSH | ACK, MARKER, theirs))
        time.sleep(0.05)
        assert [packet for packet in heard(ear) if packet[0] >> 4 == 4 and packet[9] == TCP and packet[33] & RST]
    assert MARKER not in b"".join(siege.seen)


@inside
def test_leaf_that_was_released(world: World) -> None:
    """Whoever stays in a leaf that was released is told of nobody and reaches nobody, by name, address or packet."""
    name = f"late{os.getpid()}.example.com"
    siege = Siege(world, zone=Zone(world, {name: [HERE]}))
    siege.client.allow(siege.leaf.name, [name, f"localhost:{siege.wanted}", f"{HERE}:{siege.port}/udp"])
    with at(siege.leaf):
        kept = [dial(HERE, siege.port), dial(HERE, siege.port, DATAGRAM), opened(HERE), opened(HERE, DATAGRAM)]
        stand_in = str(socket.getaddrinfo(name, 1, socket.AF_INET, STREAM)[0][4][0])
    siege.end("release")
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
        with dial(siege.leaf.gateway_ipv4, 53, DATAGRAM) as one:
            one.settimeout(2)
            one.send(query)
            answer = dns.message.from_wire(one.recv(500))
            assert (answer.rcode(), answer.answer) == (dns.rcode.NXDOMAIN, [])
    assert siege.seen == []
    assert siege.zone.asked == []

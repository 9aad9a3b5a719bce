"""What a test that may reach one address and port tries in order to reach another, with packets made by hand."""

from __future__ import annotations

import contextlib
import itertools
import random
import socket
import struct
import time

import pytest
from attacks import (
    ACK,
    CWR,
    ECE,
    FIN,
    HERE,
    HERE6,
    HUB_MAC,
    ICMP,
    ICMPV6,
    LOOPBACK,
    MARKER,
    PSH,
    RST,
    SYN,
    TCP,
    THERE,
    UDP,
    URG,
    Siege,
    datagram,
    eavesdrop,
    extension,
    flush_nftables,
    fragment_header,
    heard,
    icmp,
    icmp6,
    ip,
    packed,
    segment,
    send,
    send_frames,
    tcp,
    udp,
)
from traffic import DATAGRAM, attempt, dial
from worlds import World, at, inside

# none, each odd one or pair, an answer's, a reset's, a Christmas tree's, congestion's, all
FLAGS = [0, FIN, SYN | FIN, SYN | RST, SYN | ACK, ACK, RST, RST | ACK, PSH | ACK, SYN | URG, FIN | PSH | URG]
FLAGS += [SYN | ECE | CWR, 0xFF]


def _ends(siege: Siege, host: str) -> tuple[str, str]:
    return siege.own(host), host


@inside
def test_flags(world: World) -> None:
    """Segments with every odd set of flags reach nobody, and their data not the allowed server either."""
    siege = Siege(world)
    with siege.attack():
        for number, flags in enumerate(FLAGS):
            every = [(_ends(siege, host), port) for host, port in [*siege.targets, siege.allowed]]
            send(*(segment(ends, port, flags, MARKER, 50_000 + number) for ends, port in every))
            send(*(segment(ends, port, flags, source_port=siege.port) for ends, port in every))
    assert not any(MARKER in packet for packet in siege.seen)
    siege.still_served()


@inside
def test_data_before_the_connection(world: World) -> None:
    """Data in the packet that opens a connection reaches nobody: not a trap, and not the allowed server."""
    siege = Siege(world)
    with siege.attack():
        flush_nftables()
        send(*(segment(_ends(siege, host), port, SYN, MARKER) for host, port in [*siege.targets, siege.allowed]))
        with socket.socket() as one, contextlib.suppress(OSError):
            one.settimeout(0.2)
            one.sendto(MARKER, 0x20000000, (HERE, siege.wanted))  # MSG_FASTOPEN
        time.sleep(0.1)
    assert not any(MARKER in packet for packet in siege.seen)
    siege.still_served()


@inside
def test_other_ends_of_a_connection(world: World) -> None:
    """An open connection's next segments, with another port or host written over, lead nowhere."""
    siege = Siege(world)
    with siege.attack(), dial(*siege.allowed) as one:
        ear = eavesdrop()
        one.sendall(b"one")
        assert one.recv(10) == b"one"
        last = next(packet for packet in heard(ear) if packet[9] == TCP and packet.endswith(b"one"))
        numbers = struct.unpack("!II", last[24:32])
        numbers = (numbers[1], numbers[0] + 3)
        for host, port in siege.outsiders:
            if ":" not in host:
                ends = _ends(siege, host)
                mine = int(one.getsockname()[1])
                send(ip(ends, TCP, tcp(ends, port, PSH | ACK, MARKER, source_port=mine, numbers=numbers)))
        one.sendall(b"two")
        assert one.recv(10) == b"two"


@inside
def test_simultaneous_open(world: World) -> None:
    """Both ends opening at once, as a firewall may take for an answer, opens nothing."""
    siege = Siege(world)
    with siege.attack():
        flush_nftables()
        for host, port in siege.outsiders:
            ends = _ends(siege, host)
            for flags in (SYN, SYN | ACK, ACK, PSH | ACK):
                send(segment(ends, port, flags, b"" if flags != PSH | ACK else MARKER, source_port=siege.port))
                send(segment((host, ends[0]), siege.port, flags, source_port=port))
    siege.still_served()


@inside
def test_replayed_opening(world: World) -> None:
    """The packet that opened an allowed connection, a hundred times over: one connection is made, and it lives."""
    siege = Siege(world)
    with siege.attack():
        ear = eavesdrop()
        with dial(*siege.allowed) as one:
            own = int(one.getsockname()[1])
            replay = segment(_ends(siege, HERE), siege.port, source_port=own)
            send(*[replay] * 100)
            one.sendall(b"alive")
            assert one.recv(10) == b"alive"
        assert len(heard(ear)) < 300
    siege.settle()
    opened = [flow for flow in siege.client.flows(siege.leaf.name) if flow.verdict == "allowed"]
    assert len(opened) == 1


@inside
def test_overlapping_fragments(world: World) -> None:
    """Fragments that begin as an allowed datagram and write its ports, or its data, over."""
    siege = Siege(world, f"{HERE}:{{port}}/udp")
    with siege.attack():
        ends = _ends(siege, HERE)
        good, bad = (udp(ends, port, MARKER * 8, siege.port) for port in (siege.port, siege.wanted))
        for offset in (0, 1, 2):
            pieces = [(0x2000, good[:24]), (0x2000 | offset, bad[offset * 8 : 24 + offset * 8]), (3, good[24:])]
            for order in itertools.permutations(pieces):
                send(*(ip(ends, UDP, data, fragment=fragment) for fragment, data in order))
    siege.still_served()


@inside
def test_tiny_fragments(world: World) -> None:
    """First fragments without flags or ports, in both families, and one that is alone in its datagram."""
    siege = Siege(world)
    with siege.attack():
        for host, port in siege.targets:
            ends = _ends(siege, host)
            for protocol, whole in ((TCP, tcp(ends, port)), (UDP, udp(ends, port, MARKER * 4))):
                if ":" not in host:
                    first, last = ((0x2000, whole[:8]), (1, whole[8:]))
                    pieces = (first, last, last, first, first)
                    send(*(ip(ends, protocol, data, fragment=fragment) for fragment, data in pieces))
                    continue
                alone = fragment_header(protocol, 0, more=False) + whole
                parted = (
                    fragment_header(60, 0, more=True) + extension(protocol),
                    fragment_header(60, 1, more=False) + whole,
                )
                send(*(ip(ends, 44, data) for data in (alone, *parted)))
    siege.still_served()


@inside
def test_ip_options(world: World) -> None:
    """Options that name a way (source routes, loose and strict, record, time stamp), by the allowed server or to it."""
    siege = Siege(world, f"{HERE}:{{port}}/udp")
    with siege.attack():
        vias = [siege.leaf.gateway_ipv4, siege.visit.worker.ipv4, siege.sibling.ipv4, THERE, "203.0.113.1"]
        for option, via in itertools.product((0x83, 0x89, 0x07, 0x44, 0x94, 0x88), vias):
            options = bytes([option, 11, 4]) + packed(THERE) + packed(via) + b"\0"
            wanted = (siege.allowed, (HERE, siege.wanted), (via, siege.wanted), (via, 53))
            every = [(_ends(siege, host), port) for host, port in wanted if host != siege.visit.worker.ipv4]
            send(*(ip(ends, UDP, udp(ends, port, b"by way"), options=options) for ends, port in every))
            send(*(ip(ends, TCP, tcp(ends, port), options=options) for ends, port in every))
    siege.still_served()


def _chains(ends: tuple[str, str], final: str, following: int) -> list[tuple[int, bytes]]:
    """Return chains of extension headers, each with the number of its first one."""
    route = [bytes([kind, 1]) + bytes(4) + packed(final) for kind in (0, 2, 3, 4, 253)]
    home = b"\xc9\x10" + packed(final)
    chains = [(43, extension(following, body)) for body in route]
    chains += [(60, extension(following, home)), (0, extension(following)), (51, b"%c\4" % following + bytes(22))]
    chains += [
        (44, fragment_header(following, 0, more=False)),
        (135, extension(following)),
        (140, extension(following)),
    ]
    chains.append((60, extension(60) * 30 + extension(following)))
    chains.append((0, extension(43) + extension(60, bytes([0, 0]) + bytes(4)) + extension(0) + extension(following)))
    chains.append((60, extension(following, b"\1\xff" + bytes(257) + b"\1\3\0\0\0")))
    return [(first, chain) for first, chain in chains if chain]


@inside
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["tcp", "udp"])
def test_extension_headers(world: World, protocol: int) -> None:
    """Routing headers by way of the allowed server, another home address, and long chains, hide no other port."""
    siege = Siege(world, f"[{HERE6}]:{{port}}" + ("/udp" if protocol == UDP else ""))
    with siege.attack():
        for host, port in [*siege.targets, siege.allowed]:
            if ":" in host:
                ends = _ends(siege, host)
                transport = tcp(ends, port) if protocol == TCP else udp(ends, port)
                for final in ("2001:db8::1", siege.sibling.ipv6, LOOPBACK[1]):
                    send(*(ip(ends, first, chain + transport) for first, chain in _chains(ends, final, protocol)))
    siege.still_served()


@inside
def test_protocols(world: World) -> None:
    """Tunnels and every other protocol, to the allowed server's address and to others, with a packet inside."""
    siege = Siege(world)
    with siege.attack():
        for host, port in [*siege.targets, siege.allowed]:
            ends = _ends(siege, host)
            head = {47: struct.pack("!HH", 0, 0x86DD if ":" in host else 0x0800), 51: b"\4\4" + bytes(22)}
            bodies = {number: head.get(number, struct.pack("!HH", 40_000, port)) for number in range(256)}
            inner = datagram(ends, port)
            send(*(ip(ends, number, body + inner) for number, body in bodies.items() if number not in {TCP, UDP}))
    siege.still_served()


@inside
def test_other_transports(world: World) -> None:
    """A rule for TCP is none for SCTP, DCCP or UDP-Lite, on the same port."""
    siege = Siege(world)
    dccp, sctp, many, lite = (6, 33), (1, 132), (5, 132), (2, 136)
    with siege.attack():
        attempt(HERE, siege.wanted)
        for kind, target in itertools.product((dccp, sctp, many, lite), (siege.allowed, (HERE, siege.wanted))):
            with contextlib.suppress(OSError), socket.socket(socket.AF_INET, *kind) as one:
                one.settimeout(0.1)
                one.connect(target)
                one.send(MARKER)
    siege.still_served()


@inside
def test_messages_of_control(world: World) -> None:
    """Echoes with data, and every other ICMP message, reach neither the allowed server nor another leaf."""
    siege = Siege(world)
    with siege.attack():
        for host in (HERE, THERE, HERE6, siege.neighbour.leaf.ipv4, siege.sibling.ipv6, "203.0.113.1", *LOOPBACK):
            ends = _ends(siege, host)
            inside_one = datagram((host, siege.own(host)), siege.wanted)
            if ":" not in host:
                kinds = (0, 3, 4, 5, 8, 9, 10, 11, 12, 13, 17, 40, 42)
                send(*(ip(ends, ICMP, icmp(kind, 1, 0, inside_one)) for kind in kinds))
            else:
                kinds6 = (1, 2, 3, 4, 100, 128, 129, 130, 133, 134, 137, 138, 139, 141, 160)
                send(*(ip(ends, ICMPV6, icmp6(ends, kind, 0, 1280, inside_one), hops=255) for kind in kinds6))
    siege.still_served()


@inside
def test_hops(world: World) -> None:
    """Packets that die on their way reach nobody, and open nothing for those that follow."""
    siege = Siege(world)
    with siege.attack():
        for host, port in siege.targets:
            ends = _ends(siege, host)
            dying = [
                (hops, *one) for hops in (0, 1, 2, 255) for one in ((TCP, tcp(ends, port)), (UDP, udp(ends, port)))
            ]
            send(*(ip(ends, protocol, body, hops=hops) for hops, protocol, body in dying))
            send(segment(ends, port), datagram(ends, port))
    siege.still_served()


@inside
def test_groups(world: World) -> None:
    """What is sent to all, to groups and to anycast addresses, as service discovery does, stays in the leaf."""
    siege = Siege(world, f"{HERE}:{{port}}/udp")
    groups = [("224.0.0.251", 5353), ("224.0.0.252", 5355), ("239.255.255.250", 1900), ("255.255.255.255", 67)]
    groups += [("198.18.255.255", 137), ("203.0.113.255", siege.port), ("198.18.0.0", 9), ("240.0.0.1", 9)]
    groups += [("ff02::fb", 5353), ("ff02::1:3", 5355), ("ff05::c", 1900), ("ff0e::1", siege.port), ("fe80::", 9)]
    with siege.attack():
        for host, port in groups:
            for wanted in (port, siege.port, siege.wanted):
                send(datagram(_ends(siege, host), wanted), segment(_ends(siege, host), wanted))
                send(datagram(_ends(siege, host), wanted), mac=b"\xff" * 6)
        with socket.socket(type=DATAGRAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            for host, port in groups[:8]:
                with contextlib.suppress(OSError):
                    one.sendto(MARKER, (host, port))
    siege.still_served()


@inside
def test_frames(world: World) -> None:
    """Frames to everybody, to other hardware addresses, with tags and of other types, carry no packet out."""
    siege = Siege(world)
    own = bytes.fromhex("0242") + packed(siege.leaf.ipv4)
    macs = [b"\xff" * 6, HUB_MAC, b"\x01\x00\x5e\0\0\xfb", b"\x33\x33\0\0\0\1", own]
    macs += [b"\x02\x42" + packed(leaf.ipv4) for leaf in (siege.sibling, siege.neighbour.leaf, siege.neighbour.worker)]
    with siege.attack():
        for host, port in siege.targets:
            packet = datagram(_ends(siege, host), port)
            kind = struct.pack("!H", 0x86DD if ":" in host else 0x0800)
            tags = [
                b"",
                *map(bytes.fromhex, ("81000000", "81000007", "88a8000181000001", "884700010140", "88641100000000")),
            ]
            heads = itertools.product(macs, (own, HUB_MAC, macs[5]), tags)
            send_frames(*(mac + source + tag + kind + packet for mac, source, tag in heads))
    siege.still_served()


@inside
def test_noise(world: World) -> None:
    """Thousands of packets with random bytes here and there reach nobody, and do not upset the gateway."""
    siege = Siege(world)
    chance = random.Random(7)
    with siege.attack():
        samples = [datagram(_ends(siege, host), port) for host, port in siege.targets]
        samples += [segment(_ends(siege, host), port) for host, port in siege.targets]
        samples += [ip(_ends(siege, HERE6), first, chain) for first, chain in _chains(("::", "::"), HERE6, TCP)]
        send(*(_spoilt(chance.choice(samples), chance) for _ in range(3_000)))
    siege.still_served()
    with at(siege.neighbour.leaf):
        assert attempt(HERE, siege.wanted).error is None


def _spoilt(packet: bytes, chance: random.Random) -> bytes:
    """Change some bytes, but not to the allowed server's port, and leave the kind of packet as it is."""
    changed = bytearray(packet)
    for _ in range(chance.randrange(1, 6)):
        changed[chance.randrange(1, len(packet))] = chance.randrange(256)
    return bytes(changed)

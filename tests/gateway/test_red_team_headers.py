"""What a test that may reach one address and port tries in order to reach another, by what stands before the ports."""

from __future__ import annotations

import itertools
import random
import struct

import pytest
from attacks import HERE, HERE6, LOOPBACK, THERE, Siege
from packets import MARKER, TCP, UDP, datagram, extension, fragment_header, ip, packed, segment, send, tcp, udp
from traffic import attempt
from worlds import World, at, inside


def _ends(siege: Siege, host: str) -> tuple[str, str]:
    return siege.own(host), host


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

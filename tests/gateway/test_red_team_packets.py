"""What a test that may reach one address and port tries in order to reach another, with packets made by hand."""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import time

from attacks import HERE, HERE6, LOOPBACK, THERE, Siege, flush_nftables
from packets import (
    ACK,
    CWR,
    ECE,
    FIN,
    HUB_MAC,
    ICMP,
    ICMPV6,
    MARKER,
    PSH,
    RST,
    SYN,
    TCP,
    URG,
    datagram,
    eavesdrop,
    heard,
    icmp,
    icmp6,
    ip,
    packed,
    segment,
    send,
    send_frames,
    tcp,
)
from traffic import DATAGRAM, attempt, dial
from worlds import World, inside

from pytest_netns.kernel import privilege

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
                send(
                    segment(ends, port, flags, b"" if flags != PSH | ACK else MARKER, source_port=siege.port),
                    segment((host, ends[0]), siege.port, flags, source_port=port),
                )
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
def test_offloaded_segments(world: World) -> None:
    """Segments that ask the hub's kernel to cut them up, as a virtual machine's may, are no way past it."""
    siege = Siege(world)
    with siege.attack():
        with privilege.raised():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            wire.setsockopt(263, 15, struct.pack("i", 1))  # SOL_PACKET, PACKET_VNET_HDR
        own = bytes.fromhex("0242") + packed(siege.leaf.ipv4)
        for host, port in [*siege.targets, siege.allowed]:
            kind, start, offload = (0x86DD, 40, 4) if ":" in host else (0x0800, 20, 1)
            for flags in (SYN, ACK, PSH | ACK):
                packet = segment(_ends(siege, host), port, flags, MARKER * 700)
                head = struct.pack("=BBHHHH", 1, offload, 14 + start + 20, 1400, 14 + start, 16)
                with contextlib.suppress(OSError):
                    wire.sendto(head + HUB_MAC + own + struct.pack("!H", kind) + packet, ("eth0", 0))
        attempt(HERE, siege.wanted)
    assert MARKER not in b"".join(siege.seen)
    siege.still_served()

"""What attacks from a leaf need: packets made by hand, and a leaf that may reach one thing with traps at all others."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import random
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from traffic import DATAGRAM, STREAM, attempt, echo, listen, opened
from worlds import (
    INTERNET,
    INTERNET6,
    OUTER,
    OUTER6,
    Place,
    Visit,
    Witness,
    World,
    at,
    nothing_arrived,
    peer_pid,
    sent_packets,
)
from zone import Zone

from pytest_netns import addressing
from pytest_netns.errors import KernelError
from pytest_netns.gateway.client import LeafGrant
from pytest_netns.kernel import links, nft, nft_table, privilege
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from pytest_netns.kernel.nft_table import Chain, Table

ETH0 = 2
HERE, HERE6 = str(INTERNET), str(INTERNET6)  # where what is allowed is, and more that is not
OUTSIDE = (str(OUTER), str(OUTER6))  # the host that the gateway runs on
LOOPBACK = (str(addressing.HOST_LOOPBACK), str(addressing.HOST_LOOPBACK6))  # what its loopback is known by
THERE = "203.0.113.6"  # another address of the same host
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
MARKER = b"attack"
HUB_MAC = bytes.fromhex(addressing.mac(addressing.GATEWAY).replace(":", ""))
_PACKET_OUTGOING = 4


def packed(address: str) -> bytes:
    """Return an address as it stands in a packet."""
    return ipaddress.ip_address(address).packed


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _summed(ends: tuple[str, str], protocol: int, segment: bytes, at_byte: int) -> bytes:
    pseudo = packed(ends[0]) + packed(ends[1]) + struct.pack("!II", len(segment), protocol)
    total = struct.pack("!H", checksum(pseudo + segment))
    return segment[:at_byte] + total + segment[at_byte + 2 :]


def udp(ends: tuple[str, str], port: int, data: bytes = MARKER, source_port: int = 40_000) -> bytes:
    """Return a UDP datagram between two addresses, without its IP header."""
    return _summed(ends, UDP, struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data, 6)


def tcp(
    ends: tuple[str, str],
    port: int,
    flags: int = SYN,
    data: bytes = b"",
    *,
    source_port: int = 40_001,
    numbers: tuple[int, int] = (1, 0),
) -> bytes:
    """Return a TCP segment without its IP header; ``numbers`` are those of sequence and acknowledgement."""
    head = struct.pack("!HHIIBBHHH", source_port, port, *numbers, 0x50, flags, 65535, 0, 0)
    return _summed(ends, TCP, head + data, 16)


def icmp(kind: int, code: int, rest: int, quoted: bytes) -> bytes:
    """Return an ICMP message."""
    body = struct.pack("!BBHI", kind, code, 0, rest) + quoted
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def icmp6(ends: tuple[str, str], kind: int, code: int, rest: int, quoted: bytes) -> bytes:
    """Return an ICMPv6 message."""
    return _summed(ends, ICMPV6, struct.pack("!BBHI", kind, code, 0, rest) + quoted, 2)


def ip(
    ends: tuple[str, str], protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0, hops: int = 64
) -> bytes:
    """Return an IP packet; IPv4's ``fragment`` are the flags and the offset in units of eight bytes."""
    one, other = packed(ends[0]), packed(ends[1])
    if len(one) == 16:
        return struct.pack("!IHBB", 6 << 28, len(payload), protocol, hops) + one + other + payload
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, words * 4 + len(payload), 7, fragment, hops, protocol, 0)
    head += one + other + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def datagram(ends: tuple[str, str], port: int, data: bytes = MARKER, source_port: int = 40_000) -> bytes:
    """Return a UDP datagram with its IP header."""
    return ip(ends, UDP, udp(ends, port, data, source_port))


def segment(ends: tuple[str, str], port: int, flags: int = SYN, data: bytes = b"", source_port: int = 40_001) -> bytes:
    """Return a TCP segment with its IP header."""
    return ip(ends, TCP, tcp(ends, port, flags, data, source_port=source_port))


def extension(following: int, body: bytes = b"\1\4\0\0\0\0") -> bytes:
    """Return an IPv6 extension header; its body is padding unless given."""
    body += bytes(-(len(body) + 2) % 8)
    return bytes([following, (len(body) + 2) // 8 - 1]) + body


def fragment_header(following: int, offset: int, *, more: bool) -> bytes:
    """Return an IPv6 fragment header; the offset is in units of eight bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | int(more), 7)


def send(*packets: bytes, mac: bytes = HUB_MAC) -> None:
    """Put packets on the leaf's wire past its own routing and filter."""
    with privilege.raised():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    with wire:
        for packet in packets:
            kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
            wire.sendto(packet, ("eth0", kind, 0, 0, mac))


def send_frames(*frames: bytes) -> None:
    """Put whole Ethernet frames on the leaf's wire."""
    with privilege.raised():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with wire:
        for frame in frames:
            wire.sendto(frame, ("eth0", 0))


def eavesdrop() -> socket.socket:
    """Open a socket that hears the packets which come in by the leaf's wire."""
    with privilege.raised():
        ear = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        ear.bind(("eth0", 3))
    ear.setblocking(False)
    return ear


def heard(ear: socket.socket) -> list[bytes]:
    """Return what has come in meanwhile."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, (_, _, kind, *_) = ear.recvfrom(65536)
            if kind != _PACKET_OUTGOING:
                found.append(packet)
    return found


def request(*messages: bytes, protocol: int = NETLINK_ROUTE) -> None:
    """Change the configuration of the leaf that we are in."""
    with privilege.raised():
        NetlinkSocket(protocol).request(b"".join(messages), "attack")


def take_address(address: str, length: int | None = None) -> None:
    """Give the leaf that we are in one more address."""
    one = ipaddress.ip_address(address)
    with contextlib.suppress(KernelError):  # it has it already
        request(links.add_address(ETH0, one, one.max_prefixlen if length is None else length))


def flush_nftables() -> None:
    """Remove every table of the leaf that we are in."""
    # NFT_MSG_DELTABLE for all families, without a name: all of them
    body = struct.pack("=BBH", 0, 0, 0)
    message = struct.pack("=IHHII", 16 + len(body), 10 << 8 | 2, 1, 0, 0) + body
    begin, end = (struct.pack("=IHHIIBB", 20, kind, 1, 0, 0, 0, 0) + struct.pack("!H", 10) for kind in (0x10, 0x11))
    request(begin + message + end, protocol=NETLINK_NETFILTER)


def deafen() -> None:
    """Keep TCP from the kernel of the leaf that we are in, which would reset what it did not begin."""
    chain = Chain("deaf", nft.PREROUTING, -400, [[*nft.l4proto(TCP), nft.DROP]])
    table = Table("deaf", nft.NFPROTO_INET, [chain])
    request(nft_table.transaction(table.encode()), protocol=NETLINK_NETFILTER)


def poke(host: str, port: int, kind: int = STREAM, *options: tuple[int, int, bytes]) -> None:
    """Try to connect, and to say something, without waiting for what comes of it."""
    with opened(host, kind) as one, contextlib.suppress(OSError):
        with privilege.raised():
            for option in options:
                one.setsockopt(*option)
        one.settimeout(0.05)
        one.connect((host, port))
        one.send(MARKER)


def hub_of(visit: Visit) -> Place:
    """Return the hub, which the tests look into but never attack from."""
    tasks = Path(f"/proc/{peer_pid(visit.client)}/task")
    for _ in range(100):  # the thread that lives there may be away, making a leaf
        for task in os.listdir(tasks):
            with privilege.raised():
                found = os.open(tasks / task / "ns/net", os.O_RDONLY)
            with at(place := Place(found, visit.leaf.mnt_fd)):
                if any(name.startswith("leaf") for _, name in socket.if_nameindex()):
                    return place
            os.close(found)
        time.sleep(0.01)
    raise AssertionError("the gateway has no thread in a hub")


def alias_of(visit: Visit, leaf: LeafGrant) -> str:
    """Return the address by which a leaf's loopback is known to its peer."""
    with at(hub_of(visit)):
        rows = Path("/proc/thread-self/net/route").read_text(encoding="ascii").splitlines()[1:]
    routes = [[socket.inet_ntoa(struct.pack("=I", int(field, 16))) for field in row.split()[1:3]] for row in rows]
    return next(destination for destination, gateway in routes if gateway == leaf.ipv4)


def processor_seconds(visit: Visit) -> float:
    """Return how much processor time the gateway has used."""
    fields = Path(f"/proc/{peer_pid(visit.client)}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Siege:
    """A leaf that may reach one thing, an echo on the internet, with a trap at each place that others are reached at.

    Attributes:
        visit: the attacker's.
        leaf: where attacks begin.
        port: what is allowed there; a trap everywhere else.
        wanted: a port that is a trap everywhere, but to the neighbour.
        neighbour: another worker with a test, whose rule is for the port that is wanted.
        seen: every packet that came to the internet by the end of the attack.
        known: what may come there: protocol, address and port.
    """

    def __init__(self, world: World, rule: str = f"{HERE}:{{port}}", zone: Zone | None = None) -> None:
        """Set the traps; ``{port}`` in the rule becomes the allowed port. A ``zone`` may be asked for names."""
        self.world, self.zone = world, zone
        with at(world.internet):
            take_address(THERE)
        self.port, self.wanted = random.Random().sample(range(20_000, 30_000), 2)
        self.kind = DATAGRAM if rule.endswith("/udp") else STREAM
        self.host = "127.0.0.1" if rule.startswith("localhost") else HERE6 if HERE6 in rule else HERE
        with at(world.outer if self.host == "127.0.0.1" else world.internet):
            server = listen(self.host, self.port, self.kind)
        self.rule = rule.format(port=self.port)
        self.visit = Visit(world, rules=[self.rule])
        self.leaf, self.client = self.visit.leaf, self.visit.client
        self.neighbour = Visit(world, "w1", rules=[f"{HERE}:{self.wanted}", f"{HERE}:{self.wanted}/udp"])
        self.sibling = self.client.lease("test_next")
        self.client.activate(self.leaf.name)
        self.listeners = list(self._traps())
        echo(server)
        self.seen: list[bytes] = []
        self.known = [(TCP if self.kind == STREAM else UDP, packed(self.host), self.port)]
        self.known += [(UDP, packed(HERE), 53)] if zone else []
        self._server, self._witness = server, Witness(world)

    def _traps(self) -> Iterator[socket.socket]:
        leaves = [self.neighbour.worker, self.neighbour.leaf, self.sibling]
        places: list[tuple[LeafGrant | Place, Sequence[str]]] = [
            (self.world.internet, (HERE, THERE, HERE6)),
            (self.world.outer, (*OUTSIDE, "127.0.0.1", "127.0.0.2")),
            *((place, ("0.0.0.0", "::")) for place in leaves),
        ]
        for place, hosts in places:
            with at(place):
                for host in hosts:
                    for port in (self.port, self.wanted):
                        for kind in (STREAM, DATAGRAM):
                            if (host, port, kind) != (self.host, self.port, self.kind):
                                yield _trap(host, port, kind)

    @functools.cached_property
    def targets(self) -> list[tuple[str, int]]:
        """Return every address and port that is a trap, whatever the protocol."""
        leaves = [self.neighbour.worker, self.neighbour.leaf, self.sibling]
        hosts = [HERE, HERE6, THERE, *OUTSIDE, *LOOPBACK]
        hosts += [address for leaf in leaves for address in (leaf.ipv4, leaf.ipv6)]
        known = [(host, self.port) for host in (LOOPBACK if self.host == "127.0.0.1" else (self.host,))]
        return [target for host in hosts for port in (self.port, self.wanted) if (target := (host, port)) not in known]

    @functools.cached_property
    def outsiders(self) -> list[tuple[str, int]]:
        """Return the traps that are in no leaf."""
        return [(host, port) for host, port in self.targets if host in (HERE, HERE6, THERE, *OUTSIDE, *LOOPBACK)]

    @property
    def allowed(self) -> tuple[str, int]:
        """Return where the one thing is that may be reached."""
        return self.host, self.port

    def own(self, host: str) -> str:
        """Return the leaf's address of the same family."""
        return self.leaf.ipv6 if ":" in host else self.leaf.ipv4

    def strangers(self) -> list[bytes]:
        """Return the packets that came to the internet, but for what is allowed and for the questions to a zone."""
        seen = self._witness.seen()
        self.seen += seen
        return [packet for packet in seen if _whereto(packet) not in self.known]

    @contextlib.contextmanager
    def attack(self) -> Iterator[None]:
        """Attack from the leaf: packets leave it, and no trap is touched."""
        with at(self.leaf):
            before = sent_packets()
            yield
            assert sent_packets() > before, "nothing was tried"
        self.settle()
        assert self.strangers() == []
        assert nothing_arrived(*self.listeners)

    def settle(self) -> None:
        """Wait until the gateway has seen what was sent."""
        self.client.flows(self.sibling.name)
        time.sleep(0.03)

    def still_served(self) -> None:
        """See that what is allowed works, here and for the neighbour."""
        with at(self.leaf):
            assert attempt(*self.allowed, self.kind).error is None


def _trap(host: str, port: int, kind: int) -> socket.socket:
    one = opened(host, kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if ":" in host:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind((host, port))
    if kind == STREAM:
        one.listen()
    return one


def _whereto(packet: bytes) -> tuple[int, bytes, int]:
    if packet[0] >> 4 == 6:
        protocol, destination, start = packet[6], packet[24:40], 40
    else:
        protocol, destination, start = packet[9], packet[16:20], (packet[0] & 15) * 4
    return protocol, destination, int.from_bytes(packet[start + 2 : start + 4], "big")

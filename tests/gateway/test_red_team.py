"""What a test that is root in its leaf tries in order to get out: every attempt happens, and none arrives."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import ipaddress
import os
import random
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from traffic import DATAGRAM, STREAM, attempt, listen, opened, port_of
from worlds import (
    HOSTS,
    INTERNET,
    INTERNET6,
    Place,
    Visit,
    Witness,
    World,
    at,
    inside,
    nothing_arrived,
    peer_pid,
    sent_packets,
    wait_until,
)

from pytest_netns import addressing
from pytest_netns.gateway.hub import write_sysctls
from pytest_netns.kernel import links, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket

ETH0 = addressing.ETH0_INDEX
IP_OPTIONS, IP_TRANSPARENT, IPV6_TRANSPARENT = 4, 19, 75
UDP = 17
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])


class Trap:
    """Listeners at every place that a leaf may not reach, and the leaf that an attack begins in."""

    def __init__(self, world: World) -> None:
        """Set the listeners up: on the internet, in the outer network, in other leaves, in the hub."""
        self.visit, self.other = Visit(world), Visit(world, "w1")
        self.sibling = self.visit.client.lease("test_next")
        self.port = random.Random().randrange(20_000, 30_000)
        self.witness = Witness(world)
        self.hub = hub_of(world, self.visit)
        leaves = [Place(leaf.net_fd, leaf.mnt_fd) for leaf in (self.other.worker, self.other.leaf, self.sibling)]
        self.listeners = []
        for place in (world.internet, world.outer, *leaves):
            with at(place):
                for host in ("0.0.0.0", "::"):
                    self.listeners += [self._listen(host, kind) for kind in (STREAM, DATAGRAM)]
        self.leaf = self.visit.leaf

    def _listen(self, host: str, kind: int) -> socket.socket:
        one = opened(host, kind)
        if host == "::":
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind((host, self.port))
        if kind == STREAM:
            one.listen()
        return one

    @property
    def addresses(self) -> list[str]:
        """Return every address that one of the listeners would answer at."""
        leaves = [self.other.worker, self.other.leaf, self.sibling]
        known = [*HOSTS, str(addressing.HOST_LOOPBACK), str(addressing.HOST_LOOPBACK6)]
        known += [address for leaf in leaves for address in (leaf.ipv4, leaf.ipv6)]
        return [*known, *self._aliases()]

    def _aliases(self) -> list[str]:
        """Return every alias of a shared loopback that the hub routes now."""
        found = []
        base = int(addressing.LEAVES[1 << 16])
        with at(self.hub):
            routes = Path("/proc/thread-self/net/route").read_text(encoding="ascii").splitlines()[1:]
        for line in routes:
            offset = socket.ntohl(int(line.split()[1], 16)) - base
            if 0 <= offset < 1 << 16:
                slot, is_test = divmod(offset, 2)
                found += [
                    str(addressing.LEAVES[(1 << 16) + offset]),
                    str(addressing.LEAVES6[(2 + is_test << 64) + slot]),
                ]
        assert len(found) >= 8, "two workers have two aliases each, of either family"
        return found

    @contextlib.contextmanager
    def sprung(self) -> Iterator[None]:
        """Attack from the test's leaf; packets leave it, and nobody gets any."""
        with at(self.leaf):
            before = sent_packets()
            yield
            wait_until(lambda: sent_packets() > before, 2)  # or nothing was tried
        time.sleep(0.03)
        assert self.witness.seen() == []
        assert nothing_arrived(*self.listeners)


def hub_of(world: World, visit: Visit) -> Place:
    """Return the hub, which the tests look into but never attack from."""
    tasks = Path(f"/proc/{peer_pid(visit.client)}/task")
    for _ in range(100):  # the thread that lives there may be away, making a leaf
        for task in os.listdir(tasks):
            with privilege.raised():
                found = os.open(tasks / task / "ns/net", os.O_RDONLY)
            with at(place := Place(found, world.outer.mnt_fd)):
                if any(name.startswith("leaf") for _, name in socket.if_nameindex()):
                    return place
            os.close(found)
        time.sleep(0.01)
    raise AssertionError("the gateway has no thread in a hub")


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def datagram(source: str, destination: str, port: int, *, options: bytes = b"", fragment: int = 0) -> bytes:
    """Return a UDP datagram with its IP header, all checksums right."""
    one, other = (ipaddress.ip_address(address).packed for address in (source, destination))
    payload = b"attack" * 8
    udp = struct.pack("!HHHH", 40_000, port, 8 + len(payload), 0) + payload
    if len(one) == 16:
        pseudo = one + other + struct.pack("!II", len(udp), UDP)
        udp = udp[:6] + struct.pack("!H", checksum(pseudo + udp)) + udp[8:]
        return struct.pack("!IHBB", 6 << 28, len(udp), UDP, 64) + one + other + udp
    words = 5 + len(options) // 4
    head = [0x40 | words, 0, words * 4 + len(udp), 7, fragment, 64, UDP]
    unsummed = struct.pack("!BBHHHBBH", *head, 0) + one + other + options
    return struct.pack("!BBHHHBBH", *head, checksum(unsummed)) + one + other + options + udp


def syn(source: str, destination: str, port: int, data: bytes = b"") -> bytes:
    """Return the packet that opens an IPv4 connection, with data if need be."""
    one, other = (ipaddress.ip_address(address).packed for address in (source, destination))
    tcp = struct.pack("!HHIIBBHHH", 40_001, port, 1, 0, 0x50, 2, 65535, 0, 0) + data
    tcp = tcp[:16] + struct.pack("!H", checksum(one + other + struct.pack("!HH", 6, len(tcp)) + tcp)) + tcp[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp), 7, 0, 64, 6, 0) + one + other
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + tcp


@functools.cache
def hub_mac() -> bytes:
    """Return the hardware address of the hub's end, which is known once the leaf has talked to it."""
    attempt(HOSTS[0], 1)
    for line in Path("/proc/thread-self/net/arp").read_text(encoding="ascii").splitlines()[1:]:
        if line.split()[0] == str(addressing.GATEWAY):
            return bytes.fromhex(line.split()[3].replace(":", ""))
    raise AssertionError("the hub is no neighbour")


def send_frames(*packets: bytes) -> None:
    """Put packets on the wire past the leaf's own routing and filter."""
    mac = hub_mac()
    with privilege.raised():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
    for packet in packets:
        kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        wire.sendto(packet, ("eth0", kind, 0, 0, mac))


def request(*messages: bytes, protocol: int = NETLINK_ROUTE) -> None:
    """Change the leaf's configuration."""
    with privilege.raised():
        NetlinkSocket(protocol).request(b"".join(messages), "attack")


def try_all(trap: Trap) -> None:
    """Try every address in all ordinary ways."""
    for address in trap.addresses:
        for kind in (STREAM, DATAGRAM):
            with opened(address, kind) as one:
                one.setblocking(False)
                with contextlib.suppress(OSError):
                    one.connect((address, trap.port))
                if kind == DATAGRAM:
                    with contextlib.suppress(OSError):
                        one.send(b"attack")
    time.sleep(0.05)


def flush_nftables() -> None:
    """Remove every table."""
    # NFT_MSG_DELTABLE for all families, without a name: all of them
    body = struct.pack("=BBH", 0, 0, 0)
    message = struct.pack("=IHHII", 16 + len(body), 10 << 8 | 2, 1, 0, 0) + body
    begin, end = (struct.pack("=IHHIIBB", 20, kind, 1, 0, 0, 0, 0) + struct.pack("!H", 10) for kind in (0x10, 0x11))
    request(begin + message + end, protocol=NETLINK_NETFILTER)


@inside
def test_the_trap_works(world: World) -> None:
    """From where it is allowed the same listeners are reached."""
    trap = Trap(world)
    with at(world.outer):
        for host in HOSTS:
            assert attempt(host, trap.port).error is None
    with at(trap.other.worker):
        assert attempt(trap.other.leaf.ipv4, trap.port).error is None
    with at(trap.visit.worker):
        assert attempt(trap.sibling.ipv4, trap.port).error is None
    assert len(trap.witness.seen()) > 4
    assert not nothing_arrived(*trap.listeners)


@inside
def test_every_address(world: World) -> None:
    """The internet, the host's loopback, other leaves and every loopback alias, over TCP and UDP."""
    trap = Trap(world)
    # what leads back to the worker's own leaf and to the test itself is no way out
    with trap.sprung():
        try_all(trap)


@inside
def test_without_nftables(world: World) -> None:
    """With the leaf's own ruleset flushed."""
    trap = Trap(world)
    with trap.sprung():
        flush_nftables()
        try_all(trap)


@inside
def test_with_other_routes(world: World) -> None:
    """With routes of the leaf's own making, and the addresses of others on its interface."""
    trap = Trap(world)
    taken = [trap.other.worker.ipv4, trap.other.leaf.ipv6, str(INTERNET), str(addressing.GATEWAY), "10.1.2.3"]
    with trap.sprung():
        addresses = [ipaddress.ip_address(one) for one in taken]
        request(*(links.add_address(ETH0, one, one.max_prefixlen) for one in addresses[:2] + addresses[4:]))
        request(links.add_route(ETH0, INTERNET, replace=True), links.add_route(ETH0, INTERNET6, replace=True))
        try_all(trap)
        for source in (taken[0], taken[4]):
            with opened(source, DATAGRAM) as one:
                one.bind((source, 0))
                for target in (HOSTS[0], trap.sibling.ipv4):
                    with contextlib.suppress(OSError):
                        one.sendto(b"attack", (target, trap.port))


@inside
@pytest.mark.parametrize(
    "source", ["own", "worker", "neighbour", "neighbour's worker", "gateway", "internet", "loopback", "nobody"]
)
def test_spoofed_sources(world: World, source: str) -> None:
    """Packets with somebody else's source address, past the leaf's routing, to all that may not be reached."""
    trap = Trap(world)
    names = {
        "own": (trap.leaf.ipv4, trap.leaf.ipv6),
        "worker": (trap.visit.worker.ipv4, trap.visit.worker.ipv6),
        "neighbour": (trap.other.leaf.ipv4, trap.other.leaf.ipv6),
        "neighbour's worker": (trap.other.worker.ipv4, trap.other.worker.ipv6),
        "gateway": (str(addressing.GATEWAY), str(addressing.GATEWAY6)),
        "internet": HOSTS,
        "loopback": ("127.0.0.1", "::1"),
        "nobody": ("0.0.0.0", "::"),
    }
    with trap.sprung():
        for target in trap.addresses:
            packet = datagram(names[source][":" in target], target, trap.port)
            send_frames(packet)
            if ":" not in target:
                send_frames(syn(names[source][0], target, trap.port))


@inside
def test_tcp_fast_open(world: World) -> None:
    """Data in the packet that opens a connection."""
    trap = Trap(world)
    with trap.sprung():
        send_frames(*(syn(trap.leaf.ipv4, one, trap.port, b"attack") for one in trap.addresses if ":" not in one))
        with opened(HOSTS[0]) as one, contextlib.suppress(OSError):
            one.sendto(b"attack", 0x20000000, (HOSTS[0], trap.port))  # MSG_FASTOPEN


@inside
def test_established_look(world: World) -> None:
    """Segments that look as if they belonged to a connection."""
    trap = Trap(world)
    with trap.sprung():
        for flags in (0x10, 0x12, 0x18, 0x04, 0x11, 0x00, 0x29):
            for target in (HOSTS[0], trap.other.leaf.ipv4, trap.sibling.ipv4):
                packet = bytearray(syn(trap.leaf.ipv4, target, trap.port))
                packet[33] = flags
                packet[36:38] = bytes(2)
                one, other = (ipaddress.ip_address(end).packed for end in (trap.leaf.ipv4, target))
                packet[36:38] = struct.pack("!H", checksum(one + other + struct.pack("!HH", 6, 20) + packet[20:]))
                send_frames(bytes(packet))


@inside
@pytest.mark.parametrize("option", [0x83, 0x89, 0x07, 0x94], ids=["loose", "strict", "record", "alert"])
def test_source_route(world: World, option: int) -> None:
    """Packets that ask to be sent by way of the gateway or of another leaf."""
    trap = Trap(world)
    with trap.sprung():
        for via in (str(addressing.GATEWAY), trap.visit.worker.ipv4, trap.other.leaf.ipv4):
            options = bytes([option, 7, 4]) + ipaddress.ip_address(HOSTS[0]).packed + b"\0"
            for target in (via, HOSTS[0], trap.sibling.ipv4):
                if target != trap.visit.worker.ipv4:
                    send_frames(datagram(trap.leaf.ipv4, target, trap.port, options=options))


@inside
def test_fragments(world: World) -> None:
    """First, later, lone and tiny fragments, and an allowed start that a later one overwrites."""
    trap = Trap(world)
    with trap.sprung():
        for target in (HOSTS[0], trap.other.leaf.ipv4, trap.sibling.ipv4, str(addressing.HOST_LOOPBACK)):
            for fragment in (0x2000, 0x0001, 0x2001, 0x0003, 0x1FFF, 0x4000, 0x8000):
                send_frames(datagram(trap.leaf.ipv4, target, trap.port, fragment=fragment))
            with opened(target, DATAGRAM) as one, contextlib.suppress(OSError):
                one.sendto(bytes(65_000), (target, trap.port))


@inside
def test_forwarding_for_a_namespace_of_its_own(world: World) -> None:
    """A nested namespace behind the leaf, which forwards for it."""
    trap = Trap(world)
    inner_address, near = ipaddress.ip_address("10.9.9.2"), ipaddress.ip_address("10.9.9.1")
    with trap.sprung():
        near_net = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        with privilege.raised():
            write_sysctls({"net/ipv4/ip_forward": "1"})
            near_route = NetlinkSocket(NETLINK_ROUTE)
            syscalls.unshare(syscalls.CLONE_NEWNET)
            route = NetlinkSocket(NETLINK_ROUTE)
            veth = links.add_veth("in0", 105, 1500, peer_name="out1", peer_index=150, peer_netns=near_net, peer_group=0)
            route.request(veth + links.set_up(105) + links.add_address(105, inner_address, 24), "nest")
            near_route.request(links.set_up(150) + links.add_address(150, near, 24), "nest")
            route.request(links.add_route(105, None, near), "nest")
        inner = opened("10.9.9.2", DATAGRAM)
        with privilege.raised():
            syscalls.setns(near_net, syscalls.CLONE_NEWNET)
        targets = [target for target in trap.addresses if ":" not in target]
        before = sent_packets()

        def forwarded() -> bool:  # the new link drops packets until the kernel has noted that it is up
            for target in targets:
                with contextlib.suppress(OSError):
                    inner.sendto(b"attack", (target, trap.port))
            return sent_packets() >= before + 2 * len(targets)

        wait_until(forwarded, 10)


@inside
@KINDS
@pytest.mark.parametrize(
    ("level", "name", "value"),
    [
        (socket.SOL_SOCKET, socket.SO_MARK, struct.pack("i", 1)),
        (socket.SOL_SOCKET, socket.SO_MARK, struct.pack("i", 3)),
        (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0"),
        (socket.SOL_SOCKET, socket.SO_DONTROUTE, struct.pack("i", 1)),
        (socket.SOL_SOCKET, socket.SO_PRIORITY, struct.pack("i", 6)),
        (socket.SOL_IP, IP_TRANSPARENT, struct.pack("i", 1)),
        (socket.SOL_IP, IP_OPTIONS, bytes([0x83, 7, 4, 203, 0, 113, 5, 0])),
        (socket.SOL_IP, socket.IP_TTL, struct.pack("i", 255)),
    ],
    ids=["mark1", "mark3", "device", "dontroute", "priority", "transparent", "options", "ttl"],
)
def test_socket_options(world: World, kind: int, level: int, name: int, value: bytes) -> None:
    """Options that change the way which packets take, or what they carry."""
    trap = Trap(world)
    with trap.sprung():
        attempt(HOSTS[0], 9)  # the option may keep packets from leaving at all
        for target in (HOSTS[0], trap.other.leaf.ipv4, trap.sibling.ipv4, str(addressing.HOST_LOOPBACK)):
            with opened(target, kind) as one:
                with privilege.raised():
                    one.setsockopt(level, name, value)
                    if name == IP_TRANSPARENT:
                        one.bind((trap.other.worker.ipv4, 0))
                one.settimeout(0.05)
                with contextlib.suppress(OSError):
                    one.connect((target, trap.port))
                    one.send(b"attack")


def hear(wire: socket.socket) -> list[bytes]:
    """Return the packets that have come in by the interface meanwhile."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            packet, (_, _, kind, *_) = wire.recvfrom(2000)
            if kind != 4:  # PACKET_OUTGOING
                found.append(packet)
    return found


def is_syn_ack(packet: bytes) -> bool:
    """Tell whether a packet accepts a connection."""
    return packet[9] == 6 and packet[33] == 0x12


@inside
def test_ports_of_the_gateway(world: World) -> None:
    """No port of the gateway's answers but the name service: not the relay's, and at no address of the hub's."""
    trap = Trap(world)
    with at(trap.leaf):
        assert attempt(trap.leaf.gateway_ipv4, 53).error is None
        with privilege.raised():
            answers = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
            answers.bind(("eth0", 0x0800))
        answers.setblocking(False)
        mac = hub_mac()
        with privilege.raised():
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        with at(trap.hub):
            rows = Path("/proc/thread-self/net/tcp").read_text(encoding="ascii").splitlines()[1:]
        listening = {int(row.split()[1].partition(":")[2], 16) for row in rows if row.split()[3] == "0A"}
        assert len(listening) == 2, "the name service and the relay"
        ports = listening | set(range(1, 1024)) | set(random.Random().sample(range(1024, 65536), 2000))
        heard: list[bytes] = []
        for target in (trap.leaf.gateway_ipv4, "127.0.0.1", HOSTS[0]):
            for port in ports:
                wire.sendto(syn(trap.leaf.ipv4, target, port), ("eth0", 0x0800, 0, 0, mac))
                heard += hear(answers)
        time.sleep(0.2)
        heard += hear(answers)
    accepted = {
        (socket.inet_ntoa(one[12:16]), struct.unpack_from("!H", one, 20)[0]) for one in heard if is_syn_ack(one)
    }
    refused = sum(one[9] == 1 for one in heard)
    assert accepted == {(trap.leaf.gateway_ipv4, 53)}
    assert refused > len(ports)


@inside
def test_datagrams_to_the_gateway(world: World) -> None:
    """Datagrams to the hub's other ports are refused at once."""
    visit = Visit(world)
    with at(visit.leaf):
        for port in (1, 67, 123, 546, 5353, 40_000):
            assert attempt(visit.leaf.gateway_ipv4, port, DATAGRAM).error in {"EHOSTUNREACH", "ECONNREFUSED", "EACCES"}


def gateways6(place: Place) -> set[tuple[str, ...]]:
    """Return the IPv6 routes of a namespace that lead by way of somebody, or to the internet."""
    with at(place):
        rows = Path("/proc/thread-self/net/ipv6_route").read_text(encoding="ascii").splitlines()
    routes = [row.split() for row in rows]
    return {(one[0], one[1], one[4], one[9]) for one in routes if one[4].strip("0") or one[0].startswith("20010db8")}


def of_living(trap: Trap, routes: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """Leave out the hub's routes by way of leaves that earlier tests had, or later ones will have."""
    leaves = (trap.visit.worker, trap.leaf, trap.sibling, trap.other.worker, trap.other.leaf)
    living = {ipaddress.ip_address(leaf.ipv6).packed.hex() for leaf in leaves}
    own = addressing.LEAVES6[1 << 64].packed[:8].hex()
    return {route for route in routes if route[2] in living or not route[2].startswith(own)}


@inside
def test_router_advertisement(world: World) -> None:
    """Advertisements and redirects change neither the hub's routes nor another leaf's."""
    trap = Trap(world)
    bystanders = (Place(trap.other.leaf.net_fd, trap.other.leaf.mnt_fd), trap.hub)
    before = [of_living(trap, gateways6(place)) for place in bystanders]
    assert all(before)
    link_local = "fe80::bad"
    one = ipaddress.ip_address(link_local).packed
    with trap.sprung():
        request(links.add_address(ETH0, ipaddress.ip_address(link_local), 64))
        for target in ("ff02::1", "ff02::2", "fe80::1"):
            other = ipaddress.ip_address(target).packed
            prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 9999, 9999, 0) + INTERNET6.packed
            for body in (
                struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 9000, 0, 0) + prefix,
                struct.pack("!BBHI", 137, 0, 0, 0) + one + INTERNET6.packed,
            ):
                pseudo = one + other + struct.pack("!II", len(body), 58)
                message = body[:2] + struct.pack("!H", checksum(pseudo + body)) + body[4:]
                header = struct.pack("!IHBB", 6 << 28, len(message), 58, 255)
                send_frames(header + one + other + message)
        for port in (53, trap.port):
            with opened("fe80::1", DATAGRAM) as sender, contextlib.suppress(OSError):
                sender.sendto(b"attack", ("fe80::1", port, 0, ETH0))
    assert [of_living(trap, gateways6(place)) for place in bystanders] == before


@inside
@pytest.mark.parametrize(
    "target",
    ["::ffff:203.0.113.5", "64:ff9b::203.0.113.5", "2002:cb00:7105::1", "::203.0.113.5", "::ffff:198.19.255.254"],
)
@KINDS
def test_disguised_addresses(world: World, target: str, kind: int) -> None:
    """IPv4 addresses in IPv6 dress."""
    trap = Trap(world)
    with trap.sprung():
        attempt(HOSTS[0], 9)
        attempt(target, trap.port, kind, 0.2)
        send_frames(datagram(trap.leaf.ipv6, target, trap.port))


@inside
def test_host_loopback_alias(world: World) -> None:
    """The alias of the host's loopback refuses a closed leaf, whoever listens there."""
    trap = Trap(world)
    with at(world.outer):
        victims = [listen(host, kind=kind) for host in ("127.0.0.1", "::1") for kind in (STREAM, DATAGRAM)]
    with trap.sprung():
        for alias, some in ((addressing.HOST_LOOPBACK, victims[:2]), (addressing.HOST_LOOPBACK6, victims[2:])):
            for victim in some:
                told = attempt(str(alias), port_of(victim), victim.type)
                assert told.error == "ECONNREFUSED"
    assert nothing_arrived(*victims)


@inside
def test_interface_games(world: World) -> None:
    """Another hardware address, a promiscuous interface, and one that goes down and up."""
    trap = Trap(world)
    with trap.sprung():
        try_all(trap)
        with privilege.raised(), socket.socket(type=DATAGRAM) as control:
            for flags in (0, 1 | 0x100):
                fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"eth0", flags))
        with contextlib.suppress(OSError):
            request(links.add_route(ETH0, None, addressing.GATEWAY))
        try_all(trap)
        attempt(HOSTS[0], trap.port, timeout=2)
        assert sent_packets() > 0

"""What a test that is root in its leaf makes of its end of the wire: tunnels, repaired sockets, other kinds of TCP."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import itertools
import os
import socket
import struct
import time

import dns.message
import pytest
from affairs import Affair
from attacks import ETH0, GATEWAY, HERE, HERE6, OUTSIDE, THERE, Siege, flush_nftables, hub_of, processor_seconds
from packets import HUB_MAC, ICMP, MARKER, TCP, UDP, datagram, eavesdrop, heard, icmp, ip, packed, segment, send, udp
from questions import NamedSiege
from traffic import DATAGRAM, STREAM, attempt, dial, listen, opened, port_of, start
from unshared import in_child
from worlds import World, at, inside, peer_pid

from pytest_netns import addressing
from pytest_netns.kernel import links, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_ROUTE, NLM_F_REQUEST, NetlinkSocket

MPTCP = 262
TCP_REPAIR, TCP_REPAIR_QUEUE, TCP_QUEUE_SEQ = 19, 20, 21
RTM_NEWLINK, IFLA_NET_NS_FD = 16, 28
GRE, IPIP, SIX_IN_FOUR, AH, ESP = 47, 4, 41, 51, 50
VXLAN, GENEVE, TEREDO, WIREGUARD = 4789, 6081, 3544, 51820
SYS_PIDFD_OPEN, SYS_PIDFD_GETFD, SYS_PROCESS_VM_READV = 434, 438, 310


@inside
def test_multipath_tcp(world: World) -> None:
    """A connection of many paths is TCP like any other: what is not listed is refused, what is has one path."""
    siege = Siege(world)
    with siege.attack():
        for host, port in siege.outsiders:
            try:
                one = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, STREAM, MPTCP)
            except OSError:
                pytest.skip("this kernel has no MPTCP")
            with one:
                one.settimeout(1)
                with pytest.raises(OSError):
                    one.connect((host, port))
        with socket.socket(socket.AF_INET, STREAM, MPTCP) as one:
            one.settimeout(5)
            one.connect(siege.allowed)
            one.sendall(b"x")
            assert one.recv(10) == b"x"


@inside
def test_repaired_sockets(world: World) -> None:
    """A socket that was restored to a connection which never was says nothing to anybody, not to the listed one."""
    siege = Siege(world)
    with siege.attack():
        for host, port in (*siege.outsiders, siege.allowed):
            with opened(host) as one, contextlib.suppress(OSError):
                with privilege.raised():
                    one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
                    for queue in (1, 2):
                        one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR_QUEUE, queue)
                        one.setsockopt(socket.IPPROTO_TCP, TCP_QUEUE_SEQ, 1000)
                    one.connect((host, port))
                    one.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 0)
                one.send(MARKER)
        assert MARKER not in b"".join(siege.seen)
    siege.still_served()


@inside
def test_wire_in_another_namespace(world: World) -> None:
    """Moved into a namespace of the test's making, the leaf's end of the wire is still the leaf's for the hub."""
    siege = Siege(world)
    with siege.attack():
        attempt(HERE, siege.wanted)
        with privilege.raised():
            here = NetlinkSocket(NETLINK_ROUTE)
            syscalls.unshare(syscalls.CLONE_NEWNET)
            nested = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
            body = struct.pack("=BxHiII", 0, 0, ETH0, 0, 0) + struct.pack("=HHi", 8, IFLA_NET_NS_FD, nested)
            here.request(struct.pack("=IHHII", 16 + len(body), RTM_NEWLINK, NLM_F_REQUEST | 4, 1, 0) + body, "move")
            route = NetlinkSocket(NETLINK_ROUTE)
            stolen = [siege.leaf.ipv4, siege.neighbour.leaf.ipv4, siege.sibling.ipv4]
            addresses = b"".join(links.add_address(ETH0, ipaddress.ip_address(one), 16) for one in stolen)
            route.request(links.set_up(ETH0) + addresses, "dress up")
            route.request(links.add_neighbour(ETH0, addressing.GATEWAY, addressing.mac(addressing.GATEWAY)), "know")
            route.request(links.add_route(ETH0, None, addressing.GATEWAY), "lead out")
        for source, kind in itertools.product(stolen, (STREAM, DATAGRAM)):
            with opened(HERE, kind) as one, contextlib.suppress(OSError):
                one.settimeout(0.05)
                one.bind((source, 0))
                one.connect((HERE, siege.wanted))
                one.send(MARKER)
        with dial(*siege.allowed) as one:
            one.sendall(b"x")
            assert one.recv(10) == b"x"


@inside
def test_tunnels(world: World) -> None:
    """A packet for a trap within a packet for the listed host, the hub or the host is unwrapped by nobody."""
    siege = Siege(world, f"{HERE}:{{port}}/udp")
    outer = (HERE, THERE, GATEWAY, OUTSIDE[0], siege.neighbour.leaf.ipv4)
    with siege.attack():
        attempt(HERE, siege.wanted)
        for host in outer:
            ends = (siege.leaf.ipv4, host)
            inner = [make((one, THERE), siege.wanted) for make in (datagram, segment) for one in ends]
            inner6 = datagram((siege.leaf.ipv6, HERE6), siege.wanted)
            frame = HUB_MAC + HUB_MAC + b"\x08\x00" + inner[0]
            for packet in inner:
                send(ip(ends, IPIP, packet), ip(ends, GRE, b"\0\0\x08\0" + packet))
                send(ip(ends, AH, bytes([IPIP, 4, 0, 0]) + bytes(20) + packet), ip(ends, ESP, bytes(8) + packet))
                send(ip(ends, UDP, udp(ends, TEREDO, packet)), ip(ends, UDP, udp(ends, WIREGUARD, packet)))
            send(ip(ends, SIX_IN_FOUR, inner6), ip(ends, GRE, b"\0\0\x86\xdd" + inner6))
            send(ip(ends, UDP, udp(ends, VXLAN, b"\x08\0\0\0\0\0\1\0" + frame)))
            send(ip(ends, UDP, udp(ends, GENEVE, b"\0\0\x65\x58\0\0\1\0" + frame)))
    siege.still_served()


@inside
def test_redirects(world: World) -> None:
    """The hub, told that the leaf is a better way to a neighbour or its server, sends it none of their packets."""
    affair = Affair(Siege(world), HERE, STREAM)
    siege = affair.siege
    with affair.attacked():
        ear = eavesdrop()
        for about in (siege.neighbour.leaf.ipv4, HERE, siege.sibling.ipv4):
            quoted = segment((GATEWAY, about), affair.port)[:28]
            for code in range(4):
                way = int.from_bytes(packed(siege.leaf.ipv4), "big")
                for source in (siege.leaf.ipv4, GATEWAY):
                    send(ip((source, GATEWAY), ICMP, icmp(5, code, way, quoted)))
        affair.goes_on()
        assert b"question" not in b"".join(heard(ear))
    affair.goes_on()


@inside
def test_questions_in_a_neighbours_name(world: World) -> None:
    """A question that seems to come from a leaf which may ask it leaves nowhere, and nobody is told the answer."""
    siege = NamedSiege(world)
    rules = ["secret.example.com", "*.tunnel.example.com"]
    for visit, leaf in ((siege.neighbour, siege.neighbour.leaf), (siege.visit, siege.sibling)):
        visit.client.allow(leaf.name, rules)
    with siege.attack():
        ear = eavesdrop()
        flush_nftables()
        for source in (siege.neighbour.leaf.ipv4, siege.sibling.ipv4, siege.neighbour.worker.ipv4, GATEWAY, HERE):
            for name in ("secret.example.com", "told.tunnel.example.com"):
                send(datagram((source, GATEWAY), 53, dns.message.make_query(name, "A").to_wire()))
            send(segment((source, GATEWAY), 53))
        time.sleep(0.1)
        assert b"secret" not in b"".join(heard(ear))
    assert not {name for name in siege.asked if "secret" in name or "tunnel" in name}
    siege.still_served()


@inside
@pytest.mark.parametrize("place", [0, 5, 60, 100, -1])
def test_urgent_part_of_a_hello(world: World, place: int) -> None:
    """A byte that a server may read in its place or not is no way to show it another name than the gateway."""
    siege = NamedSiege(world)
    name = b"secret.example.com"
    names = struct.pack("!HHHBH", 0, len(name) + 5, len(name) + 3, 0, len(name)) + name
    body = b"\3\3" + bytes(32) + b"\0\0\2\x13\1\1\0" + struct.pack("!H", len(names)) + names
    hello = b"\x16\3\1" + struct.pack("!H", len(body) + 4) + b"\1" + struct.pack("!I", len(body))[1:] + body
    with siege.attack():
        with socket.create_connection(("api.example.com", siege.port), 5) as one:
            one.settimeout(1)
            with contextlib.suppress(OSError):
                if place > 0:
                    one.sendall(hello[:place])
                one.send(b"!", socket.MSG_OOB)
                one.sendall(hello[max(place, 0) :] if place >= 0 else hello)
                assert one.recv(100) == b""
        assert name not in b"".join(siege.seen)
    siege.strangers()
    assert name not in b"".join(siege.seen)
    assert siege.client.flows(siege.leaf.name)[-1].verdict == "blocked"
    siege.still_served()


@inside
def test_urgent_bytes_without_end(world: World) -> None:
    """A connection full of urgent bytes, whose reader reads none, keeps the gateway from nothing and costs no time."""
    siege = Siege(world)
    with at(world.internet):
        silent = listen(HERE)
    siege.client.allow(siege.leaf.name, [f"{HERE}:{port_of(silent)}"])
    siege.known.append((TCP, packed(HERE), port_of(silent)))
    with at(siege.leaf), dial(HERE, port_of(silent)) as one:
        accepted = silent.accept()[0]
        one.settimeout(0.2)
        with contextlib.suppress(TimeoutError):
            while True:
                one.sendall(bytes(100_000))
                one.send(b"!", socket.MSG_OOB)
        before = processor_seconds(siege.visit)
        time.sleep(0.3)
        assert processor_seconds(siege.visit) - before < 0.2
        siege.still_served()
        start(lambda: [None for _ in iter(lambda: accepted.recv(1 << 20), b"")])
        one.settimeout(5)
        one.sendall(bytes(1 << 20))


@inside
def test_gateway_by_its_process(world: World) -> None:
    """A program without rights, of the same user, takes no socket, memory or namespace from the gateway."""
    siege = Siege(world)
    gateway, hub = peer_pid(siege.client), hub_of(siege.visit)
    libc = ctypes.CDLL(None, use_errno=True)

    def try_it() -> None:
        for what in ("fd/0", "mem", "ns/net", "ns/user", "root/etc/hosts", "environ", f"task/{gateway}/mem"):
            with pytest.raises(PermissionError):
                os.close(os.open(f"/proc/{gateway}/{what}", os.O_RDONLY))
        process = libc.syscall(SYS_PIDFD_OPEN, gateway, 0)
        assert process >= 0
        for number in range(30):
            assert libc.syscall(SYS_PIDFD_GETFD, process, number, 0) == -1
        for namespace in (process, hub.net_fd, siege.neighbour.leaf.net_fd, world.outer.net_fd):
            with pytest.raises(OSError):
                syscalls.setns(namespace, syscalls.CLONE_NEWNET)
        piece = ctypes.create_string_buffer(8)
        local = struct.pack("QQ", ctypes.addressof(piece), 8)
        assert libc.syscall(SYS_PROCESS_VM_READV, gateway, local, 1, local, 1, 0) == -1

    with siege.attack():
        attempt(HERE, siege.wanted)
        in_child(try_it, lambda: syscalls.capset(0, 0, 0))


@inside
def test_addresses_of_the_internet(world: World) -> None:
    """A leaf that gives itself addresses of the outer network, and routes to it, speaks to nobody there."""
    siege = Siege(world)
    with siege.attack():
        with privilege.raised():
            route = NetlinkSocket(NETLINK_ROUTE)
            for address, length in (("203.0.113.99", 24), ("2001:db8::99", 64), ("169.254.7.7", 16)):
                route.request(links.add_address(ETH0, ipaddress.ip_address(address), length), "move in")
        for source, host in (("203.0.113.99", HERE), ("203.0.113.99", THERE), ("2001:db8::99", HERE6)):
            for kind in (STREAM, DATAGRAM):
                with opened(host, kind) as one, contextlib.suppress(OSError):
                    one.settimeout(0.05)
                    one.bind((source, 0))
                    one.connect((host, siege.wanted))
                    one.send(MARKER)
            send(datagram((source, host), siege.wanted), segment((source, host), siege.wanted))
    with at(siege.neighbour.leaf):
        assert attempt(HERE, siege.wanted + 1).error == "EHOSTUNREACH"

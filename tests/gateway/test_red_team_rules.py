"""What a test that may reach one address and port tries in order to reach another, by its own sockets and routes."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time

import pytest
from attacks import ETH0, HERE, HERE6, LOOPBACK, THERE, Siege, flush_nftables, poke, request, take_address
from packets import MARKER, segment, send
from traffic import DATAGRAM, STREAM, attempt, dial, opened
from worlds import World, at, inside, nothing_arrived

from pytest_netns.gateway.hub import write_sysctls
from pytest_netns.kernel import links, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_ROUTE, NetlinkSocket

IP_TRANSPARENT, IP_FREEBIND, IP_PKTINFO, IPV6_PKTINFO = 19, 15, 8, 50
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
RULES = pytest.mark.parametrize(
    "rule",
    [f"{HERE}:{{port}}", f"{HERE}:{{port}}/udp", f"[{HERE6}]:{{port}}", f"[{HERE6}]:{{port}}/udp", "localhost:{port}"],
    ids=["tcp", "udp", "tcp6", "udp6", "localhost"],
)


@inside
def test_the_traps_work(world: World) -> None:
    """From where they are allowed the same listeners are reached, and seen to be."""
    siege = Siege(world)
    with at(siege.neighbour.leaf):
        assert attempt(HERE, siege.wanted).error is None
        poke(HERE, siege.wanted, DATAGRAM)
        assert attempt(siege.neighbour.worker.ipv4, siege.wanted).error is None
    siege.settle()
    assert len(siege.strangers()) >= 3
    assert MARKER in b"".join(siege.seen)
    assert sum(not nothing_arrived(one) for one in siege.listeners) == 3


@inside
@RULES
def test_everything_else(world: World, rule: str) -> None:
    """Every other port, protocol, family, host and leaf is dialled, and told at once that there is no way."""
    siege = Siege(world, rule)
    with siege.attack():
        for host, port in siege.targets:
            for kind in (STREAM, DATAGRAM):
                told = attempt(host, port, kind, 2)
                assert told.error in {"EHOSTUNREACH", "EACCES", "ECONNREFUSED"}, (host, port, kind)
                assert told.seconds < 1
    siege.still_served()


@inside
def test_leaf_of_its_own_design(world: World) -> None:
    """Without the leaf's ruleset, with the addresses, routes and rules of others, all is tried again in vain."""
    siege = Siege(world)
    with siege.attack():
        flush_nftables()
        for address in (siege.neighbour.leaf.ipv4, siege.sibling.ipv6, "203.0.113.1", "28.0.0.1", "10.1.2.3"):
            take_address(address)
        for host in (THERE, siege.neighbour.leaf.ipv4, siege.sibling.ipv4, LOOPBACK[0]):
            request(links.add_route(ETH0, ipaddress.ip_address(host), replace=True))
        request(links.add_mark_rule(socket.AF_INET, 1, 100), links.add_local_route(1, _block("203.0.112.0/24"), 100))
        for target in siege.targets:
            poke(*target)
            poke(*target, DATAGRAM)
        for source in (siege.neighbour.leaf.ipv4, "28.0.0.1", "203.0.113.1", "10.1.2.3"):
            with opened(HERE, DATAGRAM) as one:
                one.bind((source, 0))
                for host in (HERE, THERE, siege.neighbour.worker.ipv4):
                    with contextlib.suppress(OSError):
                        one.sendto(MARKER, (host, siege.wanted))
    siege.still_served()


def _block(text: str) -> ipaddress.IPv4Network:
    return ipaddress.IPv4Network(text)


@inside
@KINDS
def test_marks_of_the_hub(world: World, kind: int) -> None:
    """The marks by which the hub knows what was decided do not come in from a leaf."""
    siege = Siege(world)
    with siege.attack():
        for mark in (1, 2, 3, 4, 5, 16, 0xFFFFFFFF):
            option = (socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", mark))
            for host, port in siege.targets[::3]:
                poke(host, port, kind, option)
            poke(*siege.allowed, STREAM, option)
    siege.still_served()


@inside
@KINDS
def test_names_of_the_server(world: World, kind: int) -> None:
    """A socket that is bound to the allowed server's own address and port speaks to nobody."""
    siege = Siege(world)
    with siege.attack():
        attempt(THERE, siege.wanted)
        for host, port in siege.targets:
            if ":" not in host:
                with opened(host, kind) as one:
                    with privilege.raised():
                        one.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
                    one.bind((HERE, siege.port))
                    one.settimeout(0.02)
                    with contextlib.suppress(OSError):
                        one.connect((host, port))
                        one.send(MARKER)
    siege.still_served()


@inside
def test_sources_by_packet_info(world: World) -> None:
    """One socket sends datagrams to many, in turn from its own address and others', and one of them is allowed."""
    siege = Siege(world, f"{HERE}:{{port}}/udp")
    sources = [siege.leaf.ipv4, siege.neighbour.leaf.ipv4, siege.visit.worker.ipv4, "127.0.0.1", "0.0.0.0"]
    with siege.attack(), socket.socket(type=DATAGRAM) as one:
        with privilege.raised():
            one.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
        one.settimeout(2)
        for source in sources:
            info = struct.pack("=i4s4s", ETH0, socket.inet_aton(source), bytes(4))
            for host, port in [(HERE, siege.port), *siege.targets]:
                if ":" not in host:
                    with contextlib.suppress(OSError):
                        one.sendmsg([MARKER], [(socket.SOL_IP, IP_PKTINFO, info)], 0, (host, port))
    siege.still_served()


@inside
def test_one_socket_many_servers(world: World) -> None:
    """A socket that has an allowed server for a correspondent finds no other by sendto(), with no data either."""
    siege = Siege(world, f"{HERE}:{{port}}/udp")
    with siege.attack(), socket.socket(type=DATAGRAM) as one:
        one.settimeout(2)
        for host, port in siege.targets:
            if ":" not in host:
                for data in (b"", MARKER, bytes(60_000)):
                    with contextlib.suppress(OSError):
                        one.sendto(data, (host, port))
                _hears(one, siege)
    siege.still_served()


def _hears(one: socket.socket, siege: Siege) -> None:
    for _ in range(20):
        with contextlib.suppress(OSError):  # what an earlier datagram was told
            one.sendto(b"question", siege.allowed)
            data, peer = one.recvfrom(100)
            assert (data, peer) == (b"question", siege.allowed)
            return
    raise AssertionError("the allowed server is not heard any more")


@inside
@KINDS
def test_ports_at_the_edge(world: World, kind: int) -> None:
    """No port of the allowed host's but the one is open, not one that does not exist either."""
    siege = Siege(world)
    with siege.attack():
        for port in (0, 1, 53, 853, 5353, 65535):
            attempt(HERE, port, kind, 0.2)
            send(segment((siege.leaf.ipv4, HERE), port, source_port=0), segment((siege.leaf.ipv4, HERE), port))
    siege.still_served()


@inside
def test_forwarding_for_others(world: World) -> None:
    """What a nested namespace sends by way of the leaf is the leaf's: allowed or not, in whose name it likes."""
    siege = Siege(world)
    near, inner = ipaddress.ip_address("10.9.9.1"), ipaddress.ip_address("10.9.9.2")
    with siege.attack():
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        flush_nftables()
        with privilege.raised():
            write_sysctls({"net/ipv4/ip_forward": "1", "net/ipv4/conf/eth0/proxy_arp": "1"})
            near_route = NetlinkSocket(NETLINK_ROUTE)
            syscalls.unshare(syscalls.CLONE_NEWNET)
            route = NetlinkSocket(NETLINK_ROUTE)
            veth = links.add_veth("in0", 105, 1500, peer_name="out1", peer_index=150, peer_netns=outside, peer_group=0)
            route.request(veth + links.set_up(105) + links.add_address(105, inner, 24), "nest")
            near_route.request(links.set_up(150) + links.add_address(150, near, 24), "nest")
            route.request(links.add_route(105, None, near), "nest")
            # As if the leaf masqueraded: the packets carry its own address.
            route.request(links.add_address(105, ipaddress.ip_address(siege.leaf.ipv4), 32) + links.settle(105), "nest")
            near_route.request(links.settle(150), "nest")
        for source in ("10.9.9.2", siege.leaf.ipv4):
            for host, port in siege.targets:
                for kind in (STREAM, DATAGRAM):
                    if ":" not in host:
                        with opened(host, kind) as one, contextlib.suppress(OSError):
                            one.setblocking(False)
                            one.bind((source, 0))
                            one.connect((host, port))
                            one.send(MARKER)
        with privilege.raised():
            syscalls.setns(outside, syscalls.CLONE_NEWNET)
    siege.still_served()


@inside
def test_socket_of_another_leaf(world: World) -> None:
    """A socket that was made in a leaf keeps that leaf's rights, wherever the process goes that uses it."""
    siege = Siege(world)
    with at(siege.sibling):
        borrowed = [opened(HERE), opened(HERE, DATAGRAM)]
    with siege.attack():
        attempt(HERE, siege.wanted)
        for one in borrowed:
            one.settimeout(0.5)
            with contextlib.suppress(OSError):
                one.connect(siege.allowed)
                one.send(MARKER)
        assert siege.client.flows(siege.sibling.name)[-1].verdict == "blocked"
    siege.still_served()


@inside
def test_ports_of_the_host(world: World) -> None:
    """A port of the host's loopback is one port: no other, no other address of loopback, and not its other protocol."""
    siege = Siege(world, "localhost:{port}")
    others = ["127.0.0.2", "127.255.255.254", "0.0.0.0", "198.19.255.253", "198.19.255.255", "fd6e:6574:6e73:4::2"]
    with siege.attack():
        attempt(HERE, siege.wanted)
        for host in (*others, *LOOPBACK, "127.0.0.1", "::1"):
            for port in (siege.port, siege.wanted):
                poke(host, port, DATAGRAM)
                if port == siege.wanted or host in others:
                    poke(host, port)
    begin = time.monotonic()
    with at(siege.leaf), dial("127.0.0.1", siege.port) as one:
        assert one.getpeername() == ("127.0.0.1", siege.port)
    assert time.monotonic() - begin < 1

"""A leaf that nothing was allowed reaches nothing: asserted by a host which the gateway itself could reach."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.message
import dns.query
import dns.rcode
import pytest
from outside import new_name
from pyroute2 import IPRoute
from traffic import DATAGRAM, STREAM, attempt, dial, listen, opened, port_of
from worlds import HOSTS, Visit, Witness, World, at, inside, nothing_arrived, peer_pid, sent_packets, wait_until
from zone import Zone

from pytest_netns.gateway.client import LeafGrant
from pytest_netns.gateway.flows import Flow
from pytest_netns.kernel import privilege

AT_ONCE = 0.5  # seconds, on a machine under load; one that waits would take a second or more
LEAVES = pytest.mark.parametrize("name", ["worker", "leaf"])
TO_HOSTS = pytest.mark.parametrize("host", HOSTS)
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
MULTICAST = [("224.0.0.251", 5353), ("239.1.2.3", 5000), ("ff02::fb%eth0", 5353), ("ff05::2", 5000)]
BROADCAST = ["198.18.255.255", "255.255.255.255", "203.0.113.255"]


def leaf_of(visit: Visit, name: str) -> LeafGrant:
    """Return the leaf of this name."""
    return visit.worker if name == "worker" else visit.leaf


def refusals(host: str, kind: int) -> set[str]:
    """Return what a blocked client is told; a connected UDP socket is told the other code in IPv6."""
    return {"EHOSTUNREACH"} if kind == STREAM or ":" not in host else {"EHOSTUNREACH", "EACCES"}


@inside
def test_the_host_would_be_reached(world: World) -> None:
    """What these tests forbid would work: from the outer network itself the host is reached and sees it."""
    witness = Witness(world)
    for host in HOSTS:
        with at(world.internet):
            listener = listen(host, 443)
        with at(world.outer), dial(host, 443):
            listener.accept()[0].close()
    assert len(witness.seen()) >= 6


@inside
@LEAVES
@TO_HOSTS
@KINDS
def test_tcp_and_udp(world: World, name: str, host: str, kind: int) -> None:
    """A client fails at once with "No route to host", the server sees nothing, and the attempt is on record."""
    visit, witness = Visit(world), Witness(world)
    leaf = leaf_of(visit, name)
    with at(world.internet):
        listener = listen(host, kind=kind)
    port = port_of(listener)
    with at(leaf):
        before = sent_packets()
        told = attempt(host, port, kind)
        assert sent_packets() > before
    assert told.error in refusals(host, kind)
    assert told.seconds < AT_ONCE
    assert witness.seen() == []
    assert nothing_arrived(listener)
    (flow,) = visit.flows(leaf)
    protocol = "tcp" if kind == STREAM else "udp"
    assert (flow.protocol, flow.address, flow.port) == (protocol, host, port)
    assert (flow.leaf, flow.verdict, flow.name) == (leaf.name, "blocked", None)
    assert flow.test == ("test_it" if name == "leaf" else "(outside of any test)")
    summary = {one.endpoint: one for one in visit.client.blocked()}
    assert summary[flow.endpoint].first_test == flow.test


@inside
@LEAVES
@TO_HOSTS
def test_median_of_refusals(world: World, name: str, host: str) -> None:
    """A hundred refusals are as prompt as one, and counted."""
    visit = Visit(world)
    leaf = leaf_of(visit, name)
    with at(leaf):
        times = sorted(attempt(host, 443).seconds for _ in range(100))
    assert times[50] < 0.05
    assert len(visit.flows(leaf, 100)) == 100
    assert next(one.count for one in visit.client.blocked() if one.endpoint.endswith(":443")) >= 100


@inside
@LEAVES
@TO_HOSTS
def test_ping(world: World, name: str, host: str) -> None:
    """A ping is refused and recorded."""
    visit, witness = Visit(world), Witness(world)
    leaf = leaf_of(visit, name)
    v6 = ":" in host
    with at(leaf):
        ping = socket.socket(
            socket.AF_INET6 if v6 else socket.AF_INET, DATAGRAM, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP
        )
        ping.settimeout(5)
        ping.connect((host, 0))
        ping.send(struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 1, 1))
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            ping.recv(100)
    (flow,) = visit.flows(leaf)
    assert (flow.protocol, flow.address, flow.port, flow.verdict) == ("icmp", host, None, "blocked")
    assert (flow.reason, flow.allow) == ("only TCP and UDP can be let out", None)
    assert witness.seen() == []


@inside
def test_ping_by_name(world: World) -> None:
    """A ping of a name that is allowed is refused with the same reason."""
    name = new_name()
    Zone(world, {name: HOSTS})
    visit = Visit(world, rules=[name])
    with at(visit.leaf):
        ping = socket.socket(socket.AF_INET, DATAGRAM, socket.IPPROTO_ICMP)
        ping.connect((name, 0))
        ping.send(struct.pack("!BBHHH", 8, 0, 0, 1, 1))
    (flow,) = visit.flows(visit.leaf)
    assert (flow.endpoint, flow.reason, flow.allow) == (f"icmp {name}", "only TCP and UDP can be let out", None)


@inside
@LEAVES
@TO_HOSTS
@pytest.mark.parametrize("protocol", [2, 41, 47, 50, 132, 136, 253])
def test_raw_ip(world: World, name: str, host: str, protocol: int) -> None:
    """Tunnels, SCTP and protocols that nobody knows are refused and recorded."""
    visit, witness = Visit(world), Witness(world)
    leaf = leaf_of(visit, name)
    with at(leaf), privilege.raised():
        raw = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_RAW, protocol)
    raw.sendto(b"x" * 64, (host, 0))
    (flow,) = visit.flows(leaf)
    known = {132: "sctp"}
    assert (flow.protocol, flow.address, flow.port) == (known.get(protocol, f"ip-{protocol}"), host, None)
    assert witness.seen() == []


@inside
@LEAVES
@pytest.mark.parametrize(("group", "port"), MULTICAST)
def test_multicast(world: World, name: str, group: str, port: int) -> None:
    """Multicast reaches neither the outer network nor another leaf, and is recorded."""
    visit, witness = Visit(world), Witness(world)
    neighbour = Visit(world, "w1")
    v6 = ":" in group
    listeners = []
    for place in (world.internet, neighbour.leaf, neighbour.worker):
        with at(place):
            listeners.append(listen("::" if v6 else "0.0.0.0", port, DATAGRAM))
            member(listeners[-1], group)
    with at(leaf_of(visit, name)), opened(group, DATAGRAM) as sender:
        before = sent_packets()
        sender.sendto(b"who is there", socket.getaddrinfo(group, port)[0][4])
        assert sent_packets() > before
    (flow,) = visit.flows(leaf_of(visit, name))
    assert (flow.protocol, flow.address, flow.port) == ("udp", group.partition("%")[0], port)
    assert (flow.reason, flow.allow) == ("multicast never leaves a leaf", None)
    assert witness.seen() == []
    assert nothing_arrived(*listeners)


@inside
@LEAVES
def test_default_route_names_its_source(world: World, name: str) -> None:
    """Who makes packets of its own, as scapy does, is told by the routing table which address to send them from."""
    leaf = leaf_of(Visit(world), name)
    with at(leaf), IPRoute() as routing:
        (route,) = routing.get_default_routes(family=socket.AF_INET)
        assert (route.get("prefsrc"), route.get("gateway")) == (leaf.ipv4, leaf.gateway_ipv4)


def member(listener: socket.socket, group: str) -> None:
    """Make a socket hear a group on its namespace's interface."""
    (index,) = [index for index, name in socket.if_nameindex() if name in {"eth0", "out0"}]
    if ":" in group:
        packed = socket.inet_pton(socket.AF_INET6, group.partition("%")[0])
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, packed + struct.pack("=I", index))
    else:
        request = socket.inet_aton(group) + bytes(4) + struct.pack("=i", index)
        listener.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)


@inside
@LEAVES
@pytest.mark.parametrize("address", BROADCAST)
def test_broadcast(world: World, name: str, address: str) -> None:
    """A broadcast is sent, nobody gets it, and it is recorded."""
    visit, witness = Visit(world), Witness(world)
    neighbour = Visit(world, "w1")
    listeners = []
    for place in (world.outer, world.internet, neighbour.leaf):
        with at(place):
            listeners.append(listen("0.0.0.0", 5000, DATAGRAM))
    with at(leaf_of(visit, name)), opened(address, DATAGRAM) as sender:
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        before = sent_packets()
        sender.sendto(b"who is there", (address, 5000))
        assert sent_packets() > before
    (flow,) = visit.flows(leaf_of(visit, name))
    assert (flow.protocol, flow.address, flow.port) == ("udp", address, 5000)
    directed = address.startswith("203.")  # to others this is an address like any
    told = (None, f"{address}:5000/udp") if directed else ("broadcast never leaves a leaf", None)
    assert (flow.reason, flow.allow) == told
    assert witness.seen() == []
    assert nothing_arrived(*listeners)


def blocked_error(answer: dns.message.Message) -> bool:
    """Tell whether an answer says that the name was blocked."""
    return [option.code for option in answer.options if isinstance(option, dns.edns.EDEOption)] == [15]


@inside
@LEAVES
def test_names(world: World, name: str) -> None:
    """A name fails at once, over UDP and TCP alike, the answer says that it is blocked, and it is on record."""
    visit, witness = Visit(world), Witness(world)
    leaf = leaf_of(visit, name)
    with at(leaf):
        for count in range(2):
            query = dns.message.make_query(f"Secret{count}.example.com", "A", use_edns=0)
            begin = time.monotonic()
            ask = dns.query.tcp if count else dns.query.udp
            answer = ask(query, leaf.gateway_ipv4, timeout=5)
            assert time.monotonic() - begin < AT_ONCE
            assert answer.rcode() == dns.rcode.NXDOMAIN
            assert blocked_error(answer)
    names = [(flow.protocol, flow.name, flow.address, flow.port) for flow in visit.flows(leaf, 2)]
    assert names == [("dns", f"secret{count}.example.com", None, None) for count in range(2)]
    assert {"dns secret0.example.com", "dns secret1.example.com"} <= {one.endpoint for one in visit.client.blocked()}
    assert witness.seen() == []


@inside
@LEAVES
def test_names_by_the_c_library(world: World, name: str) -> None:
    """What a program sees is "name or service not known", at once, and one attempt is on record."""
    visit, witness = Visit(world), Witness(world)
    leaf = leaf_of(visit, name)
    with at(leaf):
        begin = time.monotonic()
        with pytest.raises(socket.gaierror) as caught:
            socket.getaddrinfo("api.example.com", 443)
        assert time.monotonic() - begin < AT_ONCE
        assert caught.value.errno == socket.EAI_NONAME
    assert [flow.endpoint for flow in visit.flows(leaf)] == ["dns api.example.com"]
    assert witness.seen() == []


@inside
def test_tcp_name_service_outlives_nonsense(world: World) -> None:
    """Broken messages, and connections that say nothing, end alone; several questions on one are answered."""
    visit = Visit(world)
    with at(visit.leaf):
        silent = dial(visit.leaf.gateway_ipv4, 53)
        for nonsense in (b"\0\0", b"\0\5hello", b"\xff\xff" + bytes(100), b"GET / HTTP/1.0\r\n\r\n"):
            with dial(visit.leaf.gateway_ipv4, 53) as one:
                one.sendall(nonsense)
                one.shutdown(socket.SHUT_WR)
                assert one.recv(100) == b""
        with opened("127.0.0.1", DATAGRAM) as one:
            one.sendto(b"nonsense", (visit.leaf.gateway_ipv4, 53))
        with dial(visit.leaf.gateway_ipv4, 53) as one:
            for _ in range(3):
                query = dns.message.make_query("example.com", "A").to_wire()
                one.sendall(len(query).to_bytes(2, "big") + query)
                size = int.from_bytes(one.recv(2), "big")
                assert dns.message.from_wire(one.recv(size)).rcode() == dns.rcode.NXDOMAIN
        silent.close()


def attempts(visit: Visit) -> Iterator[Flow]:
    """Try one port after the other."""
    for port in (1000, 1001):
        with at(visit.leaf):
            attempt(HOSTS[0], port)
        yield visit.flows(visit.leaf, port - 999)[-1]


@inside
def test_label(world: World) -> None:
    """Flows are booked on the test that a leaf was labelled with last."""
    visit = Visit(world)
    tries = attempts(visit)
    assert next(tries).test == "test_it"
    visit.client.label(visit.leaf.name, "tests/test_x.py::test_two")
    flow = next(tries)
    assert flow.test == "tests/test_x.py::test_two"
    assert abs(flow.time - time.time()) < 5
    assert flow.endpoint == f"tcp {HOSTS[0]}:1001"


@inside
def test_flood_is_not_passed_on(world: World) -> None:
    """Ten thousand datagrams at once are all refused, and the gateway still answers."""
    visit, witness = Visit(world), Witness(world)
    with at(visit.leaf):
        sender = opened(HOSTS[0], DATAGRAM)
        for number in range(10_000):
            sender.sendto(b"x" * 200, (HOSTS[0], 1024 + number % 60_000))
        told = attempt(HOSTS[0], 443, timeout=20)
    assert told.error == "EHOSTUNREACH"
    assert witness.seen() == []
    assert len(visit.client.flows(visit.leaf.name)) <= 10_000


@inside
def test_kernel_that_lost_its_gateway(own_world: World) -> None:
    """While the gateway is stopped nothing goes out; it drops what waited, or refuses it."""
    visit, witness = Visit(own_world), Witness(own_world)
    gateway = peer_pid(visit.client)
    os.kill(gateway, signal.SIGSTOP)
    with at(own_world.internet):
        listener = listen(HOSTS[0], 443)
    with at(visit.leaf):
        client = opened(HOSTS[0])
        client.setblocking(False)
        assert client.connect_ex((HOSTS[0], 443)) == errno.EINPROGRESS
    assert not select.select([], [client], [], 0.2)[1]
    assert witness.seen() == []
    os.kill(gateway, signal.SIGKILL)
    wait_until(lambda: _is_dead(gateway), 5)
    time.sleep(0.1)
    with at(visit.leaf):
        assert attempt(HOSTS[0], 443).error is not None
    assert witness.seen() == []
    assert nothing_arrived(listener)


def _is_dead(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"

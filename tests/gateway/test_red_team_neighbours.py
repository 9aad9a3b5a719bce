"""What a test tries against its neighbours: to use what they may reach, to speak to them, and to be taken for them."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attacks import (
    ACK,
    ETH0,
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
    UDP,
    Siege,
    datagram,
    eavesdrop,
    heard,
    hub_of,
    icmp,
    icmp6,
    ip,
    packed,
    poke,
    processor_seconds,
    request,
    segment,
    send,
    send_frames,
    take_address,
    tcp,
    udp,
)
from traffic import DATAGRAM, STREAM, attempt, dial, echo, exchange, listen, opened, port_of, start
from worlds import Place, World, at, inside, nothing_arrived

from pytest_netns import addressing
from pytest_netns.gateway.client import LeafGrant
from pytest_netns.gateway.paths import SOCKET_NAME
from pytest_netns.kernel import links, privilege


class Affair:
    """An exchange that a neighbour has with a server of its own, while it is under attack."""

    def __init__(self, siege: Siege, host: str, kind: int) -> None:
        """Begin it."""
        self.siege, self.host, self.kind = siege, host, kind
        with at(siege.world.internet):
            self.server = listen(host, kind=kind)
        self.port = port_of(self.server)
        rule = (f"[{host}]" if ":" in host else host) + f":{self.port}" + ("" if kind == STREAM else "/udp")
        siege.neighbour.client.allow(siege.neighbour.leaf.name, [rule])
        with at(siege.neighbour.leaf):
            self.client = dial(host, self.port, kind)
        self.own = siege.neighbour.leaf.ipv6 if ":" in host else siege.neighbour.leaf.ipv4
        self.client_port = port_of(self.client)
        self.client.send(b"begin")
        self.accepted = self.server.accept()[0] if kind == STREAM else self.server
        self.accepted.settimeout(5)
        assert self._taken() == b"begin"

    def _taken(self) -> bytes:
        if self.kind == STREAM:
            return self.accepted.recv(1000)
        data, self.peer = self.accepted.recvfrom(1000)
        return data

    def goes_on(self) -> None:
        """See that each hears of the other next, and of nobody else."""
        for _ in range(3):
            with contextlib.suppress(ConnectionRefusedError):
                self.client.send(b"question")
            assert self._taken() == b"question"
            if self.kind == STREAM:
                self.accepted.sendall(b"answer")
            else:
                self.accepted.sendto(b"answer", self.peer)
            assert self.client.recv(1000) == b"answer"

    @contextlib.contextmanager
    def attacked(self) -> Iterator[None]:
        """Attack it from the leaf, in vain."""
        with self.siege.attack():
            yield
            self.siege._witness.seen()  # what the affair itself sends is no stranger's
            self.siege.seen.clear()
            attempt(HERE, self.siege.wanted)
        self.goes_on()


@inside
@pytest.mark.parametrize("host", [HERE, HERE6])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_in_the_name_of_a_neighbour(world: World, host: str, kind: int) -> None:
    """Packets with a neighbour's address, ports and all, do not reach the server that it talks to, nor itself."""
    affair = Affair(Siege(world), host, kind)
    siege = affair.siege
    there, back = (affair.own, host), (host, affair.own)
    spoofed = [datagram(there, affair.port, MARKER, affair.client_port), datagram(back, affair.client_port, MARKER)]
    for flags, number in itertools.product((SYN, RST, RST | ACK, ACK, PSH | ACK), range(0, 1 << 32, 1 << 28)):
        for ends, ports in ((there, (affair.port, affair.client_port)), (back, (affair.client_port, affair.port))):
            numbers = (number, number)
            data = MARKER if flags & PSH else b""
            spoofed.append(ip(ends, TCP, tcp(ends, ports[0], flags, data, source_port=ports[1], numbers=numbers)))
    with affair.attacked():
        send(*spoofed, *spoofed)
        own = siege.own(host)
        send(datagram((own, host), affair.port, MARKER, affair.client_port))
        send(segment((own, host), affair.port, SYN, MARKER, affair.client_port))
        with opened(host, kind) as one:
            one.bind((own, affair.client_port))
            one.settimeout(0.1)
            with contextlib.suppress(OSError):
                one.connect((host, affair.port))
                one.send(MARKER)
                assert not one.recv(100)


@inside
def test_while_a_neighbour_is_let_through(world: World) -> None:
    """The moment in which the relay's socket for a neighbour is made, and knows no client yet, is of no use."""
    siege = Siege(world)
    with at(world.internet):
        server = listen(HERE, kind=DATAGRAM)
    siege.neighbour.client.allow(siege.neighbour.leaf.name, [f"{HERE}:{port_of(server)}/udp"])
    flood = [datagram((siege.leaf.ipv4, HERE), port_of(server), MARKER, port) for port in range(40_000, 40_050)]
    with at(siege.leaf):
        going_on = True

        def hammer() -> None:
            while going_on:
                send(*flood)

        hammering = start(hammer)
        with at(siege.neighbour.leaf):
            sockets = [opened(HERE, DATAGRAM) for _ in range(60)]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.sendto(b"neighbour", (HERE, port_of(server)))
            time.sleep(0.005)
        going_on = False
        hammering.join()
    siege.settle()
    server.settimeout(0.2)
    told = []
    with contextlib.suppress(TimeoutError):
        while True:
            told.append(server.recv(100))
    assert set(told) == {b"neighbour"}
    siege.still_served()


@inside
def test_lone_segments_to_other_leaves(own_world: World) -> None:
    """Segments of no connection, to leaves that are none of the sender's, are refused once and are no work for ever."""
    siege = Siege(own_world)
    with siege.attack():
        for flags in (0, ACK, RST, RST | ACK, PSH | ACK, SYN | ACK):
            for leaf in (siege.neighbour.leaf, siege.neighbour.worker, siege.sibling):
                every = ((siege.leaf.ipv4, leaf.ipv4), (siege.leaf.ipv6, leaf.ipv6))
                send(*(segment(ends, siege.wanted, flags) for ends in every))
        time.sleep(0.1)
        before = processor_seconds(siege.visit)
        time.sleep(0.3)
        assert processor_seconds(siege.visit) - before < 0.1
    siege.still_served()


def _errors(ends: tuple[str, str], quoted: bytes) -> list[bytes]:
    """Return ICMP errors about a packet: unreachable in all ways, too big, expired, redirected."""
    if ":" in ends[0]:
        kinds = [(1, code, 0) for code in range(5)] + [(2, 0, 1280), (3, 0, 0), (4, 1, 0)]
        return [ip(ends, ICMPV6, icmp6(ends, *kind, quoted), hops=255) for kind in kinds]
    kinds = [(3, code, 0) for code in range(14)] + [(3, 4, 576), (4, 0, 0), (11, 0, 0), (12, 0, 0)]
    kinds += [(5, code, int(ipaddress.IPv4Address(ends[0]))) for code in range(4)]
    return [ip(ends, ICMP, icmp(*kind, quoted)) for kind in kinds]


@inside
@pytest.mark.parametrize("version", [4, 6])
def test_forged_error_between_workers(world: World, version: int) -> None:
    """An error about a connection within another worker does not come to its leaves from this one."""
    siege = Siege(world)
    worker, leaf = siege.neighbour.worker, siege.neighbour.leaf
    near, far = (worker.ipv6, leaf.ipv6) if version == 6 else (worker.ipv4, leaf.ipv4)
    with at(worker):
        server = listen(near)
    with at(leaf):
        client = dial(near, port_of(server))
        ear = eavesdrop()
    accepted, _ = server.accept()
    with siege.attack():
        own = siege.own(near)
        client_port = port_of(client)
        sent = ip((far, near), TCP, tcp((far, near), port_of(server), ACK, source_port=client_port))
        answered = ip((near, far), TCP, tcp((near, far), client_port, ACK, source_port=port_of(server)))
        send(*_errors((own, far), sent), *_errors((own, near), answered), *_errors((own, near), sent))
    assert not [packet for packet in heard(ear) if packed(own) in packet]
    exchange(client, accepted)


@inside
@pytest.mark.parametrize("host", [HERE, HERE6])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_forged_error_to_the_hub(world: World, host: str, kind: int) -> None:
    """The hub, told of errors of a neighbour's connection by somebody else, lets that go on as before."""
    affair = Affair(Siege(world), host, kind)
    siege = affair.siege
    gateway = str(addressing.GATEWAY6) if ":" in host else str(addressing.GATEWAY)
    number = TCP if kind == STREAM else UDP
    with affair.attacked():
        for ends, port, own in (
            ((host, affair.own), affair.client_port, affair.port),
            ((affair.own, host), affair.port, affair.client_port),
        ):
            transport = tcp(ends, port, ACK, source_port=own) if kind == STREAM else udp(ends, port, b"", own)
            send(*_errors((siege.own(host), gateway), ip(ends, number, transport)))
            send(*_errors((siege.own(host), ends[0]), ip(ends, number, transport)))


def _neighbours(place: Place, without: str) -> set[tuple[str, ...]]:
    """Return who has which address on the interfaces of a place, but for the one on which an address is."""
    with at(place):
        rows = [row.split() for row in Path("/proc/thread-self/net/arp").read_text(encoding="ascii").splitlines()[1:]]
    but = next(row[5] for row in rows if row[0] == without)
    return {tuple(row) for row in rows if row[5] != but}


@inside
def test_other_peoples_addresses(world: World) -> None:
    """Claims to have the gateway's, a neighbour's or the server's address, by ARP or otherwise, change nothing."""
    affair = Affair(Siege(world), HERE, STREAM)
    siege = affair.siege
    own = b"\x02\x42" + packed(siege.leaf.ipv4)
    hub = hub_of(siege.visit)
    before = _neighbours(hub, siege.leaf.ipv4)
    claimed = [str(addressing.GATEWAY), siege.neighbour.leaf.ipv4, siege.sibling.ipv4, HERE, siege.visit.worker.ipv4]
    with affair.attacked():
        for operation, address, mac in itertools.product((1, 2), claimed, (HUB_MAC, b"\xff" * 6)):
            arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + own + packed(address)
            for target in (address, str(addressing.GATEWAY), siege.leaf.ipv4):
                send_frames(mac + own + b"\x08\x06" + arp + mac + packed(target))
        for address in (siege.neighbour.leaf.ipv6, siege.sibling.ipv6, str(addressing.GATEWAY6), HERE6):
            body = packed(address) + b"\2\1" + own
            for target, flags in (("ff02::1", 0x20000000), (str(addressing.GATEWAY6), 0x60000000)):
                ends = (siege.leaf.ipv6, target)
                send(ip(ends, ICMPV6, icmp6(ends, 136, 0, flags, body), hops=255))
                send(ip((address, target), ICMPV6, icmp6((address, target), 136, 0, flags, body), hops=255))
        take_address(siege.neighbour.leaf.ipv4)
        request(links.add_route(ETH0, ipaddress.ip_address(siege.neighbour.leaf.ipv4), replace=True))
    assert _neighbours(hub, siege.leaf.ipv4) == before
    siege.still_served()


@inside
def test_ports_of_the_hub(world: World) -> None:
    """While relays are busy, no port of the hub's takes a packet: theirs, at whatever address, least of all."""
    affair = Affair(Siege(world), HERE, DATAGRAM)
    siege = affair.siege
    ports: set[int] = set()
    with at(hub_of(siege.visit)):
        for name in ("tcp", "udp", "tcp6", "udp6"):
            rows = Path(f"/proc/thread-self/net/{name}").read_text(encoding="ascii").splitlines()[1:]
            ports |= {int(row.split()[1].partition(":")[2], 16) for row in rows}
    ports -= {53}
    assert affair.port in ports
    with affair.attacked():
        ear = eavesdrop()
        for host in (str(addressing.GATEWAY), "127.0.0.1", str(addressing.GATEWAY6), "::1", HERE, HERE6, *LOOPBACK):
            ends = (siege.own(host), host)
            send(
                *(datagram(ends, port) for port in ports),
                *(segment(ends, port) for port in ports if port != siege.port),
            )
        time.sleep(0.05)
        answers = [packet for packet in heard(ear) if packet[0] >> 4 == 4 and packet[9] == TCP]
    assert not [
        packet for packet in answers if packet[33] == SYN | ACK and packet[20:22] != struct.pack("!H", siege.port)
    ]
    assert nothing_arrived(affair.server)


@inside
def test_published_port_of_a_neighbour(world: World) -> None:
    """A port of a neighbour's that the host's loopback has is no part of another port of it."""
    siege = Siege(world, "localhost:{port}")
    with at(siege.neighbour.leaf):
        service = listen("127.0.0.1")
    published = siege.neighbour.client.publish(siege.neighbour.leaf.name, port_of(service))
    with siege.attack():
        attempt(HERE, siege.wanted)
        for host in ("127.0.0.1", "::1", *LOOPBACK, "localhost"):
            with contextlib.suppress(OSError):
                socket.create_connection((host, published), 0.5).close()
                raise AssertionError("it was reached")
            with contextlib.suppress(OSError):
                poke(socket.gethostbyname(host), published, DATAGRAM)
    assert nothing_arrived(service)
    with at(world.outer):
        dial("127.0.0.1", published).close()
    service.settimeout(5)
    service.accept()[0].close()
    siege.still_served()


@inside
def test_sockets_without_addresses(world: World) -> None:
    """Abstract sockets of the host's are others than the leaf's, and the gateway's own is for its user alone."""
    siege = Siege(world)
    with at(world.outer), socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0netns-red-team")
        abstract.listen()
        with siege.attack():
            attempt(HERE, siege.wanted)
            with socket.socket(socket.AF_UNIX) as one, pytest.raises(ConnectionRefusedError):
                one.connect("\0netns-red-team")
        assert nothing_arrived(abstract)
    found = world.directory.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.geteuid())
    if privilege.is_root():
        with at(siege.leaf):
            child = os.fork()
            if not child:
                _reach_as_nobody(str(world.directory / SOCKET_NAME))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 13  # EACCES


def _reach_as_nobody(path: str) -> None:
    os.setgid(65_534)
    os.setuid(65_534)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        os._exit(one.connect_ex(path))


@inside
def test_neighbours_stay_apart(world: World) -> None:
    """What a neighbour listens on hears nothing of all these packets, not from a sibling of the same worker either."""
    siege = Siege(world)
    leaves: list[LeafGrant] = [siege.neighbour.leaf, siege.neighbour.worker, siege.sibling]
    own = packed(siege.leaf.ipv4), packed(siege.leaf.ipv6)
    ears = []
    for leaf in leaves:
        with at(leaf):
            ears.append(eavesdrop())
    with siege.attack():
        for leaf in leaves:
            for target in (leaf.ipv4, leaf.ipv6):
                ends = (siege.own(target), target)
                send(datagram(ends, 9), segment(ends, 9), segment(ends, 9, ACK), ip(ends, 4, datagram(ends, 9)))
                send(ip(ends, ICMP if "." in target else ICMPV6, b"\x08\0\0\0abcd"))
                poke(target, siege.wanted)
    for ear in ears:
        assert not [packet for packet in heard(ear) if own[0] in packet or own[1] in packet]
    with at(siege.visit.worker):
        echo(served := listen("0.0.0.0"))
    with at(siege.leaf):
        assert attempt(siege.visit.worker.ipv4, port_of(served)).error is None

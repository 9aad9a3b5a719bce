"""What a test tries against the machinery that it shares with others: the hub, the gateway and the host's sockets."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import signal
import socket
import stat
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from affairs import Affair, errors
from attacks import ETH0, HERE, HERE6, LOOPBACK, Siege, hub_of, poke, request, take_address
from packets import (
    ACK,
    HUB_MAC,
    ICMPV6,
    SYN,
    TCP,
    UDP,
    datagram,
    eavesdrop,
    heard,
    icmp6,
    ip,
    packed,
    segment,
    send,
    send_frames,
    tcp,
    udp,
)
from traffic import DATAGRAM, STREAM, attempt, dial, echo, listen, port_of
from worlds import Place, World, at, inside, nothing_arrived

from pytest_netns import addressing
from pytest_netns.gateway.client import LeafGrant
from pytest_netns.gateway.paths import SOCKET_NAME
from pytest_netns.kernel import links, mounts, privilege


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
            send(*errors((siege.own(host), gateway), ip(ends, number, transport)))
            send(*errors((siege.own(host), ends[0]), ip(ends, number, transport)))


def _neighbours(place: Place, leaves: Sequence[LeafGrant]) -> set[tuple[str, ...]]:
    """Return who has which address on the hub's interfaces of some leaves; others come and go meanwhile."""
    with at(place):
        rows = [row.split() for row in Path("/proc/thread-self/net/arp").read_text(encoding="ascii").splitlines()[1:]]
    interfaces = {row[5] for row in rows if row[0] in {leaf.ipv4 for leaf in leaves} and row[2] == "0x6"}
    assert len(interfaces) == len(leaves)
    return {tuple(row) for row in rows if row[5] in interfaces}


@inside
def test_other_peoples_addresses(world: World) -> None:
    """Claims to have the gateway's, a neighbour's or the server's address, by ARP or otherwise, change nothing."""
    affair = Affair(Siege(world), HERE, STREAM)
    siege = affair.siege
    own = b"\x02\x42" + packed(siege.leaf.ipv4)
    hub = hub_of(siege.visit)
    others = [siege.visit.worker, siege.sibling, siege.neighbour.worker, siege.neighbour.leaf]
    before = _neighbours(hub, others)
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
    assert _neighbours(hub, others) == before
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
def test_port_of_the_host_in_the_other_family(world: World) -> None:
    """A server of the session's on 127.0.0.1 opens nobody else's on ::1 to a test without a worker leaf."""
    client = world.connect()
    client.attach("w9")
    leaf = client.lease("test_attached")
    with at(world.outer):
        echo(own := listen("127.0.0.1"))
        foreign = listen("::1", port_of(own))
    stranger = _orphan()
    try:
        foreign.close()
        with at(leaf):
            assert attempt("127.0.0.1", port_of(own)).error is None
            assert attempt("::1", port_of(own)).error is not None
    finally:
        os.kill(stranger, signal.SIGKILL)


def _orphan() -> int:
    """Have a process that is nobody's child hold what is open now; return its process id."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        orphan = os.fork()
        if orphan:
            os.write(writer, str(orphan).encode())
        else:
            time.sleep(20)
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 100))


SOCKETS = {
    "resolved": "/run/systemd/resolve/io.systemd.Resolve",
    "monitor": "/run/systemd/resolve/io.systemd.Resolve.Monitor",
    "nscd": "/run/nscd/socket",
    "bus": "/run/dbus/system_bus_socket",
    "avahi": "/run/avahi-daemon/socket",
}


@pytest.mark.parametrize("name", SOCKETS)
@inside
def test_resolvers_by_their_sockets(own_world: World, name: str) -> None:
    """The host's resolvers, which would answer from its network, are not to be had by the paths of their sockets."""
    path = Path(SOCKETS[name])
    with privilege.raised():
        mounts.tmpfs("/run")
    path.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as resolver:
        resolver.bind(str(path))
        resolver.listen()
        siege = Siege(own_world)
        with siege.attack(), socket.socket(socket.AF_UNIX) as one:
            attempt(HERE, siege.wanted)
            with pytest.raises(OSError):
                one.connect(str(path))
        assert nothing_arrived(resolver)

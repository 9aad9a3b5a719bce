"""What attacks need: a leaf that may reach one thing, traps at all others, and ways to change what is in the leaf."""

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

from packets import MARKER, TCP, UDP, packed
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
    wait_until,
)
from zone import Zone

from pytest_netns import addressing
from pytest_netns.errors import KernelError
from pytest_netns.gateway.client import LeafGrant
from pytest_netns.kernel import links, nft, nft_table, privilege
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from pytest_netns.kernel.nft_table import Chain, Table

ETH0 = addressing.ETH0_INDEX
GATEWAY = str(addressing.GATEWAY)
HERE, HERE6 = str(INTERNET), str(INTERNET6)  # where what is allowed is, and more that is not
OUTSIDE = (str(OUTER), str(OUTER6))  # the host that the gateway runs on
LOOPBACK = (str(addressing.HOST_LOOPBACK), str(addressing.HOST_LOOPBACK6))  # what its loopback is known by
THERE = "203.0.113.6"  # another address of the same host


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
            wait_until(lambda: sent_packets() > before, 2)  # or nothing was tried
        self.settle()
        assert self.strangers() == []
        assert nothing_arrived(*self.listeners)

    def settle(self) -> None:
        """Wait until the gateway has seen what was sent."""
        self.client.flows(self.sibling.name)
        time.sleep(0.03)

    def end(self, how: str) -> None:
        """End the test that the leaf serves by ``label`` or ``release``, and with it what its rules allow."""
        if how == "label":
            self.client.label(self.leaf.name, "test_next")
        else:
            self.client.release(self.leaf.name)
        self.settle()
        self.strangers()
        self.seen.clear()

    def is_over(self, one: socket.socket) -> None:
        """See that nothing which a socket says reaches anybody outside, though it is said."""
        one.settimeout(0.2)
        for _ in range(3):
            with contextlib.suppress(OSError):
                one.send(MARKER)
                assert one.recv(100) != MARKER
        self.settle()
        assert self.strangers() == []
        assert MARKER not in b"".join(self.seen)

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

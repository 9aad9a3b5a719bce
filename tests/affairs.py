"""What a neighbour of the leaf that attacks does meanwhile, and what it may be told of that by those who lie."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Iterator

from attacks import HERE, Siege
from packets import ICMP, ICMPV6, MARKER, TCP, UDP, icmp, icmp6, ip, packed
from traffic import STREAM, attempt, dial, listen, port_of
from worlds import at, nothing_arrived


class Affair:
    """An exchange that a neighbour has with a server of its own, while it is under attack."""

    def __init__(self, siege: Siege, host: str, kind: int) -> None:
        """Begin it."""
        self.siege, self.host, self.kind = siege, host, kind
        with at(siege.world.internet):
            self.server = listen(host, kind=kind)
        self.port = port_of(self.server)
        siege.known.append((TCP if kind == STREAM else UDP, packed(host), self.port))
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
        assert nothing_arrived(self.server)
        assert MARKER not in b"".join(self.siege.seen)
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
            attempt(HERE, self.siege.wanted)
        self.goes_on()


def errors(ends: tuple[str, str], quoted: bytes) -> list[bytes]:
    """Return ICMP errors about a packet: unreachable in all ways, too big, expired, redirected."""
    if ":" in ends[0]:
        kinds = [(1, code, 0) for code in range(5)] + [(2, 0, 1280), (3, 0, 0), (4, 1, 0)]
        return [ip(ends, ICMPV6, icmp6(ends, *kind, quoted), hops=255) for kind in kinds]
    kinds = [(3, code, 0) for code in range(14)] + [(3, 4, 576), (4, 0, 0), (11, 0, 0), (12, 0, 0)]
    kinds += [(5, code, int(ipaddress.IPv4Address(ends[0]))) for code in range(4)]
    return [ip(ends, ICMP, icmp(*kind, quoted)) for kind in kinds]

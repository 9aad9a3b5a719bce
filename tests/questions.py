"""What attacks by name need: a leaf that may reach one, and the queries of a client that keeps to no rules."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence

import dns.message
from attacks import GATEWAY, HERE, HERE6, THERE, Siege
from traffic import DATAGRAM, STREAM, opened
from worlds import World, at
from zone import Zone

NAME = "api.example.com"


class NamedSiege(Siege):
    """A siege of which the rule is for a name."""

    zone: Zone

    def __init__(self, world: World, rule: str = f"{NAME}:{{port}}", **names: Sequence[str]) -> None:
        """Set the traps, and have a zone know the name that is allowed, and more; their dots are ``_`` here."""
        known = {NAME: [HERE, HERE6], "secret.example.com": [THERE]}
        super().__init__(world, rule, Zone(world, {**known, **{name.replace("_", "."): names[name] for name in names}}))

    @property
    def asked(self) -> set[str]:
        """The names that the zone was asked for."""
        return {name for name, _ in self.zone.asked}

    def still_served(self) -> None:
        """See that what is allowed works."""
        with at(self.leaf), socket.create_connection((NAME, self.port), 5) as one:
            one.sendall(b"x")
            assert one.recv(10) == b"x"


def taken_for(name: str = NAME, family: int = socket.AF_INET) -> str:
    """Return the address that stands for a name in the leaf that we are in."""
    return str(socket.getaddrinfo(name, 1, family, STREAM)[0][4][0])


def ask(query: bytes | dns.message.Message, server: str = GATEWAY, port: int = 53) -> bytes | None:
    """Send a query over UDP; return what comes back at once, if anything."""
    wire = query if isinstance(query, bytes) else query.to_wire()
    with opened(server, DATAGRAM) as one, contextlib.suppress(OSError):
        one.settimeout(0.1)
        one.connect((server, port))
        one.send(wire)
        return one.recv(4096)
    return None


def addresses_in(answer: bytes | None) -> list[str]:
    """Return the records that an answer holds."""
    if answer is None or answer[6:8] == b"\0\0":
        return []
    return [item.to_text() for record in dns.message.from_wire(answer).answer for item in record]

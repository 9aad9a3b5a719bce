"""A name server on the internet, which the gateway asks as its host would, and which remembers what it was asked."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping, Sequence

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from traffic import start
from worlds import INTERNET, World, at

_KINDS = {"A": ".", "AAAA": ":"}


class Zone:
    """Names and their addresses, which may change at any time; no other name exists."""

    def __init__(self, world: World, names: Mapping[str, Sequence[str]]) -> None:
        """Serve on port 53 of the internet's address, until the process ends."""
        self.names = {name.lower(): list(addresses) for name, addresses in names.items()}
        self.asked: list[tuple[str, str]] = []
        self.silent = False
        with at(world.internet):
            self._socket = socket.socket(type=socket.SOCK_DGRAM)
            self._socket.bind((str(INTERNET), 53))
        start(self._serve)

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(65535)
            with contextlib.suppress(dns.exception.DNSException):
                query = dns.message.from_wire(data)
                name, kind = str(query.question[0].name).lower(), dns.rdatatype.to_text(query.question[0].rdtype)
                self.asked.append((name, kind))
                if not self.silent:
                    self._socket.sendto(self._answer(query, name.rstrip("."), kind).to_wire(), client)

    def _answer(self, query: dns.message.Message, name: str, kind: str) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.AA  # without, an empty answer is taken for that of a server which knows nothing
        if name not in self.names:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        elif found := [address for address in self.names[name] if _KINDS.get(kind, "no such kind") in address]:
            answer.answer = [dns.rrset.from_text(f"{name}.", 1, "IN", kind, *found)]
        return answer

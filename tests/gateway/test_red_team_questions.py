"""What a test that may know one name asks in order to learn of another, or to have a secret carried along."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rdataclass
import dns.rdatatype
import pytest
from attacks import HERE, THERE, Siege, poke, take_address
from packets import MARKER, datagram, eavesdrop, heard, send
from questions import NAME, NamedSiege, addresses_in, ask, taken_for
from traffic import DATAGRAM, attempt, dial, listen, opened, port_of
from worlds import INTERNET, World, at, inside, nothing_arrived
from zone import Zone

from pytest_netns import addressing
from pytest_netns.kernel import mounts, privilege

SECRET = "s3cr3t"


def _questions() -> Iterator[bytes]:
    """Yield queries that carry a secret, for names that are not allowed or in ways that are not asked on."""
    for name in (f"{SECRET}.{NAME}", f"{NAME}.{SECRET}.org", f"{SECRET}.example.com", f"{SECRET}.com", f"{SECRET}."):
        for kind in (
            "A",
            "AAAA",
            "TXT",
            "NULL",
            "ANY",
            "SRV",
            "MX",
            "CNAME",
            "NS",
            "PTR",
            "HTTPS",
            "CAA",
            "AXFR",
            "NAPTR",
        ):
            yield dns.message.make_query(name, kind).to_wire()
    for kind in ("TXT", "NULL", "ANY", "SRV", "MX", "SOA", "AXFR", "IXFR", "RRSIG", "DS", "TYPE65400"):
        yield dns.message.make_query(NAME, kind).to_wire()
    for one in ("CH", "HS", "ANY", "NONE"):
        for name in (NAME, f"{SECRET}.{NAME}", f"{SECRET}.bind"):
            yield dns.message.make_query(name, "TXT", one).to_wire()
    plain = dns.message.make_query(NAME, "A").to_wire()
    for opcode in range(1, 16):  # IQUERY, STATUS, NOTIFY, UPDATE and those that mean nothing
        yield plain[:2] + bytes([opcode << 3 | 1]) + plain[3:]
        yield plain[:2] + bytes([opcode << 3 | 1]) + plain[3:] + SECRET.encode()
    other = dns.message.make_query(f"{SECRET}.org", "A").to_wire()
    yield plain[:4] + b"\0\2" + plain[6:] + other[12:]  # two questions
    yield plain[:6] + b"\0\1\0\0\0\0" + plain[12:] + other[12:]  # the second as if it were an answer
    yield other[:12] + b"\6" + SECRET.encode() + b"\xc0\x0c" + other[-4:]  # a name that points at itself
    yield plain[:12] + b"\x03api\xc0\x14\7example\3com\0\0\1\0\1"
    yield plain + SECRET.encode() * 50
    yield b"\0" * 11
    yield plain[:12] + bytes([63]) + SECRET.encode() * 10 + b"abc" + b"\x3f" + b"x" * 63 + plain[12:]


@inside
def test_secrets_in_questions(world: World) -> None:
    """No part of a query travels on: not other names, types, classes or opcodes, nor options, cases or what trails."""
    siege = NamedSiege(world)
    option = dns.edns.GenericOption(dns.edns.OptionType.make(65_001), SECRET.encode())
    subnet = dns.edns.ECSOption("199.51.100.0", 24)
    with siege.attack():
        for wire in _questions():
            answer = ask(wire)
            assert all(address.startswith(("28.", "2d6e:")) for address in addresses_in(answer))
        for name in (NAME, "aPi.ExAmPlE.CoM"):
            for kind in ("A", "AAAA"):
                query = dns.message.make_query(name, kind, use_edns=0, options=[option, subnet], want_dnssec=True)
                assert len(addresses_in(ask(query))) == 1
    assert siege.asked <= {f"{NAME}."}
    packets = b"".join(siege.seen)
    assert SECRET.encode() not in packets.lower()
    assert b"\xc7\x33\x64" not in packets
    assert b"aPi" not in packets
    siege.still_served()


ODD = [
    b"\x0bapi.example\x03com",  # a dot within a label
    b"\x0fapi.example.com",
    b"\x03api\x07example\x03com\x05\0evil\x03org",
    b"\x04api\0\x07example\x03com",
    b"\x03api\x08example\0\x03com",
    b"\x08api\\.x.y\x07example\x03com",
    b"\x03api\x07example\x04com.",
    b"\x03api\x07example\x04com ",
    b"\x04 api\x07example\x03com",
    b"\x04api\t\x07example\x03com",
    "\x06\u0430pi".encode() + b"\x07example\x03com",  # a Cyrillic letter
    b"\x05\xc2\xadapi\x07example\x03com",  # a soft hyphen
    b"\x0dapi\xef\xbc\x8eexample\x03com",  # a full-width dot
    b"\x09xn--80ak6\x07example\x03com",
    b"\x01*\x07example\x03com",
    b"\x07example\x03com",
    b"\x09localhost\x0blocaldomain",
    b"\x08localhos",
    b"\x03foo\x0axlocalhost",
    b"\x04_api\x07example\x03com",
    b"\x01a" * 126,
    b"",
]


@inside
def test_names_that_look_like_it(world: World) -> None:
    """Names that a careless reader takes for the allowed one exist no more than any other: dots, NULs, homographs."""
    siege = NamedSiege(world)
    own = socket.gethostname().encode()[:63]
    with siege.attack():
        for labels in [*ODD, bytes([len(own)]) + own]:
            head = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0)
            answer = ask(head + labels + b"\0" + struct.pack("!HH", 1, 1))
            assert answer is None or answer[3] & 15 == 3, labels
        for name in (
            "api。example。com.evil.org",
            "\u0430pi.example.com",
            "api.example.com.evil.org",
            "localhost.localdomain",
        ):
            with contextlib.suppress(OSError, UnicodeError):
                found = socket.getaddrinfo(name, siege.port)
                assert found == [], name
    assert siege.asked == set()
    siege.still_served()


@inside
def test_edges_of_a_wildcard(world: World) -> None:
    """A wildcard covers what is below its name: not the name, nor what ends in the same letters, however long."""
    zone = Zone(
        world, {"example.com": [HERE], "badexample.com": [HERE], "a.example.com.org": [HERE], "a.example.com": [HERE]}
    )
    siege = Siege(world, "*.example.com:{port}", zone)
    with siege.attack():
        for name in (
            "example.com",
            "badexample.com",
            "example.com.",
            "a.example.com.org",
            "example.com.example.org",
            "com",
        ):
            with pytest.raises(OSError):
                socket.getaddrinfo(name, siege.port)
        assert zone.asked == []
        deep = "x." * 120 + "example.com"
        ask(dns.message.make_query(deep, "A"))
        ask(b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"\x01x" * 130 + b"\x07example\x03com\0\0\1\0\1")
        with dial(taken_for("a.example.com"), siege.port) as one:
            one.sendall(b"x")
            assert one.recv(10) == b"x"
    assert {name for name, _ in zone.asked} <= {f"{deep}.", "a.example.com."}


@inside
def test_other_name_servers(world: World) -> None:
    """No other server or port is asked: not the host's own server, be it in a resolv.conf of the leaf's making."""
    siege = NamedSiege(world)
    with siege.attack():
        query = dns.message.make_query(f"{SECRET}.org", "A")
        for server in (str(INTERNET), THERE, "8.8.8.8", "203.0.113.1", "127.0.0.53", str(addressing.HOST_LOOPBACK)):
            for port in (53, 853, 5353, 443):
                assert ask(query, server, port) is None
                poke(server, port)
        for port in (853, 5353, 5355, 953, 443, 80):
            assert ask(query, port=port) is None
        own = Path(f"/tmp/resolv-{os.getpid()}")
        own.write_text(f"nameserver {INTERNET}\noptions timeout:1 attempts:1\n", encoding="ascii")
        try:
            with privilege.raised():
                mounts.bind(str(own), "/etc/resolv.conf")
            with pytest.raises(OSError):
                socket.getaddrinfo(NAME, siege.port)
        finally:
            own.unlink()
    assert siege.asked == set()


@inside
def test_queries_in_one_stream(world: World) -> None:
    """Queries that come in one stream over TCP, an allowed one first, are judged one by one."""
    siege = NamedSiege(world)
    names = [NAME, f"{SECRET}.org", "secret.example.com", NAME, f"{SECRET}.{NAME}"]
    queries = [dns.message.make_query(name, "A").to_wire() for name in names]
    with siege.attack():
        ear = eavesdrop()
        with dial(str(addressing.GATEWAY), 53) as one, one.makefile("rb") as stream:
            one.sendall(b"".join(len(query).to_bytes(2, "big") + query for query in queries))
            for name in names:
                answer = stream.read(int.from_bytes(stream.read(2), "big"))
                assert (len(addresses_in(answer)), answer[3] & 15) == ((1, 0) if name == NAME else (0, 3))
        assert heard(ear)
    assert siege.asked <= {f"{NAME}."}
    siege.still_served()


@inside
def test_forged_answers(world: World) -> None:
    """Answers that a leaf makes up, for the hub, for the host's resolver or for a neighbour, are believed by nobody."""
    siege = NamedSiege(world)
    query = dns.message.make_query(NAME, "A")
    answer = dns.message.make_response(query)
    answer.answer = [dns.rrset.from_text(f"{NAME}.", 60, "IN", "A", THERE)]
    forged = answer.to_wire()
    with siege.attack():
        take_address(str(INTERNET))
        assert ask(forged) is None
        ends = [(str(INTERNET), "203.0.113.1"), (str(addressing.GATEWAY), siege.neighbour.leaf.ipv4)]
        ends += [(siege.leaf.ipv4, "203.0.113.1"), (str(INTERNET), str(addressing.GATEWAY))]
        send(*(datagram(pair, port, forged, 53) for pair in ends for port in range(32_768, 32_968)))
    stolen = opened(THERE)
    stolen.close()
    siege.still_served()
    assert not any(packet[16:20] == socket.inet_aton(THERE) for packet in siege.seen)


def addresses_of(name: str) -> list[str]:
    """Return what the name server has for a name."""
    return [item for kind in ("A", "AAAA") for item in addresses_in(ask(dns.message.make_query(name, kind)))]


@inside
def test_localhost_as_a_name(world: World) -> None:
    """The name localhost, where that is what is allowed, leads to the allowed port of the host's and no other.

    What is below it is the leaf's own loopback in any case.
    """
    siege = Siege(world, "localhost:{port}", Zone(world, {}))
    with at(world.outer):
        other = listen("127.0.0.1")
    with siege.attack():
        attempt(HERE, siege.wanted)
        found = addresses_of("localhost")
        for host in [*found, "127.0.0.1", str(addressing.HOST_LOOPBACK)]:
            for port in (siege.wanted, port_of(other)):
                assert attempt(host, port).error is not None
                poke(host, port, DATAGRAM)
        assert found == ["127.0.0.1", "::1"] == addresses_of("foo.localhost")
        for name in ("localhost.localdomain", "localhost.example.com", "foolocalhost"):
            assert addresses_of(name) == []
    assert nothing_arrived(other)
    assert MARKER not in b"".join(siege.seen)
    siege.still_served()

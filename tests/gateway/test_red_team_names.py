"""What a test that may reach one name tries in order to reach, or to tell something to, any other."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rdataclass
import dns.rdatatype
import pytest
from attacks import HERE, HERE6, MARKER, THERE, Siege, datagram, eavesdrop, heard, poke, send, take_address
from traffic import DATAGRAM, STREAM, attempt, dial, listen, opened, port_of
from worlds import INTERNET, World, at, inside, nothing_arrived
from zone import Zone

from pytest_netns import addressing
from pytest_netns.kernel import mounts, privilege

NAME = "api.example.com"
RULE = f"{NAME}:{{port}}"
SECRET = "s3cr3t"
# What a name's owner might have it lead to: this machine, its link, a leaf, and IPv4 addresses in IPv6 dress.
TRAPS = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "169.254.169.254",
    "198.18.0.1",
    "198.19.255.254",
    "224.0.0.251",
    "255.255.255.255",
    "::1",
    "::",
    "::7f00:1",
    "::ffff:7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::1",
    "2001:0:1::80ff:fffe",
    "fe80::1",
    "ff02::1",
    "fd6e:6574:6e73:4::1",
]


def _siege(world: World, **names: list[str]) -> Siege:
    """Begin a siege with a zone: the allowed name, a secret one, and more."""
    known = {
        NAME: [HERE, HERE6],
        "secret.example.com": [THERE],
        **{name.replace("_", "."): names[name] for name in names},
    }
    return Siege(world, RULE, Zone(world, known))


def _asked(siege: Siege) -> set[str]:
    assert siege.zone is not None
    return {name for name, _ in siege.zone.asked}


def _stand_in(name: str = NAME, family: int = socket.AF_INET) -> str:
    return str(socket.getaddrinfo(name, 1, family, STREAM)[0][4][0])


def _ask(query: bytes | dns.message.Message, server: str = str(addressing.GATEWAY), port: int = 53) -> bytes | None:
    """Send a query over UDP; return what comes back at once, if anything."""
    wire = query if isinstance(query, bytes) else query.to_wire()
    with opened(server, DATAGRAM) as one, contextlib.suppress(OSError):
        one.settimeout(0.1)
        one.connect((server, port))
        one.send(wire)
        return one.recv(4096)
    return None


def _addresses(answer: bytes | None) -> list[str]:
    if answer is None or answer[6:8] == b"\0\0":
        return []
    return [item.to_text() for record in dns.message.from_wire(answer).answer for item in record]


@inside
def test_real_addresses(world: World) -> None:
    """The addresses that the allowed name leads to are not reached by themselves, in either family."""
    siege = _siege(world)
    with at(world.internet), contextlib.suppress(OSError):
        listen(HERE6, siege.port)
    with siege.attack():
        for host in (HERE, HERE6, "::ffff:203.0.113.5", "64:ff9b::cb00:7105", "2002:cb00:7105::1"):
            for kind in (STREAM, DATAGRAM):
                assert attempt(host, siege.port, kind, 0.5).error is not None
    assert siege.seen == []
    _served(siege)


def _served(siege: Siege) -> None:
    with at(siege.leaf), socket.create_connection((NAME, siege.port), 5) as one:
        one.sendall(b"x")
        assert one.recv(10) == b"x"


@inside
def test_other_ports_of_the_stand_in(world: World) -> None:
    """The address that stands for the name leads to the one port, over TCP; and its neighbours lead nowhere."""
    siege = _siege(world)
    with siege.attack():
        for family in (socket.AF_INET, socket.AF_INET6):
            stand_in = ipaddress.ip_address(_stand_in(family=family))
            for port in (siege.wanted, 53, 443):
                assert attempt(str(stand_in), port).error == "EHOSTUNREACH"
                poke(str(stand_in), port, DATAGRAM)
            poke(str(stand_in), siege.port, DATAGRAM)
            for step in (-1, 1, 2, 256, 65_536):
                poke(str(stand_in + step), siege.port)
    _served(siege)


@inside
def test_stand_ins_of_others(world: World) -> None:
    """The addresses that stand for names which only a neighbour may reach are guessed in vain."""
    siege = _siege(world)
    siege.neighbour.client.allow(
        siege.neighbour.leaf.name, [f"secret.example.com:{siege.port}", "secret.example.com/udp"]
    )
    with at(siege.neighbour.leaf):
        stand_in = ipaddress.ip_address(_stand_in("secret.example.com"))
    guesses = [str(stand_in + step) for step in range(-3, 4)] + [
        f"2d6e:6574:6e73::{number:x}" for number in range(1, 20)
    ]
    with siege.attack():
        for guess in guesses:
            for port in (siege.port, siege.wanted):
                poke(guess, port, DATAGRAM)
                if guess != _stand_in() and port == siege.port and "." in guess:
                    assert attempt(guess, port).error == "EHOSTUNREACH"
        send(*(datagram((source, str(stand_in)), 9) for source in (siege.leaf.ipv4, siege.neighbour.leaf.ipv4)))
    _served(siege)


FORMS = ["::ffff:{}", "64:ff9b::{}", "64:ff9b:1::{}", "::{}", "2002:{}::1", "2001:0:1::{}", "::ffff:0:{}"]


@inside
def test_stand_in_in_disguise(world: World) -> None:
    """Neither the stand-in nor a real address is reached in IPv6 dress: mapped, translated, 6to4 or Teredo."""
    siege = _siege(world)
    with siege.attack():
        addresses = (_stand_in(), HERE, THERE, "127.0.0.1", str(addressing.HOST_LOOPBACK))
        for form, address in itertools.product(FORMS, addresses):
            number = int(ipaddress.IPv4Address(address)) ^ (0xFFFFFFFF if "2001" in form else 0)
            host = form.format(f"{number >> 16:x}:{number & 0xFFFF:x}")
            send(datagram((siege.leaf.ipv6, host), siege.port))
            if not host.startswith("::ffff:") or ":0:" in host[6:]:  # else the kernel takes it for IPv4 here already
                poke(host, siege.port)
    _served(siege)


@inside
def test_rebinding(world: World) -> None:
    """A name that leads outside when it is looked up, and to this machine when it is dialled, leads nowhere."""
    zone = Zone(world, {f"n{number}.example.com": [HERE, HERE6] for number in range(len(TRAPS))})
    siege = Siege(world, "*.example.com:{port}", zone)
    with siege.attack():
        names = {f"n{number}.example.com": trap for number, trap in enumerate(TRAPS)}
        stand_ins = {name: _stand_in(name, socket.AF_INET6 if ":" in names[name] else socket.AF_INET) for name in names}
        zone.names.update({name: [trap] for name, trap in names.items()})
        time.sleep(2.1)  # the gateway remembers for two seconds
        for name, stand_in in stand_ins.items():
            assert attempt(stand_in, siege.port).error == "EHOSTUNREACH", names[name]
        assert attempt(stand_ins["n0.example.com"], siege.port).error == "EHOSTUNREACH"
    reasons = [flow.reason for flow in siege.client.flows(siege.leaf.name) if flow.port == siege.port]
    assert len(reasons) > len(TRAPS)
    assert None not in reasons


@inside
def test_leaves_in_disguise(world: World) -> None:
    """A name that leads to a leaf's address, or a group's, as an IPv6 address with that inside leads nowhere."""
    zone = Zone(world, {"leaf.example.com": ["::ffff:c613:fffe"], "group.example.com": ["::ffff:e000:fb"]})
    zone.names["other.example.com"] = ["64:ff9b::c612:1"]
    siege = Siege(world, "*.example.com:{port}", zone)
    siege.client.allow(siege.leaf.name, ["*.example.com/udp"])
    with siege.attack():
        attempt(HERE, siege.wanted)
        for name in zone.names:
            with contextlib.suppress(OSError):
                stand_in = _stand_in(name, socket.AF_INET6)
                poke(stand_in, siege.port)
                poke(stand_in, siege.port, DATAGRAM)


@inside
def test_names_for_this_machine(world: World) -> None:
    """An allowed name that leads to this machine from the start is not told, and mixed answers lose that part."""
    zone = Zone(world, {f"t{number}.example.com": [trap] for number, trap in enumerate(TRAPS)})
    zone.names["mixed.example.com"] = ["127.0.0.1", HERE, "0.0.0.0", "::1"]
    siege = Siege(world, "*.example.com:{port}", zone)
    with siege.attack():
        for name in list(zone.names):
            with contextlib.suppress(OSError):
                socket.create_connection((name, siege.port), 1).close()
                assert name == "mixed.example.com"
        with dial(_stand_in("mixed.example.com"), siege.port) as one:
            one.sendall(b"x")
            assert one.recv(10) == b"x"


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
    siege = _siege(world)
    option = dns.edns.GenericOption(dns.edns.OptionType.make(65_001), SECRET.encode())
    subnet = dns.edns.ECSOption("199.51.100.0", 24)
    with siege.attack():
        for wire in _questions():
            answer = _ask(wire)
            assert all(address.startswith(("28.", "2d6e:")) for address in _addresses(answer))
        for name in (NAME, "aPi.ExAmPlE.CoM"):
            for kind in ("A", "AAAA"):
                query = dns.message.make_query(name, kind, use_edns=0, options=[option, subnet], want_dnssec=True)
                assert len(_addresses(_ask(query))) == 1
    assert _asked(siege) <= {f"{NAME}."}
    packets = b"".join(siege.seen)
    assert SECRET.encode() not in packets.lower()
    assert b"\xc7\x33\x64" not in packets
    assert b"aPi" not in packets
    _served(siege)


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
    b"\x09localhost",
    b"\x09localhost\x0blocaldomain",
    b"\x03foo\x09localhost",
    b"\x04_api\x07example\x03com",
    b"\x01a" * 126,
    b"",
]


@inside
def test_names_that_look_like_it(world: World) -> None:
    """Names that a careless reader takes for the allowed one exist no more than any other: dots, NULs, homographs."""
    siege = _siege(world)
    own = socket.gethostname().encode()[:63]
    with siege.attack():
        for labels in [*ODD, bytes([len(own)]) + own]:
            head = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0)
            answer = _ask(head + labels + b"\0" + struct.pack("!HH", 1, 1))
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
    assert _asked(siege) == set()
    _served(siege)


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
        _ask(dns.message.make_query(deep, "A"))
        _ask(b"\0\7\1\0\0\1\0\0\0\0\0\0" + b"\x01x" * 130 + b"\x07example\x03com\0\0\1\0\1")
        with dial(_stand_in("a.example.com"), siege.port) as one:
            one.sendall(b"x")
            assert one.recv(10) == b"x"
    assert _asked(siege) <= {f"{deep}.", "a.example.com."}


@inside
def test_other_name_servers(world: World) -> None:
    """No other server or port is asked: not the host's own server, be it in a resolv.conf of the leaf's making."""
    siege = _siege(world)
    with siege.attack():
        query = dns.message.make_query(f"{SECRET}.org", "A")
        for server in (str(INTERNET), THERE, "8.8.8.8", "203.0.113.1", "127.0.0.53", str(addressing.HOST_LOOPBACK)):
            for port in (53, 853, 5353, 443):
                assert _ask(query, server, port) is None
                poke(server, port)
        for port in (853, 5353, 5355, 953, 443, 80):
            assert _ask(query, port=port) is None
        own = Path(f"/tmp/resolv-{os.getpid()}")
        own.write_text(f"nameserver {INTERNET}\noptions timeout:1 attempts:1\n", encoding="ascii")
        try:
            with privilege.raised():
                mounts.bind(str(own), "/etc/resolv.conf")
            with pytest.raises(OSError):
                socket.getaddrinfo(NAME, siege.port)
        finally:
            own.unlink()
    assert _asked(siege) == set()


@inside
def test_queries_in_one_stream(world: World) -> None:
    """Queries that come in one stream over TCP, an allowed one first, are judged one by one."""
    siege = _siege(world)
    names = [NAME, f"{SECRET}.org", "secret.example.com", NAME, f"{SECRET}.{NAME}"]
    queries = [dns.message.make_query(name, "A").to_wire() for name in names]
    with siege.attack():
        ear = eavesdrop()
        with dial(str(addressing.GATEWAY), 53) as one, one.makefile("rb") as stream:
            one.sendall(b"".join(len(query).to_bytes(2, "big") + query for query in queries))
            for name in names:
                answer = stream.read(int.from_bytes(stream.read(2), "big"))
                assert (len(_addresses(answer)), answer[3] & 15) == ((1, 0) if name == NAME else (0, 3))
        assert heard(ear)
    assert _asked(siege) <= {f"{NAME}."}
    _served(siege)


@inside
def test_forged_answers(world: World) -> None:
    """Answers that a leaf makes up, for the hub, for the host's resolver or for a neighbour, are believed by nobody."""
    siege = _siege(world)
    query = dns.message.make_query(NAME, "A")
    answer = dns.message.make_response(query)
    answer.answer = [dns.rrset.from_text(f"{NAME}.", 60, "IN", "A", THERE)]
    forged = answer.to_wire()
    with siege.attack():
        take_address(str(INTERNET))
        assert _ask(forged) is None
        ends = [(str(INTERNET), "203.0.113.1"), (str(addressing.GATEWAY), siege.neighbour.leaf.ipv4)]
        ends += [(siege.leaf.ipv4, "203.0.113.1"), (str(INTERNET), str(addressing.GATEWAY))]
        send(*(datagram(pair, port, forged, 53) for pair in ends for port in range(32_768, 32_968)))
    stolen = opened(THERE)
    stolen.close()
    _served(siege)
    assert not any(packet[16:20] == socket.inet_aton(THERE) for packet in siege.seen)


@inside
def test_localhost_as_a_name(world: World) -> None:
    """The name localhost, where that is what is allowed, leads to the allowed port of the host's and no other."""
    siege = Siege(world, "localhost:{port}", Zone(world, {}))
    with at(world.outer):
        other = listen("127.0.0.1")
    with siege.attack():
        attempt(HERE, siege.wanted)
        found = _addresses(_ask(dns.message.make_query("localhost", "A")))
        found += _addresses(_ask(dns.message.make_query("localhost", "AAAA")))
        for host in [*found, "127.0.0.1", str(addressing.HOST_LOOPBACK)]:
            for port in (siege.wanted, port_of(other)):
                assert attempt(host, port).error is not None
                poke(host, port, DATAGRAM)
        for name in ("foo.localhost", "localhost.localdomain", "localhost.example.com"):
            assert _addresses(_ask(dns.message.make_query(name, "A"))) == []
    assert nothing_arrived(other)
    assert MARKER not in b"".join(siege.seen)
    siege.still_served()

"""Which names a leaf may know, what it is told of them, and that no other name is asked for outside."""

from __future__ import annotations

import ipaddress
import socket
import time

import dns.edns
import dns.message
import dns.opcode
import dns.query
import dns.rcode
import dns.rdatatype
import pytest
from outside import AT_ONCE, address_of, lease, own, rule_for
from traffic import DATAGRAM, STREAM, attempt, listen, refusals, served
from worlds import HOSTS, Visit, Witness, World, at, inside, nothing_arrived
from zone import Zone

from pytest_netns.gateway.client import LeafGrant

BLOCKED, NO_AUTHORITY = 15, 22  # Extended DNS Errors
BOTH = list(HOSTS)


def asked(
    leaf: LeafGrant, name: str, kind: str | dns.rdatatype.RdataType = "A", *, tcp: bool = False
) -> dns.message.Message:
    """Ask a leaf's name server; it answers at once, or as soon as the host's has."""
    query = dns.message.make_query(name, kind, use_edns=0)
    ask = dns.query.tcp if tcp else dns.query.udp
    with at(leaf):
        return ask(query, leaf.gateway_ipv4, timeout=8)


def errors(answer: dns.message.Message) -> list[int]:
    """Return the Extended DNS Errors of an answer."""
    return [option.code for option in answer.options if isinstance(option, dns.edns.EDEOption)]


def found(answer: dns.message.Message) -> list[str]:
    """Return the addresses in an answer."""
    return [str(record) for records in answer.answer for record in records]


def is_blocked(answer: dns.message.Message) -> bool:
    """Tell whether an answer says that the name does not exist, because it is blocked."""
    return answer.rcode() == dns.rcode.NXDOMAIN and errors(answer) == [BLOCKED] and not answer.answer


@inside
@pytest.mark.parametrize(
    ("rule", "allowed", "blocked"),
    [
        (
            "api.example.com",
            ["api.example.com", "API.EXAMPLE.COM.", "api.example.com."],
            [
                *("x.api.example.com", "example.com", "xapi.example.com", "com", "api.example.org"),
                *("api.example.com.evil.org", "api-example.com", "api.example.com.example.com", "."),
            ],
        ),
        (
            "*.example.com",
            ["a.example.com", "a.b.c.d.e.example.com", "A.EXAMPLE.com", "_srv._tcp.example.com", "x--y.example.com"],
            ["example.com", "xexample.com", "example.com.evil.org", "example.org", "*.example.com", "a.example.co"],
        ),
        ("API.EXAMPLE.COM.:443", ["api.example.com"], ["x.api.example.com"]),
        ("b\u00fccher.example.com", ["xn--bcher-kva.example.com"], ["bucher.example.com", "xn--bcher.example.com"]),
        ("xn--bcher-kva.example.com", ["XN--BCHER-KVA.example.com"], ["xn--bcher-kvb.example.com"]),
        ("203.0.113.5", [], ["203.0.113.5", "5.113.0.203.in-addr.arpa", "api.example.com"]),
    ],
)
def test_which_names(world: World, rule: str, allowed: list[str], blocked: list[str]) -> None:
    """A name is that name alone and a wildcard whatever is below it, in any case; the rest is never asked for."""
    allowed, blocked = [own(name) for name in allowed], [own(name) for name in blocked]
    zone = Zone(world, {name.rstrip("."): BOTH for name in [*allowed, *blocked]})
    visit = Visit(world, rules=[own(rule)])
    for tcp in (False, True):
        for name in allowed:
            assert len(found(asked(visit.leaf, name, tcp=tcp))) == 1, name
        for name in blocked:
            begin = time.monotonic()
            assert is_blocked(asked(visit.leaf, name, tcp=tcp)), name
            assert time.monotonic() - begin < AT_ONCE
    assert {name.rstrip(".") for name, _ in zone.asked} == {name.lower().rstrip(".") for name in allowed}
    recorded = {flow.name for flow in visit.flows(visit.leaf, len(blocked))}
    assert recorded == {name.lower().rstrip(".") or "." for name in blocked}


@inside
@pytest.mark.parametrize("rule", ["b\u00fccher.example.com", "xn--bcher-kva.example.com", "*.example.com"])
def test_international_names(world: World, rule: str) -> None:
    """A name in another script is allowed by itself, however it is spelled, and reached."""
    Zone(world, {own("xn--bcher-kva.example.com"): [HOSTS[0]]})
    with at(world.internet):
        port = served(HOSTS[0])
    visit = Visit(world, rules=[own(rule)])
    for name in ("b\u00fccher.example.com", "B\u00dcCHER.example.com", "xn--bcher-kva.example.com"):
        with at(visit.leaf), socket.create_connection((own(name), port), 5) as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
    assert {flow.name for flow in visit.flows(visit.leaf, 3)} == {own("xn--bcher-kva.example.com")}


@inside
@pytest.mark.parametrize("everything", [False, True], ids=["blocking", "recording"])
def test_look_alikes_of_addresses(world: World, everything: bool) -> None:
    """What a resolver would take for an address is no name, whoever asks, and is asked nobody."""
    names = ["0x7f.1", "2130706433", "127.1", "010.0.0.1", "127.0.0.1", "0x7f000001", "169.254.169.254", "0", "1.0x1"]
    visit, witness = Visit(world, rules=["*.example.com"], record=everything), Witness(world)
    for name in names:
        for kind in ("A", "AAAA"):
            assert is_blocked(asked(visit.leaf, name, kind)), name
    assert witness.seen() == []


@inside
def test_other_questions(world: World) -> None:
    """Of an allowed name only the addresses are told; of any other nothing, whatever the question."""
    name, other = own("api.example.com"), own("www.example.com")
    zone = Zone(world, {name: BOTH, other: BOTH})
    visit = Visit(world, rules=[name])
    for kind in ("TXT", "MX", "ANY", "NS", "SRV", "CAA", "PTR", "AXFR", "TYPE65280"):
        answer = asked(visit.leaf, name, kind, tcp=kind == "AXFR")
        assert (answer.rcode(), errors(answer), answer.answer) == (dns.rcode.NOERROR, [BLOCKED], [])
        assert is_blocked(asked(visit.leaf, other, kind, tcp=kind == "AXFR"))
    for kind in ("HTTPS", "SVCB"):
        answer = asked(visit.leaf, name, kind)
        assert (answer.rcode(), errors(answer), answer.answer) == (dns.rcode.NOERROR, [], [])
        assert is_blocked(asked(visit.leaf, other, kind))
    assert zone.asked == []
    flows = visit.flows(visit.leaf, 2)
    reasons = {flow.reason for flow in flows if flow.name == name}
    assert reasons == {"an allowed name, but only its addresses are looked up"}
    # A rule would help with the other name's HTTPS record, as that goes with an address, and with nothing else.
    assert {(flow.reason, flow.allow) for flow in flows if flow.name == other} == {
        (None, other),
        ("only addresses are looked up", None),
    }
    told = {one.endpoint: (one.reason, one.allow) for one in visit.client.blocked()}
    assert told[f"dns {name}"] == ("an allowed name, but only its addresses are looked up", None)
    assert told[f"dns {other}"] == (None, other)


@inside
@pytest.mark.parametrize("everything", [False, True], ids=["blocking", "recording"])
def test_names_of_loopback(world: World, everything: bool) -> None:
    """The name localhost and those below it are the leaf's own loopback, in any spelling, and nobody is asked."""
    visit, witness = Visit(world, rules=["api.example.com"], record=everything), Witness(world)
    for name in ("localhost", "localhost.", "shop.localhost", "a.b.LocalHost."):
        assert found(asked(visit.leaf, name)) == ["127.0.0.1"]
        assert found(asked(visit.leaf, name, "AAAA", tcp=True)) == ["::1"]
        answer = asked(visit.leaf, name, "HTTPS")
        assert (answer.rcode(), answer.answer) == (dns.rcode.NOERROR, [])
    with at(visit.leaf):
        port = served("127.0.0.1")
        assert attempt("shop.localhost", port).error is None
    assert list(visit.client.flows(visit.leaf.name)) == []
    assert witness.seen() == []


@inside
def test_reverse_lookups(world: World) -> None:
    """Whose name an address is cannot be told; asking that of one which stands for a name is no attempt to leave."""
    name = own("api.example.com")
    zone, visit = Zone(world, {name: BOTH}), Visit(world, rules=[name])
    known = [*found(asked(visit.leaf, name)), *found(asked(visit.leaf, name, "AAAA"))]
    for address in (*known, visit.leaf.ipv4, visit.leaf.ipv6, "127.0.0.1", "::1"):
        assert is_blocked(asked(visit.leaf, ipaddress.ip_address(address).reverse_pointer, "PTR"))
    foreign = [ipaddress.ip_address(address).reverse_pointer for address in ("128.0.113.5", "2001:db8::5", "1::1")]
    for pointer in foreign:
        assert is_blocked(asked(visit.leaf, pointer, "PTR"))
    told = [(flow.name, flow.reason, flow.allow) for flow in visit.flows(visit.leaf)]
    assert told == [(pointer, "only addresses are looked up", None) for pointer in foreign]
    assert {kind for _, kind in zone.asked} == {"A", "AAAA"}


@inside
def test_other_requests(world: World) -> None:
    """What is no question for an internet name is declined, and goes nowhere."""
    visit, witness = Visit(world, rules=["api.example.com"]), Witness(world)
    messages = [dns.message.make_query("api.example.com", "A", rdclass="CH").to_wire()]
    for opcode in (dns.opcode.IQUERY, dns.opcode.STATUS, dns.opcode.NOTIFY, dns.opcode.UPDATE, 7):
        query = bytearray(dns.message.make_query("api.example.com", "A").to_wire())
        query[2] = query[2] & 0x87 | opcode << 3
        messages.append(bytes(query))
    for message in messages:
        with at(visit.leaf), socket.socket(type=DATAGRAM) as client:
            client.settimeout(5)
            client.sendto(message, (visit.leaf.gateway_ipv4, 53))
            answer = client.recv(1000)
        assert answer[:2] == message[:2]
        assert (answer[3] & 0xF, answer[6:8]) == (dns.rcode.NOTIMP, b"\0\0")
    assert witness.seen() == []


@inside
def test_what_the_name_has(world: World) -> None:
    """Which families a name has is told as it is, and so is that it does not exist, or could not be looked up."""
    both, four, six, none, missing, silent = (
        own(f"{name}.example.com") for name in ("both", "four", "six", "none", "missing", "silent")
    )
    zone = Zone(world, {both: BOTH, four: BOTH[:1], six: BOTH[1:], none: []})
    visit = Visit(world, rules=[own("*.example.com")])
    expected = {both: (1, 1), four: (1, 0), six: (0, 1), none: (None, None), missing: (None, None)}
    for name, counts in expected.items():
        for kind, count in zip(("A", "AAAA"), counts, strict=True):
            answer = asked(visit.leaf, name, kind)
            assert answer.rcode() == (dns.rcode.NXDOMAIN if count is None else dns.rcode.NOERROR), name
            assert (len(found(answer)), errors(answer)) == (count or 0, []), name
    assert len(zone.asked) == 10
    zone.silent = True
    answer = asked(visit.leaf, silent)
    assert (answer.rcode(), errors(answer)) == (dns.rcode.SERVFAIL, [NO_AUTHORITY])


@inside
def test_stand_ins(world: World) -> None:
    """Every name has addresses of its own, global ones, the same in all leaves and for as long as the run lasts."""
    names = [own(f"host{number}.example.com") for number in range(50)]
    Zone(world, dict.fromkeys(names, BOTH))
    visit, other = Visit(world, rules=[own("*.example.com")]), Visit(world, "w1", rules=names)
    stand_ins = {name: found(asked(visit.leaf, name)) + found(asked(visit.leaf, name, "AAAA")) for name in names}
    every = [address for pair in stand_ins.values() for address in pair]
    assert len(set(every)) == 100
    assert all(ipaddress.ip_address(address).is_global for address in every)
    assert not set(every) & set(BOTH)
    for name in reversed(names):
        assert found(asked(other.leaf, name)) + found(asked(other.leaf, name, "AAAA")) == stand_ins[name]
    time.sleep(1.02)  # by then the gateway has forgotten what it looked up
    assert found(asked(other.leaf, names[0])) == stand_ins[names[0]][:1]


@inside
@pytest.mark.parametrize("number", [0, 1], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
def test_same_address(world: World, number: int, kind: int) -> None:
    """A rule by name opens neither the name's real address nor another name that has the same, nor another port."""
    host = HOSTS[number]
    names = own("allowed.example.com"), own("other.example.com")
    Zone(world, {name: [host] for name in names})
    with at(world.internet):
        port, unlisted = served(host, kind=kind), listen(host, kind=kind)
    visit = Visit(world, rules=[rule_for(names[0], port, kind)])
    knows_both = lease(visit, [f"{name}:1" for name in names])
    allowed, other = (address_of(knows_both, name) for name in names)
    assert address_of(visit.leaf, names[0]) == allowed != other
    with at(visit.leaf):
        assert attempt(allowed, port, kind).error is None
        for address, dialled in ((host, port), (other, port), (allowed, unlisted.getsockname()[1])):
            told = attempt(address, dialled, kind)
            assert told.error in refusals(address, kind)
            assert told.seconds < AT_ONCE
        with pytest.raises(socket.gaierror):
            socket.getaddrinfo(names[1], port)
    with at(knows_both):
        assert attempt(allowed, port, kind).error in refusals(allowed, kind)
    assert nothing_arrived(unlisted)
    blocked = [(flow.name, flow.address) for flow in visit.flows(visit.leaf, 5) if flow.verdict == "blocked"]
    assert blocked == [(None, host), (names[1], None), (names[0], None), (names[1], None)]


@inside
def test_allowed_as_the_test_runs(world: World) -> None:
    """A name that is allowed as a test runs is found from the next question on."""
    name = own("late.example.com")
    Zone(world, {name: BOTH})
    visit = Visit(world)
    assert is_blocked(asked(visit.leaf, name))
    visit.client.allow(visit.leaf.name, [f"{name}:443"])
    assert len(found(asked(visit.leaf, name))) == 1
    visit.client.label(visit.leaf.name, "test_next")
    assert is_blocked(asked(visit.leaf, name))

"""The name server's messages, read and written by another implementation."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import dns.edns
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.update
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netns.gateway import dns as own
from pytest_netns.gateway.packet import Address

V4, OTHER_V4 = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("198.51.100.254")
V6, OTHER_V6 = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("fd00::ffff")
ALL = [V4, V6, OTHER_V4, OTHER_V6]
LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
ANSWERS: list[Callable[[own.Question], bytes]] = [
    own.refuse,
    own.refuse_kind,
    own.missing,
    own.fail,
    own.decline,
    lambda question: own.answer(question, ALL, 60),
    lambda question: own.answer(question, [], 60),
    lambda question: own.refuse(question, ""),
    lambda question: own.refuse(question, "\u20ac" * 500),
]


def question_of(query: dns.message.Message) -> own.Question:
    """Return the question as it arrives."""
    question = own.parse(query.to_wire())
    assert question is not None
    return question


def reasons(answer: dns.message.Message) -> list[tuple[int, str | None]]:
    """Return the Extended DNS Errors in an answer."""
    return [(int(one.code), one.text) for one in answer.options if isinstance(one, dns.edns.EDEOption)]


@given(st.binary(max_size=300))
def test_never_raises(data: bytes) -> None:
    """Any bytes whatever are a question that can be refused, or none."""
    question = own.parse(data)
    if question is not None:
        assert own.refuse(question)[:2] == data[:2]


@given(st.binary(max_size=100))
def test_never_raises_on_a_question(data: bytes) -> None:
    """After a header that promises one question, anything may follow."""
    own.parse(bytes.fromhex("beef0100 0001 0000 0000 0001") + data)


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS", "TXT", "ANY"])
@pytest.mark.parametrize("name", ["secret.example.com", "CASE.Example.", ".", "a." * 100, "xn--bcher-kva.example"])
def test_refusal(name: str, kind: str, edns: bool) -> None:
    """The name does not exist, says the answer, and why, to those who speak EDNS."""
    query = dns.message.make_query(name, kind, use_edns=0 if edns else False)
    question = own.parse(query.to_wire())
    assert question is not None
    assert question.name == (name.lower().rstrip(".") or ".")
    assert question.kind == dns.rdatatype.from_text(kind)
    answer = dns.message.from_wire(own.refuse(question))
    assert query.is_response(answer)
    assert answer.rcode() == dns.rcode.NXDOMAIN
    assert answer.flags & dns.flags.RD
    assert answer.flags & dns.flags.RA
    assert answer.question == query.question
    assert not answer.answer
    assert (answer.edns == 0) is edns
    errors = [option for option in answer.options if isinstance(option, dns.edns.EDEOption)]
    assert [error.code for error in errors] == [dns.edns.EDECode.BLOCKED] * edns


@given(st.lists(st.binary(min_size=1, max_size=63), min_size=1, max_size=3))
def test_names_of_any_bytes(labels: list[bytes]) -> None:
    """A label may hold any byte; the name is printable text from which they can be told again."""
    section = b"".join(bytes([len(label)]) + label for label in labels) + b"\0\0\1\0\1"
    question = own.parse(bytes.fromhex("beef0100 0001 0000 0000 0000") + section)
    assert question is not None
    assert question.name.isascii()
    assert question.name.isprintable()
    assert dns.name.from_text(question.name) == dns.name.Name([*labels, b""])
    assert own.refuse(question).endswith(section)


def test_dots_in_labels() -> None:
    """A label with a dot in it is another name than two labels, and so is one that spells out an escape."""
    names = [
        [b"a b\x7f"],
        [b"api.example", b"com"],
        [b"api", b"example.com"],
        [b"api", b"example", b"com"],
        [b"a\xff"],
        [rb"a\255"],
    ]
    queries = [dns.message.make_query(dns.name.Name([*labels, b""]), "A") for labels in names]
    found = [question_of(query).name for query in queries]
    assert found == [
        r"a\032b\127",
        r"api\046example.com",
        r"api.example\046com",
        "api.example.com",
        r"a\255",
        r"a\092255",
    ]


@pytest.mark.parametrize("edns", [True, False])
@pytest.mark.parametrize("make", ANSWERS)
@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS"])
@pytest.mark.parametrize("name", ["example.com", ".", LONGEST])
def test_every_answer(name: str, kind: str, make: Callable[[own.Question], bytes], edns: bool) -> None:
    """Whatever is answered is the answer to the query, understood without EDNS, and fits into a datagram."""
    query = dns.message.make_query(name, kind, use_edns=0 if edns else False)
    wire = make(question_of(query))
    answer = dns.message.from_wire(wire)
    assert len(wire) <= 512
    assert query.is_response(answer)
    assert answer.flags & dns.flags.RD
    assert answer.flags & dns.flags.RA
    assert not answer.flags & dns.flags.TC
    assert answer.question == query.question
    assert (answer.edns, answer.ednsflags, answer.payload) == ((0, 0, 1232) if edns else (-1, 0, 0))
    assert not answer.authority
    assert not answer.additional


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("A", [V4, OTHER_V4]), ("AAAA", [V6, OTHER_V6]), ("HTTPS", []), ("PTR", []), ("ANY", []), ("TXT", [])],
)
@pytest.mark.parametrize("name", ["api.example.com", "API.example.COM", LONGEST])
def test_addresses(name: str, kind: str, expected: list[Address]) -> None:
    """The answer holds those addresses that are of the kind asked for, under the name as it was asked for."""
    question = question_of(dns.message.make_query(name, kind))
    answer = dns.message.from_wire(own.answer(question, ALL, 30))
    assert answer.rcode() == dns.rcode.NOERROR
    found = [rrset.to_text().splitlines() for rrset in answer.answer]
    assert found == ([[f"{name}. 30 IN {kind} {address}" for address in expected]] if expected else [])
    assert reasons(answer) == []


@pytest.mark.parametrize(("kind", "address"), [("A", V4), ("AAAA", V6)])
def test_address_of_the_other_family(kind: str, address: Address) -> None:
    """A name without an address of the kind asked for exists all the same: no error, and no record."""
    other = {"A": "AAAA", "AAAA": "A"}[kind]
    for addresses in ([], [address]):
        answer = dns.message.from_wire(own.answer(question_of(dns.message.make_query("a.b", other)), addresses, 30))
        assert answer.rcode() == dns.rcode.NOERROR
        assert not answer.answer


def test_many_addresses() -> None:
    """Of more addresses than fit, some are given: any one of them will do."""
    many = [V6 + count for count in range(100)]
    wire = own.answer(question_of(dns.message.make_query(LONGEST, "AAAA", use_edns=0)), many, 30)
    (rrset,) = dns.message.from_wire(wire).answer
    assert [ipaddress.ip_address(record.to_text()) for record in rrset] == many[: len(rrset)]
    assert 500 < len(wire) <= 512


@pytest.mark.parametrize(
    ("make", "rcode", "expected"),
    [
        (own.refuse, "NXDOMAIN", [(15, "not on the test's allow-list")]),
        (lambda question: own.refuse(question, "why \u2026 so"), "NXDOMAIN", [(15, "why \u2026 so")]),
        (lambda question: own.refuse(question, "\u20ac" * 500), "NXDOMAIN", [(15, "\u20ac" * 66)]),
        (lambda question: own.refuse(question, "\ud800"), "NXDOMAIN", [(15, "?")]),
        (own.refuse_kind, "NOERROR", [(15, "only addresses are looked up")]),
        (own.fail, "SERVFAIL", [(22, "the host could not look the name up")]),
        (own.missing, "NXDOMAIN", []),
        (own.decline, "NOTIMP", []),
    ],
)
def test_what_went_wrong(make: Callable[[own.Question], bytes], rcode: str, expected: list[tuple[int, str]]) -> None:
    """Each kind of failure has its code, and says why to those who speak EDNS."""
    for edns in (True, False):
        query = dns.message.make_query("example.com", "A", use_edns=0 if edns else False)
        answer = dns.message.from_wire(make(question_of(query)))
        assert dns.rcode.to_text(answer.rcode()) == rcode
        assert reasons(answer) == (expected if edns else [])
        assert not answer.answer


def test_constants() -> None:
    """The numbers are IANA's."""
    for name in ("A", "AAAA", "HTTPS", "SVCB", "PTR"):
        assert getattr(own, name) == dns.rdatatype.from_text(name)
    assert own.IN == dns.rdataclass.IN
    assert own.QUERY == dns.opcode.QUERY


@pytest.mark.parametrize("dns_class", ["IN", "CH", "HS", "NONE", "ANY"])
def test_only_the_internet_has_addresses(dns_class: str) -> None:
    """No class but IN is ever answered with an address."""
    query = dns.message.make_query("example.com", "A", rdclass=dns_class)
    question = question_of(query)
    assert question.dns_class == dns.rdataclass.from_text(dns_class)
    assert question.is_lookup is (dns_class == "IN")
    assert len(dns.message.from_wire(own.answer(question, ALL, 30)).answer) == (dns_class == "IN")


def test_only_queries_have_addresses() -> None:
    """Another opcode than QUERY is never answered with an address; it is said to be none of the server's."""
    notify = dns.message.make_query("example.com", "A", use_edns=0)
    notify.set_opcode(dns.opcode.NOTIFY)
    update = dns.update.UpdateMessage("example.com")
    update.add("www", 300, "A", "192.0.2.1")
    for query in (notify, update):
        question = question_of(query)
        assert question.opcode == query.opcode()
        assert not question.is_lookup
        assert dns.message.from_wire(own.answer(question, ALL, 30)).sections[1] == []
        declined = dns.message.from_wire(own.decline(question))
        assert declined.rcode() == dns.rcode.NOTIMP
        assert declined.opcode() == query.opcode()


def test_other_records_are_not_taken_for_edns() -> None:
    """Only the record that announces EDNS does so."""
    query = dns.message.make_query("example.com", "A")
    query.additional.append(dns.rrset.from_text("example.com.", 30, "IN", "TXT", "x"))
    assert not question_of(query).extended
    announced = dns.message.make_query("example.com", "A", use_edns=0).to_wire()
    for section in (7, 9):  # then the record behind the question is not the additional section's
        question = own.parse(announced[:section] + b"\1" + announced[section + 1 :])
        assert question is not None
        assert not question.extended
    assert question_of(dns.message.make_query("example.com", "A", use_edns=0)).extended


def test_longest_name() -> None:
    """A name of 255 bytes on the wire is read; one of 256 is none."""
    header, end = bytes.fromhex("beef0100 0001 0000 0000 0000"), bytes.fromhex("00 0001 0001")
    labels = b"".join(bytes([size]) + b"x" * size for size in (63, 63, 63))
    longest = own.parse(header + labels + b"\x3d" + b"x" * 61 + end)
    assert longest is not None
    assert len(longest.name) == 253
    assert own.parse(header + labels + b"\x3e" + b"x" * 62 + end) is None


def test_what_is_no_question() -> None:
    """An answer, two questions at once, none, and one that is cut short get no answer."""
    query = dns.message.make_query("example.com", "A")
    answer = dns.message.make_response(query)
    assert own.parse(answer.to_wire()) is None
    two = dns.message.make_query("example.com", "A")
    two.question *= 2
    assert own.parse(two.to_wire()) is None
    none = dns.message.make_query("example.com", "A")
    none.question.clear()
    assert own.parse(none.to_wire()) is None
    whole = query.to_wire()
    assert all(own.parse(whole[:size]) is None for size in range(len(whole)))
    header = bytes.fromhex("beef0100 0001 0000 0000 0000")
    for beyond in (0x40, 0x80, 0xC0, 0xFF):  # the length of a label, were it not a pointer or nothing yet
        assert own.parse(header + bytes([beyond]) + b"x" * beyond + bytes.fromhex("00 0001 0001")) is None

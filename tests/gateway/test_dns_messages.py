"""The name server's messages, read and written by another implementation."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netns.gateway import dns as own


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
    """A label may hold any byte; the name is text all the same, and the answer repeats it as it came."""
    section = b"".join(bytes([len(label)]) + label for label in labels) + b"\0\0\1\0\1"
    question = own.parse(bytes.fromhex("beef0100 0001 0000 0000 0000") + section)
    assert question is not None
    assert question.name.isascii()
    assert own.refuse(question).endswith(section)


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
    pointer = bytes.fromhex("beef0100 0001 0000 0000 0000 c00c 0001 0001")
    assert own.parse(pointer) is None


def test_opcode_is_repeated() -> None:
    """A request of another kind than a query is answered as one of its kind."""
    query = dns.message.make_query("example.com", "SOA")
    query.set_opcode(dns.opcode.NOTIFY)
    question = own.parse(query.to_wire())
    assert question is not None
    assert dns.message.from_wire(own.refuse(question)).opcode() == dns.opcode.NOTIFY

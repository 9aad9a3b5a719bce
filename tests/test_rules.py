"""Which texts are egress rules, what they allow, and what the others' errors say."""

from __future__ import annotations

import ipaddress
import pickle
import socket
from itertools import pairwise
from typing import Literal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pytest_netns import addressing, hostnames, rules
from pytest_netns.errors import NetnsError
from pytest_netns.hostnames import normal_name
from pytest_netns.rules import EgressRule, RuleError, embedded_ipv4, smallest, text_for

V4, V6 = ipaddress.IPv4Address, ipaddress.IPv6Address
ANY = (1, 65_535)


def net(text: str) -> rules.Network:
    """Shorten a table."""
    return ipaddress.ip_network(text)


def refusal(text: object) -> RuleError:
    """Return the error that a text gets, after a look at what holds for all of them."""
    with pytest.raises(RuleError) as caught:
        EgressRule.parse(text)
    message = str(caught.value)
    advice = message.rsplit(maxsplit=1)[-1]
    assert message.startswith(f"{text!r} is no egress rule: ")
    assert str(EgressRule.parse(advice)) == advice
    assert caught.value.right in {None, advice}
    assert (f"; write for example {advice}" in message) == (caught.value.right is None)
    return caught.value


labels = st.from_regex(r"[a-z0-9_]([a-z0-9_-]{0,20}[a-z0-9_])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=5).map(".".join).filter(lambda name: normal_name(name) == name)
wildcards = names.filter(lambda name: name != "localhost").map("*.{}".format)
ports = st.integers(*ANY)
protocols: st.SearchStrategy[Literal["tcp", "udp"]] = st.sampled_from(("tcp", "udp"))


@st.composite
def networks(draw: st.DrawFn) -> rules.Network:
    """Draw a block that is not unreachable as a whole."""
    address = draw(st.ip_addresses())
    length = draw(st.integers(0, address.max_prefixlen) | st.just(address.max_prefixlen))
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    assume(not any(rules._within(network, unreachable) for unreachable in rules._UNREACHABLE))
    return network


@st.composite
def egress_rules(
    draw: st.DrawFn, hosts: st.SearchStrategy[str | rules.Network], port: st.SearchStrategy[int] = ports
) -> EgressRule:
    """Draw a rule for one of these hosts."""
    first, last = sorted([draw(port), draw(port)])
    return EgressRule(draw(hosts), first, last, draw(protocols))


ALL_HOSTS = names | wildcards | networks() | st.just("localhost")
NEAR_HOSTS = st.sampled_from(
    [
        *["localhost", "a", "b.a", "c.b.a", "*.a", "*.b.a", "xa"],
        *map(
            net, ["10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32", "2001:db8::1/128", "::/0"]
        ),
    ]
)
ENDPOINTS: list[str | rules.Address] = [
    *["localhost", "a", "b.a", "c.b.a", "d.c.b.a", "xa", "x"],
    *map(ipaddress.ip_address, ["10.1.2.3", "10.1.2.4", "10.2.0.1", "11.0.0.1", "127.0.0.1", "::1", "198.18.0.9"]),
    *map(ipaddress.ip_address, ["2001:db8::1", "2001:db8::2", "2001:db9::1"]),
]


def allows(given_rules: list[EgressRule], protocol: str, host: str | rules.Address, port: int) -> bool:
    """Tell what a list of rules comes to."""
    return any(
        rule.covers(protocol, port) and (rule.covers_name(host) if isinstance(host, str) else rule.covers_address(host))
        for rule in given_rules
    )


@pytest.mark.parametrize(
    ("text", "rule", "canonical"),
    [
        ("api.example.com", EgressRule("api.example.com"), None),
        ("api.example.com:443", EgressRule("api.example.com", 443, 443), None),
        ("api.example.com:443/tcp", EgressRule("api.example.com", 443, 443), "api.example.com:443"),
        ("api.example.com:443-443", EgressRule("api.example.com", 443, 443), "api.example.com:443"),
        ("api.example.com:1-65535", EgressRule("api.example.com"), "api.example.com"),
        (" API.Example.COM.:0443 \n", EgressRule("api.example.com", 443, 443), "api.example.com:443"),
        ("ntp.example.com:123/udp", EgressRule("ntp.example.com", 123, 123, "udp"), None),
        ("ntp.example.com/UDP", EgressRule("ntp.example.com", *ANY, "udp"), "ntp.example.com/udp"),
        ("db", EgressRule("db"), None),
        ("_srv._tcp.example.com", EgressRule("_srv._tcp.example.com"), None),
        ("123.example.com", EgressRule("123.example.com"), None),
        ("0xcafe.io", EgressRule("0xcafe.io"), None),
        ("B\u00fccher.example", EgressRule("xn--bcher-kva.example"), "xn--bcher-kva.example"),
        ("XN--bcher-kva.example", EgressRule("xn--bcher-kva.example"), "xn--bcher-kva.example"),
        ("\uff21\uff30\uff29\uff0eexample\u3002com", EgressRule("api.example.com"), "api.example.com"),
        ("*.example.com:8000-8999", EgressRule("*.example.com", 8000, 8999), None),
        ("*.B\u00fccher.example.", EgressRule("*.xn--bcher-kva.example"), "*.xn--bcher-kva.example"),
        ("*.com", EgressRule("*.com"), None),
        ("192.0.2.7", EgressRule(net("192.0.2.7/32")), None),
        ("192.0.2.7/32:80", EgressRule(net("192.0.2.7/32"), 80, 80), "192.0.2.7:80"),
        ("169.254.169.254:80", EgressRule(net("169.254.169.254/32"), 80, 80), None),
        ("198.51.100.0/24:8000-8999", EgressRule(net("198.51.100.0/24"), 8000, 8999), None),
        ("198.51.100.0/24/udp", EgressRule(net("198.51.100.0/24"), *ANY, "udp"), None),
        ("198.51.100.0/24:53/udp", EgressRule(net("198.51.100.0/24"), 53, 53, "udp"), None),
        ("0.0.0.0/0", EgressRule(net("0.0.0.0/0")), None),
        ("2001:db8::1", EgressRule(net("2001:db8::1/128")), None),
        ("2001:DB8::1/udp", EgressRule(net("2001:db8::1/128"), *ANY, "udp"), "2001:db8::1/udp"),
        ("2001:db8::1:443", EgressRule(net("2001:db8::1:443/128")), None),
        ("[2001:db8::1]", EgressRule(net("2001:db8::1/128")), "2001:db8::1"),
        ("[2001:db8::1]:443", EgressRule(net("2001:db8::1/128"), 443, 443), None),
        ("[2001:db8::]/64:443", EgressRule(net("2001:db8::/64"), 443, 443), None),
        ("[2001:db8::/64]:443", EgressRule(net("2001:db8::/64"), 443, 443), "[2001:db8::]/64:443"),
        ("2001:db8::/64:443/udp", EgressRule(net("2001:db8::/64"), 443, 443, "udp"), "[2001:db8::]/64:443/udp"),
        ("2001:db8::/64", EgressRule(net("2001:db8::/64")), None),
        ("::/0", EgressRule(net("::/0")), None),
        ("localhost", EgressRule("localhost"), None),
        ("LOCALHOST.:5432", EgressRule("localhost", 5432, 5432), "localhost:5432"),
    ],
)
def test_text_is_read_as_written(text: str, rule: EgressRule, canonical: str | None) -> None:
    """Every form of the grammar is read, and told back in its one canonical spelling."""
    assert EgressRule.parse(text) == rule
    assert str(rule) == (canonical or text)


@pytest.mark.parametrize(
    ("text", "why", "right"),
    [
        # nothing there
        ("", "names no host", None),
        ("  ", "names no host", None),
        (":443", "names no host", None),
        ("/udp", "names no host", None),
        ("[]:443", "brackets are for IPv6", None),
        (None, "type NoneType", None),
        (443, "type int", None),
        (b"api.example.com", "type bytes", None),
        # wildcards
        ("*", "--netns-egress=record", None),
        ("*:443", "list the names", None),
        ("*/udp", "--netns-egress=record", None),
        ("*.", "names no host", None),
        ("*..", "label ''", None),
        ("api.*.com", "*. before a name", None),
        ("a*.com", "*. before a name", None),
        ("api.*.example.com:443", "*. before a name", "*.example.com:443"),
        ("*example.com/udp", "*. before a name", "*.example.com/udp"),
        ("*.*.example.com", "*. before a name", "*.example.com"),
        ("*.localhost:80", "what is below localhost is the test's own loopback", "localhost:80"),
        ("shop.LocalHost.:80", "what is below localhost is the test's own loopback", "localhost:80"),
        ("*.192.0.2.7", "read it as the address 192.0.2.7", "192.0.2.7"),
        # URLs, users and paths
        ("https://api.example.com/x", "no scheme", "api.example.com:443"),
        ("HTTP://api.example.com", "no scheme", "api.example.com:80"),
        ("https://api.example.com:8443/x?y#z", "no scheme", "api.example.com:8443"),
        ("https://me:secret@api.example.com", "no scheme", "api.example.com:443"),
        ("https://[2001:db8::1]/", "no scheme", "[2001:db8::1]:443"),
        ("http://127.0.0.1:8000/", "no scheme", "localhost:8000"),
        ("postgresql://db/app", "no scheme", "db:5432"),
        ("gopher://example.com/1", "no scheme", "example.com"),
        ("https://", "no scheme", None),
        ("git@example.com:22", "no user", "example.com:22"),
        ("api.example.com/v1/users", "no path", "api.example.com"),
        ("api.example.com:443/", "no path", "api.example.com:443"),
        # protocols and ports
        ("api.example.com:443/sctp", "'/sctp' is neither /tcp nor /udp", "api.example.com:443"),
        ("api.example.com/udp:443", "neither /tcp nor /udp", "api.example.com"),
        ("example.com:0", "'0' is no port", None),
        ("example.com:65536", "'65536' is no port", None),
        (f"example.com:{'9' * 5000}", "is no port", None),
        ("example.com:", "'' is no port", None),
        ("example.com:-1", "'-1' is no port", None),
        ("example.com:80-", "'80-' is no port", None),
        ("example.com:x", "'x' is no port", None),
        ("example.com:\u0664", "is no port", None),
        ("example.com:9-3/udp", "run backwards", "example.com:3-9/udp"),
        ("example.com:https", "'https' is not a number", "example.com:443"),
        ("example.com:DOMAIN/udp", "'DOMAIN' is not a number", "example.com:53/udp"),
        ("example.com:*", "any port", "example.com"),
        # blocks
        ("198.51.100.7/24:443/udp", "bits beyond the prefix", "198.51.100.0/24:443/udp"),
        ("[2001:db8::1]/64:443", "bits beyond the prefix", "[2001:db8::]/64:443"),
        ("2001:db8::1/64", "bits beyond the prefix", "2001:db8::/64"),
        ("198.51.100.0/33", "no block of addresses", "198.51.100.0"),
        ("example.com/24", "no block of addresses", "example.com"),
        ("10.1/16", "no block of addresses", "10.0.0.1"),
        # brackets
        ("[::1", "in pairs", None),
        ("2001:db8::1]:443", "in pairs", None),
        ("[[2001:db8::1]]:443", "in pairs", None),
        ("[192.0.2.7]:443", "for IPv6", "192.0.2.7:443"),
        ("[api.example.com]:443", "for IPv6", "api.example.com:443"),
        ("1:2:3:4:5:6:7:8:443", "behind brackets", "[1:2:3:4:5:6:7:8]:443"),
        ("a:b:c", "no IPv6 address", None),
        # addresses that mean nothing outside a leaf
        ("127.0.0.1:5432", "own loopback", "localhost:5432"),
        ("127.8.9.10", "own loopback", "localhost"),
        ("127.0.0.0/8", "own loopback", "localhost"),
        ("[::1]:5432/udp", "own loopback", "localhost:5432/udp"),
        ("0.0.0.0:80", "unspecified", None),
        ("::", "unspecified", None),
        ("224.0.0.251:5353/udp", "multicast", None),
        ("232.0.0.0/8", "multicast", None),
        ("[ff02::fb]:5353/udp", "multicast", None),
        ("255.255.255.255", "broadcast", None),
        (f"{addressing.leaf(7).ipv4}:80", "leaves", None),
        (f"{addressing.HOST_LOOPBACK}", "leaves", None),
        (f"{addressing.LEAVES}", "leaves", None),
        (f"[{addressing.leaf(7).ipv6}]:80", "leaves", None),
        (f"{addressing.LEAVES6}", "leaves", None),
        ("fe80::1%eth0", "scope id", None),
        ("[fe80::1%eth0]:80", "scope id", None),
        ("fe80::1", "link-local", None),
        ("::ffff:192.0.2.7", "IPv4", "192.0.2.7"),
        ("[::ffff:c000:207]:443", "IPv4", "192.0.2.7:443"),
        ("::ffff:192.0.2.0/120", "IPv4", "192.0.2.0/24"),
        ("[::ffff:127.0.0.1]:80", "IPv4", "localhost:80"),
        # addresses in disguise
        ("3221225991", "the address 192.0.2.7", "192.0.2.7"),
        ("2130706433", "the address 127.0.0.1", "localhost"),
        ("0x7f000001:80", "the address 127.0.0.1", "localhost:80"),
        ("0300.0.2.7", "the address 192.0.2.7", "192.0.2.7"),
        ("0177.0.0.1", "the address 127.0.0.1", "localhost"),
        ("127.1", "the address 127.0.0.1", "localhost"),
        ("10.0XFF.1:443", "the address 10.255.0.1", "10.255.0.1:443"),
        ("192.0.2.7.", "the address 192.0.2.7", "192.0.2.7"),
        ("\uff11\uff19\uff12.0.2.7", "the address 192.0.2.7", "192.0.2.7"),
        ("256.1.1.1", "end in a number", None),
        ("1.2.3.4.0", "end in a number", None),
        ("09.1", "end in a number", None),
        ("example.123", "end in a number", None),
        ("example.0x1f", "end in a number", None),
        # names
        ("a..example.com", "label ''", None),
        (".example.com", "label ''", None),
        ("example.com..", "label ''", None),
        (f"{'a' * 64}.com", "63", None),
        (".".join(["a" * 49] * 6), "253", None),
        ("\u00e9" * 300, "253", None),
        ("-a.com", "'-a'", None),
        ("a-.com", "'a-'", None),
        ("a.com b.com", "a rule of its own", "a.com"),
        ("a.com:80,443", "a rule of its own", "a.com:80"),
        ("a.com:443, b.com:443", "a rule of its own", "a.com:443"),
        ("a.com,b.com", "a rule of its own", "a.com"),
        ("\u2100.com", "'a/c'", None),
        ("\u00ad\u00e9..com", "no international name", None),
        ("stra\u00dfe.de:443", "IDNA", "xn--strae-oqa.de:443"),
        ("STRA\u1e9eE.de:443", "IDNA", "xn--strae-oqa.de:443"),
        ("*.\u03b2\u03cc\u03bb\u03bf\u03c2.com", "IDNA", "xn--nxasmm1c.com"),
        ("a\u200db.com", "IDNA", "xn--ab-m1t.com"),
        ("a\u200cb\u3002com", "IDNA", "xn--ab-j1t.com"),
    ],
)
def test_other_text_is_refused_with_a_right_form(text: object, why: str, right: str | None) -> None:
    """What is no rule is quoted, with the reason, and with what was meant or else an example."""
    error = refusal(text)
    assert why in str(error)
    assert error.right == right


@pytest.mark.parametrize(("text", "advice"), [("db:0/udp", "db:443/udp"), ("*:0", "api.example.com:443")])
def test_wrong_port_gets_an_example_for_its_host(text: str, advice: str) -> None:
    """The example for a wrong port keeps the host, unless that is wrong as well."""
    assert str(refusal(text)).endswith(f"; write for example {advice}")


def test_error_survives_pickling() -> None:
    """An error keeps its message and its advice between processes, and is both ours and a ValueError."""
    error = refusal("127.1:80")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.right) == (str(error), "localhost:80")
    assert isinstance(copy, NetnsError)
    assert isinstance(copy, ValueError)


@given(st.text() | st.text("ab.*:[]/-_0189xf%@ \u00df\u00e9\u3002") | st.from_regex(rules._RULE, fullmatch=True))
def test_any_text_is_a_rule_or_gets_a_right_form(text: str) -> None:
    """Whatever the text, it is read or refused with advice that is a rule; nothing else is raised."""
    try:
        rule = EgressRule.parse(text)
    except RuleError:
        refusal(text)
    else:
        assert EgressRule.parse(str(rule)) == rule


@given(egress_rules(ALL_HOSTS))
def test_canonical_text_means_the_same(rule: EgressRule) -> None:
    """A rule's own text is read as that rule."""
    assert EgressRule.parse(str(rule)) == rule


@given(names, names)
def test_name_covers_itself_alone(name: str, other: str) -> None:
    """A rule by name covers that name, however it is spelt, and no name above, below or beside."""
    rule = EgressRule.parse(name.upper() + ".")
    assert rule.covers_name(name)
    assert rule.covers_name(other) == (name == other)
    assert not rule.covers_name(f"{other}.{name}")
    assert not rule.covers_name(f"x{name}")


@given(wildcards, names)
def test_wildcard_covers_what_is_below(wildcard: str, name: str) -> None:
    """A wildcard covers names below at any depth, never its own name nor one that merely ends alike."""
    rule = EgressRule.parse(wildcard)
    base = wildcard[2:]
    assert rule.covers_name(f"{name}.{base}")
    assert rule.covers_name(f"x.{name}.{base}")
    assert not rule.covers_name(base)
    assert not rule.covers_name(f"x{base}")
    assert not rule.covers_name(f"{base}.x{base}")


@pytest.mark.parametrize(
    ("text", "address", "covered"),
    [
        ("192.0.2.7", "192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
        ("192.0.2.0/24", "192.0.2.255", True),
        ("192.0.2.0/24", "192.0.3.0", False),
        ("192.0.2.7", "::ffff:192.0.2.7", False),
        ("2001:db8::/64", "2001:db8::5", True),
        ("2001:db8::/64", "2001:db8:0:1::5", False),
        ("0.0.0.0/0", "192.0.2.7", True),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("0.0.0.0/0", "127.0.0.1", False),
        ("0.0.0.0/0", "0.0.0.0", False),
        ("0.0.0.0/0", "224.0.0.251", False),
        ("198.0.0.0/8", str(addressing.leaf(7).ipv4), False),
        ("::/0", "2001:db8::1", True),
        ("::/0", "::1", False),
        ("::/0", "::ffff:127.0.0.1", False),
        ("fc00::/7", str(addressing.leaf(7).ipv6), False),
        ("localhost", "127.0.0.1", True),
        ("localhost", "::1", True),
        ("localhost", "127.0.0.2", False),
        ("localhost", "192.0.2.7", False),
        ("example.com", "192.0.2.7", False),
        ("*.com", "192.0.2.7", False),
    ],
)
def test_address_is_covered_by_its_blocks(text: str, address: str, covered: bool) -> None:
    """A block covers its addresses but for the unreachable ones; a name covers none, save localhost."""
    assert EgressRule.parse(text).covers_address(ipaddress.ip_address(address)) is covered


def test_block_covers_no_name() -> None:
    """A rule by address says nothing of names, not even of the name that its text would be."""
    assert not EgressRule.parse("192.0.2.7").covers_name("192.0.2.7")
    assert not EgressRule.parse("0.0.0.0/0").covers_name("example.com")


@given(egress_rules(ALL_HOSTS), protocols, ports)
def test_ports_are_those_named(rule: EgressRule, protocol: str, port: int) -> None:
    """A rule allows its ports, both ends included, of its protocol alone."""
    assert rule.covers(rule.protocol, rule.first)
    assert rule.covers(rule.protocol, rule.last)
    assert rule.covers(protocol, port) == (protocol == rule.protocol and rule.first <= port <= rule.last)
    assert not rule.covers("icmp", port)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("API.Example.com.", "api.example.com"),
        ("_dmarc.example.com", "_dmarc.example.com"),
        ("B\u00dcCHER.example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
        (".".join(["a" * 63] * 3 + ["b" * 61]) + ".", ".".join(["a" * 63] * 3 + ["b" * 61])),
        (".".join(["a" * 63] * 3 + ["b" * 62]), None),
        ("", None),
        (".", None),
        ("a..b", None),
        ("a" * 64, None),
        ("*.example.com", None),
        ("example.com:443", None),
        ("example.com\n", None),
        ("192.0.2.7", None),
        ("2001:db8::1", None),
        ("127.1", None),
        ("2130706433.", None),
        ("0x7f.1", None),
        ("x.0x", None),
        ("stra\u00dfe.de", None),
        ("a\u200db.com", None),
        ("\ud800.com", None),
        ("\u00ad", None),
    ],
)
def test_normal_name(text: str, name: str | None) -> None:
    """A queried name is brought to the form that rules have, or is none."""
    assert normal_name(text) == name


@given(st.text() | st.text("aA.-_\u00e9\u00c9\u0130\u212a\u3002\uff0e\u00ad\u0345"))
def test_normal_name_is_final(text: str) -> None:
    """A normal name is ASCII in lower case, stays what it is, and is a rule that covers itself."""
    name = normal_name(text)
    assume(name is not None)
    assert name is not None
    assert name.isascii()
    assert name == name.lower()
    assert normal_name(name) == name
    assert EgressRule.parse(name).covers_name(name)


numbers = st.integers(0, 300) | st.integers(0, 1 << 33)
spelt = st.builds(
    lambda form, number: form.format(number), st.sampled_from(["{}", "0{:o}", "{:#x}", "0x0{:x}"]), numbers
)


@given(st.lists(spelt | st.just("08"), min_size=1, max_size=5))
def test_disguises_are_those_of_libc(parts: list[str]) -> None:
    """What the C library reads as an address, in whatever base and length, is read as the same one here."""
    try:
        address = V4(socket.inet_aton(".".join(parts)))
    except OSError:
        address = None
    assert hostnames._disguised(parts) == address
    assert normal_name(".".join(parts)) is None


@pytest.mark.parametrize(
    ("address", "embedded"),
    [
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::192.0.2.7", "192.0.2.7"),
        ("::2", "0.0.0.2"),
        ("::", None),
        ("::1", None),
        ("64:ff9b::192.0.2.7", "192.0.2.7"),
        ("64:ff9b:1:ffff::192.0.2.7", "192.0.2.7"),
        ("64:ff9b:2::192.0.2.7", None),
        ("2002:c000:207::1", "192.0.2.7"),
        ("2001:0:c000:201:0:1234:3fff:fdf8", "192.0.2.7"),
        ("2001:db8::192.0.2.7", None),
        ("fe80::1", None),
    ],
)
def test_ipv4_address_inside(address: str, embedded: str | None) -> None:
    """The IPv4 address in a mapped, compatible, translated or tunnelled IPv6 address is found."""
    assert embedded_ipv4(V6(address)) == (embedded and V4(embedded))


@pytest.mark.parametrize(
    ("protocol", "host", "port", "text"),
    [
        ("tcp", "api.example.com", 443, "api.example.com:443"),
        ("tcp", "API.Example.com.", None, "api.example.com"),
        ("udp", "192.0.2.7", 53, "192.0.2.7:53/udp"),
        ("udp", V4("192.0.2.7"), None, "192.0.2.7/udp"),
        ("tcp", "2001:db8::1", 443, "[2001:db8::1]:443"),
        ("tcp", V6("2001:db8::1"), None, "2001:db8::1"),
        ("tcp", V6("::ffff:192.0.2.7"), 443, "192.0.2.7:443"),
        ("tcp", "127.0.0.1", 5432, "localhost:5432"),
        ("udp", V6("::1"), 53, "localhost:53/udp"),
        ("tcp", V6("::ffff:127.0.0.1"), 80, "localhost:80"),
        ("tcp", "localhost", None, "localhost"),
    ],
)
def test_text_for_an_endpoint(protocol: str, host: str | rules.Address, port: int | None, text: str) -> None:
    """The text for an endpoint is a rule's canonical one."""
    assert text_for(protocol, host, port) == text
    assert str(EgressRule.parse(text)) == text


@pytest.mark.parametrize(
    ("protocol", "host", "port"),
    [
        ("icmp", "192.0.2.7", None),
        ("tcp", "192.0.2.7", 0),
        ("tcp", "224.0.0.251", 80),
        ("tcp", V6("fe80::1%eth0"), 80),
        ("tcp", "127.1", 80),
        ("tcp", "", 80),
        ("tcp", "*.example.com", 80),
        ("tcp", "example.com:80", None),
        ("tcp", "example.com/udp", None),
        ("tcp", "192.0.2.0/24", None),
    ],
)
def test_no_text_for_what_no_rule_allows(protocol: str, host: str | rules.Address, port: int | None) -> None:
    """An endpoint that cannot be allowed gets an error, never the text of a rule for something else."""
    with pytest.raises(RuleError, match="is no egress rule"):
        text_for(protocol, host, port)


@given(protocols, names | st.ip_addresses(), ports)
def test_text_for_allows_its_endpoint(protocol: str, host: str | rules.Address, port: int) -> None:
    """The rule that is told for an endpoint allows it, and neither another port nor the other protocol."""
    if isinstance(host, V6):
        assume(host.ipv4_mapped is None)
    try:
        rule = EgressRule.parse(text_for(protocol, host, port))
    except RuleError:
        assert not isinstance(host, str)
        assert any(host in network for network in rules._UNREACHABLE)
    else:
        assert allows([rule], protocol, host, port)
        assert (rule.first, rule.last, rule.protocol) == (port, port, protocol)


@pytest.mark.parametrize(
    ("texts", "left"),
    [
        ([], []),
        (["b", "a", "b"], ["a", "b"]),
        (["a:80", "a:81", "a:82-90", "a:92"], ["a:80-90", "a:92"]),
        (["a:80-90", "a:85", "a"], ["a"]),
        (["a:80", "a:81/udp"], ["a:80", "a:81/udp"]),
        (["*.a", "x.a:443", "y.x.a", "*.x.a", "a"], ["*.a", "a"]),
        (["*.a:443", "x.a"], ["*.a:443", "x.a"]),
        (["10.1.2.3:80", "10.0.0.0/8", "10.1.0.0/16/udp"], ["10.0.0.0/8", "10.1.0.0/16/udp"]),
        (["10.0.0.0/9", "10.128.0.0/9"], ["10.0.0.0/9", "10.128.0.0/9"]),
        (["::/0", "0.0.0.0/0", "2001:db8::1", "localhost:1"], ["localhost:1", "0.0.0.0/0", "::/0"]),
        (["10.0.0.2", "10.0.0.10", "2001:db8::1", "b", "*.c"], ["*.c", "b", "10.0.0.2", "10.0.0.10", "2001:db8::1"]),
    ],
)
def test_smallest_list(texts: list[str], left: list[str]) -> None:
    """Doubles and what others cover are dropped, adjoining ports become one range, and names come first."""
    assert [str(rule) for rule in smallest(map(EgressRule.parse, texts))] == left


@given(st.data())
def test_smallest_allows_what_was_allowed(data: st.DataObject) -> None:
    """The smallest list allows exactly the same, whatever the order, and cannot be made smaller."""
    drawn = data.draw(st.lists(egress_rules(NEAR_HOSTS, st.integers(1, 9)), max_size=8))
    small = smallest(drawn)
    for protocol in ("tcp", "udp"):
        for host in ENDPOINTS:
            for port in range(1, 11):
                assert allows(small, protocol, host, port) == allows(drawn, protocol, host, port)
    assert smallest(data.draw(st.permutations(drawn))) == small
    assert smallest(small) == small
    assert not any(one.includes(other) for one in small for other in small if one is not other)
    assert all(
        one.last + 1 < next_one.first
        for one, next_one in pairwise(small)
        if (one.host, one.protocol) == (next_one.host, next_one.protocol)
    )

"""What may leave a leaf."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netns import addressing
from pytest_netns.policy import (
    CLOSED,
    OPEN,
    Address,
    Decision,
    Policy,
    Verdict,
    decide,
    may_resolve,
    rules_to_stand_for,
    why_never,
)
from pytest_netns.rules import EgressRule, RuleError

PROTOCOLS = st.text(max_size=6) | st.sampled_from(["tcp", "udp", "icmp"])
PORTS = st.integers(0, 65535)


def policy_of(*rules: str, everything: bool = False) -> Policy:
    """Return the policy that these rules make."""
    return Policy(tuple(EgressRule.parse(rule) for rule in rules), everything=everything)


def allows(policy: Policy, protocol: str, host: str, port: int) -> bool:
    """Tell whether a literal address is let through."""
    return decide(policy, protocol, ipaddress.ip_address(host), port).verdict is Verdict.RELAY


@given(PROTOCOLS, st.ip_addresses(), PORTS, st.none() | st.just("api.example.com"), st.booleans())
def test_closed_leaf_reaches_nothing(
    protocol: str, destination: Address, port: int, name: str | None, loopback: bool
) -> None:
    """Whatever a closed leaf asks for, it is blocked."""
    assert decide(CLOSED, protocol, destination, port, name, loopback=loopback) == Decision(Verdict.BLOCK)
    assert not may_resolve(CLOSED, "api.example.com")


@pytest.mark.parametrize(
    ("protocol", "destination", "allowed"),
    [
        ("tcp", "203.0.113.5", True),
        ("udp", "203.0.113.5", True),
        ("tcp", "2001:db8::5", True),
        ("udp", "2001:db8::5", True),
        ("tcp", "10.0.0.1", True),
        ("icmp", "203.0.113.5", False),
        ("sctp", "203.0.113.5", False),
        ("ip-47", "203.0.113.5", False),
        ("udp", "224.0.0.251", False),
        ("udp", "ff02::fb", False),
        ("udp", "255.255.255.255", False),
        ("tcp", "0.0.0.0", False),
        ("tcp", "::", False),
        ("tcp", "127.0.0.1", False),
        ("tcp", str(addressing.leaf(7).ipv4), False),
        ("tcp", str(addressing.leaf(7).ipv6), False),
        ("tcp", str(addressing.loopback(3).test), False),
        ("udp", str(addressing.loopback(3).worker6), False),
    ],
)
@pytest.mark.parametrize("policy", [OPEN, policy_of("0.0.0.0/0", "0.0.0.0/0/udp", "::/0", "::/0/udp")])
def test_broadest_policies(policy: Policy, protocol: str, destination: str, allowed: bool) -> None:
    """At most, TCP and UDP go to any one party outside, never to another leaf, this machine or a group."""
    assert allows(policy, protocol, destination, 443) is allowed


@pytest.mark.parametrize(
    ("rule", "endpoint", "allowed"),
    [
        ("203.0.113.5:443", ("tcp", "203.0.113.5", 443), True),
        ("203.0.113.5:443", ("tcp", "203.0.113.5", 444), False),
        ("203.0.113.5:443", ("udp", "203.0.113.5", 443), False),
        ("203.0.113.5:443", ("tcp", "203.0.113.6", 443), False),
        ("203.0.113.5:53/udp", ("udp", "203.0.113.5", 53), True),
        ("203.0.113.0/24:8000-8999", ("tcp", "203.0.113.77", 8500), True),
        ("203.0.113.0/24:8000-8999", ("tcp", "203.0.113.77", 7999), False),
        ("[2001:db8::5]:443", ("tcp", "2001:db8::5", 443), True),
        ("2001:db8::/64", ("tcp", "2001:db8::1234", 1), True),
        ("2001:db8::/64", ("tcp", "2001:db8:0:1::1", 1), False),
        ("0.0.0.0/0", ("tcp", "2001:db8::5", 443), False),
        # The IPv4 address inside an IPv6 one has to be allowed as well,
        ("::/0", ("tcp", "64:ff9b::203.0.113.5", 443), False),
        ("2002::/16", ("tcp", "2002:cb00:7105::1", 443), False),
        # unless that very address was listed.
        ("[64:ff9b::203.0.113.5]:443", ("tcp", "64:ff9b::203.0.113.5", 443), True),
        ("api.example.com:443", ("tcp", "203.0.113.5", 443), False),
        ("localhost:443", ("tcp", "203.0.113.5", 443), False),
    ],
)
def test_literal_addresses(rule: str, endpoint: tuple[str, str, int], allowed: bool) -> None:
    """An address is reached by rules that name it, at their ports and by their protocol."""
    assert allows(policy_of(rule), *endpoint) is allowed


def test_translated_address_with_both_allowed() -> None:
    """An IPv6 form of an IPv4 address is let through where both are allowed."""
    assert allows(policy_of("::/0", "203.0.113.5"), "tcp", "64:ff9b::203.0.113.5", 443)


@pytest.mark.parametrize(
    ("rule", "name", "port", "allowed"),
    [
        ("api.example.com:443", "api.example.com", 443, True),
        ("api.example.com:443", "api.example.com", 80, False),
        ("api.example.com:443", "www.example.com", 443, False),
        ("*.example.com:443", "a.b.example.com", 443, True),
        ("*.example.com:443", "example.com", 443, False),
        ("0.0.0.0/0", "api.example.com", 443, False),
        ("28.0.0.0/8", "api.example.com", 443, False),
    ],
)
def test_names(rule: str, name: str, port: int, allowed: bool) -> None:
    """An address that stands for a name counts as that name, and as no address at all."""
    decision = decide(policy_of(rule), "tcp", ipaddress.ip_address("28.0.0.1"), port, name)
    assert (decision.verdict is Verdict.RELAY) is allowed
    assert decision.rule == (EgressRule.parse(rule) if allowed else None)


@pytest.mark.parametrize(("rules", "allowed"), [(("localhost:5432",), True), (("0.0.0.0/0", "localhost:1"), False)])
def test_hosts_loopback(rules: tuple[str, ...], allowed: bool) -> None:
    """Only ``localhost`` opens the host's loopback."""
    decision = decide(policy_of(*rules), "tcp", addressing.HOST_LOOPBACK, 5432, loopback=True)
    assert (decision.verdict is Verdict.RELAY) is allowed


@pytest.mark.parametrize(
    ("address", "rules", "allowed"),
    [
        ("203.0.113.5", (), True),
        ("10.1.2.3", (), True),
        ("2001:db8::5", (), True),
        ("127.0.0.1", (), False),
        ("127.0.0.1", ("localhost:443",), True),
        ("127.0.0.1", ("localhost:80",), False),
        ("127.0.0.2", ("localhost:443",), False),
        ("::1", (), False),
        ("169.254.169.254", (), False),
        ("169.254.169.254", ("169.254.169.254:443",), True),
        ("169.254.169.254", ("169.254.169.254:80",), False),
        ("fe80::1", (), False),
        ("0.0.0.0", (), False),
        ("::", (), False),
        ("::ffff:127.0.0.1", (), False),
        ("64:ff9b::169.254.169.254", (), False),
        ("2002:a9fe:a9fe::1", (), False),
        ("224.0.0.1", (), False),
        (str(addressing.leaf(1).ipv4), (), False),
        (f"::ffff:{addressing.HOST_LOOPBACK}", (), False),
        ("64:ff9b::224.0.0.251", (), False),
        (str(addressing.HOST_LOOPBACK), (), False),
    ],
)
def test_what_a_name_may_stand_for(address: str, rules: tuple[str, ...], allowed: bool) -> None:
    """Whoever owns an allowed name cannot point it at what the host keeps to itself or to its link."""
    policy = policy_of("*.example.com", *rules)
    assert (rules_to_stand_for(policy, ipaddress.ip_address(address), "tcp", 443) is not None) is allowed


@pytest.mark.parametrize("address", ["203.0.113.1", "2001:db8::1"])
def test_name_for_the_host_itself(address: str) -> None:
    """An address of the host's own takes a rule of its own, like its loopback; while recording nothing does."""
    one = ipaddress.ip_address(address)
    listed = f"[{address}]:443" if ":" in address else f"{address}:443"
    assert rules_to_stand_for(policy_of("*.example.com"), one, "tcp", 443, own=True) is None
    assert rules_to_stand_for(policy_of(listed), one, "tcp", 443, own=True) == (EgressRule.parse(listed),)
    assert rules_to_stand_for(policy_of(listed), one, "tcp", 80, own=True) is None
    assert rules_to_stand_for(policy_of(everything=True), one, "tcp", 80, own=True) == ()


@given(st.ip_addresses(), PORTS, st.sampled_from(["tcp", "udp"]))
def test_rules_allow_what_they_cover_and_no_more(destination: Address, port: int, protocol: str) -> None:
    """A decision to relay rests on a rule that covers the endpoint, and there is a rule for each endpoint."""
    policy = policy_of("0.0.0.0/1:1-1023", "8000::/1", "203.0.113.0/24:53/udp")
    rule = decide(policy, protocol, destination, port).rule
    if rule is not None:
        assert rule in policy.rules
        assert rule.covers(protocol, port)
    try:
        own = EgressRule.parse(
            f"[{destination}]:{port}/{protocol}" if destination.version == 6 else f"{destination}:{port}/{protocol}"
        )
    except RuleError:
        return
    assert decide(Policy((own,)), protocol, destination, port) == Decision(Verdict.RELAY, own)


@pytest.mark.parametrize(
    ("protocol", "destination", "why"),
    [
        ("tcp", "203.0.113.5", None),
        ("udp", "2001:db8::5", None),
        ("icmp", "203.0.113.5", "only TCP and UDP can be let out"),
        ("udp", "224.0.0.251", "multicast never leaves a leaf"),
        ("udp", "ff02::fb", "multicast never leaves a leaf"),
        ("udp", "255.255.255.255", "broadcast never leaves a leaf"),
        ("udp", str(addressing.BROADCAST), "broadcast never leaves a leaf"),
        ("tcp", "198.18.0.40", "leaves do not reach each other, but for a test's and its worker's"),
        ("tcp", "fd6e:6574:6e73:1::28", "leaves do not reach each other, but for a test's and its worker's"),
        ("tcp", "fe80::7", "a link-local address is known on the leaf's own link only"),
    ],
)
def test_why_no_rule_could_help(protocol: str, destination: str, why: str | None) -> None:
    """Of what no rule can let out it is told why; of the rest nothing, since a rule can."""
    address = ipaddress.ip_address(destination)
    assert why_never(protocol, address) == why
    if why is not None and not address.is_link_local:
        assert decide(Policy(everything=True), protocol, address, 5353).verdict is Verdict.BLOCK

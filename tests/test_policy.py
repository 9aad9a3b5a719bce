"""What may leave a leaf."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_netns import addressing
from pytest_netns.policy import Egress, Verdict, decide


@given(st.text(max_size=6) | st.sampled_from(["tcp", "udp", "icmp"]), st.ip_addresses())
def test_closed_leaf_reaches_nothing(protocol: str, destination: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Whatever a closed leaf asks for, it is blocked."""
    assert decide(Egress.CLOSED, protocol, destination) is Verdict.BLOCK


@pytest.mark.parametrize(
    ("protocol", "destination", "verdict"),
    [
        ("tcp", "203.0.113.5", Verdict.RELAY),
        ("udp", "203.0.113.5", Verdict.RELAY),
        ("tcp", "2001:db8::5", Verdict.RELAY),
        ("udp", "2001:db8::5", Verdict.RELAY),
        ("tcp", "10.0.0.1", Verdict.RELAY),
        ("icmp", "203.0.113.5", Verdict.BLOCK),
        ("sctp", "203.0.113.5", Verdict.BLOCK),
        ("ip-47", "203.0.113.5", Verdict.BLOCK),
        ("udp", "224.0.0.251", Verdict.BLOCK),
        ("udp", "ff02::fb", Verdict.BLOCK),
        ("tcp", "0.0.0.0", Verdict.BLOCK),
        ("tcp", "::", Verdict.BLOCK),
        ("tcp", str(addressing.leaf(7).ipv4), Verdict.BLOCK),
        ("tcp", str(addressing.leaf(7).ipv6), Verdict.BLOCK),
        ("tcp", str(addressing.loopback(3).test), Verdict.BLOCK),
        ("udp", str(addressing.loopback(3).worker6), Verdict.BLOCK),
    ],
)
def test_open_leaf_reaches_what_the_host_does(protocol: str, destination: str, verdict: Verdict) -> None:
    """An open leaf's TCP and UDP go to any one party outside, never to another leaf; all else is blocked."""
    assert decide(Egress.OPEN, protocol, ipaddress.ip_address(destination)) is verdict

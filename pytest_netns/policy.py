"""What may leave a leaf: pure functions of its rules and of what it asks for."""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pytest_netns import addressing
from pytest_netns.hostnames import LOCALHOST
from pytest_netns.rules import EgressRule, embedded_ipv4, why_unreachable

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Policy:
    """How far a leaf may reach.

    Attributes:
        rules: what is allowed.
        everything: whether what no rule allows is let through as well, as far as the host itself gets.
        sni: whether a TLS client that was let through by a name has to ask the server for that name.
    """

    rules: tuple[EgressRule, ...] = ()
    everything: bool = False
    sni: bool = True


CLOSED = Policy()
OPEN = Policy(everything=True, sni=False)


_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


class Verdict(enum.Enum):
    """What becomes of a new flow."""

    BLOCK = "block"
    RELAY = "relay"


class Decision(NamedTuple):
    """A verdict, and the rule that it rests on: None if the flow is blocked, or let through without one."""

    verdict: Verdict
    rule: EgressRule | None = None


def decide(
    policy: Policy, protocol: str, destination: Address, port: int, name: str | None = None, *, loopback: bool = False
) -> Decision:
    """Return what becomes of a new flow.

    Args:
        policy: the leaf's.
        protocol: ``tcp``, ``udp`` or another name; only these two can be relayed.
        destination: the address that was dialled.
        port: the port that was dialled.
        name: the normal name that ``destination`` stands for in this run, or None; then only names count.
        loopback: whether the host's loopback was dialled, at the leaf's own; then only ``localhost`` counts.
    """
    if protocol not in {"tcp", "udp"}:
        return Decision(Verdict.BLOCK)
    rules = [rule for rule in policy.rules if rule.covers(protocol, port)]
    if loopback:
        rule = next((rule for rule in rules if rule.host == LOCALHOST), None)
    elif name is not None:
        rule = next((rule for rule in rules if rule.covers_name(name)), None)
    elif not _is_outside(destination):
        return Decision(Verdict.BLOCK)
    else:
        rule = _by_address(rules, destination)
    return Decision(Verdict.RELAY if rule or policy.everything else Verdict.BLOCK, rule)


def why_never(protocol: str, destination: Address) -> str | None:
    """Return why no rule can let a flow out; None if one can."""
    if protocol not in {"tcp", "udp"}:
        return "only TCP and UDP can be let out"
    if destination == addressing.BROADCAST:
        return why_unreachable(_BROADCAST)
    if addressing.is_leaf(destination):
        return "leaves do not reach each other, but for a test's and its worker's"
    return why_unreachable(destination)


def may_resolve(policy: Policy, name: str) -> bool:
    """Tell whether a leaf may know that a name, in its normal form, exists."""
    return policy.everything or any(rule.covers_name(name) for rule in policy.rules)


def rules_to_stand_for(
    policy: Policy, address: Address, protocol: str | None = None, port: int = 0, *, own: bool = False
) -> tuple[EgressRule, ...] | None:
    """Return the rules, besides the name's own, by which an allowed name leads to an address; None if it may not.

    A name's owner says what it resolves to, so the host itself and what it keeps to its link, cloud metadata
    services for one, need a rule of their own: for this protocol and port, or for any where None is given.
    ``own`` tells that the address is one of the host's.
    """
    inner = embedded_ipv4(address) if isinstance(address, ipaddress.IPv6Address) else None
    private = own or _is_private_to_the_host(address) or (inner is not None and _is_private_to_the_host(inner))
    if not private:
        return () if _is_outside(address) and (inner is None or _is_outside(inner)) else None
    if policy.everything:
        return () if _is_outside(address) or address.is_loopback else None
    rules = (rule for rule in policy.rules if protocol is None or rule.covers(protocol, port))
    rule = next((rule for rule in rules if rule.covers_address(address)), None)
    return None if rule is None else (rule,)


def _by_address(rules: Iterable[EgressRule], destination: Address) -> EgressRule | None:
    covering = [rule for rule in rules if not isinstance(rule.host, str) and rule.covers_address(destination)]
    inner = embedded_ipv4(destination) if isinstance(destination, ipaddress.IPv6Address) else None
    if inner is None:
        return next(iter(covering), None)
    # A translator would send the packet on to the IPv4 address: unless this very address was listed, that one counts.
    named = [rule for rule in covering if str(rule.host) == f"{destination}/128"]
    return next(iter(named), None) or (_by_address(rules, inner) if covering else None)


def _is_outside(address: Address) -> bool:
    """Tell whether an address can be one party outside: no group, nobody, this machine or another leaf."""
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        return False
    if address == _BROADCAST:
        return False
    return not addressing.is_leaf(address)


def _is_private_to_the_host(address: Address) -> bool:
    return address.is_loopback or address.is_link_local or address.is_unspecified

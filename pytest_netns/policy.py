"""What may leave a leaf: a pure function of who asks for what."""

from __future__ import annotations

import enum
import ipaddress
from typing import TypeAlias

from pytest_netns import addressing

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address


class Egress(enum.Enum):
    """How far a leaf may reach."""

    CLOSED = "closed"
    """Nowhere."""

    OPEN = "open"
    """Wherever the host can, its loopback included; for tests that are not isolated."""


class Verdict(enum.Enum):
    """What becomes of a new flow."""

    BLOCK = "block"
    RELAY = "relay"


def decide(egress: Egress, protocol: str, destination: Address) -> Verdict:
    """Return what becomes of a new flow to ``destination``; ``protocol`` is ``tcp``, ``udp`` or another name.

    Only TCP and UDP can be relayed, and only to one party outside: multicast, the unspecified address and
    other leaves are refused.
    """
    if egress is Egress.CLOSED or protocol not in {"tcp", "udp"}:
        return Verdict.BLOCK
    if destination.is_multicast or destination.is_unspecified:
        return Verdict.BLOCK
    if destination in addressing.LEAVES or destination in addressing.LEAVES6:
        return Verdict.BLOCK
    return Verdict.RELAY

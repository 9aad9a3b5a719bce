"""Addresses that stand for names, so that a connection tells which name it was meant for.

They are ones that ``ipaddress`` calls global, since applications that guard against requests to internal
services refuse every reserved block; nobody is reached at them, for a leaf's packets end in the hub.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final

from pytest_netns.policy import Address
from pytest_netns.rules import EgressRule

# Blocks that are not announced to the internet, so that hardly any rule names them. The first that none does is used.
BLOCKS: Final = tuple(ipaddress.IPv4Network(block) for block in ("28.0.0.0/8", "29.0.0.0/8", "30.0.0.0/8"))
# Of 2d00::/8, which IANA has not assigned to anybody.
BLOCK6: Final = ipaddress.IPv6Network("2d6e:6574:6e73::/48")
_SLOTS: Final = (1 << 24) - 2
_KEPT: Final = 1 << 16


class Names:
    """The names that were resolved in one run, each with an address of either family."""

    def __init__(self) -> None:
        self._by_name: dict[str, tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]] = {}
        self._by_address: dict[Address, str] = {}
        self._made = 0

    def addresses(
        self, name: str, rules: Iterable[EgressRule] = ()
    ) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """Return the addresses that stand for a name, always the same; none that a rule names, if that can be."""
        known = self._by_name.get(name)
        if known is None:
            slot = self._made % _SLOTS + 1
            self._made += 1
            known = self._by_name[name] = _unnamed(rules)[slot], BLOCK6[slot]
            self._by_address.update(dict.fromkeys(known, name))
            if len(self._by_name) > _KEPT:
                self._forget(next(iter(self._by_name)))
        return known

    def name_of(self, address: Address) -> str | None:
        """Return the name that an address stands for; None for any other."""
        return self._by_address.get(address)

    def _forget(self, name: str) -> None:
        for address in self._by_name.pop(name):
            self._by_address.pop(address, None)


def _unnamed(rules: Iterable[EgressRule]) -> ipaddress.IPv4Network:
    named = [rule.host for rule in rules if isinstance(rule.host, ipaddress.IPv4Network)]
    free = (block for block in BLOCKS if not any(block.overlaps(network) for network in named))
    return next(free, BLOCKS[0])

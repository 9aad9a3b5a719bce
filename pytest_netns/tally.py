"""What was blocked over a run, and what a run that records has needed: told by gateways, and summed up.

A run may have had several gateways, one after the other or on several machines, where its controller has none:
then each worker tells what it knows of its own leaves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pytest_netns.gateway.flows import OUTSIDE, BlockedSummary

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient

__all__ = ["OUTSIDE", "Tally"]


@dataclass
class Tally:
    """What was blocked, by endpoint, and which tests needed which rules."""

    _blocked: dict[str, BlockedSummary] = field(default_factory=dict)
    _needed: dict[tuple[str, str], None] = field(default_factory=dict)

    @classmethod
    def of(cls, client: GatewayClient, *, own: bool = False) -> Tally:
        """Ask a gateway: for the whole run, or for the leaves of the asking worker."""
        tally = cls()
        tally._add(client.blocked(own=own), client.needed(own=own))
        return tally

    @classmethod
    def sum(cls, told: Iterable[Mapping[str, Any]]) -> Tally:
        """Sum up what workers told."""
        tally = cls()
        for one in told:
            tally._add((BlockedSummary(*row) for row in one["blocked"]), ((test, rule) for test, rule in one["needed"]))
        return tally

    @property
    def blocked(self) -> list[BlockedSummary]:
        """The blocked endpoints, most frequent first."""
        return sorted(self._blocked.values(), key=lambda one: -one.count)

    @property
    def needed(self) -> list[tuple[str, str]]:
        """The tests that were let through without a rule, each with the rule that it would have needed."""
        return list(self._needed)

    def tell(self) -> dict[str, Any]:
        """Return it as a worker can send it to its controller."""
        blocked = [list(astuple(one)) for one in self.blocked]
        return {"blocked": blocked, "needed": [list(pair) for pair in self._needed]}

    def _add(self, blocked: Iterable[BlockedSummary], needed: Iterable[tuple[str, str]]) -> None:
        for one in blocked:
            known = self._blocked.get(one.endpoint)
            self._blocked[one.endpoint] = one if known is None else replace(known, count=known.count + one.count)
        self._needed |= dict.fromkeys(needed)

"""What leaves tried to reach: the record that reports and summaries are made of."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

BLOCKED = "blocked"
ALLOWED = "allowed"

_KEPT_PER_LEAF = 10_000


@dataclass(frozen=True, slots=True)
class Flow:
    """One attempt to reach something outside a leaf.

    Attributes:
        time: when, in seconds since the epoch.
        leaf: the leaf's name.
        test: the node id of the test that ran in it.
        protocol: ``tcp``, ``udp``, ``dns`` or ``ip-<number>``, the number being IANA's.
        name: the host name that was asked for, where one is known.
        address: the address that was dialled; None for a name that was never resolved.
        port: the port that was dialled; None where the protocol has none.
        verdict: ``blocked`` or ``allowed``.
    """

    time: float
    leaf: str
    test: str
    protocol: str
    name: str | None
    address: str | None
    port: int | None
    verdict: str

    @property
    def endpoint(self) -> str:
        """What a person would call the other end, for example ``tcp 203.0.113.5:443``."""
        host = self.name or self.address or "?"
        if self.port is None:
            return f"{self.protocol} {host}"
        return f"{self.protocol} [{host}]:{self.port}" if ":" in host else f"{self.protocol} {host}:{self.port}"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can carry them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BlockedSummary:
    """One blocked endpoint over a whole run: how often, and by which test first."""

    endpoint: str
    count: int
    first_test: str


class FlowLog:
    """The flows of one run, by leaf, and the count of blocked endpoints over all of them."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        self._by_leaf: dict[str, list[Flow]] = {}
        self._blocked: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, flow: Flow) -> None:
        """Record one attempt; a leaf that tries without end has its later ones counted only."""
        kept = self._by_leaf.setdefault(flow.leaf, [])
        if len(kept) < _KEPT_PER_LEAF:
            kept.append(flow)
        if flow.verdict == BLOCKED:
            self._blocked[flow.endpoint] += 1
            self._first.setdefault(flow.endpoint, flow.test)

    def of(self, leaf: str) -> list[Flow]:
        """Return what was tried from one leaf, oldest first."""
        return list(self._by_leaf.get(leaf, ()))

    def forget(self, leaf: str) -> None:
        """Drop the flows of a leaf that is gone; the run's counts stay."""
        self._by_leaf.pop(leaf, None)

    def blocked(self) -> list[BlockedSummary]:
        """Return the blocked endpoints of the run, most frequent first."""
        return [
            BlockedSummary(endpoint, count, self._first[endpoint]) for endpoint, count in self._blocked.most_common()
        ]

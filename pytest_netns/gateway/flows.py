"""What leaves tried to reach: the record that reports, summaries and the log file are made of."""

from __future__ import annotations

import itertools
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, TypeAlias

from pytest_netns import rules
from pytest_netns.gateway.journal import Journal
from pytest_netns.rules import RuleError

BLOCKED = "blocked"
ALLOWED = "allowed"
OUTSIDE = "(outside of any test)"
"""What is booked on instead of a test while a worker leaf serves none."""

Key: TypeAlias = tuple[str, int, str, int]
"""What tells a flow's packets from others: source, its port, destination, its port."""

_KEPT_PER_LEAF: Final = 10_000
_ENDPOINTS: Final = 10_000
_OTHERS: Final = "others"
_DNS: Final = "dns"


@dataclass(frozen=True, slots=True, repr=False)
class Flow:
    """One attempt to reach something outside a leaf.

    Attributes:
        time: when it began, in seconds since the epoch.
        leaf: the leaf's name.
        test: the node id of the test that ran in it.
        protocol: ``tcp``, ``udp``, ``dns``, ``icmp``, ``sctp`` or ``ip-<number>``, the number being IANA's.
        name: the host name that was asked for, where one is known.
        address: the address outside; None where none was reached by a name, or the name was never resolved.
        port: the port that was dialled; None where the protocol has none.
        verdict: ``blocked`` or ``allowed``.
        rule: the rule that allowed it; None where it was blocked, or let through without a rule.
        reason: why it was blocked, where that is not for want of a rule; why it came to nothing, where it was allowed.
        sent: bytes of payload that went out.
        received: bytes of payload that came in.
        duration: seconds from its beginning to its end; None as long as it lasts.
        sandbox: the box whose process made it; None for one of the test's own.
    """

    time: float
    leaf: str
    test: str
    protocol: str
    name: str | None
    address: str | None
    port: int | None
    verdict: str
    rule: str | None = None
    reason: str | None = None
    sent: int = 0
    received: int = 0
    duration: float | None = None
    sandbox: str | None = None

    @property
    def endpoint(self) -> str:
        """What a person would call the other end, for example ``tcp 203.0.113.5:443``."""
        host = self.name or self.address or "?"
        if self.port is None:
            return f"{self.protocol} {host}"
        return f"{self.protocol} [{host}]:{self.port}" if ":" in host else f"{self.protocol} {host}:{self.port}"

    @property
    def allow(self) -> str | None:
        """The rule that would allow it; None where no rule could, or one does and it was blocked all the same."""
        host = self.name or self.address
        if self.reason is not None or host is None or self.protocol not in {"tcp", "udp", _DNS}:
            return None
        try:
            return rules.text_for("tcp" if self.protocol == _DNS else self.protocol, host, self.port)
        except RuleError:
            return None

    def __repr__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"<Flow {self.verdict} {self.endpoint}{why}>"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can carry them."""
        return {name: getattr(self, name) for name in _FIELDS}


_FIELDS: Final = tuple(field.name for field in fields(Flow))


@dataclass(frozen=True, slots=True)
class BlockedSummary:
    """One blocked endpoint over a whole run: how often, by which test first, and the rule that would allow it.

    ``reason`` is why the first attempt was blocked, where none was for want of a rule.
    """

    endpoint: str
    count: int
    first_test: str
    allow: str | None = None
    reason: str | None = None


@dataclass(slots=True)
class Volume:
    """How many bytes a connection has carried so far: from its client, and to it."""

    sent: int = 0
    received: int = 0

    def add_sent(self, size: int) -> None:
        """Count what was passed on from the client."""
        self.sent += size

    def add_received(self, size: int) -> None:
        """Count what was passed on to the client."""
        self.received += size


@dataclass(slots=True)
class Attempts:
    """How often a test has tried to reach something, while it lasts."""

    test: str
    time: float = field(default_factory=time.time)
    counts: Counter[str] = field(default_factory=Counter)

    def to_dict(self, leaf: str) -> dict[str, Any]:
        """Return what is to be written of it at its end."""
        known = {"time": self.time, "leaf": leaf, "test": self.test}
        counts = {verdict: self.counts[verdict] for verdict in (BLOCKED, ALLOWED)}
        return {**known, **counts, "duration": time.time() - self.time}


class Entry:
    """A flow on record, and what it has carried by now."""

    def __init__(self, flow: Flow, key: Key | None = None) -> None:
        self._flow = flow
        self.key = key
        self._began = time.monotonic()
        self.volume = Volume()

    def flow(self) -> Flow:
        """Return the flow as it is now."""
        if self._flow.duration is not None:
            return self._flow
        return replace(self._flow, sent=self.volume.sent, received=self.volume.received)

    def reached(self, address: str) -> None:
        """Note at which address a name was found."""
        if self._flow.name is not None:
            self._flow = replace(self._flow, address=address)

    def end(self, reason: str | None = None) -> Flow | None:
        """Note that it is over, and why if that was not in good order; return it, or None if that is known already."""
        if self._flow.duration is not None:
            return None
        self._flow = replace(self.flow(), duration=time.monotonic() - self._began, reason=self._flow.reason or reason)
        return self._flow


class FlowLog:
    """The flows of one run, by leaf, and what is known of all of them together."""

    def __init__(self) -> None:
        """Start with nothing recorded."""
        self._by_leaf: dict[str, deque[Entry]] = {}
        self._blocked: dict[tuple[str, str], Flow] = {}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._needed: dict[tuple[str, str, str], Flow] = {}
        self._tests: dict[str, Attempts] = {}
        self.journal = Journal()

    def begin(self, leaf: str, test: str) -> None:
        """Note that a leaf serves another test from now on, and write down the one before."""
        self.finish(leaf)
        if self.journal and test not in {"", OUTSIDE}:
            self._tests[leaf] = Attempts(test)

    def finish(self, leaf: str) -> None:
        """Write down the test that a leaf has served, if it has any."""
        attempts = self._tests.pop(leaf, None)
        if attempts is not None:
            self.journal.write("test", attempts.to_dict(leaf))

    def add(self, flow: Flow, owner: str, *, needed: bool = True, key: Key | None = None) -> Entry:
        """Record one attempt; of a leaf that tries without end the latest are kept, and all are counted.

        Args:
            flow: the attempt. One that is blocked has ended; one that is allowed goes on until ``end``.
            owner: the name of the worker whose leaf it came from.
            needed: whether the rule that it lacked, if so, was needed, as far as can be told by now.
            key: by which its packets are known.
        """
        entry = Entry(flow, key)
        self._by_leaf.setdefault(flow.leaf, deque(maxlen=_KEPT_PER_LEAF)).append(entry)
        attempts = self._tests.get(flow.leaf)
        if attempts is not None:
            attempts.counts[flow.verdict] += 1
        if flow.verdict == BLOCKED:
            self._count(flow, owner)
            self.end(entry)
        elif needed:
            self.need(flow, owner)
        return entry

    def need(self, flow: Flow, owner: str) -> None:
        """Note that a flow was let through for want of a rule, if so."""
        if flow.rule is None:
            self._needed.setdefault((owner, flow.test, flow.endpoint), flow)

    def _count(self, flow: Flow, owner: str) -> None:
        key = owner, flow.endpoint
        if key not in self._blocked and len(self._blocked) >= _ENDPOINTS:
            flow = replace(flow, protocol="and", name=_OTHERS, port=None)
            key = owner, flow.endpoint
        known = self._blocked.setdefault(key, flow)
        if known.reason is not None and flow.reason is None:  # a rule would help, if not with the first attempt
            self._blocked[key] = replace(flow, test=known.test)
        self._counts[key] += 1

    def end(self, entry: Entry, reason: str | None = None) -> None:
        """Note that a flow is over, and why if that was not in good order; doing so twice is harmless."""
        flow = entry.end(reason)
        if flow is not None and self.journal:
            self.journal.write("flow", flow.to_dict())

    def of(self, leaf: str, after: float = 0.0, since: int = 0) -> Iterator[Flow]:
        """Yield what was tried from one leaf, oldest first.

        Args:
            leaf: its name.
            after: the time to begin at, in seconds since the epoch.
            since: how many to pass over from there.
        """
        flows = (entry.flow() for entry in self._by_leaf.get(leaf, ()))
        return itertools.islice((flow for flow in flows if flow.time >= after), since, None)

    def remarks(self, leaf: str, after: float = 0.0) -> Iterator[tuple[Key, str]]:
        """Yield what there is to say of the packets of what a leaf has tried in vain since a time, oldest first."""
        for entry in self._by_leaf.get(leaf, ()):
            flow = entry.flow()
            if flow.verdict == BLOCKED and flow.time >= after and entry.key is not None:
                why = f": {flow.reason}" if flow.reason else ""
                remedy = f'; allow with "{flow.allow}"' if flow.allow else ""
                yield entry.key, f"netns: blocked: {flow.endpoint}{why}{remedy}"

    def forget(self, leaf: str) -> None:
        """Drop the flows of a leaf that is gone; the run's counts stay."""
        self.finish(leaf)
        self._by_leaf.pop(leaf, None)

    def blocked(self, owner: str | None = None) -> list[BlockedSummary]:
        """Return the endpoints that were blocked to one worker's leaves, or to all, most frequent first."""
        first: dict[str, Flow] = {}
        counts: Counter[str] = Counter()
        for (whose, endpoint), flow in self._blocked.items():
            if owner in (None, whose):
                first.setdefault(endpoint, flow)
                counts[endpoint] += self._counts[whose, endpoint]
        return [
            BlockedSummary(name, count, first[name].test, first[name].allow, first[name].reason)
            for name, count in counts.most_common()
        ]

    def needed(self, owner: str | None = None) -> list[tuple[str, str]]:
        """Return which tests were let through without a rule, each with the rule that it would have needed."""
        flows = [flow for (whose, _, _), flow in self._needed.items() if owner in (None, whose)]
        pairs = ((flow.test, flow.allow) for flow in flows)
        return list(dict.fromkeys((test, rule) for test, rule in pairs if rule is not None))

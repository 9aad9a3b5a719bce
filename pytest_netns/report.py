"""What the user reads of a run and its tests: the header, the section of a failed test."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.kernel import clock
from pytest_netns.settings import EgressMode, Mode, Settings

if TYPE_CHECKING:
    import threading

    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.flows import Flow
    from pytest_netns.kernel.processes import Process
    from pytest_netns.leases import Leftovers
    from pytest_netns.namespace import Namespace
    from pytest_netns.scene import Scene

__all__ = [
    "BLOCKED",
    "ENDING",
    "LEFT",
    "RECORD",
    "TEARDOWN",
    "TITLE",
    "NetnsWarning",
    "Record",
    "blocked_lines",
    "header",
    "leaf_line",
    "remedy",
    "shortened",
]

TITLE: Final = "netns"
TEARDOWN: Final = "netns teardown"
LEFT: Final = "left running"
CHANGED: Final = "left changed"
BLOCKED: Final = "blocked"
ENDING: Final = re.compile(rf"{LEFT}(?: by (.*?))?, (ended with SIG.*)")
_AT_MOST: Final = 20

RECORD = pytest.StashKey["Record"]()

_geteuid = getattr(os, "geteuid", int)  # a test may have replaced it, and Windows has none


class NetnsWarning(pytest.PytestWarning):
    """A test left something behind that outlives its network, or would have."""


@dataclass
class Record:
    """What is known of one test's run, for its reports.

    Attributes:
        test: the node id.
        namespace: the test's leaf.
        own: whether the leaf is the test's, and not the worker's, which it only is a guest in.
        alone: whether nobody else has had the leaf, so that it is no question of time what is the test's.
        started: when the leaf was given to it, in seconds since the epoch.
        scene: what is to be told of the leaf, once it is gone; None as long as it lives.
        told: what the failure of the current phase tells of attempts, which then need not be told again.
        ended: the processes that were left, with the signal that ended each, and the test that had started it.
        threads: the names of the threads that were left, each with the test that had started it.
        changes: what was put back that a test had changed in the process, each with the test.
        further: the leaves that it has made beside its own.
        setup: how long it took to get the leaf, in seconds.
        failed: whether any phase of it has failed.
        capture: the file of its packets, if there is one.
        kept: what is to be told of that.
        keys_from: where its own TLS keys begin in the process's file of them, in bytes.
    """

    test: str
    namespace: Namespace
    own: bool = True
    alone: bool = False
    started: float = field(default_factory=clock.realtime)
    scene: Scene | None = None
    told: str = ""
    ended: list[tuple[Process, str, str]] = field(default_factory=list)
    threads: list[tuple[str, str]] = field(default_factory=list)
    changes: list[tuple[str, str]] = field(default_factory=list)
    further: list[Namespace] = field(default_factory=list)
    setup: float = 0.0
    failed: bool = False
    capture: str = ""
    kept: str | None = None
    keys_from: int = 0
    _charged: set[Flow] = field(default_factory=set)

    @property
    def since(self) -> float:
        """From when on what its leaf does is the test's doing; the wall clock may jump meanwhile."""
        return 0.0 if self.alone else self.started

    def flows(self, client: GatewayClient) -> list[Flow]:
        """Ask the gateway what the test has tried by now."""
        flows = client.flows(self.namespace.name, after=self.since)
        for further in self.further:
            flows += client.flows(further.name)
        if self.namespace.worker is not None:
            flows += client.flows(self.namespace.worker.name, after=self.started)
        return [flow for flow in flows if self._concerns(flow)]

    def attempts(self, client: GatewayClient) -> list[Flow]:
        """Ask the gateway what the test has tried in vain by now."""
        return [flow for flow in self.flows(client) if flow.verdict == BLOCKED]

    def fresh(self, client: GatewayClient) -> list[Flow]:
        """Ask the gateway what the test has tried in vain since this was last asked."""
        found = [flow for flow in self.attempts(client) if flow not in self._charged]
        self._charged.update(found)
        return found

    def tell(self, attempts: Iterable[Flow]) -> list[str]:
        """Return a line for each blocked endpoint: how often, why, and what would allow it."""
        return blocked_lines(attempts, self._is_own)

    def _concerns(self, flow: Flow) -> bool:
        """Tell whether an attempt since its start is the test's: by name in its own leaf, in the worker's any."""
        return not self._is_own(flow) or flow.test == self.test

    def _is_own(self, flow: Flow) -> bool:
        return (self.own and flow.leaf == self.namespace.name) or flow.leaf in [one.name for one in self.further]

    def properties(self, client: GatewayClient | None) -> list[tuple[str, object]]:
        """Return what dashboards are told of the test, for JUnit's XML among others."""
        known: list[tuple[str, object]] = [("netns_leaf", self.namespace.name)]
        if client is not None:
            with contextlib.suppress(NetnsError):
                verdicts = Counter(flow.verdict for flow in self.flows(client))
                known += [("netns_blocked", verdicts[BLOCKED]), ("netns_allowed", verdicts["allowed"])]
        return [*known, ("netns_setup_seconds", round(self.setup, 6))]

    def add(self, left: Leftovers) -> None:
        """Take note of what was left in a leaf, by this test or by others that it shared the leaf with."""
        for process, how in left.processes:
            self.ended.append((process, how, self._starter(left, process.pid)))
        self.threads += [(thread.name, self._starter(left, thread)) for thread in left.threads]
        self.changes += [(what, item.nodeid) for what, item in left.changes]

    def endings(self) -> list[str]:
        """Return a line for each process that was left and had to be ended."""
        return [
            f"{LEFT}{self._by(test)}, ended with {how}: pid {pid}: {command}"
            for (pid, command), how, test in self.ended
        ]

    def strays(self) -> list[str]:
        """Return a line for each thread that was left, and goes on."""
        return [f"{LEFT}{self._by(test)}: thread {name}" for name, test in self.threads]

    def amends(self) -> list[str]:
        """Return a line for all that was left changed, and is put back."""
        return shortened([f"{CHANGED}{self._by(test)}: {what}" for what, test in self.changes])

    def _starter(self, left: Leftovers, what: int | threading.Thread) -> str:
        starter = left.starters.get(what)
        return self.test if starter is None else starter.nodeid

    def _by(self, test: str) -> str:
        return "" if test == self.test else f" by {test}"


def leaf_line(name: str, ipv4: str, ipv6: str) -> str:
    """Return what names a leaf in a report."""
    return f"leaf {name}: {ipv4}, {ipv6}"


def blocked_lines(attempts: Iterable[Flow], is_own: Callable[[Flow], bool]) -> list[str]:
    """Return a line for each blocked endpoint; ``is_own`` tells whether an attempt was from the test's own leaf."""
    counted = Counter((_attempt(flow), _remedy(flow, own=is_own(flow))) for flow in attempts)
    return shortened([f"{BLOCKED}: {what}{_times(count)}{remedy}" for (what, remedy), count in counted.items()])


def _remedy(flow: Flow, *, own: bool) -> str:
    reason = f": {flow.reason}" if flow.reason else ""
    if own:
        return reason + remedy(flow.allow)
    option = f"; allow with --netns-allow={shlex.quote(flow.allow)}" if flow.allow else ""
    return f", in the worker's network{reason}{option}"


def _attempt(flow: Flow) -> str:
    known = flow.address if flow.name and flow.address and flow.address != flow.name else None
    box = f", from the box {flow.sandbox}" if flow.sandbox else ""
    return f"{flow.endpoint} ({known}){box}" if known else f"{flow.endpoint}{box}"


def remedy(rule: str | None) -> str:
    """Return what to say of the rule that would allow something, if there is one."""
    return f'; allow with "{rule}"' if rule else ""


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


def shortened(lines: list[str]) -> list[str]:
    """Return the first of many lines, and how many more there are."""
    return lines if len(lines) <= _AT_MOST else [*lines[:_AT_MOST], f"... and {len(lines) - _AT_MOST} more"]


def header(settings: Settings, page: str | None = None) -> str:
    """Return the line at the top of the run; ``page`` is where browsers find the leaves."""
    if settings.mode is Mode.OFF:
        return "netns: off"
    tests = {Mode.ALL: "every test", Mode.MARKED: "tests that ask"}[settings.mode]
    rights = "root" if _geteuid() == 0 else "rootless"
    words = [f"{settings.mode.value} ({tests})", f"scope {settings.scope.word}", f"port {settings.port}", rights]
    if settings.egress is not EgressMode.BLOCK:
        words.append(f"egress {settings.egress.value}")
    if settings.allow:
        words.append("1 egress rule" if len(settings.allow) == 1 else f"{len(settings.allow)} egress rules")
    if page is not None:
        words.append(f"leaves at {page}")
    return f"netns: {', '.join(words)}"

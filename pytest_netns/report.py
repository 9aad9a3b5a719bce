"""What the user reads: the section of a failed test, warnings, and the summary at the end of the run."""

from __future__ import annotations

import os
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest

from pytest_netns.settings import Mode, Settings

if TYPE_CHECKING:
    import threading

    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.flows import BlockedSummary, Flow
    from pytest_netns.kernel.processes import Process
    from pytest_netns.namespace import Namespace

__all__ = ["NetnsWarning", "Record", "header", "left_running", "summary", "warn_of_threads"]

TITLE: Final = "netns"
_BLOCKED: Final = "blocked"
_LEFT: Final = "left running"
_AT_MOST: Final = 20


class NetnsWarning(pytest.PytestWarning):
    """A test left something behind that outlives its network."""


@dataclass
class Record:
    """What is known of one test's run, for its reports.

    Attributes:
        test: the node id.
        namespace: the test's leaf.
        started: when the leaf was given to it, in seconds since the epoch.
        lines: what is to be told of it, once it is gone; None as long as it lives.
        ended: the processes that it left, with the signal that ended each.
    """

    test: str
    namespace: Namespace
    started: float = field(default_factory=time.time)
    lines: list[str] | None = None
    ended: list[tuple[Process, str]] = field(default_factory=list)

    def describe(self, client: GatewayClient) -> list[str]:
        """Ask the gateway what the test tried, and return the lines of the section."""
        leaves = [self.namespace.name]
        if self.namespace.worker is not None:
            leaves.append(self.namespace.worker.name)
        flows = [flow for leaf in leaves for flow in client.flows(leaf) if self._concerns(flow)]
        lines = [f"leaf {self.namespace.name}: {self.namespace.ipv4}, {self.namespace.ipv6}"]
        return lines + _attempts(flow for flow in flows if flow.verdict == _BLOCKED)

    def _concerns(self, flow: Flow) -> bool:
        """Tell whether the attempt is the test's: by name in its own leaf, by time in the worker leaf."""
        if flow.leaf == self.namespace.name:
            return flow.test in (self.test, "")
        return flow.time >= self.started

    def endings(self) -> list[str]:
        """Return a line for each process that was left and had to be ended."""
        return [f"{_LEFT}, ended with {how}: pid {pid}: {command}" for (pid, command), how in self.ended]


def _attempts(flows: Iterable[Flow]) -> list[str]:
    counted = Counter(_attempt(flow) for flow in flows)
    lines = [f"blocked: {what}{_times(count)}" for what, count in counted.items()]
    return [*lines[:_AT_MOST], *_more(len(lines))]


def _attempt(flow: Flow) -> str:
    known = flow.address if flow.name and flow.address and flow.address != flow.name else None
    return f"{flow.endpoint} ({known})" if known else flow.endpoint


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""


def _more(count: int) -> list[str]:
    return [f"... and {count - _AT_MOST} more"] if count > _AT_MOST else []


def header(settings: Settings) -> str:
    """Return the line at the top of the run."""
    if settings.mode is Mode.OFF:
        return "netns: off"
    tests = {Mode.ALL: "every test", Mode.MARKED: "tests that ask"}[settings.mode]
    rights = "root" if os.geteuid() == 0 else "rootless"
    return f"netns: {settings.mode.value} ({tests}), scope {settings.scope.word}, port {settings.port}, {rights}"


def summary(blocked: Sequence[BlockedSummary]) -> list[str]:
    """Return the lines that end the run: each blocked endpoint, how often, and which test was first."""
    lines = []
    for one in blocked[:_AT_MOST]:
        first = f", first by {one.first_test}" if one.first_test else ""
        lines.append(f"{one.endpoint}: {one.count} {'time' if one.count == 1 else 'times'}{first}")
    return lines + _more(len(blocked))


def left_running(reports: Iterable[object]) -> list[str]:
    """Return a line for each process that a test left, from the sections of the run's reports."""
    lines = []
    for one in reports:
        if isinstance(one, pytest.TestReport):
            texts = [text for title, text in one.sections if title == TITLE]
            lines += [f"{one.nodeid} {line}" for text in texts for line in text.splitlines() if line.startswith(_LEFT)]
    return lines[:_AT_MOST] + _more(len(lines))


def warn_of_threads(item: pytest.Item, leaf: str, threads: Sequence[threading.Thread]) -> None:
    """Warn that threads were left running, without failing a run that makes errors of warnings."""
    if not threads:
        return
    names = ", ".join(thread.name for thread in threads)
    text = f"{item.nodeid} left running in its network, {leaf}, which is gone now: {_count(threads)} {names}"
    path, line, _ = item.location
    try:
        warnings.warn_explicit(NetnsWarning(text), NetnsWarning, path, (line or 0) + 1)
    except NetnsWarning as warning:
        message = warnings.WarningMessage(warning, NetnsWarning, path, (line or 0) + 1)
        known = {"warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None}
        item.ihook.pytest_warning_recorded.call_historic(kwargs=known)


def _count(threads: Sequence[threading.Thread]) -> str:
    return "thread" if len(threads) == 1 else f"{len(threads)} threads"

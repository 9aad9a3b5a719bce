"""What a report in HTML is made of, collected where a run's reports come together."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.kernel import clock

if TYPE_CHECKING:
    from pytest_netns.session import Session

__all__ = ["COLLECTOR", "Collector", "Tested"]

COLLECTOR = pytest.StashKey["Collector"]()

_ALONE: Final = "main"


@dataclass
class Tested:
    """One run of a test.

    Attributes:
        name: its node id.
        worker: the process that ran it.
        start: when its set-up began, in seconds since the epoch.
        duration: seconds until the end of its tear-down.
        outcome: ``passed``, ``failed``, ``error``, ``skipped``, ``xfailed``, ``xpassed`` or another plugin's.
        leaf: its network; empty where it had none of its own.
        blocked: how many attempts were blocked.
        allowed: how many were let through.
        setup: how long it took to isolate it, in seconds; None where it was not.
    """

    name: str
    worker: str
    start: float
    duration: float = 0.0
    outcome: str = "passed"
    leaf: str = ""
    blocked: int = 0
    allowed: int = 0
    setup: float | None = None

    def add(self, report: pytest.TestReport) -> None:
        """Take in the report of one phase."""
        self.duration = (report.stop or clock.realtime()) - self.start  # xdist's of a worker's crash has no times
        outcome = _outcome(report)
        if outcome != "passed" or report.when == "call":
            self.outcome = outcome if self.outcome in {"passed", "skipped", "xfailed", "xpassed"} else self.outcome
        for name, value in report.user_properties:
            if name in _PROPERTIES:
                setattr(self, _PROPERTIES[name], value)


_PROPERTIES: Final = {
    "netns_leaf": "leaf",
    "netns_blocked": "blocked",
    "netns_allowed": "allowed",
    "netns_setup_seconds": "setup",
}


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.failed and report.when != "call":
        return "error"
    return str(report.outcome)


class Collector:
    """A plugin of the process that all reports come to."""

    def __init__(self, session: Session) -> None:
        """Begin with no test."""
        self._session = session
        self._began = clock.realtime()
        self._current: dict[tuple[str, str], Tested] = {}
        self.tests: list[Tested] = []
        self.told = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what became of a test."""
        node: Any = getattr(report, "node", None)
        worker = _ALONE if node is None else str(node.gateway.id)
        key = worker, report.nodeid
        if report.when == "setup" or key not in self._current:
            self._current[key] = Tested(report.nodeid, worker, report.start or clock.realtime())
            self.tests.append(self._current[key])
        self._current[key].add(report)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Write the page, once the last network is given back."""
        try:
            return (yield)
        finally:
            self.told = self._write()

    def _write(self) -> str:
        """Write the page, and return what to say of it."""
        from pytest_netns.page.model import model  # noqa: PLC0415
        from pytest_netns.page.render import render  # noqa: PLC0415

        path = self._session.outputs.report or ""
        if self._session.client is not None:
            try:
                self._session.client.blocked()  # by its answer, it has written what it was told of before
                self._session.client.blocked()
            except NetnsError as error:
                return f"the gateway does not tell what was tried, so {path} lacks it: {error}"
        try:
            with open(path, "w", encoding="utf-8", errors="replace") as file:
                file.write(render(model(self._session, self.tests, self._began)))
        except OSError as error:
            return f"{path} cannot be written: {error.strerror}"
        return f"report in {os.path.relpath(path, self._session.config.invocation_params.dir)}"

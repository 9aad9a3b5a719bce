"""What came of each test, as JUnit files tell it, and what isolation has changed about that."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Outcomes", "lost", "steady"]

_ORDER = ("passed", "skipped", "failed", "error")  # what a test with several entries counts as is the last of these


@dataclass(frozen=True)
class Outcomes:
    """The tests of one run.

    Attributes:
        of: ``passed``, ``failed``, ``error`` or ``skipped``, for each test by name.
        why: the first line of what is said of each that did not pass.
    """

    of: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, junit: Path) -> Outcomes:
        """Read a JUnit file; a missing one has no tests."""
        found = cls()
        if junit.exists():
            for case in ET.parse(junit).iter("testcase"):
                found._add(case)
        return found

    def _add(self, case: ET.Element) -> None:
        file = (case.get("file") or case.get("classname", "")).rpartition("site-packages/")[2]
        name = f"{file}::{_inner(case)}{case.get('name')}"
        outcome, why = _outcome(case)
        known = self.of.get(name, "passed")
        if _ORDER.index(outcome) >= _ORDER.index(known):
            self.of[name] = outcome
            if why:
                self.why[name] = why

    @property
    def counts(self) -> Counter[str]:
        """How many tests there are of each outcome."""
        return Counter(self.of.values())

    @property
    def passed(self) -> set[str]:
        """The tests that passed."""
        return {name for name, outcome in self.of.items() if outcome == "passed"}


def _inner(case: ET.Element) -> str:
    """Return the classes that a test is in, as a node id has them."""
    file, dotted = case.get("file"), case.get("classname", "")
    if file is None:
        return ""
    module = file.removesuffix(".py").replace("/", ".")
    return "".join(f"{name}::" for name in dotted.removeprefix(module).split(".") if name)


def _outcome(case: ET.Element) -> tuple[str, str]:
    for tag, outcome in (("error", "error"), ("failure", "failed"), ("skipped", "skipped")):
        found = case.find(tag)
        if found is not None:
            return outcome, (found.get("message") or "").strip().partition("\n")[0][:200]
    return "passed", ""


def steady(runs: Iterable[Outcomes]) -> set[str]:
    """Return the tests that passed in each of the runs."""
    passed = [outcomes.passed for outcomes in runs]
    return set.intersection(*passed) if passed else set()


def lost(expected: Iterable[str], outcomes: Outcomes) -> dict[str, str]:
    """Return those of the expected tests that did not pass, and what is known of each."""
    missing = "did not run"
    return {
        name: f"{outcomes.of.get(name, missing)}: {outcomes.why.get(name, '')}".rstrip(": ")
        for name in sorted(expected)
        if outcomes.of.get(name) != "passed"
    }

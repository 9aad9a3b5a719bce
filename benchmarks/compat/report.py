"""What is told of the runs: on the terminal, in the documentation, and in full."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import table
from environments import freeze
from outcomes import Outcomes, lost, steady
from suites import SUITES, Suite
from worlds import BASE, ISOLATED, Run

__all__ = ["Report"]

_DOCS: Final = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
_DETAILS: Final = Path(__file__).with_name("results.json")
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"
_AT_MOST: Final = 40


@dataclass
class Line:
    """One user's runs of one suite.

    Attributes:
        runs: for each configuration the numbers of tests by outcome, ``seconds``, ``processor`` and ``status``.
        steady: how many tests passed whenever they were run plain.
        unsteady: those that passed plain in one run and not in another.
        lost: for each configuration, the steady tests that did not pass, and what was said of each.
        recovered: for each configuration, those of the lost ones that passed when it was run once more.
    """

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    steady: int = 0
    unsteady: list[str] = field(default_factory=list)
    lost: dict[str, dict[str, str]] = field(default_factory=dict)
    recovered: dict[str, list[str]] = field(default_factory=dict)


class Report:
    """What is known by now; other suites' results are kept as they were."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._entries: dict[str, dict[str, Any]] = {}
        self._lines: dict[tuple[str, str], Line] = {}
        self._outcomes: dict[tuple[str, str], dict[str, Outcomes]] = {}

    def begin(self, suite: Suite, environment: Path) -> None:
        """Begin a suite."""
        self._entries[suite.name] = {"version": suite.version, "installed": freeze(environment), "users": {}}

    def add(self, suite: Suite, user: str, configuration: str, run: Run) -> str:
        """Take in a run, and return a line about it."""
        line = self._lines.setdefault((suite.name, user), Line())
        known = self._outcomes.setdefault((suite.name, user), {})
        known[configuration] = outcomes = Outcomes.read(run.junit)
        times = {"seconds": round(run.seconds, 1), "processor": round(run.processor, 1)}
        line.runs[configuration] = {**outcomes.counts, **times, "status": run.status}
        base = [known[name] for name in BASE if name in known]
        expected = steady(base)
        line.steady = len(expected)
        line.unsteady = sorted(set().union(*(outcomes.passed for outcomes in base)) - expected)
        line.lost = {name: lost(expected, known[name]) for name in known if name not in BASE}
        self._entries[suite.name]["users"][user] = asdict(line)
        gone = len(line.lost.get(configuration, ()))
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.counts.items()))
        ended = " ENDED BY THE LIMIT" if run.hung else ""
        return f"{suite.name} {user} {configuration}: {run.seconds:.1f} s, {counts}; lost {gone}{ended}"

    def repeat(self, suite: Suite, user: str, configuration: str, run: Run) -> str:
        """Take in one more run, for the sake of the tests that were lost, and return a line about it."""
        line = self._lines[suite.name, user]
        gone = line.lost[configuration]
        line.recovered[configuration] = sorted(Outcomes.read(run.junit).passed & gone.keys())
        self._entries[suite.name]["users"][user] = asdict(line)
        return (
            f"{suite.name} {user} {configuration} once more: {len(line.recovered[configuration])} of {len(gone)} pass"
        )

    def is_puzzling(self, suite: Suite, user: str, configuration: str) -> bool:
        """Tell whether a run has lost tests that there is no known cause for."""
        found = self._lines[suite.name, user].lost.get(configuration, {})
        return configuration in ISOLATED and any(_cause(test, suite.causes) is None for test in found)

    def is_puzzled(self, suite: Suite, user: str) -> bool:
        """Tell whether a test was lost twice, in any configuration, without a known cause."""
        line = self._lines.get((suite.name, user), Line())
        return any(
            test not in line.recovered.get(configuration, ()) and _cause(test, suite.causes) is None
            for configuration in ISOLATED
            for test in line.lost.get(configuration, ())
        )

    @property
    def unexplained(self) -> list[str]:
        """The tests that isolation has lost, twice, without a known cause, and the runs that hung."""
        causes = {suite.name: suite.causes for suite in SUITES}
        found = []
        for (name, user), line in self._lines.items():
            found += [f"{name} {user} {what}: hung" for what, run in line.runs.items() if run["status"] in {124, 137}]
            for configuration in ISOLATED:
                found += [
                    f"{name} {user} {configuration}: {test}: {why}"
                    for test, why in line.lost.get(configuration, {}).items()
                    if test not in line.recovered.get(configuration, ()) and _cause(test, causes[name]) is None
                ]
        return found

    def text(self) -> str:
        """Return what the terminal is told at the end."""
        found = self.unexplained
        more = [f"... and {len(found) - _AT_MOST} more"] if len(found) > _AT_MOST else []
        return "\n".join(
            ["", *table.overview(self._entries), "", "unexplained:", *(found[:_AT_MOST] or ["none"]), *more]
        )

    def write(self) -> None:
        """Update the details, and what the documentation shows of them between its markers."""
        details = json.loads(_DETAILS.read_text("utf-8")) if _DETAILS.exists() else {}
        for name, entry in self._entries.items():
            before = details.get(name, {})
            users = before.get("users", {}) if before.get("version") == entry["version"] else {}
            details[name] = {**entry, "users": {**users, **entry["users"]}}
        _DETAILS.write_text(json.dumps(details, indent=1, sort_keys=True) + "\n", "utf-8")
        ahead, _, rest = _DOCS.read_text("utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        shown = [*table.overview(details), "", *table.losses(details, _explain)]
        _DOCS.write_text("\n".join([ahead + _BEGIN, "", *shown, "", _END + after]), "utf-8")


def _explain(suite: str, test: str) -> str:
    causes = next((known.causes for known in SUITES if known.name == suite), {})
    return _cause(test, causes) or "not explained"


def _cause(test: str, causes: Mapping[str, str]) -> str | None:
    return next((cause for pattern, cause in causes.items() if fnmatch.fnmatchcase(test, pattern)), None)

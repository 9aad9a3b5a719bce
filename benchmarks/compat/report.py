"""The table and the details, from what came of the runs."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from environments import freeze
from outcomes import Outcomes, lost, steady
from suites import SUITES, Suite
from worlds import Run

__all__ = ["Report"]

_DOCS: Final = Path(__file__).resolve().parents[2] / "docs" / "compatibility.md"
_DETAILS: Final = Path(__file__).with_name("results.json")
_BEGIN, _END = "<!-- results: begin -->", "<!-- results: end -->"
_BASE: Final = ("plain", "again")
_ISOLATED: Final = ("netns", "session", "netns-n2")
_SHOWN: Final = ("plain", *_ISOLATED, "plain-n2")


@dataclass
class Line:
    """One user's runs of one suite.

    Attributes:
        runs: for each configuration the numbers of tests by outcome, ``seconds`` and ``status``.
        steady: how many tests passed whenever they were run plain.
        unsteady: those that passed plain in one run and not in another.
        lost: for each configuration, the steady tests that did not pass, and what was said of each.
    """

    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    steady: int = 0
    unsteady: list[str] = field(default_factory=list)
    lost: dict[str, dict[str, str]] = field(default_factory=dict)


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
        line.runs[configuration] = {**outcomes.counts, "seconds": round(run.seconds, 1), "status": run.status}
        base = [known[name] for name in _BASE if name in known]
        expected = steady(base)
        line.steady = len(expected)
        line.unsteady = sorted(set().union(*(outcomes.passed for outcomes in base)) - expected)
        line.lost = {name: lost(expected, known[name]) for name in known if name not in _BASE}
        self._entries[suite.name]["users"][user] = asdict(line)
        gone = len(line.lost.get(configuration, ()))
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.counts.items()))
        ended = " ENDED BY THE LIMIT" if run.hung else ""
        return f"{suite.name} {user} {configuration}: {run.seconds:.1f} s, {counts}; lost {gone}{ended}"

    @property
    def unexplained(self) -> list[str]:
        """The tests that isolation has lost without a known cause, and the runs that hung."""
        causes = {suite.name: suite.causes for suite in SUITES}
        found = []
        for (name, user), line in self._lines.items():
            found += [f"{name} {user} {what}: hung" for what, run in line.runs.items() if run["status"] in {124, 137}]
            for configuration in _ISOLATED:
                found += [
                    f"{name} {user} {configuration}: {test}: {why}"
                    for test, why in line.lost.get(configuration, {}).items()
                    if _cause(test, causes[name]) is None
                ]
        return found

    def text(self) -> str:
        """Return what the terminal is told at the end."""
        return "\n".join(["", *_table(self._entries), "", "unexplained:", *(self.unexplained or ["none"])])

    def write(self) -> None:
        """Update the details, and the table between its markers."""
        details = json.loads(_DETAILS.read_text("utf-8")) if _DETAILS.exists() else {}
        details.update(self._entries)
        _DETAILS.write_text(json.dumps(details, indent=1, sort_keys=True) + "\n", "utf-8")
        before, _, rest = _DOCS.read_text("utf-8").partition(_BEGIN)
        after = rest.partition(_END)[2]
        _DOCS.write_text("\n".join([before + _BEGIN, "", *_table(details), "", _END + after]), "utf-8")


def _cause(test: str, causes: Any) -> str | None:
    return next((cause for pattern, cause in causes.items() if fnmatch.fnmatchcase(test, pattern)), None)


def _table(entries: dict[str, dict[str, Any]]) -> list[str]:
    head = ["suite", "user", "plain", "`--netns`", "scope session", "`-n 2`", "plain `-n 2`", "wall time"]
    lines = [_row(head), _row(["---"] * len(head))]
    for name in sorted(entries):
        for user, line in entries[name]["users"].items():
            cells = [_counts(line["runs"].get(configuration)) for configuration in _SHOWN]
            lines.append(_row([f"{name} {entries[name]['version']}", user, *cells, _ratios(line["runs"])]))
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _counts(run: dict[str, Any] | None) -> str:
    if run is None:
        return ""
    return "/".join(str(run.get(outcome, 0)) for outcome in ("passed", "failed", "error"))


def _ratios(runs: dict[str, dict[str, Any]]) -> str:
    plain = [runs[name]["seconds"] for name in _BASE if name in runs]
    if not plain:
        return ""
    mean = sum(plain) / len(plain)
    return ", ".join(f"{runs[name]['seconds'] / mean:.2f}" for name in _ISOLATED if name in runs)

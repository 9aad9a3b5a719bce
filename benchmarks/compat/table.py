"""The Markdown that docs/compatibility.md shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from worlds import BASE, ISOLATED

__all__ = ["losses", "overview"]

_SHOWN: Final = ("plain", *ISOLATED, "plain-n2")
_HEAD: Final = (
    *("suite", "user", "plain", "`--netns`", "`--netns-scope=session`", "`--netns -n 2`", "plain `-n 2`"),
    *("lost", "wall time", "processor time"),
)

Entries = Mapping[str, Mapping[str, Any]]


def overview(entries: Entries) -> list[str]:
    """Return a table with a line for each suite and user, and one for all of them."""
    lines = [_row(_HEAD), _row(["---"] * len(_HEAD))]
    for name, user, line in _lines(entries):
        cells = [_counts(line["runs"].get(configuration)) for configuration in _SHOWN]
        title = f"{name} {entries[name]['version']}"
        times = [_each(_ratios(line["runs"], what)) for what in ("seconds", "processor")]
        lines.append(_row([title, user, *cells, _each(_lost(line)), *times]))
    lines.append("")
    for user in sorted({user for _, user, _ in _lines(entries)}):
        mine = [line for _, whose, line in _lines(entries) if whose == user]
        ran = (name for name in ISOLATED if any(name in line["lost"] for line in mine))
        lines += [_share(user, configuration, mine) for configuration in ran]
    return lines


def losses(entries: Entries, explain: Callable[[str, str], str]) -> list[str]:
    """Return a table of the tests that pass plain and fail isolated, each with its cause."""
    found: dict[tuple[str, str, str], set[str]] = {}
    for name, user, line in _lines(entries):
        for configuration in ISOLATED:
            again = line["recovered"].get(configuration, ())
            for test in line["lost"].get(configuration, {}):
                cause = "passed when it was run once more" if test in again else explain(name, test)
                found.setdefault((name, test, cause), set()).add(f"{user} {configuration}")
    lines = [_row(["suite", "test", "where", "cause"]), _row(["---"] * 4)]
    for (name, test, cause), where in sorted(found.items()):
        lines.append(_row([name, f"`{test}`".replace("|", "\\|"), ", ".join(sorted(where)), cause]))
    return lines if found else ["None was lost."]


def _lines(entries: Entries) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name in sorted(entries):
        for user, line in sorted(entries[name]["users"].items()):
            yield name, user, line


def _share(user: str, configuration: str, lines: list[Mapping[str, Any]]) -> str:
    ran = [line for line in lines if configuration in line["lost"]]
    expected, gone = sum(line["steady"] for line in ran), sum(len(line["lost"][configuration]) for line in ran)
    again = sum(len(line["recovered"].get(configuration, ())) for line in ran)
    share = 100 * (1 - gone / expected) if expected else 100.0
    passing = f"{expected - gone} of the {expected} tests that pass plain pass, {share:.2f} %"
    return f"- {user}, {configuration}: {passing}" + (f"; {again} more when run again" if again else "")


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _counts(run: Mapping[str, Any] | None) -> str:
    return "" if run is None else "/".join(str(run.get(outcome, 0)) for outcome in ("passed", "failed", "error"))


def _lost(line: Mapping[str, Any]) -> list[str]:
    return [str(len(line["lost"][name])) for name in ISOLATED if name in line["lost"]]


def _ratios(runs: Mapping[str, Mapping[str, Any]], what: str) -> list[str]:
    plain = [runs[name][what] for name in BASE if name in runs]
    mean = sum(plain) / len(plain) if plain else 0.0
    return [f"{runs[name][what] / mean:.2f}" for name in ISOLATED if mean and name in runs]


def _each(values: list[str]) -> str:
    return ", ".join(values)

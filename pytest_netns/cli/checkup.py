"""``pytest-netns doctor``: the table of checks, or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Final

from pytest_netns import doctor
from pytest_netns.cli import output
from pytest_netns.doctor import Check, Report
from pytest_netns.kernel.probe import FAIL, OK, SKIPPED, WARN

__all__ = ["render", "run"]

_MARKS: Final = {OK: ("ok", "32"), WARN: ("warn", "33"), FAIL: ("FAIL", "31"), SKIPPED: ("skip", "2")}
_INDENT: Final = " " * 8


def run(options: argparse.Namespace) -> int:
    """Make all checks and print them; return the exit status."""
    report = doctor.examine()
    if options.json:
        text = json.dumps(report.as_dict(), indent=2)
    else:
        text = "\n".join(render(report, colour=output.wants_colour(sys.stdout)))
    output.write(text)
    return 0 if report.ok else 1


def render(report: Report, *, colour: bool) -> list[str]:
    """Return the table's lines."""
    width = max(len(check.name) for check in report.checks)
    lines = [_machine(report), ""]
    advised: dict[str, str] = {}
    for check in report.checks:
        lines += _row(check, width, advised.get(check.fix, ""), colour=colour)
        advised.setdefault(check.fix, check.name)
    return [*lines, "", _verdict(report)]


def _machine(report: Report) -> str:
    machine = report.machine
    user = "root" if machine.root else "an ordinary user"
    facts = [machine.name or machine.system, f"as {user}", f"in {machine.container}" if machine.container else ""]
    return ", ".join(fact for fact in facts if fact)


def _row(check: Check, width: int, same_as: str, *, colour: bool) -> list[str]:
    """Return a row's lines; ``same_as`` names the row above that the same command mends."""
    word, code = _MARKS[check.status]
    mark = f"\x1b[{code}m{word:<4}\x1b[0m" if colour else f"{word:<4}"
    lines = [f"  {mark}  {check.name:<{width}}  {check.seen}".rstrip()]
    fix = f"the same as for: {same_as}" if same_as else check.fix
    details = (("needed", check.why), ("cause", check.cause), ("fix", fix)) if check.fix else ()
    for title, text in details:
        first, *rest = text.splitlines()
        lines += [f"{_INDENT}{title + ':':<8}{first}", *(f"{_INDENT}{'':<8}{line}" for line in rest)]
    return lines


def _verdict(report: Report) -> str:
    if report.ok:
        return "All is well: pytest --netns works here."
    count = len(report.failed)
    return f"{count} check{'s' if count > 1 else ''} failed: pytest --netns can't isolate tests here."

"""The command line: ``python -m pytest_netns doctor``."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Final, TextIO

from pytest_netns import doctor
from pytest_netns.doctor import Check, Report
from pytest_netns.kernel.probe import FAIL, OK, SKIPPED, WARN

_MARKS: Final = {OK: ("ok", "32"), WARN: ("warn", "33"), FAIL: ("FAIL", "31"), SKIPPED: ("skip", "2")}
_INDENT: Final = " " * 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    report = doctor.examine()
    if options.json:
        text = json.dumps(report.as_dict(), indent=2)
    else:
        text = "\n".join(render(report, colour=_wants_colour(sys.stdout)))
    _print(text)
    return 0 if report.ok else 1


def _print(text: str) -> None:
    """Write to standard output; a reader that has seen enough, as head(1) has, is no error."""
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pytest_netns", description="Helpers around pytest --netns.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    check = commands.add_parser(
        "doctor",
        help="check whether tests can be isolated on this machine",
        description="Try out everything that `pytest --netns` needs, in a process of its own that changes nothing, "
        "and tell how to get what is missing.",
        epilog="The exit status is 0 where tests can be isolated, 1 where something is missing, 2 for a usage error.",
    )
    check.add_argument("--json", action="store_true", help="print the checks as JSON")
    return parser


def _wants_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


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


if __name__ == "__main__":
    sys.exit(main())

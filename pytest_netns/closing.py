"""What the user reads at the end of a run: what was blocked, what would have to be allowed, what was left running."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.report import ENDING, LEFT, TEARDOWN, remedy, shortened
from pytest_netns.settings import EgressMode

if TYPE_CHECKING:
    from pytest_netns.gateway.flows import BlockedSummary
    from pytest_netns.session import Session

__all__ = ["allow_list", "closing", "function_of", "table_header", "texts"]

_HOW: Final = "(allow with --netns-allow=RULE, or netns_allow in pyproject.toml)"
_LOSS: Final = "it ended before the run did; what was tried until then is not told of here"
_OF_ONE_TEST: Final = 5
_INI_STYLE: Final = "[tool.pytest.ini_options]"
_NATIVE: Final = "[tool.pytest]  # native TOML, which pytest reads from version 9 on"


def closing(session: Session, reports: Iterable[object]) -> Iterator[tuple[str, list[str]]]:
    """Yield the title and the lines of each section that there is anything to say in."""
    if session.has_isolated:
        yield from _attempts(session)
    left = _left_running(reports)
    if left:
        yield "processes left running", left


def _attempts(session: Session) -> Iterator[tuple[str, list[str]]]:
    blocked, needed = "blocked attempts to leave", "egress that was needed"
    try:
        tally = session.tally()
    except NetnsError as error:
        yield blocked, [f"the gateway does not tell what was blocked: {error}"]
        return
    if session.losses:
        yield "a gateway was lost", [_LOSS]
    if tally.blocked:
        yield blocked, _summary(tally.blocked)
    if session.settings.egress is EgressMode.RECORD:
        yield needed, allow_list(session.settings.allow, tally.needed, session.config.inipath)


def _summary(blocked: Sequence[BlockedSummary]) -> list[str]:
    """Return a line for each blocked endpoint: how often, who was first, and what would allow it."""
    lines = []
    for one in blocked:
        first = f", first by {one.first_test}" if one.first_test else ""
        times = "1 time" if one.count == 1 else f"{one.count} times"
        reason = f": {one.reason}" if one.reason else ""
        lines.append(f"{one.endpoint}: {times}{first}{reason}{remedy(one.allow)}")
    return [*shortened(lines), *([_HOW] if any(one.allow for one in blocked) else [])]


def allow_list(allowed: Iterable[str], needed: Iterable[tuple[str, str]], configuration: Path | None) -> list[str]:
    """Return the smallest allow-list with which nothing would have been blocked, for all tests and for each.

    Args:
        allowed: what is allowed to all tests already; it belongs to their list.
        needed: the tests that were let through without a rule, each with the rule that it would have needed.
        configuration: pytest's configuration file.
    """
    from pytest_netns.tally import OUTSIDE  # noqa: PLC0415

    by_test: dict[str, list[str]] = {}
    for test, rule in needed:
        by_test.setdefault(function_of(test), []).append(rule)
    if not by_test:
        return ["nothing that is not allowed already"]
    everything = [*allowed, *(rule for rules in by_test.values() for rule in rules)]
    lines = [table_header(configuration), "netns_allow = [", *(f"    {text}," for text in texts(everything)), "]", ""]
    for test, rules in sorted(by_test.items()):
        wanted = ", ".join(texts(rules))
        how = f"no marker reaches there: {wanted}" if test == OUTSIDE else f"@pytest.mark.netns(allow=[{wanted}])"
        lines.append(f"{test}: {how}")
    return lines


def texts(rules: Iterable[str]) -> list[str]:
    """Return the smallest list that allows the same, each rule in quotes."""
    from pytest_netns.rules import EgressRule, smallest  # noqa: PLC0415

    return [f'"{rule}"' for rule in smallest(map(EgressRule.parse, rules))]


def function_of(test: str) -> str:
    """Return the node id of the function that a marker is put on, for all of its parameters."""
    path, separator, names = test.partition("::")
    return f"{path}{separator}{names.partition('[')[0]}"


def table_header(configuration: Path | None) -> str:
    """Return the header of the TOML table; a file that has the one in ini style must not have the other, too."""
    if pytest.version_tuple < (9,):
        return _INI_STYLE
    if configuration is not None and configuration.name == "pyproject.toml":
        lines = configuration.read_text(encoding="utf-8").splitlines()
        return _INI_STYLE if any(line.strip() == _INI_STYLE for line in lines) else _NATIVE
    return _NATIVE


def _left_running(reports: Iterable[object]) -> list[str]:
    """Return a line for each process that a test left, from the sections of the run's reports; a few for each test."""
    by_test: dict[str, list[str]] = {}
    for one in reports:
        if isinstance(one, pytest.TestReport):
            texts = [text for title, text in one.sections if title == TEARDOWN]
            ends = filter(None, (ENDING.fullmatch(line) for text in texts for line in text.splitlines()))
            for end in ends:
                by_test.setdefault(end[1] or one.nodeid, []).append(end[2])
    return shortened([line for test, ends in by_test.items() for line in _left_by(test, ends)])


def _left_by(test: str, ends: Sequence[str]) -> list[str]:
    lines = [f"{test} {LEFT}, {end}" for end in ends[:_OF_ONE_TEST]]
    more = len(ends) - _OF_ONE_TEST
    return lines if more <= 0 else [*lines, f"{test} {LEFT}: {more} more"]

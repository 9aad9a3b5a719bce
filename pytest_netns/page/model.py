"""What a report in HTML shows, as values that JSON can carry."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

from pytest_netns.closing import function_of, table_header, texts
from pytest_netns.gateway.flows import ALLOWED, BLOCKED, OUTSIDE, Flow
from pytest_netns.kernel import clock
from pytest_netns.report import header

if TYPE_CHECKING:
    from pytest_netns.page.collector import Tested
    from pytest_netns.session import Session

__all__ = ["model"]

_FLOWS_AT_MOST: Final = 20_000


def model(session: Session, tests: Sequence[Tested], began: float) -> dict[str, Any]:
    """Return all that the page shows of a run."""
    workers = sorted({test.worker for test in tests}, key=lambda name: (len(name), name)) or ["main"]
    numbers = {name: number for number, name in enumerate(workers)}
    flows = list(_read(session.outputs.flows))
    return {
        "title": session.config.rootpath.name or "pytest",
        "application": f"pytest-netns {metadata.version('pytest-netns')}",
        "settings": header(session.settings),
        "started": min([began, *(test.start for test in tests)]),
        "finished": clock.realtime(),
        "workers": workers,
        "tests": [{**asdict(test), "worker": numbers[test.worker]} for test in tests],
        "flows": list(_rows(flows[:_FLOWS_AT_MOST], tests, numbers)),
        "left_out": max(0, len(flows) - _FLOWS_AT_MOST),
        "counts": {verdict: sum(flow.verdict == verdict for flow in flows) for verdict in (ALLOWED, BLOCKED)},
        "needed": _needed(session, flows),
    }


def _read(path: str | None) -> Iterator[Flow]:
    """Yield the flows that the gateway has written down."""
    # Where the disk was full, it ends in the middle of a line.
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError), open(path or "", encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            if record.pop("kind") == "flow":
                yield Flow(**record)


def _rows(flows: Iterable[Flow], tests: Sequence[Tested], workers: dict[str, int]) -> Iterator[dict[str, Any]]:
    by_leaf = {(test.name, test.leaf): number for number, test in enumerate(tests)}
    by_name = {test.name: number for number, test in enumerate(tests)}
    for flow in flows:
        worker = workers.get(flow.leaf.rpartition("-t")[0] or flow.leaf, 0)
        test = by_leaf.get((flow.test, flow.leaf), by_name.get(flow.test, -1))
        known = {"endpoint": flow.endpoint, "allow": flow.allow, "worker": worker, "test": test, "owner": flow.test}
        yield {**flow.to_dict(), **known}


def _needed(session: Session, flows: Iterable[Flow]) -> dict[str, Any]:
    """Return the smallest allow-list with which nothing would have been blocked: for all tests, and for each."""
    by_test: dict[str, dict[str, None]] = {}
    counts: Counter[str] = Counter()
    for flow in flows:
        counts[flow.verdict] += 1
        if flow.allow is not None and (flow.verdict == BLOCKED or flow.rule is None):
            by_test.setdefault(function_of(flow.test), {})[flow.allow] = None
    rules = [rule for some in by_test.values() for rule in some]
    return {
        "all": [text.strip('"') for text in texts([*session.settings.allow, *rules])] if rules else [],
        "tests": {test: _marker(test, some) for test, some in sorted(by_test.items())},
        "blocked": counts[BLOCKED],
        "table": table_header(session.config.inipath),
    }


def _marker(test: str, rules: Iterable[str]) -> str:
    wanted = ", ".join(texts(rules))
    return f"no marker reaches there: {wanted}" if test == OUTSIDE else f"@pytest.mark.netns(allow=[{wanted}])"

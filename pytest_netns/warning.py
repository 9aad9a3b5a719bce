"""Warnings of what tests leave behind in their process."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from pytest_netns.report import NetnsWarning, shortened

if TYPE_CHECKING:
    import threading
    from collections.abc import Sequence

    import pytest

    from pytest_netns.leases import Leftovers

__all__ = ["warn_of"]


def warn_of(item: pytest.Item, left: Leftovers) -> None:
    """Warn of threads that were left running, and of what was left changed, which is put back.

    Args:
        item: the test that has left the threads which no other test is known to have started.
        left: what was left.
    """
    by_test: dict[pytest.Item, list[threading.Thread]] = {}
    for thread in left.threads:
        by_test.setdefault(left.starters.get(thread, item), []).append(thread)
    for starter, threads in by_test.items():
        names = ", ".join(thread.name for thread in threads)
        _warn(starter, f"left running in its network, {left.leaf}, which is gone now: {_count(threads)} {names}")
    changes: dict[pytest.Item, list[str]] = {}
    for what, culprit in left.changes:
        changes.setdefault(culprit, []).append(what)
    for culprit, words in changes.items():
        _warn(culprit, f"left changed in its process, where it is put back now: {', '.join(shortened(words))}")


def _warn(item: pytest.Item, words: str) -> None:
    """Warn without failing a run that makes errors of warnings."""
    text = f"{item.nodeid} {words}"
    path, line, _ = item.location
    try:
        warnings.warn_explicit(NetnsWarning(text), NetnsWarning, path, (line or 0) + 1)
    except NetnsWarning as warning:
        message = warnings.WarningMessage(warning, NetnsWarning, path, (line or 0) + 1)
        known = {"warning_message": message, "nodeid": item.nodeid, "when": "runtest", "location": None}
        item.ihook.pytest_warning_recorded.call_historic(kwargs=known)


def _count(threads: Sequence[threading.Thread]) -> str:
    return "thread" if len(threads) == 1 else f"{len(threads)} threads"

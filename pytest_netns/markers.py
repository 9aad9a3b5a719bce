"""What markers say of a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pytest_netns.settings import MARKER, OPT_OUT, Mark

__all__ = ["marks_of", "parametrizes"]


def marks_of(node: pytest.Item | pytest.Collector) -> Iterator[Mark]:
    """Yield the node's ``netns`` and ``no_netns`` markers, closest first."""
    for place, mark in node.iter_markers_with_node():
        if mark.name in (MARKER, OPT_OUT):
            yield Mark(mark.name, mark.args, mark.kwargs, place.nodeid)


def parametrizes(node: pytest.Item | pytest.Collector, name: str) -> bool:
    """Tell whether a ``parametrize`` marker sets this argument already."""
    marks = list(node.iter_markers("parametrize"))
    given = [mark.args[0] if mark.args else mark.kwargs.get("argnames", ()) for mark in marks]
    return any(name in (_names(names) if isinstance(names, str) else names) for names in given)


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]

"""What leaves asked the name server, and what they were told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

_KEPT_PER_LEAF: Final = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """A name that a test asked for.

    Attributes:
        time: when it did so last, in seconds since the epoch.
        test: the node id of the test that ran in the leaf.
        name: the name.
        outcome: what became of it, in words.
        refused: whether the name is none that the test may know of.
    """

    time: float
    test: str
    name: str
    outcome: str
    refused: bool = False


class Questions:
    """The names that were asked for, by leaf: each once for a test, with what it was told last."""

    def __init__(self) -> None:
        """Start with nothing asked."""
        self._by_leaf: dict[str, dict[tuple[str, str], Question]] = {}

    def add(self, leaf: str, test: str, name: str, outcome: str, *, refused: bool = False) -> None:
        """Note what a leaf was told; of one that asks for names without end the first are kept."""
        asked = self._by_leaf.setdefault(leaf, {})
        if len(asked) < _KEPT_PER_LEAF or (test, name) in asked:
            asked[test, name] = Question(time.time(), test, name, outcome, refused)

    def of(self, leaf: str, after: float = 0.0) -> Iterator[Question]:
        """Yield what a leaf has asked since ``after``, in seconds since the epoch, in the order of first asking."""
        return (question for question in self._by_leaf.get(leaf, {}).values() if question.time >= after)

    def forget(self, leaf: str) -> None:
        """Drop what a leaf asked that is gone."""
        self._by_leaf.pop(leaf, None)

"""Connections that have been made upstream, and wait for their clients to be connected, too."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pytest_netns.gateway.dials import CUT_SHORT, Rules
from pytest_netns.gateway.flows import Entry, Key, Volume
from pytest_netns.gateway.pump import Inspect

_CLAIM_TIMEOUT: Final = 10.0  # seconds
_WENT_AWAY: Final = "the client went away before it was connected"


@dataclass(frozen=True)
class Passage:
    """What an allowed flow takes along.

    Attributes:
        leaf: the IPv4 address of the leaf whose it is, whichever family it is of.
        entry: its record; None for one that does not leave the leaves.
        rules: what it rests on.
        inspect: the judge of what the client says.
        datagrams: whether it is an exchange by UDP, which may be given up when nothing has come for long.
    """

    leaf: str
    entry: Entry | None = None
    rules: Rules = ()
    inspect: Inspect | None = None
    datagrams: bool = False

    @property
    def volume(self) -> Volume:
        """Where its bytes are counted."""
        return Volume() if self.entry is None else self.entry.volume


@dataclass(frozen=True)
class Upstream:
    """A connection to where a client wants to go, ``sequence`` being the number that the client begins with."""

    upstream: socket.socket
    passage: Passage
    sequence: int = 0


class Upstreams:
    """Those of all leaves, by the flow of which the client will be accepted."""

    def __init__(self, end: Callable[[Passage, str], None]) -> None:
        """Hold none; ``end`` is told of a passage that comes to nothing, and why."""
        self._end = end
        self._waiting: dict[Key, Upstream] = {}
        self._waiting_of: Counter[str] = Counter()
        self._begun: dict[Key, int] = {}

    def add(self, key: Key, waiting: Upstream) -> None:
        """Wait for the client, but not for ever; one that went away and left its port to this one is given up."""
        if key in self._waiting:
            self._give_up(key)
        self._waiting_of[waiting.passage.leaf] += 1
        self._waiting[key] = waiting
        self._begun[key] = waiting.sequence
        asyncio.get_running_loop().call_later(_CLAIM_TIMEOUT, self._expire, key, waiting)

    def take(self, key: Key) -> Upstream | None:
        """Return what waits for this client; None where nobody decided on it, or it was given up."""
        return self._taken(key) if key in self._waiting else None

    def has_begun(self, key: Key, sequence: int) -> bool:
        """Tell whether a packet that asks for a connection asks for one that there is, or that waits."""
        return self._begun.get(key) == sequence

    def over(self, key: Key, sequence: int) -> None:
        """Note the end of a connection; the client may have taken its port for another one by now."""
        if self._begun.get(key) == sequence:
            del self._begun[key]

    def count(self, leaf: str) -> int:
        """Return how many wait for clients in a leaf."""
        return self._waiting_of[leaf]

    def give_up_one(self, reason: str = _WENT_AWAY, *, leaf: str | None = None) -> bool:
        """Give up what has waited longest, of all or of a leaf; return whether there was one."""
        waiting = self._waiting.items()
        key = next((key for key, one in waiting if leaf in {None, one.passage.leaf}), None)
        if key is not None:
            self._give_up(key, reason)
        return key is not None

    def cut(self, leaf: str, cuts: Callable[[Rules], bool]) -> None:
        """Give up those of a leaf whose rules are to be cut."""
        for key, waiting in list(self._waiting.items()):
            if waiting.passage.leaf == leaf and cuts(waiting.passage.rules):
                self._give_up(key, CUT_SHORT)

    def _expire(self, key: Key, waiting: Upstream) -> None:
        if self._waiting.get(key) is waiting:
            self._give_up(key)

    def _taken(self, key: Key) -> Upstream:
        waiting = self._waiting.pop(key)
        self._waiting_of[waiting.passage.leaf] -= 1
        if not self._waiting_of[waiting.passage.leaf]:
            del self._waiting_of[waiting.passage.leaf]
        return waiting

    def _give_up(self, key: Key, reason: str = _WENT_AWAY) -> None:
        waiting = self._taken(key)
        waiting.upstream.close()
        self.over(key, waiting.sequence)
        self._end(waiting.passage, reason)

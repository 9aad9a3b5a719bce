"""What is known of the leaves of a worker that has died in the middle of a test, for the report of that test."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import astuple, dataclass
from typing import Any, Final

from pytest_netns.gateway.captures import Snapshot
from pytest_netns.gateway.flows import OUTSIDE, FlowLog, Key
from pytest_netns.gateway.questions import Questions
from pytest_netns.gateway.worker import LiveLeaf, Worker
from pytest_netns.kernel import processes

_REMEMBERED: Final = 16  # each may have 12 MiB of packets
_ROWS: Final = 100


@dataclass(frozen=True)
class Obituary:
    """What there was in a leaf when its worker had died.

    Attributes:
        leaf: its name.
        since: when it began to serve the test, in seconds since the epoch.
        facts: what is told of it, as JSON can carry it.
        remarks: what there is to say of some of its packets.
        snapshot: its packets; None where they are not kept.
    """

    leaf: str
    since: float
    facts: dict[str, Any]
    remarks: list[tuple[Key, str]]
    snapshot: Snapshot | None


class Obituaries:
    """Written when a worker has gone, or when somebody asks who knows that before the gateway does."""

    def __init__(
        self,
        log: FlowLog,
        questions: Questions,
        *,
        live: Callable[[], Iterable[LiveLeaf]],
        listening: Callable[[LiveLeaf], Awaitable[list[str]]],
    ) -> None:
        """Write from these; ``live`` are the leaves that are alive, ``listening`` is what listens in one."""
        self._log = log
        self._questions = questions
        self._live = live
        self._listening = listening
        self._written: dict[tuple[str, str], asyncio.Task[Obituary]] = {}

    async def of(self, worker: str, test: str) -> Obituary | None:
        """Return that of the leaf that a worker's test had; None where it had none, or that is long ago."""
        for leaf in self._live():
            if leaf.owner.name == worker and leaf.test == test:
                self._begin(leaf)
                break
        written = self._written.get((worker, test))
        return None if written is None else await asyncio.shield(written)

    async def write(self, worker: Worker) -> None:
        """Write those of a worker that has gone; there are none where it gave its tests' leaves back before."""
        await asyncio.gather(*(self._begin(leaf) for leaf in worker.leaves if leaf.test not in {"", OUTSIDE}))

    def _begin(self, live: LiveLeaf) -> asyncio.Task[Obituary]:
        key = live.owner.name, live.test
        if key not in self._written:
            self._written[key] = asyncio.create_task(self._compose(live))
            if len(self._written) > _REMEMBERED:
                del self._written[next(iter(self._written))]
        return self._written[key]

    async def _compose(self, live: LiveLeaf) -> Obituary:
        own, since = live.owner.own, live.since
        names = [live.name] if own is None or own is live else [live.name, own.name]
        flows = [flow.to_dict() for name in names for flow in itertools.islice(self._log.of(name, since), _ROWS)]
        asked = [astuple(one) for one in itertools.islice(self._questions.of(live.name, since), _ROWS)]
        snapshot = live.capture.snapshot() if live.capture is not None else None
        remarks = list(self._log.remarks(live.name, since))
        there = [one for one in processes.members(live.net_inode) if one.pid != live.owner.pid]
        listening: list[str] = []
        with contextlib.suppress(OSError):
            listening = await self._listening(live)
        facts: dict[str, Any] = {
            "leaf": live.name,
            "ipv4": live.addresses[0],
            "ipv6": live.addresses[1],
            "flows": flows[:_ROWS],
            "asked": asked,
            "listening": listening[:_ROWS],
            "running": [[one.pid, one.command] for one in there[:_ROWS]],
        }
        return Obituary(live.name, since, facts, remarks, snapshot)

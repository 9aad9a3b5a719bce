"""The answers to what workers ask of the record: what leaves tried and asked for, and the packets that they kept."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import astuple

from pytest_netns.gateway import captures, listeners
from pytest_netns.gateway.captures import Label, Paths
from pytest_netns.gateway.conversation import Reply, page
from pytest_netns.gateway.flows import Flow, FlowLog
from pytest_netns.gateway.obituaries import Obituaries
from pytest_netns.gateway.questions import Questions
from pytest_netns.gateway.worker import Worker


class Records:
    """What is told of a run while it goes on."""

    def __init__(
        self, log: FlowLog, questions: Questions, obituaries: Obituaries, catch_up: Callable[[], None]
    ) -> None:
        """Read the records; ``catch_up`` has judged what leaves have sent by now."""
        self._log = log
        self._questions = questions
        self._obituaries = obituaries
        self._catch_up = catch_up
        self._paths = Paths()
        self.operations: dict[str, Callable[..., Reply | Awaitable[Reply]]] = {
            "flows": self._flows,
            "asked": self._asked,
            "listening": self._listening,
            "blocked": self._blocked,
            "needed": self._needed,
            "log_to": self._log_to,
            "save": self._save,
            "obituary": self._obituary,
        }

    async def _caught_up(self) -> None:
        await asyncio.sleep(0)  # a packet that is just being judged had the request read first
        self._catch_up()

    async def _flows(self, worker: Worker, leaf: str, after: float, since: int) -> Reply:
        await self._caught_up()
        worker.named(leaf)
        return page(self._log.of(leaf, after, since), Flow.to_dict)

    async def _asked(self, worker: Worker, leaf: str, after: float, since: int) -> Reply:
        await self._caught_up()
        worker.named(leaf)
        return page(itertools.islice(self._questions.of(leaf, after), since, None), astuple)

    def _listening(self, worker: Worker, ports: list[int]) -> Reply:
        """Tell on which ports of the host's loopback somebody listens."""
        del worker
        return {"ports": [port for port in ports if listeners.listens(port)]}, ()

    async def _blocked(self, worker: Worker, since: int, *, own: bool) -> Reply:
        await self._caught_up()
        return page(self._log.blocked(worker.name if own else None)[since:], astuple)

    async def _needed(self, worker: Worker, since: int, *, own: bool) -> Reply:
        await self._caught_up()
        return page(self._log.needed(worker.name if own else None)[since:], list)

    def _log_to(self, worker: Worker, path: str) -> Reply:
        del worker
        self._log.journal.open(path)
        return {}, ()

    async def _save(
        self, worker: Worker, leaf: str, *, test: str, since: float, path: str, directory: str, keys: tuple[str, int]
    ) -> Reply:
        """Write a test's packets to a file."""
        await self._caught_up()
        live = worker.named(leaf)
        if live.capture is None:
            raise ValueError(f"the packets of {leaf} are not kept")
        path = path or self._paths.fresh(directory, test)
        label = Label(leaf, test, list(self._log.remarks(leaf, since)), captures.keys_from(*keys))
        return await captures.save(live.capture.snapshot(), path, since, label), ()

    async def _obituary(self, worker: Worker, of: str, test: str, directory: str) -> Reply:
        """Tell what there was in the leaf of a worker that has died, and write its packets to a new file."""
        del worker
        await self._caught_up()
        found = await self._obituaries.of(of, test)
        if found is None:
            return {"facts": None}, ()
        saved = None
        if found.snapshot is not None and directory:
            label = Label(found.leaf, test, list(found.remarks))
            saved = await captures.save(found.snapshot, self._paths.fresh(directory, test), found.since, label)
        return {"facts": {**found.facts, "capture": saved}}, ()

"""Read what the hub queues, and let each flow's packets wait there until it is known what becomes of it."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

from pytest_netns.gateway import packet
from pytest_netns.gateway.admission import Admission
from pytest_netns.gateway.flows import Key
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.hub_ruleset import MARK_BLOCKED, MARK_RELAY, MARK_RESET, MARK_UNREACHABLE
from pytest_netns.gateway.packet import Endpoints
from pytest_netns.gateway.relay import Relay, key_of
from pytest_netns.gateway.worker import LiveLeaf
from pytest_netns.kernel import nft
from pytest_netns.kernel.queue import NF_DROP, NF_REPEAT, Queued

_HELD: Final = 256  # packets of one flow that wait for its verdict
_PENDING: Final = 1024  # flows of one leaf that wait for theirs; the kernel's queue is all leaves'
_SHARE: Final = 8  # and one in so many of the gateway's descriptors at most, since each may have a socket by then


class EgressControl:
    """The reader of the hub's queue."""

    def __init__(
        self, hub: Hub, relay: Relay, admission: Admission, leaf_of: Callable[[int | str], LiveLeaf | None]
    ) -> None:
        """Start reading; ``leaf_of`` finds a leaf by its interface in the hub."""
        self._hub = hub
        self._relay = relay
        self._admission = admission
        self._leaf_of = leaf_of
        self._held: dict[tuple[int, Key], list[Queued]] = {}
        self._pending: Counter[LiveLeaf] = Counter()
        self._at_most = min(_PENDING, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE)
        self._tasks: set[asyncio.Task[None]] = set()
        asyncio.get_running_loop().add_reader(hub.queue, self.read)

    async def stop(self) -> None:
        """Stop reading; what is queued from now on is dropped by the kernel."""
        asyncio.get_running_loop().remove_reader(self._hub.queue)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def read(self) -> bool:
        """Judge what one read of the queue brings; return whether that was anything."""
        found = False
        for queued in self._hub.queue.read():
            found = True
            self._judge(queued)
        return found

    def _judge(self, queued: Queued) -> None:
        leaf = self._leaf_of(queued.ifindex)
        flow = packet.parse(queued.payload)
        if flow is None or (leaf is not None and self._admission.refuses_foreign(leaf, flow)):
            self._send(queued, None)
        elif flow.protocol == packet.TCP and not flow.is_syn:
            self._send(queued, MARK_RESET)
        elif leaf is None:  # it was given up; a thread that outlives its test there is not to wait in vain
            self._send(queued, MARK_BLOCKED)
        elif (held := self._held.get((flow.protocol, key_of(flow)))) is None:
            self._judge_first(queued, leaf, flow)
        elif len(held) < _HELD:
            held.append(queued)
        else:
            self._send(queued, None)

    def _judge_first(self, queued: Queued, leaf: LiveLeaf, flow: Endpoints) -> None:
        """Judge the packet of a flow of which none is held."""
        forwarded = queued.hook == nft.FORWARD
        mark = MARK_RELAY if self._relay.expects(flow) else self._admission.decide(leaf, flow, forwarded=forwarded)
        if isinstance(mark, int):
            self._send(queued, mark)
        elif self._pending[leaf] >= self._at_most:
            mark.close()
            self._send(queued, None)
        else:
            key = flow.protocol, key_of(flow)
            self._pending[leaf] += 1
            self._held[key] = [queued]
            task = asyncio.create_task(self._settle(leaf, key, mark))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _send(self, queued: Queued, mark: int | None) -> None:
        """Send a packet round again with a mark, or drop it where there is none."""
        if mark is None:
            self._hub.queue.judge(queued, NF_DROP)
        else:
            self._hub.queue.judge(queued, NF_REPEAT, mark)

    async def _settle(self, leaf: LiveLeaf, key: tuple[int, Key], work: Awaitable[int | None]) -> None:
        """Let a flow's packets go on once it is known how."""
        mark: int | None = MARK_UNREACHABLE
        try:
            mark = await work
        finally:
            self._pending[leaf] -= 1
            if not self._pending[leaf]:
                del self._pending[leaf]
            for queued in self._held.pop(key):
                self._send(queued, mark)

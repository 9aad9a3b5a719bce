"""Which leaves are alive, found by where packets and questions come from."""

from __future__ import annotations

import asyncio

from pytest_netns.gateway.captures import Capture
from pytest_netns.gateway.factory import Leaf
from pytest_netns.gateway.worker import LiveLeaf, Worker
from pytest_netns.policy import CLOSED


class Register:
    """The leaves in use, by the hub's interface that leads to each, and by its IPv4 address."""

    def __init__(self) -> None:
        """Know of none."""
        self._by_key: dict[int | str, LiveLeaf] = {}

    def find(self, key: int | str) -> LiveLeaf | None:
        """Return the leaf with this interface number or address."""
        return self._by_key.get(key)

    def live(self) -> list[LiveLeaf]:
        """Return all, in the order in which they were handed out."""
        return list(dict.fromkeys(self._by_key.values()))

    def enter(self, worker: Worker, name: str, leaf: Leaf, test: str) -> LiveLeaf:
        """Note that a worker has a leaf from now on, which may reach nothing yet, and keep its packets if desired."""
        live = LiveLeaf(name, leaf, worker, CLOSED, test)
        if leaf.tap is not None:
            live.capture = Capture(leaf.tap)
            asyncio.get_running_loop().add_reader(leaf.tap, live.capture.collect)
        self._by_key[leaf.addresses.hub_ifindex] = live
        self._by_key[live.address] = live
        return live

    def strike(self, live: LiveLeaf) -> None:
        """Forget a leaf, whose namespaces are still there."""
        for key in (live.leaf.addresses.hub_ifindex, live.address):
            self._by_key.pop(key, None)
        if live.capture is not None:
            asyncio.get_running_loop().remove_reader(live.capture.tap)

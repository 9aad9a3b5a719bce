"""What workers ask to be done for their leaves, and that changes nothing of what these may reach."""

from __future__ import annotations

import time
from collections.abc import Callable

from pytest_netns.gateway.browsing import Browsing
from pytest_netns.gateway.conversation import Reply
from pytest_netns.gateway.publish import Publisher
from pytest_netns.gateway.worker import Worker


class Services:
    """The answers to that."""

    def __init__(self, publisher: Publisher, browsing: Browsing) -> None:
        """Do nothing yet; ``publisher`` opens ports on the host, and ``browsing`` the one for browsers."""
        self._publisher = publisher
        self._browsing = browsing
        self.operations: dict[str, Callable[..., Reply]] = {
            "box": self._box,
            "publish": self._publish,
            "unpublish": self._unpublish,
            "browse": self._browse,
            "hold": self._hold,
            "held": self._held,
        }

    def _box(self, worker: Worker, leaf: str, box: str, pid: int | None) -> Reply:
        """Tell a box's flows in a leaf apart from now on, or not any more."""
        live = worker.named(leaf)
        if pid is None:
            live.boxes.pop(box, None)
        else:
            live.boxes[box] = pid
        return {}, ()

    def _publish(self, worker: Worker, leaf: str, port: int) -> Reply:
        return {"port": self._publisher.open(worker.named(leaf), port)}, ()

    def _unpublish(self, worker: Worker, port: int) -> Reply:
        del worker
        self._publisher.close_port(port)
        return {}, ()

    def _browse(self, worker: Worker, port: int) -> Reply:
        del worker
        return {"port": self._browsing.open(port)}, ()

    def _hold(self, worker: Worker, leaf: str, why: str | None) -> Reply:
        """Note why a failed test waits in its leaf for somebody to look inside, or, by None, that it does no more."""
        live = worker.named(leaf)
        live.held, live.visited = why, time.monotonic()
        return {}, ()

    def _held(self, worker: Worker, leaf: str) -> Reply:
        """Tell for how long nobody has come in, or that the test need not wait any more."""
        live = worker.named(leaf)
        return {"idle": None if live.held is None else time.monotonic() - live.visited}, ()

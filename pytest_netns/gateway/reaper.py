"""End what a pytest process left running in its leaves, once it has gone."""

from __future__ import annotations

import time
from typing import Final

from pytest_netns.kernel import processes

_GRACE: Final = 0.2  # seconds in which helpers that end with their parent, as multiprocessing's do, may do so
_POLL: Final = 0.02


def reap(net_inode: int, worker_pid: int) -> None:
    """End every process in a leaf but the worker itself, which may be in it and is on its way out.

    Raises:
        NetnsError: one of them can't be ended, or they multiply faster than they can be.
    """
    deadline = time.monotonic() + _GRACE
    while _others(net_inode, worker_pid) and time.monotonic() < deadline:
        time.sleep(_POLL)
    processes.end_members(net_inode, spared=lambda: {worker_pid})


def _others(net_inode: int, worker_pid: int) -> list[processes.Process]:
    return [process for process in processes.members(net_inode) if process.pid != worker_pid]

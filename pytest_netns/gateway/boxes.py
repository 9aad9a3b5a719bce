"""Whose a new flow is: the test's own, or a box's that shares the test's network.

A socket is found in the leaf by its port, and then among the open files of processes. It is the test's if a process
outside of every box has it open, and a box's otherwise: what is in nobody's hands by now, or passes from one to the
other too quickly to be seen, is not booked on the test.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pytest_netns.gateway import listeners
from pytest_netns.gateway.worker import LiveLeaf

_TABLES = {"tcp": ("tcp", "tcp6"), "udp": ("udp", "udp6"), "dns": ("udp", "udp6", "tcp", "tcp6")}


def box_of(leaf: LiveLeaf, protocol: str, port: int) -> str | None:
    """Return the box that a flow comes from; None for the test itself.

    Args:
        leaf: the leaf.
        protocol: ``tcp``, ``udp``, ``dns`` or another.
        port: the port that it comes from.
    """
    if not leaf.boxes:
        return None
    wanted = {f"socket:[{inode}]" for pid in leaf.boxes.values() for inode in _sockets(pid, protocol, port)}
    for name, pid in leaf.boxes.items():
        members = set(listeners.family(pid))
        if _hold(members, wanted):
            return name
    # A process that a box has started by now descends from its keeper, however short it lived, or hands a socket on.
    outside = set(listeners.family(leaf.owner.pid, without=frozenset(leaf.boxes.values())))
    return None if _hold(outside, wanted) else next(iter(leaf.boxes))


def _hold(members: set[int], wanted: set[str]) -> bool:
    return any(not wanted.isdisjoint(listeners.open_files(member)) for member in members)


def _sockets(pid: int, protocol: str, port: int) -> Iterator[str]:
    """Yield the inodes of the sockets that use a port in a process's network."""
    for name in _TABLES.get(protocol, ()):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net", name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                if int(fields[1].rpartition(":")[2], 16) == port:
                    yield fields[9]

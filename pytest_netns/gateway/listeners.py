"""Whether a server on the host's loopback belongs to a pytest process.

A test that is isolated while the session's fixtures are not (marked tests, as root) may reach the
servers that its own session started, and none of the host's others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Final

from pytest_netns.kernel import sockets, syscalls

_TAKERS: Final = {4: ("0.0.0.0", "127.0.0.1", "::"), 6: ("::", "::1")}  # noqa: S104 - only compared
_LOOPBACK_OR_ANY: Final = frozenset(host for hosts in _TAKERS.values() for host in hosts)


def owned(pid: int, protocol: str, port: int, version: int) -> bool:
    """Tell whether process ``pid`` or a descendant of it listens on this port of the host's 127.0.0.1, or of ::1."""
    takers = _TAKERS[version]
    wanted = {f"socket:[{inode}]" for host, inode in _listening(protocol, port) if host in takers}
    return bool(wanted) and any(not wanted.isdisjoint(open_files(member)) for member in family(pid))


def listens(port: int) -> bool:
    """Tell whether anybody listens on this TCP port of the loopback that the calling thread has."""
    return any(True for _ in _listening("tcp", port))


def takes_datagrams(net_fd: int, home_fd: int, port: int, version: int) -> bool:
    """Tell whether a socket in a network namespace takes datagrams to a port of its loopback.

    Args:
        net_fd: the namespace.
        home_fd: that of the calling thread, which returns there.
        port: the port.
        version: 4 or 6, of the loopback address that they are for.
    """
    syscalls.setns(net_fd, syscalls.CLONE_NEWNET)
    try:
        return any(host in _TAKERS[version] for host, _ in _listening("udp", port))
    finally:
        syscalls.setns(home_fd, syscalls.CLONE_NEWNET)


def inside(net_fd: int, home_fd: int) -> list[str]:
    """Return what listens in a network namespace, as ``127.0.0.1:8080`` or ``[::1]:53/udp``.

    Args:
        net_fd: the namespace.
        home_fd: that of the calling thread, which returns there.
    """
    syscalls.setns(net_fd, syscalls.CLONE_NEWNET)
    try:
        found = (one.endpoint.partition(" ") for one in sockets.listeners())
        return sorted(where + ("/udp" if protocol == "udp" else "") for protocol, _, where in found)
    finally:
        syscalls.setns(home_fd, syscalls.CLONE_NEWNET)


def _listening(protocol: str, port: int) -> Iterator[tuple[str, int]]:
    """Yield the address and the inode of each socket that listens on a port of the thread's loopback."""
    for one in sockets.listeners(protocol):
        if one.port == port and one.host in _LOOPBACK_OR_ANY:
            yield one.host, one.inode


def family(pid: int, without: Container[int] = ()) -> Iterator[int]:
    """Yield a process and all its descendants, but for the families of some of them."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # The command's name stands in parentheses and may hold anything; the parent follows it.
                stat = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace")
                children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
    waiting = [pid]
    while waiting:
        member = waiting.pop()
        yield member
        waiting += (child for child in children.get(member, ()) if child not in without)


def open_files(pid: int) -> Iterator[str]:
    """Yield what a process has open, as the links of /proc name it."""
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")

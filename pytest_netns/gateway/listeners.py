"""Whether a server on the host's loopback belongs to a pytest process.

A test that is isolated while the session's fixtures are not (marked tests, as root) may reach the
servers that its own session started, and none of the host's others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_LISTEN: Final = "0A"
_UDP_UNCONNECTED: Final = "07"
# As /proc/net prints them: any address and loopback, in IPv4 and IPv6.
_LOOPBACK_OR_ANY: Final = frozenset({"00000000", "0100007F", "0" * 32, "0" * 24 + "01000000"})


def owned(pid: int, protocol: str, port: int) -> bool:
    """Tell whether process ``pid`` or a descendant of it listens on this port of the host's loopback."""
    wanted = {f"socket:[{inode}]" for inode in _inodes(protocol, port)}
    return bool(wanted) and any(not wanted.isdisjoint(_open_files(member)) for member in _family(pid))


def _inodes(protocol: str, port: int) -> Iterator[str]:
    state = _LISTEN if protocol == "tcp" else _UDP_UNCONNECTED
    for name in (protocol, f"{protocol}6"):
        with contextlib.suppress(OSError):
            for line in Path("/proc/thread-self/net", name).read_text(encoding="ascii").splitlines()[1:]:
                fields = line.split()
                address, _, number = fields[1].partition(":")
                if fields[3] == state and int(number, 16) == port and address in _LOOPBACK_OR_ANY:
                    yield fields[9]


def _family(pid: int) -> Iterator[int]:
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
        waiting += children.get(member, ())


def _open_files(pid: int) -> Iterator[str]:
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")

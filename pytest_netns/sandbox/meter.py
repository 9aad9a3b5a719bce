"""What a box has used: asked of its control groups, where it has any, and else of its processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from pytest_netns.sandbox.cgroups import CPU, MEMORY, PIDS, Groups

__all__ = ["Account", "Meter", "children", "family", "proportional", "resident"]

_PEAKS: Final = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
_OOM: Final = {1: "memory.oom_control", 2: "memory.events"}
_CHUNK: Final = 1 << 16  # bytes of a file that are read at a time
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Meter:
    """The files that tell of a box; they are opened while the caller may."""

    def __init__(self, groups: Groups) -> None:
        memory, pids, cpu = (groups.of.get(limit) for limit in (MEMORY, PIDS, CPU))
        accounts = groups.of.get("cpuacct")
        self._peak = None if memory is None else _open(f"{memory.path}/{_PEAKS[memory.version]}", os.O_RDWR)
        self._oom = None if memory is None else _open(f"{memory.path}/{_OOM[memory.version]}")
        self._refusals = None if pids is None else _open(f"{pids.path}/pids.events")
        self._time: int | None = None
        if cpu is not None and cpu.version == 2:
            self._time = _open(f"{cpu.path}/cpu.stat")
        elif accounts is not None:
            self._time = _open(f"{accounts.path}/cpuacct.usage")

    def reset(self) -> None:
        """Begin to look for a peak anew, as far as the kernel lets."""
        if self._peak is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._peak, b"0", 0)

    def peak(self) -> int:
        """Return the most memory that was used at a time, in bytes; 0 where nobody counts it."""
        text = _pread(self._peak).strip()
        return int(text) if text.isdigit() else 0

    def killed(self) -> int:
        """Return how many processes were killed for want of memory."""
        return _number(_pread(self._oom), "oom_kill")

    def refused(self) -> int:
        """Return how often a process was refused for being one too many."""
        return _number(_pread(self._refusals), "max")

    def cpu_time(self) -> float | None:
        """Return the seconds of processor time that were used; None where nobody counts them."""
        text = _pread(self._time)
        if text.strip().isdigit():
            return int(text) / 10**9
        return _number(text, "usage_usec") / 10**6 if text else None


class Account:
    """What a process writes, children that it waited for included: it can be asked until the process is reaped."""

    def __init__(self, pid: int | None) -> None:
        """Open the file, which only a process that is alive lets its user do."""
        self._file = None if pid is None else _open(f"/proc/{pid}/io")

    def read(self) -> int:
        """Return how many bytes were written, to files, pipes and sockets."""
        return _number(_pread(self._file), "wchar:")

    def close(self) -> None:
        """Close the file; doing so twice is harmless."""
        fd, self._file = self._file, None
        if fd is not None:
            os.close(fd)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants, by walking down: quick, and only as true as the moment."""
    found = [pid]
    for parent in found:
        found.extend(children(parent))
    return found


def children(pid: int) -> Iterator[int]:
    """Yield a process's own children, dead ones that it has not taken notice of included."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            yield from map(int, _text(f"/proc/{pid}/task/{thread}/children").split())


def resident(pid: int) -> int:
    """Return the bytes that a process has in memory, shared ones included; 0 if it is gone."""
    fields = _text(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def proportional(pid: int) -> int:
    """Return a process's part of the memory that it shares, and all of its own, in bytes; 0 if it is gone."""
    return _number(_text(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024


def _open(path: str, how: int = os.O_RDONLY) -> int | None:
    for flags in (how, os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_CLOEXEC)
    return None


def _pread(fd: int | None) -> str:
    if fd is None:
        return ""
    try:
        return os.pread(fd, 4096, 0).decode()
    except OSError:
        return ""


def _text(path: str) -> str:
    """Return all that a file says; empty where there is none. Files in Python's way take many more calls."""
    fd = _open(path)
    if fd is None:
        return ""
    text = b""
    try:
        with contextlib.suppress(OSError):
            while more := os.read(fd, _CHUNK):
                text += more
    finally:
        os.close(fd)
    return text.decode()


def _number(text: str, key: str) -> int:
    """Return the number after a word that a line begins with; 0 if there is none.

    A regular expression would cost each keeper more memory than all that it has to remember.
    """
    for line in text.splitlines():
        word, _, rest = line.partition(" ")
        if word == key:
            return int(rest.split()[0])
    return 0

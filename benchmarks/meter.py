"""What a command costs: its time, and the CPU time of all that it starts, the kernel's own threads included."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pytest_netns.kernel import syscalls

_PR_SET_CHILD_SUBREAPER: Final = 36
_KTHREADD: Final = "2"
_CALM: Final = 0.02  # of one processor, at which the kernel's threads have nothing left to do
_PATIENCE: Final = 1.0  # seconds


class Cost(NamedTuple):
    """Seconds: of wall clock, of CPU in processes, and of CPU in the kernel's threads, those of all the machine."""

    wall: float
    processes: float
    threads: float

    @property
    def cpu(self) -> float:
        """All CPU time."""
        return self.processes + self.threads

    def less(self, other: Cost, count: int = 1) -> Cost:
        """Return what each of ``count`` pieces took, ``other`` being the cost of none."""
        return Cost(*((one - base) / count for one, base in zip(self, other, strict=True)))

    @property
    def unthreaded(self) -> Cost:
        """The same without the kernel's threads, which a run that does nothing leaves idle."""
        return self._replace(threads=0.0)


def adopt_orphans() -> None:
    """Become the parent of what commands leave behind, so that its CPU time is told, too."""
    syscalls.prctl(_PR_SET_CHILD_SUBREAPER, 1)


def measure(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None, *, checked: bool = True
) -> tuple[Cost, str]:
    """Run a command and wait for all that it started; return what that cost and what it printed.

    Needs ``adopt_orphans`` before. The kernel's threads are waited for until they are done with what was dropped.
    """
    threads, before, began = _threads(), _processes(), time.perf_counter()
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True) as process:
        output, _ = process.communicate()
    wall = time.perf_counter() - began
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    if checked and process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output)
    _await_calm()
    return Cost(wall, _processes() - before, _spent(threads)), output


def _processes() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _threads() -> dict[str, int]:
    """Return the CPU time of each of the kernel's threads, in nanoseconds."""
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            folder = Path("/proc", pid)
            if folder.joinpath("stat").read_text().rpartition(")")[2].split()[1] == _KTHREADD:
                found[pid] = int(folder.joinpath("schedstat").read_text().split()[0])
    return found


def _spent(before: Mapping[str, int]) -> float:
    return sum(spent - before.get(pid, 0) for pid, spent in _threads().items()) / 1e9


def _await_calm() -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        threads, began = _threads(), time.perf_counter()
        time.sleep(0.1)
        if _spent(threads) < _CALM * (time.perf_counter() - began):
            return

"""What holds each limit on this machine: a control group, an rlimit, a watch, or nothing."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from pytest_netns.errors import SandboxError
from pytest_netns.sandbox.cgroups import CPU, MEMORY, PIDS, Group
from pytest_netns.sandbox.options import Limits

__all__ = ["Enforcement", "Rlimits", "settle"]

_INIT: Final = 1  # the box's init is a process of the box's user, too
_SLACK: Final = 1 << 30  # bytes by which one process may overreach before the watch sees it
_REMEDY: Final = (
    "Run as root on a machine with writable control groups, have systemd delegate them (systemd-run --user --scope "
    "-p Delegate=yes pytest ...), or say limits='best-effort' to do without"
)


class Rlimits(NamedTuple):
    """The limits of each process of a box, as prlimit(2) has them; None for what is left as it is."""

    processes: int | None = None
    data: int | None = None
    file_size: int | None = None
    open_files: int | None = None

    @property
    def pids_seen(self) -> float:
        """How many processes are as many as may be; no number is where this limits nothing."""
        return math.inf if self.processes is None else self.processes - _INIT

    def as_far_as_allowed(self) -> Rlimits:
        """Return them without those that the calling process could not set, since its own are lower."""
        allowed = {}
        for name, value in self._asdict().items():
            most = resource.getrlimit(_NUMBERS[name])[1]
            allowed[name] = value if value is None or most == resource.RLIM_INFINITY else min(value, most)
        return Rlimits(**allowed)

    def put_on(self, pid: int) -> None:
        """Put them on a process, which passes them on."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
            for name, value in zip(self._fields, self, strict=True):
                if value is not None:
                    resource.prlimit(pid, _NUMBERS[name], (value, value))


_NUMBERS: Final = {
    "processes": resource.RLIMIT_NPROC,
    "data": resource.RLIMIT_DATA,
    "file_size": resource.RLIMIT_FSIZE,
    "open_files": resource.RLIMIT_NOFILE,
}


class Enforcement(NamedTuple):
    """How the limits of a box are held.

    Attributes:
        mechanisms: by limit, what holds it, in words.
        groups: by limit, where its control group goes.
        rlimits: the limits of each process.
        watched: the bytes of memory that the keeper watches over; None if need not be.
        processors: the processors that the box is kept to; empty for any.
    """

    mechanisms: Mapping[str, str]
    groups: Mapping[str, Group]
    rlimits: Rlimits
    watched: int | None
    processors: tuple[int, ...]


def settle(limits: Limits, available: Mapping[str, Group]) -> Enforcement:
    """Return how each limit is held.

    Args:
        limits: what was asked for.
        available: by limit, where a control group can be made.

    Raises:
        SandboxError: one of them cannot be held here, and that is not to be passed over.
    """
    held = {name: f"cgroup v{available[name].version}" for name in (MEMORY, PIDS, CPU) if name in available}
    wanted = {name: getattr(limits, name) for name in (MEMORY, PIDS, CPU)}
    mechanisms = {name: text for name, text in held.items() if wanted[name] is not None}
    rlimits = Rlimits(file_size=limits.file_size, open_files=limits.open_files)
    watched: int | None = None
    processors: tuple[int, ...] = ()
    if limits.memory is not None and MEMORY not in held:
        watched = limits.memory
        rlimits = rlimits._replace(data=_SLACK + limits.memory)
        mechanisms[MEMORY] = "rlimit and watch"
    if limits.pids is not None and PIDS not in held:
        rlimits = rlimits._replace(processes=limits.pids + _INIT)
        mechanisms[PIDS] = "rlimit"
    if limits.cpu is not None and CPU not in held:
        processors = _processors(limits.cpu)
        if processors and len(processors) > limits.cpu and not limits.best_effort:
            raise SandboxError(
                f"cpu={limits.cpu:g} cannot be enforced here: there is no control group for it that may be written, "
                f"and without one only whole processors can be shared out. {_REMEDY}"
            )
        mechanisms[CPU] = "affinity" if not processors or len(processors) <= limits.cpu else "affinity, rounded up"
    others: dict[str, Any] = {
        "file_size": "rlimit",
        "open_files": "rlimit",
        "timeout": "watch",
        "disk": "tmpfs",
        "output": "watch",
    }
    mechanisms |= {name: text for name, text in others.items() if getattr(limits, name) is not None}
    return Enforcement(mechanisms, dict(available), rlimits, watched, processors)


def _processors(cpu: float) -> tuple[int, ...]:
    """Return as many processors as a box may use, of those that this process may; empty where that is no fewer."""
    usable = sorted(os.sched_getaffinity(0))
    wanted = math.ceil(cpu)
    if len(usable) <= cpu:
        return ()
    return tuple(usable[-wanted:])

"""Control groups: version 2 where it is delegated or writable, version 1 where the machine has that.

A box gets a group below the one that the pytest process is in, for each thing that it is limited in. All paths are
looked up in the mount namespace of whoever calls.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

__all__ = ["CPU", "MEMORY", "PIDS", "Group", "Groups", "find", "sweep"]

MEMORY: Final = "memory"
PIDS: Final = "pids"
CPU: Final = "cpu"
_CPUACCT: Final = "cpuacct"
_PREFIX: Final = "pytest-netns-"
_PERIOD: Final = 100_000  # microseconds, the kernel's own default
_OVERHEAD: Final = 3  # the box's keeper, and bubblewrap outside and inside, are processes of the group too

#: By version and limit: the file that sets it.
_FILES: Final = {
    (2, MEMORY): "memory.max",
    (2, PIDS): "pids.max",
    (2, CPU): "cpu.max",
    (1, MEMORY): "memory.limit_in_bytes",
    (1, PIDS): "pids.max",
    (1, CPU): "cpu.cfs_quota_us",
}


class Group(NamedTuple):
    """A directory below which a box's group can be made, and which version of control groups it is of."""

    path: str
    version: int


class Groups:
    """The groups of one box.

    Attributes:
        of: by limit, the group that holds it.
    """

    def __init__(self, of: Mapping[str, Group] | None = None) -> None:
        """Begin with groups that there are, or with those that others can be made in."""
        self.of: dict[str, Group] = dict(of or {})

    def mechanism(self, limit: str) -> str | None:
        """Return what holds a limit, in words; None where no group does."""
        group = self.of.get(limit)
        return None if group is None else f"cgroup v{group.version}"

    @property
    def paths(self) -> list[str]:
        """The directories, each once."""
        return list(dict.fromkeys(group.path for group in self.of.values()))

    def make(self, name: str, limits: Mapping[str, float]) -> None:
        """Make the groups with their limits; OSError where the kernel refuses."""
        for limit, group in list(self.of.items()):
            path = os.path.join(group.path, _PREFIX + name)
            with contextlib.suppress(FileExistsError):  # one directory for several limits, in version 2
                os.mkdir(path, 0o755)
            self.of[limit] = Group(path, group.version)
            if limit in limits:
                _set(self.of[limit], limit, limits[limit])

    def join(self) -> None:
        """Bring the calling process in."""
        for path in self.paths:
            _write(os.path.join(path, "cgroup.procs"), "0")

    def remove(self) -> bool:
        """Remove the groups that nobody is in any more, and tell whether all are gone."""
        for path in self.paths:
            with contextlib.suppress(OSError):
                os.rmdir(path)
        return not self.are_there

    @property
    def are_there(self) -> bool:
        """Whether any of them has not been removed yet."""
        return any(map(os.path.isdir, self.paths))

    def read(self, limit: str, name: str) -> str:
        """Return what a file of a group says; empty where there is none."""
        group = self.of.get(limit)
        return "" if group is None else _read(os.path.join(group.path, name))


def find() -> dict[str, Group]:
    """Return, for each limit, where a group can be made that holds it."""
    found: dict[str, Group] = {}
    own = dict(_own())
    for mount, version, controllers in _mounts():
        for limit in (MEMORY, PIDS, CPU, _CPUACCT):
            if limit in controllers and limit in own and limit not in found:
                path = os.path.join(mount, own[limit].lstrip("/"))
                if os.access(path, os.W_OK):
                    found[limit] = Group(path, version)
        if version == 2 and "" in own:
            delegated = _delegated(os.path.join(mount, own[""].lstrip("/")))
            if delegated is not None:
                for limit in _read(os.path.join(delegated, "cgroup.subtree_control")).split():
                    if limit in (MEMORY, PIDS, CPU):
                        found.setdefault(limit, Group(delegated, 2))
    return found


def sweep(groups: Mapping[str, Group]) -> None:
    """Remove groups that were left by processes which could not remove them any more; those in use stay."""
    for path in {group.path for group in groups.values()}:
        with contextlib.suppress(OSError):
            for name in os.listdir(path):
                if name.startswith(_PREFIX) and not os.path.exists(f"/proc/{name.split('-')[2]}"):
                    with contextlib.suppress(OSError):
                        os.rmdir(os.path.join(path, name))


def _own() -> Iterator[tuple[str, str]]:
    """Yield each controller with the group that the process is in; the empty name stands for version 2."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _mounts() -> Iterator[tuple[str, int, list[str]]]:
    """Yield where hierarchies are mounted, of which version, with which controllers."""
    for line in _read("/proc/self/mountinfo").removesuffix("\n").split("\n"):  # paths may have other ends of lines
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, target = left.split(" ")[3:5]
        if kind == "cgroup2":
            yield target, 2, []
        elif kind == "cgroup" and root == "/":
            yield target, 1, options.split(",")


def _delegated(path: str) -> str | None:
    """Return the group of version 2 below which others with limits can be made.

    A group with processes of its own can give no limits to groups below. So it is the nearest one above that can, as
    systemd delegates it, if it is writable.
    """
    while True:
        control = os.path.join(path, "cgroup.subtree_control")
        if not os.access(control, os.W_OK) or not os.access(path, os.W_OK):
            return None
        if _read(control).split():
            return path
        wanted = [
            name for name in _read(os.path.join(path, "cgroup.controllers")).split() if name in (MEMORY, PIDS, CPU)
        ]
        if not _read(os.path.join(path, "cgroup.procs")).strip() and wanted:
            with contextlib.suppress(OSError):
                _write(control, " ".join(f"+{name}" for name in wanted))
                return path
        path, tail = os.path.split(path)
        if not tail:
            return None


def _set(group: Group, limit: str, value: float) -> None:
    text = str(int(value))
    if limit == PIDS:
        text = str(int(value) + _OVERHEAD)
    elif limit == CPU:
        quota = max(1000, round(value * _PERIOD))
        text = str(quota) if group.version == 1 else f"{quota} {_PERIOD}"
    _write(os.path.join(group.path, _FILES[group.version, limit]), text)
    if limit == MEMORY:  # what does not fit must not go to disk instead
        swap, most = ("memory.memsw.limit_in_bytes", text) if group.version == 1 else ("memory.swap.max", "0")
        with contextlib.suppress(OSError):
            _write(os.path.join(group.path, swap), most)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)

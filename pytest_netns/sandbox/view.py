"""The file view of a box: what is where, as bubblewrap is told.

The stage is a directory in memory in the box's own mount namespace, with everything that is mounted for the box
alone: the overlay, what the box may write, and the sources of all that is bound, each looked up once. So no link that
the box leaves in a directory it may write to leads a later mount astray.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from pytest_netns.errors import SandboxError
from pytest_netns.sandbox.options import View

__all__ = ["Bind", "Plan", "is_within", "plan"]

#: What a box finds empty, and may write to. It lies on the box's own disk, and ends with the box.
_COVERED: Final = ("/home", "/root", "/tmp", "/run", "/var", "/mnt", "/media")  # noqa: S108 - names of what is hidden
#: In a home: what holds secrets, or leads to somebody who does.
_SECRETS: Final = (
    *(".ssh", ".aws", ".azure", ".gcloud", ".kube", ".docker", ".config", ".local/share/keyrings", ".gnupg"),
    *(".password-store", ".mozilla", ".thunderbird", ".netrc", ".git-credentials", ".pypirc", ".npmrc", ".pgpass"),
    *(".my.cnf", ".vault-token", ".cargo/credentials", ".cargo/credentials.toml", ".Xauthority", ".ICEauthority"),
    *(".bash_history", ".zsh_history", ".python_history", ".psql_history"),
)
#: What tells of the machine, or of the kernel, more than a command needs.
_MASKED: Final = ("/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sysrq-trigger")
_NETWORK_FILES: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf")
_HOME: Final = "/home/user"
_SHM: Final = "/dev/shm"  # noqa: S108 - the box's own


class Bind(NamedTuple):
    """Something that is shown in the box.

    Attributes:
        source: from where.
        target: to where.
        writable: whether the box may write to it.
        asked: whether the user asked for it, so that it is shown even where only its owner may look.
    """

    source: str
    target: str
    writable: bool = False
    asked: bool = True


class Plan(NamedTuple):
    """A file view that is settled.

    Attributes:
        covers: directories that are empty and writable.
        binds: what is shown in or over them, in this order.
        hidden: what appears empty, in the end.
        home: the home directory.
        cwd: where commands start.
        overlaid: the directory that is behind an overlay, or None.
    """

    covers: tuple[str, ...]
    binds: tuple[Bind, ...]
    hidden: tuple[str, ...]
    home: str
    cwd: str
    overlaid: str | None


def plan(view: View) -> Plan:
    """Settle what a box sees, as paths are here and now: this is to be called where the box will be.

    Raises:
        SandboxError: something is to be covered that is not there.
    """
    home = os.path.realpath(view.home) if os.path.realpath(view.home) != "/" else _HOME
    covers = [path for path in dict.fromkeys(map(os.path.realpath, (*_COVERED, home))) if os.path.isdir(path)]
    covers = [path for path in covers if not _within(path, [other for other in covers if other != path])]
    if not _within(home, covers):
        home = _HOME if _within(_HOME, covers) else covers[0]
    _check_there(view, covers)
    covers += [os.path.realpath(path) for path in view.tmpfs]
    binds = [Bind(path, path, asked=False) for path in _network_files() if _within(path, covers)]
    binds += [Bind(os.path.realpath(path), os.path.realpath(path)) for path in view.readonly]
    workdir = None if view.workdir is None else os.path.realpath(view.workdir)
    if workdir is not None and not view.overlay:
        binds.append(Bind(workdir, workdir, writable=True))
    binds += [Bind(os.path.realpath(path), os.path.realpath(path), writable=True) for path in view.writable]
    shown = [bind.target for bind in binds if bind.asked] + ([] if workdir is None else [workdir])
    binds += [Bind(path, path, asked=False) for path in _network_files() if _within(path, shown)]
    shown = [bind.target for bind in binds] + ([] if workdir is None else [workdir])
    hidden = [*_secrets((home, *view.homes), shown), *map(os.path.realpath, view.hide)]
    overlaid = workdir if view.overlay else None
    return Plan(tuple(covers), tuple(binds), tuple(dict.fromkeys(hidden)), home, workdir or home, overlaid)


def _check_there(view: View, covers: list[str]) -> None:
    for option, wanted, is_there in (("tmpfs", view.tmpfs, os.path.isdir), ("hide", view.hide, os.path.exists)):
        for path in wanted:
            if not is_there(path) and not _within(os.path.realpath(path), covers):
                there = "no directory" if os.path.exists(path) else "not there, or may not be looked at"
                raise SandboxError(f"{option}={path!r} is {there}; name what is there")


def arguments(plan: Plan, stage: str, hidden: Iterable[tuple[str, bool]]) -> Iterator[str]:
    """Yield the options that give a box its view.

    Args:
        plan: what was settled, with the sources of binds as they are on the stage.
        stage: the stage.
        hidden: what has to appear empty, each path with whether it is a directory.
    """
    yield from ("--ro-bind", "/", "/")
    yield from ("--dev", "/dev", "--bind", f"{stage}/shm", _SHM, "--remount-ro", "/dev")
    yield from ("--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys")
    for path in _MASKED:
        if os.path.exists(path):
            yield from ("--ro-bind", f"{stage}/empty", path)
    if os.path.isdir("/sys/fs/cgroup"):
        yield from ("--ro-bind", f"{stage}/nothing", "/sys/fs/cgroup")
    for number, path in enumerate(plan.covers):
        yield from ("--bind", f"{stage}/cover{number}", path)
    if plan.overlaid is not None:
        yield from ("--bind", f"{stage}/merged", plan.overlaid)
    for bind in plan.binds:
        yield from ("--bind" if bind.writable else "--ro-bind", bind.source, bind.target)
    for path, is_directory in hidden:
        yield from ("--ro-bind", f"{stage}/nothing" if is_directory else f"{stage}/empty", path)


def _network_files() -> Iterator[str]:
    for path in _NETWORK_FILES:
        real = os.path.realpath(path)
        if os.path.isfile(real):
            yield real


def _secrets(homes: Iterable[str], shown: Iterable[str]) -> Iterator[str]:
    """Yield the secrets of homes that are shown after all, as when a home is the working directory."""
    for place in sorted(set(map(os.path.realpath, homes))):
        for name in _SECRETS:
            path = os.path.join(place, name)
            if os.path.lexists(path) and _within(path, shown):
                yield path


def is_within(path: str, directory: str) -> bool:
    """Tell whether a path is a directory, or below it; both are absolute."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def _within(path: str, directories: Iterable[str]) -> bool:
    return any(is_within(path, directory) for directory in directories)

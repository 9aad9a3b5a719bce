"""Start bubblewrap for one command of a box, from its keeper."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from collections.abc import Iterator
from typing import Final, NamedTuple, NoReturn

from pytest_netns.sandbox import bubblewrap, wire
from pytest_netns.sandbox.limits import Rlimits
from pytest_netns.sandbox.meter import Meter
from pytest_netns.sandbox.wire import Message

__all__ = ["Setting", "high", "launch", "pipe"]

_HIGH: Final = 64  # descriptors are moved up here, so that none is in the way of those that bubblewrap is told
_REPORT, _BLOCK, _FILTER, _ARGUMENTS = 3, 4, 5, 6
_TOLD: Final = ("--json-status-fd", str(_REPORT), "--block-fd", str(_BLOCK), "--seccomp", str(_FILTER))
_OOM_SCORE: Final = "/proc/self/oom_score_adj"
_OOM_FIRST: Final = b"1000"  # whom the kernel ends first when the whole machine lacks memory
_IGNORED: Final = (signal.SIGPIPE, signal.SIGXFSZ)  # by Python


class Setting(NamedTuple):
    """What all commands of a box have in common.

    Attributes:
        program: bubblewrap.
        options: what it is told each time.
        seccomp: the filter.
        rlimits: the limits of each process.
        meter: what tells of the box's use.
        memory: bytes of memory that have to be watched, since no control group holds them; None if need not be.
        disk: a directory on the box's disk.
        shifted: whether its clocks are others.
    """

    program: str
    options: tuple[str, ...]
    seccomp: bytes
    rlimits: Rlimits
    meter: Meter
    memory: int | None
    disk: str
    shifted: bool = False


def launch(setting: Setting, wanted: Message, descriptors: list[int]) -> int:
    """Start bubblewrap, and return its process id.

    Args:
        setting: what all commands have in common.
        wanted: what the pytest process said of this one.
        descriptors: the standard streams, where it is to report, and what it has to wait for before it starts the
            command; all of them from ``high`` or ``pipe``.
    """
    options = (*setting.options, *_TOLD, "--chdir", wanted["cwd"], *bubblewrap.environment(wanted["env"]))
    told = "\0".join((*options, "")).encode("utf-8", "surrogateescape")
    files = [high(wire.write_file(content, name)) for content, name in ((setting.seccomp, "seccomp"), (told, "bwrap"))]
    command = ["bwrap", "--args", str(_ARGUMENTS), "--", *wanted["command"]]
    try:
        return _spawn(setting, command, [*descriptors, *files])
    finally:
        for fd in files:
            os.close(fd)


def _spawn(setting: Setting, command: list[str], descriptors: list[int]) -> int:
    """Start it without a copy of this process in between, unless its clocks have to be others."""
    with _expendable():
        if setting.shifted:
            child = os.fork()
            if not child:
                _exec(setting.program, command, descriptors)
            return child
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(descriptors)]
        return os.posix_spawn(setting.program, command, {}, file_actions=actions, setsigdef=_IGNORED)


def _exec(program: str, command: list[str], descriptors: list[int]) -> NoReturn:
    """Become bubblewrap; older kernels have a new time namespace entered in this way only."""
    try:
        for number, fd in enumerate(descriptors):
            os.dup2(fd, number)
        for ignored in _IGNORED:
            signal.signal(ignored, signal.SIG_DFL)
        os.execve(program, command, {})  # noqa: S606 - no shell is wanted
    finally:
        os._exit(127)


@contextlib.contextmanager
def _expendable() -> Iterator[None]:
    """Have what is started here be the first to go: it inherits that, before it can start something itself."""
    try:
        fd = os.open(_OOM_SCORE, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        yield
        return
    before = os.pread(fd, 16, 0)
    _adjust(fd, _OOM_FIRST)
    try:
        yield
    finally:
        _adjust(fd, before)
        os.close(fd)


def _adjust(fd: int, score: bytes) -> None:
    with contextlib.suppress(OSError):
        os.pwrite(fd, score, 0)


def pipe() -> tuple[int, int]:
    """Return both ends of a new pipe, as ``high`` does."""
    reading, writing = os.pipe()
    return high(reading), high(writing)


def high(fd: int) -> int:
    """Return the descriptor under a number that nothing else is given."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    os.close(fd)
    return moved

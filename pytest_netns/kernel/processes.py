"""Who lives in a network namespace, and how to end them.

``/proc/<pid>`` also answers for the ids of threads, which a listing of ``/proc`` does not show;
these are not processes and are left out here, as is the calling process.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import textwrap
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from pytest_netns.errors import NetnsError
from pytest_netns.kernel import clock, privilege
from pytest_netns.kernel.readiness import is_readable, readable

__all__ = ["Process", "end", "end_members", "last_pid", "members"]

_LONGEST_COMMAND: Final = 200
_SCAN_AT_MOST: Final = 2000
_LEAVING_SECONDS: Final = 0.02
_TERM_SECONDS: Final = 0.4
_KILL_SECONDS: Final = 2.0
_ROUNDS: Final = 20


class Process(NamedTuple):
    """A process at the moment that it was found; its command is one line, and cut where it is very long."""

    pid: int
    command: str


def last_pid() -> int:
    """Return the id that the kernel gave out last, to a process or a thread, in this PID namespace."""
    fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(os.read(fd, 128).split()[-1])
    finally:
        os.close(fd)


def members(net_inode: int, since: int | None = None) -> list[Process]:
    """List the living processes of the namespace with this inode number, except the calling one.

    ``since``, an earlier ``last_pid()``, restricts the search to processes that were started after
    it; that is free of cost where nothing was started. A namespace is told by the main thread.
    """
    found = [pid for pid in _candidates(since) if _net_inode(pid) == net_inode]
    return [Process(pid, _command(pid)) for pid in found if pid != os.getpid() and _is_process(pid)]


def end(
    processes: Iterable[Process], timeout: float = _TERM_SECONDS, kill_timeout: float = _KILL_SECONDS
) -> list[tuple[Process, str]]:
    """End the processes, with SIGTERM if they heed it within ``timeout`` seconds, else with SIGKILL.

    A stopped process is continued, so that it can heed. One that no descriptor can be had for, as all
    are used up, is sent SIGKILL at once. The processes are not reaped: that is for whoever started
    them. Each is returned with the name of the signal that it was ended by; what was gone or on its
    way out already, as after a ``terminate()`` without a ``wait()``, is left out.

    Raises:
        NetnsError: some are alive ``kill_timeout`` seconds after SIGKILL.
    """
    with contextlib.ExitStack() as stack:
        opened, unheld = _open(processes, stack)
        for process in unheld:
            _send(os.kill, process.pid, signal.SIGKILL)
        alive = _wait(opened, _LEAVING_SECONDS)
        every = dict(alive)
        _signal(alive, signal.SIGTERM, signal.SIGCONT)
        stubborn = _wait(alive, timeout)
        _signal(stubborn, signal.SIGKILL)
        immortal = _wait(stubborn, kill_timeout)
        if immortal:
            raise NetnsError(_immortal(immortal.values()))
        ended = [(process, "SIGKILL" if fd in stubborn else "SIGTERM") for fd, process in every.items()]
        return ended + [(process, "SIGKILL") for process in unheld]


def end_members(
    net_inode: int,
    since: int | None = None,
    *,
    spared: Callable[[], Container[int]] = frozenset,
    unnamed: Callable[[int], bool] = lambda _: False,
) -> list[tuple[Process, str]]:
    """End whoever is in the namespace, and whoever they start meanwhile, until it has no members.

    ``spared`` is called each time anew and returns the process ids of those that may stay; those of which ``unnamed``
    is true are ended, but not returned.

    Raises:
        NetnsError: they multiply faster than they can be ended, or don't die.
    """
    ended: list[tuple[Process, str]] = []
    timeout = _TERM_SECONDS
    for _ in range(_ROUNDS):
        staying = spared()
        found = [process for process in members(net_inode, since) if process.pid not in staying]
        if not found:
            return ended
        nameless = {process.pid for process in found if unnamed(process.pid)}
        ended += [one for one in end(found, timeout) if one[0].pid not in nameless]
        timeout = 0.0  # They were asked nicely once; what appears from now on was started by the dying.
    raise NetnsError(_immortal(found))


def _candidates(since: int | None) -> Iterable[int]:
    if since is None:
        return _listed()
    last = last_pid()
    ranges = [range(since + 1, last + 1)]
    if last < since:  # The kernel has run through all ids and begun again.
        ranges = [range(since + 1, _pid_max() + 1), range(1, last + 1)]
    if sum(map(len, ranges)) > _SCAN_AT_MOST:
        return _listed()
    return [pid for part in ranges for pid in part]


def _listed() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _pid_max() -> int:
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as file:
        return int(file.read())


def _net_inode(pid: int) -> int | None:
    """Return the number of the process's network namespace; None if it is dead, or nothing we may know of."""
    path = f"/proc/{pid}/ns/net"
    try:
        try:
            return os.stat(path).st_ino
        except PermissionError:
            with privilege.raised():
                return os.stat(path).st_ino
    except OSError:
        return None


def _is_process(pid: int) -> bool:
    return f"\nTgid:\t{pid}\n" in _read(pid, "status")


def _command(pid: int) -> str:
    arguments = _read(pid, "cmdline").rstrip("\0").split("\0")
    line = shlex.join(arguments) if arguments != [""] else f"[{_read(pid, 'comm').strip()}]"
    return textwrap.shorten(line, _LONGEST_COMMAND, placeholder=" ...")


def _read(pid: int, name: str) -> str:
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _open(processes: Iterable[Process], stack: contextlib.ExitStack) -> tuple[dict[int, Process], list[Process]]:
    """Return the processes by descriptor, without those that have ended, and those that there is none for."""
    opened, unheld = {}, []
    for process in processes:
        try:
            fd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        except OSError:
            unheld.append(process)
            continue
        stack.callback(os.close, fd)
        opened[fd] = process
    return opened, unheld


def _signal(processes: Mapping[int, Process], *numbers: signal.Signals) -> None:
    for fd, process in processes.items():
        for number in numbers:
            try:
                _send(signal.pidfd_send_signal, fd, number)
            except OSError:  # a filter may forbid it, or not know it
                if not is_readable(fd):  # so that the number is still this process's
                    _send(os.kill, process.pid, number)


def _send(call: Callable[[int, int], object], whom: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        try:
            call(whom, number)
        except PermissionError:
            with privilege.raised():
                call(whom, number)


def _wait(processes: dict[int, Process], seconds: float) -> dict[int, Process]:
    """Wait until all are dead, and return those that are not; a process that nobody has reaped is dead."""
    alive = dict(processes)
    deadline = clock.monotonic() + seconds
    while alive:
        left = max(0.0, deadline - clock.monotonic())
        for fd in readable(alive, left):
            del alive[fd]
        if not left:
            break
    return alive


def _immortal(processes: Iterable[Process]) -> str:
    names: Sequence[str] = [f"{pid} ({command})" for pid, command in processes]
    return (
        f"these processes of the namespace could not be ended: {', '.join(names)}. They were sent SIGKILL; one that "
        "stays hangs in the kernel (look at /proc/<pid>/stack), or starts others faster than they die. "
        "The namespace lives on until they are gone"
    )

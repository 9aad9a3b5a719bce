"""Finding and ending the processes of a namespace, against the kernel."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from unshared import effective, net_inode, unshared

from pytest_netns.errors import NetnsError
from pytest_netns.kernel import processes
from pytest_netns.kernel.processes import Process

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
DAEMON = """
import os, time
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    os.write(1, b"up\\n")
    time.sleep(60)
os.wait()
"""
PHOENIX = """
import os, signal, time
def reborn(*_):
    if os.fork():
        os._exit(0)
signal.signal(signal.SIGTERM, reborn)
print("up", flush=True)
while True:
    time.sleep(1)
"""


def python(code: str) -> subprocess.Popen[str]:
    """Start a Python program that says a line once it is ready."""
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


def sleeper() -> subprocess.Popen[bytes]:
    """Start a program that heeds SIGTERM; the call returns when it runs."""
    child = subprocess.Popen(["sleep", "60"])
    while not Path(f"/proc/{child.pid}/cmdline").read_bytes().startswith(b"sleep"):
        time.sleep(0.001)  # the kernel has closed what it inherited a moment before
    return child


@unshared
def test_lists_others_and_not_itself() -> None:
    """A namespace's members are its processes with their commands, without the caller and without threads."""
    before = processes.last_pid()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    child = sleeper()
    expected = [Process(child.pid, "sleep 60")]
    assert processes.members(net_inode()) == expected
    assert processes.members(net_inode(), before) == expected
    assert processes.members(net_inode(), processes.last_pid()) == []
    stop.set()
    child.kill()


@unshared
def test_ignores_zombies_and_other_namespaces() -> None:
    """A dead process that nobody has reaped is no member, and neither is anyone outside."""
    before = processes.last_pid()
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.members(net_inode(), before) == []
    assert processes.members(net_inode()) == []
    assert child.wait() == 0


@unshared
def test_finds_a_daemon() -> None:
    """A process that forked twice and left its session is found, and ended with SIGTERM."""
    before = processes.last_pid()
    launcher = python(DAEMON)
    launcher.wait()
    (daemon,) = processes.members(net_inode(), before)
    assert processes.end_members(net_inode(), before) == [(daemon, "SIGTERM")]
    assert processes.members(net_inode()) == []


@unshared
def test_ends_the_deaf_and_the_stopped() -> None:
    """SIGKILL ends what ignores SIGTERM; a stopped process is continued and heeds SIGTERM; nobody is reaped."""
    deaf, stopped = python(STUBBORN), sleeper()
    stopped.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, stopped.pid, os.WSTOPPED)
    start = time.monotonic()
    ended = processes.end(processes.members(net_inode()), timeout=0.2)
    assert 0.2 <= time.monotonic() - start < 1
    assert {process.pid: name for process, name in ended} == {deaf.pid: "SIGKILL", stopped.pid: "SIGTERM"}
    assert deaf.wait() == -signal.SIGKILL
    assert stopped.wait() == -signal.SIGTERM
    assert effective() == 0


@unshared
def test_ends_more_than_there_are_descriptors_for() -> None:
    """Where descriptors are used up, those that none is left for are killed by their numbers, and returned too."""
    children = [sleeper() for _ in range(30)]
    found = processes.members(net_inode())
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.dup(0) + 10, limits[1]))
    ended = processes.end(found)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert sorted(process.pid for process, _ in ended) == sorted(child.pid for child in children)
    assert {how for _, how in ended} == {"SIGTERM", "SIGKILL"}
    assert {child.wait(5) for child in children} == {-signal.SIGTERM, -signal.SIGKILL}


@unshared
@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOSYS], ids=errno.errorcode.get)
def test_ends_where_descriptors_are_no_help(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Where pidfd_send_signal(2) is forbidden, or not known, the living are sent signals by their numbers."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("signal.pidfd_send_signal", refuse)
    deaf, meek = python(STUBBORN), sleeper()
    ended = processes.end(processes.members(net_inode()), timeout=1)
    assert {process.pid: name for process, name in ended} == {deaf.pid: "SIGKILL", meek.pid: "SIGTERM"}
    sent: list[int] = []
    monkeypatch.setattr("os.kill", lambda pid, _: sent.append(pid))
    gone = os.pidfd_open(meek.pid)  # it has not been waited for yet
    processes._signal({gone: Process(meek.pid, "sleep 60")}, signal.SIGKILL)
    os.close(gone)
    assert sent == []


@unshared
def test_returns_when_the_last_one_is_gone() -> None:
    """Ending processes that heed SIGTERM takes no longer than they do; those that leave by themselves are left out."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    leaving = subprocess.Popen(["sleep", "0.001"])
    children = [sleeper() for _ in range(5)]
    start = time.monotonic()
    ended = processes.end([Process(gone.pid, "true"), *processes.members(net_inode())], timeout=30)
    leaving.wait()
    assert time.monotonic() - start < 15
    assert sorted(process.pid for process, _ in ended) == sorted(child.pid for child in children)


@unshared
def test_ends_who_is_born_of_the_dying() -> None:
    """A process that leaves a copy of itself behind when told to end is ended with its copies."""
    before = processes.last_pid()
    python(PHOENIX)
    ended = processes.end_members(net_inode(), before)
    assert len(ended) > 1
    assert processes.members(net_inode()) == []


@unshared
def test_names_who_does_not_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where signals don't help, the error names ids and commands."""
    child = sleeper()
    monkeypatch.setattr(processes, "_send", lambda *_: None)
    with pytest.raises(NetnsError, match=rf"could not be ended: {child.pid} \(sleep 60\)"):
        processes.end([Process(child.pid, "sleep 60")], timeout=0.01, kill_timeout=0.01)
    child.kill()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Replace the look at one process by a note of its id."""
    seen: list[int] = []
    monkeypatch.setattr(processes, "_net_inode", seen.append)
    monkeypatch.setattr(processes, "_pid_max", lambda: 32768)
    yield seen


@pytest.mark.parametrize(
    ("since", "last", "looked_at"),
    [
        pytest.param(500, 500, [], id="nothing started"),
        pytest.param(500, 503, [501, 502, 503], id="three"),
        pytest.param(32766, 2, [32767, 32768, 1, 2], id="ids began again"),
    ],
)
def test_looks_at_new_ids_only(
    monkeypatch: pytest.MonkeyPatch, counted: list[int], since: int, last: int, looked_at: list[int]
) -> None:
    """Only ids given out since are looked at, and ids begin again at the machine's highest."""
    monkeypatch.setattr(processes, "last_pid", lambda: last)
    processes.members(-1, since)
    assert counted == looked_at


def test_looks_at_the_living_where_many_ids_were_given_out(monkeypatch: pytest.MonkeyPatch, counted: list[int]) -> None:
    """After thousands of ids, the list of living processes is the shorter one."""
    monkeypatch.setattr(processes, "last_pid", lambda: 30000)
    processes.members(-1, 5000)
    assert os.getpid() in counted
    assert len(counted) < 25000

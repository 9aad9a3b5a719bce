"""Hops between namespaces, against the kernel."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType

import pytest
from unshared import effective, fresh, mnt_inode, net_inode, unshared

from pytest_netns.errors import KernelError
from pytest_netns.kernel import privilege, syscalls
from pytest_netns.kernel.position import Position, hop, hop_to


def pair() -> tuple[Position, Position]:
    """Return two places; the calling thread is in the first."""
    home = Position()
    fresh()
    away = Position()
    home.restore()
    return home, away


def is_at(position: Position) -> bool:
    """Tell whether the calling thread is there, whole."""
    nets, mounts = os.fstat(position.net_fd).st_ino, os.fstat(position.mnt_fd).st_ino
    return (net_inode(), mnt_inode()) == (nets, mounts)


@unshared
def test_hop_moves_network_and_mounts_and_keeps_the_directory(tmp_path: Path) -> None:
    """A hop changes both namespaces, the working directory stays, and no capability stays effective."""
    home, away = pair()
    os.chdir(tmp_path)
    hop_to(away.net_fd, away.mnt_fd)
    assert is_at(away)
    assert Path.cwd() == tmp_path
    assert effective() == 0
    hop_to(home.net_fd, home.mnt_fd)
    assert is_at(home)
    assert Path.cwd() == tmp_path


@unshared
def test_restore_brings_back_the_directory_too(tmp_path: Path) -> None:
    """A position remembers the working directory, and restoring it twice is harmless."""
    _, away = pair()
    os.chdir(tmp_path)
    here = Position()
    here.hop_to(away.net_fd, away.mnt_fd)
    os.chdir("/")
    here.restore()
    here.restore()
    assert is_at(here)
    assert Path.cwd() == tmp_path
    here.close()
    here.close()


@unshared
def test_directory_that_is_gone_becomes_the_root(tmp_path: Path) -> None:
    """Whoever hops from a deleted directory is at / afterwards, without an error."""
    _, away = pair()
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    os.chdir(doomed)
    doomed.rmdir()
    hop_to(away.net_fd, away.mnt_fd)
    assert is_at(away)
    assert Path.cwd() == Path("/")


@unshared
def test_hop_between_known_places_tells_whether_the_directory_is_kept(tmp_path: Path) -> None:
    """A hop from a place that is known to another keeps the working directory, and says so where it can't."""
    home, away = pair()
    doomed = tmp_path / "doomed"
    doomed.mkdir()
    os.chdir(doomed)
    assert hop((home.net_fd, home.mnt_fd), (away.net_fd, away.mnt_fd))
    assert is_at(away)
    assert Path.cwd() == doomed
    with privilege.raised():
        syscalls.mount("none", str(tmp_path), "tmpfs")
    os.chdir("/")
    assert hop((away.net_fd, away.mnt_fd), (home.net_fd, home.mnt_fd))
    os.chdir(doomed)
    assert not hop((home.net_fd, home.mnt_fd), (away.net_fd, away.mnt_fd))
    assert is_at(away)
    assert Path.cwd() == Path("/")


@unshared
def test_half_a_hop_is_undone() -> None:
    """Where the kernel refuses one of the two namespaces, the thread is back in its own ones, and told why."""
    home, away = pair()
    for net_fd, mnt_fd in ((away.net_fd, away.net_fd), (away.mnt_fd, away.mnt_fd)):
        with pytest.raises(KernelError, match=r"setns\((net|mnt)\): Invalid argument"):
            hop_to(net_fd, mnt_fd)
        assert is_at(home)
        assert effective() == 0
        with pytest.raises(KernelError, match=r"setns\((net|mnt)\): Invalid argument"):
            hop((home.net_fd, home.mnt_fd), (net_fd, mnt_fd))
        assert is_at(home)
        assert effective() == 0


@unshared
def test_hops_while_threads_live() -> None:
    """Threads share the directory with the one that started them; hops work all the same, and leave them behind."""
    home, away = pair()
    seen: list[int] = []
    asked, done = threading.Event(), threading.Event()

    def look() -> None:
        asked.wait()
        seen.append(net_inode())
        done.set()

    thread = threading.Thread(target=look)
    thread.start()
    hop_to(away.net_fd, away.mnt_fd)
    asked.set()
    done.wait()
    thread.join()
    assert seen == [os.fstat(home.net_fd).st_ino]


@unshared
def test_signals_find_no_gap() -> None:
    """However often a signal handler raises, a thread is never in two places, nor with capabilities in hand."""

    class AlarmError(Exception):
        pass

    def raise_it(_number: int, _frame: FrameType | None) -> None:
        if hopping:
            raise AlarmError

    home, away = pair()
    signal.signal(signal.SIGALRM, raise_it)
    interrupted = 0
    for round_ in range(3000):
        goal, hopping = (away if round_ % 2 else home), True
        try:
            signal.setitimer(signal.ITIMER_REAL, (round_ % 60 + 1) * 1e-6)
            hop_to(goal.net_fd, goal.mnt_fd)
            hopping = False
        except AlarmError:
            hopping = False
            interrupted += 1
        assert is_at(home) or is_at(away)
        assert effective() == 0
    assert interrupted > 100

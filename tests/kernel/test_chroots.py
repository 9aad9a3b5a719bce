"""What becomes of a chroot, against the kernel; root's to make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from unshared import in_child, isolate

from pytest_netns.kernel import chroots, syscalls
from pytest_netns.kernel.position import Position

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="chroot is root's")


def test_elsewhere_nothing_changes(tmp_path: Path) -> None:
    """Outside of a chroot, namespace, root and working directory stay, even one that was removed."""

    def test() -> None:
        os.chdir(tmp_path)
        before = os.stat("/proc/thread-self/ns/mnt").st_ino
        assert not chroots.settle()
        assert os.stat("/proc/thread-self/ns/mnt").st_ino == before
        assert os.getcwd() == str(tmp_path)
        gone = tmp_path / "gone"
        gone.mkdir()
        os.chdir(gone)
        gone.rmdir()
        before = os.stat(".").st_ino
        assert not chroots.settle()
        assert os.stat(".").st_ino == before

    in_child(test, isolate)


@pytest.mark.parametrize("mounted", [True, False], ids=["a mount", "a directory"])
def test_moving_stays_in_a_chroot(tmp_path: Path, mounted: bool) -> None:
    """After that, hopping to a namespace and back keeps to the chroot, whose working directory stays."""

    def test() -> None:
        if mounted:
            syscalls.mount("none", str(tmp_path), "tmpfs", 0)
        for name in ("proc", "work"):
            (tmp_path / name).mkdir()
        syscalls.mount("/proc", str(tmp_path / "proc"), None, syscalls.MS_BIND | syscalls.MS_REC)
        os.chroot(tmp_path)
        os.chdir("/work")
        assert chroots.settle()
        assert not chroots.settle()
        home = Position()
        syscalls.unshare(syscalls.CLONE_NEWNS)
        home.restore()
        assert sorted(os.listdir("/")) == ["proc", "work"]
        assert os.getcwd() == "/work"

    in_child(test, isolate)


def test_refusal_leaves_the_thread_in_the_chroot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel makes no mount namespace, the thread is in the chroot all the same."""

    def refuse(_flags: int) -> None:
        raise OSError(28, "used up")

    def test() -> None:
        (tmp_path / "proc").mkdir()
        syscalls.mount("/proc", str(tmp_path / "proc"), None, syscalls.MS_BIND | syscalls.MS_REC)
        os.chroot(tmp_path)
        os.chdir("/")
        monkeypatch.setattr(chroots, "_make_root", refuse)
        with pytest.raises(OSError, match="used up"):
            chroots.settle()
        assert os.listdir("/") == ["proc"]

    in_child(test, isolate)

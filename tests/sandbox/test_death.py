"""What becomes of boxes when the pytest process has no chance to end them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from battles import Battle
from boxes import PYTHON, members, none_left

from pytest_netns.sandbox import cgroups

SUITE = """
import os, subprocess, time

def test_endless(netns, tmp_path):
    box = netns.sandbox(workdir=tmp_path, memory="128M", pids=20)
    program = "import os, signal, time; signal.signal(15, signal.SIG_IGN); os.setsid() if not os.fork() else 0; "
    program += "print('up', flush=True); time.sleep(600)"
    process = box.popen([{python!r}, "-c", program, {mark!r}], stdout=subprocess.PIPE)
    process.stdout.readline()
    with open("started", "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
"""

MURDER = """
import os, pathlib, signal

def children():
    pids = map(int, pathlib.Path("/proc/thread-self/children").read_text().split())
    return [pid for pid in pids if "sandbox import warden" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()]

def test_murder(netns, tmp_path):
    with netns.sandbox(tmp_path, memory="64M") as first:
        (warden,) = children()
        os.kill(warden, signal.SIGKILL)
        os.waitid(os.P_PID, warden, os.WEXITED | os.WNOWAIT)
        with netns.sandbox(tmp_path, memory="64M") as second:
            assert [box.run(["true"]).returncode for box in (first, second)] == [0, 0]
"""


def start(tmp_path: Path, suite: str, *options: str) -> subprocess.Popen[bytes]:
    """Start pytest, with this plugin and a suite."""
    (tmp_path / "test_suite.py").write_text(suite)
    command = [sys.executable, "-m", "pytest", "-p", "pytest_netns.plugin", "-p", "no:cacheprovider", "--netns"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    output = subprocess.DEVNULL
    options = (*options, f"--basetemp={tmp_path / 'temporary'}")
    return subprocess.Popen([*command, *options], cwd=tmp_path, env=environment, stdout=output, stderr=output)


@pytest.mark.parametrize("workers", [0, 1])
def test_pytest_is_killed(battle: Battle, tmp_path: Path, workers: int) -> None:
    """A SIGKILL of the pytest process, or of a worker, ends its boxes, and leaves no control group."""
    mark = f"mark-{uuid.uuid4().hex}"
    options = ("-p", "xdist", "-n1", "--max-worker-restart=0") if workers else ()
    with start(tmp_path, SUITE.format(python=PYTHON, mark=mark), *options) as run:
        started = tmp_path / "started"
        deadline = time.monotonic() + 60
        while not (started.exists() and started.read_text()) and time.monotonic() < deadline:
            assert run.poll() is None
            time.sleep(0.05)
        pid = int(started.read_text())
        assert len(members(mark)) >= 2
        os.kill(pid, 9)
        assert none_left(mark, 10.0)
        run.wait(60)
    assert_no_groups(pid)


def test_who_makes_boxes_is_killed(battle: Battle, tmp_path: Path) -> None:
    """The boxes that there are go on, the next is made by another, and no control group is left of any."""
    with start(tmp_path, MURDER) as run:
        assert run.wait(150) == 0
    assert_no_groups(run.pid)


def assert_no_groups(pid: int) -> None:
    """Wait until the kernel has no group of a pytest process's boxes any more; fail if it keeps one."""
    for group in cgroups.find().values():
        _wait_for_none(Path(group.path), f"pytest-netns-{pid}-")


def _wait_for_none(place: Path, prefix: str) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(path.name.startswith(prefix) for path in place.iterdir()):
        time.sleep(0.05)
    assert not [path for path in place.iterdir() if path.name.startswith(prefix)]

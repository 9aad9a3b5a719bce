"""What the gateway does to processes whose pytest process has gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from unshared import net_inode, unshared

from pytest_netns.gateway import reaper

_HELPER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit("was told to"))
os.write(1, b"up")
sys.stdin.read()
time.sleep(0.2)
sys.exit("of itself")
"""


@unshared
def test_helper_ends_with_its_parent() -> None:
    """What ends of itself once its parent has gone is given the time to, and no more than it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reaper, "_GRACE", 30.0)
        pipe = subprocess.PIPE
        helper = subprocess.Popen([sys.executable, "-c", _HELPER], stdin=pipe, stdout=pipe, stderr=pipe)
        assert helper.stdin is not None
        assert helper.stdout is not None
        assert helper.stdout.read(2) == b"up"
        helper.stdin.close()
        began = time.monotonic()
        reaper.reap(net_inode(), os.getppid())
        assert time.monotonic() - began < 20
        assert helper.stderr is not None
        assert helper.stderr.read() == b"of itself\n"
        assert helper.wait() == 1


@unshared
def test_who_stays_is_ended() -> None:
    """What stays beyond that is ended, and the worker, which is on its way out, is not."""
    one, worker = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
    reaper.reap(net_inode(), worker.pid)
    assert one.wait(0) < 0
    assert worker.poll() is None
    worker.kill()
    worker.wait()

"""pytest-timeout."""

from __future__ import annotations

import pytest
from runs import Suite, requires

pytestmark = requires("pytest-timeout")

SUITE = """
import subprocess, sys, time
from tools import listen

def test_before():
    listen()

def test_hangs():
    server = listen()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
    server.accept()

def test_after():
    listen()
"""
FIXTURES = """
import time
import pytest
from tools import answer, ask, leaf, listen, note

@pytest.fixture(scope="session")
def base():
    answer(listen(9000), 2)
    return leaf()

@pytest.fixture(scope="session")
def never(base):
    time.sleep(99)

@pytest.fixture
def endless(base):
    yield
    time.sleep(99)

def test_set_up(never):
    pass

def test_tear_down(endless):
    listen()
    assert ask(9000) == b"hello"

def test_after(base):
    listen()
    assert ask(9000) == b"hello"
    note(base[0], leaf()[0])
"""


def test_signal(suite: Suite) -> None:
    """The test that hangs fails, its processes are ended, and the run goes on."""
    suite.write(test_suite=SUITE)
    result = suite.run("--netns", "--timeout=0.5", "--timeout-method=signal", plugins="timeout")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*Failed: Timeout*", "*left running, ended with SIG*"])


def test_fixtures(suite: Suite) -> None:
    """A fixture that hangs, in whichever network, fails its test, and the next one is where it belongs."""
    suite.write(test_suite=FIXTURES)
    result = suite.run("--netns", "--timeout=0.5", "--timeout-method=signal", plugins="timeout")
    result.assert_outcomes(passed=2, errors=2)
    assert suite.notes() == ["main main-t3"]


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_thread(suite: Suite, workers: tuple[str, ...]) -> None:
    """The process that hangs ends on the spot, and with it whatever it has left in its leaves."""
    suite.write(test_suite=SUITE)
    result = suite.run("--netns", "--timeout=0.5", "--timeout-method=thread", *workers, plugins="timeout")
    if workers:
        result.assert_outcomes(passed=2, failed=1)
    else:
        assert result.ret == 1
        result.stdout.fnmatch_lines(["*Timeout*", "*test_suite.py*in test_hangs"])

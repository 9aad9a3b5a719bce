"""Runs that do not go on to their end, or not in the process that they began in."""

from __future__ import annotations

import os
import signal
import subprocess
import time

import pytest
from runs import Suite, requires

STUCK = """
import subprocess, sys, time
import pytest
from tools import leaf, listen, note

@pytest.fixture(scope="session")
def server():
    listen(9000)
    yield
    note("session fixture down", *leaf())

@pytest.fixture
def program(server):
    yield subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
    note("fixture down", *leaf())

def test_first(program):
    listen()

@pytest.mark.parametrize("number", range(2))
def test_stuck(program, number):
    listen()
    note("stuck", *leaf())
    time.sleep(99)
"""


def _until_stuck(suite: Suite, process: subprocess.Popen[str], count: int) -> None:
    deadline = time.monotonic() + 30
    notes = suite.path / "notes"
    while time.monotonic() < deadline and process.poll() is None:
        if notes.exists() and notes.read_text(encoding="utf-8").count("stuck") == count:
            return
        time.sleep(0.02)
    process.kill()
    pytest.fail(f"the run did not come to where it was to be stopped:\n{process.communicate()[0]}")


class TestSignals:
    """Ctrl-C, and worse."""

    @pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
    def test_interrupt(self, suite: Suite, workers: tuple[str, ...]) -> None:
        """The run ends at once, with its summary, having torn down what was set up."""
        suite.write(test_stuck=STUCK)
        process = suite.start("--netns", *workers)
        _until_stuck(suite, process, len(workers) + 1)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert time.monotonic() - began < 15  # of the 99 that the tests would take; the machine may be busy
        assert process.returncode == pytest.ExitCode.INTERRUPTED, output
        lines = pytest.LineMatcher(output.splitlines())
        lines.fnmatch_lines(["*KeyboardInterrupt*", "*1 passed*"])
        lines.no_fnmatch_line("*INTERNALERROR*")
        suite.assert_nothing_left()
        if not workers:
            stuck, down, last = (line.split() for line in suite.notes()[1:])
            assert (stuck[0], down[:2], last[:3]) == ("stuck", ["fixture", "down"], ["session", "fixture", "down"])
            assert stuck[1:] == down[2:] != last[3:]

    @pytest.mark.parametrize(
        ("number", "workers"),
        [(signal.SIGTERM, ()), (signal.SIGKILL, ()), (signal.SIGKILL, ("-n2",))],
        ids=["terminated", "killed", "killed with workers"],
    )
    def test_death(self, suite: Suite, number: signal.Signals, workers: tuple[str, ...]) -> None:
        """Whatever ends the run, nothing of it is left."""
        suite.write(test_stuck=STUCK)
        process = suite.start("--netns", *workers)
        _until_stuck(suite, process, len(workers) + 1)
        process.send_signal(number)
        process.communicate(timeout=20)
        assert process.returncode == -number
        suite.assert_nothing_left()

    def test_interrupt_of_collection(self, suite: Suite) -> None:
        """A run that is stopped while it collects ends at once, too."""
        suite.write(test_slow="import time, tools\ntools.note('stuck')\ntools.listen()\ntime.sleep(99)")
        process = suite.start("--netns")
        _until_stuck(suite, process, 1)
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=20)
        assert process.returncode == pytest.ExitCode.INTERRUPTED, output
        assert "KeyboardInterrupt" in output


FAILING = """
import pytest
from tools import listen, note

def test_1(): listen()
def test_2():
    listen()
    assert 0
def test_3():
    listen()
    assert 0
def test_4(): listen()
"""


class TestOptions:
    """What pytest and xdist themselves stop for."""

    def test_first_failure_and_last_failed(self, suite: Suite) -> None:
        """``-x`` stops at the first failure, and ``--lf`` goes on with it, with or without workers."""
        suite.write(test_failing=FAILING)
        suite.run("--netns", "-x", plugins="cacheprovider").assert_outcomes(passed=1, failed=1)
        for workers in ("-pno:xdist", "-n1"):
            suite.run("--netns", "--lf", workers, plugins="cacheprovider").assert_outcomes(failed=1)

    def test_exit(self, suite: Suite) -> None:
        """``pytest.exit`` in a test ends the run with its status."""
        suite.write(
            test_exit="""
            import pytest
            from tools import listen
            def test_1(): listen()
            def test_2():
                listen()
                pytest.exit("enough", returncode=77)
            def test_3(): pass
            """
        )
        result = suite.run("--netns")
        assert result.ret == 77
        result.stdout.fnmatch_lines(["*1 passed in*", "*Exit: enough*"])

    @requires("pytest-xdist")
    def test_maxfail(self, suite: Suite) -> None:
        """``--maxfail`` stops the workers."""
        suite.write(
            test_many="""
            import pytest, time
            from tools import listen
            @pytest.mark.parametrize("number", range(100))
            def test_it(number):
                listen()
                time.sleep(0.05)
                assert number != 3
            """
        )
        result = suite.run("--netns", "-n2", "--maxfail=1")
        result.stdout.fnmatch_lines(["*stopping after 1 failures*", "*1 failed*"])
        assert result.parseoutcomes()["passed"] < 99


@requires("pytest-xdist")
class TestCrashes:
    """Workers that die."""

    def test_worker_is_replaced(self, suite: Suite) -> None:
        """The run goes on with a new worker, which has leaves of its own; what the old one left is gone."""
        suite.write(
            test_crash="""
            import os, signal, subprocess, sys, time
            import pytest
            from tools import leaf, listen, note

            @pytest.fixture(scope="session", autouse=True)
            def server():
                return listen(9000)

            @pytest.mark.parametrize("number", range(12))
            def test_it(number):
                note(*leaf())
                listen()
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
                if number == 2:
                    os._exit(1)
                if number == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        result = suite.run("--netns", "-n2")
        result.assert_outcomes(passed=10, failed=2)
        result.stdout.fnmatch_lines(["*worker 'gw?' crashed while running 'test_crash.py::test_it?2?'"])
        leaves = suite.notes()
        assert len(set(leaves)) == len(leaves) == 12

    def test_alone(self, suite: Suite) -> None:
        """Without workers, a crash is the end of the run, and nothing is left either."""
        suite.write(
            test_crash="""
            import ctypes, subprocess, sys, tools
            def test_it():
                tools.listen()
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], start_new_session=True)
                ctypes.string_at(0)
            """
        )
        result = suite.run("--netns", plugins="faulthandler")
        assert result.ret == -signal.SIGSEGV
        result.stderr.fnmatch_lines(["Fatal Python error: Segmentation fault", '*test_crash.py"* in test_it'])


class TestBeforeTheSession:
    """The gateway is started ahead of the session that it serves; `suite.run` sees to it that it ends."""

    @pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
    def test_never_begins(self, suite: Suite, workers: tuple[str, ...]) -> None:
        """Where pytest does not get that far, the gateway ends with it."""
        suite.write(conftest="raise RuntimeError('no session today')")
        result = suite.run("--netns", *workers)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*no session today*"])

    def test_death(self, suite: Suite) -> None:
        """Where pytest is killed before that, too."""
        suite.write(conftest="import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
        assert suite.run("--netns").ret == -signal.SIGKILL

    def test_death_at_the_end(self, suite: Suite) -> None:
        """Where pytest is killed as it is about to remove the run's directory, the gateway has; it is not made anew."""
        suite.write(
            conftest="""
            import os, pathlib, signal, tempfile, time
            from pytest_netns.gateway import client, paths

            def closed(self, close=client.GatewayClient.close):
                close(self)
                while list(pathlib.Path(tempfile.gettempdir()).glob("pytest-netns-*")):
                    time.sleep(0.01)

            client.GatewayClient.close = closed
            paths.remove = lambda directory: os.kill(os.getpid(), signal.SIGKILL)
            """,
            test_it="def test_it(): pass",
        )
        assert suite.run("--netns").ret == -signal.SIGKILL

    def test_other_errands(self, suite: Suite) -> None:
        """Where pytest only tells something, it tells that."""
        result = suite.run("--netns", "--markers")
        assert result.ret == 0
        result.stdout.fnmatch_lines(["@pytest.mark.netns(*"])

"""Runs for which the machine has too little of something, or that it lets wait."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from runs import Suite, requires

FAULTY = Path(__file__).parent.parent / "faulty"
TESTS = """
import errno, os, socket
import pytest

SEEN = set()

@pytest.mark.parametrize("number", range(6))
def test_it(number):
    place = os.environ["PYTEST_NETNS"]
    assert place not in SEEN
    SEEN.add(place)
    socket.create_server(("127.0.0.1", 8080))
    with pytest.raises(OSError) as info:
        socket.create_connection(("203.0.113.1", 80), 5)
    assert info.value.errno == errno.EHOSTUNREACH
"""


def run_after(suite: Suite, script: str, *arguments: str) -> pytest.RunResult:
    """Run the suite as the root of a user namespace of its own, with mounts of its own, that a script prepares."""
    suite.write(test_it=TESTS)
    prepared = ("sh", "-e", "-c", f'{script}\nexec "$@"', "sh", *suite.command("--netns", *arguments))
    result = suite.pytester.run("unshare", "--map-root-user", "--mount", *prepared, timeout=60)
    suite.assert_nothing_left()
    return result


@requires(program="unshare")
class TestNamespaces:
    """As many namespaces as may be exist; `user.max_net_namespaces` of a user namespace of the test's own says so."""

    def test_waits_for_the_kernel(self, suite: Suite) -> None:
        """What has ended counts until the kernel has cleared it: a run with room for no leaf in stock goes on."""
        result = run_after(suite, "echo 3 > /proc/sys/user/max_net_namespaces")
        result.assert_outcomes(passed=6)

    def test_none(self, suite: Suite) -> None:
        """Where there is no room for anything, the run says so, and cleans up nothing: its gateway has left nothing."""
        suite.write(
            conftest="""
            import os, signal, time
            from pytest_netns.gateway import launch

            def cleared(directory, clear=launch.clear):
                while directory.exists():  # the gateway tells why it can't begin, and then takes it away
                    time.sleep(0.01)
                clear(directory)

            launch.clear = cleared
            launch.remove = lambda directory: os.kill(os.getpid(), signal.SIGKILL)
            """
        )
        result = run_after(suite, "echo 0 > /proc/sys/user/max_net_namespaces")
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: netns: *unshare(*): No space left on device*"])

    def test_too_few(self, suite: Suite) -> None:
        """Where there is no room for even one leaf, each test says once why it can't run, and what to do."""
        result = run_after(suite, "echo 2 > /proc/sys/user/max_net_namespaces", "--maxfail=1")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(
            ["netns: * unshare(*): No space left on device: *; raise user.max_net_namespaces *"]
        )
        result.stdout.no_fnmatch_line("*pytest_netns*.py*")
        result.stdout.no_fnmatch_line("During handling of *")


@requires(program="unshare")
class TestDisk:
    """The directory for temporary files is on a small disk of the test's own."""

    def test_no_space(self, suite: Suite) -> None:
        """A disk without a free block is no hindrance."""
        fill = 'mount -t tmpfs -o size=64k small "$TMPDIR"; cat /dev/zero > "$TMPDIR/fill" 2> /dev/null || true'
        run_after(suite, fill).assert_outcomes(passed=6)

    def test_no_files(self, suite: Suite) -> None:
        """Where no file can be made, the run says so before its first test, and what to do."""
        small = 'mount -t tmpfs -o size=64k,nr_inodes=3 small "$TMPDIR"'
        result = run_after(suite, small, "-s")  # pytest puts what tests print into files of its own there
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: netns: *No space left on device: *", "*TMPDIR*"])
        result.stderr.no_fnmatch_line("*Traceback*")

    def test_read_only(self, suite: Suite) -> None:
        """Where nothing can be written, another of the usual directories serves."""
        run_after(suite, 'mount -t tmpfs -o ro small "$TMPDIR"').assert_outcomes(passed=6)


WAITS = """
import os, time
from test_it import test_it as test_before

def test_waits():
    open("here", "w").close()
    deadline = time.monotonic() + 30
    while not os.path.exists("go"):
        assert time.monotonic() < deadline
        time.sleep(0.01)

from test_it import test_it as test_after
"""


def start(suite: Suite, *arguments: str) -> subprocess.Popen[str]:
    """Start a run, and return once its test that waits does so."""
    suite.write(test_it=TESTS, test_waits=WAITS)
    process = suite.start("--netns", "test_waits.py", "-rA", *arguments)
    deadline = time.monotonic() + 30
    while not (suite.path / "here").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def finish(suite: Suite, process: subprocess.Popen[str]) -> pytest.LineMatcher:
    """Let the run go on to its end, and see to it that all of it passed."""
    (suite.path / "go").touch()
    output, _ = process.communicate(timeout=40)
    assert process.returncode == 0, output
    suite.assert_nothing_left()
    return pytest.LineMatcher(output.splitlines())


def below(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text(encoding="ascii").split()]
    return [pid, *(one for child in children for one in below(child))]


class TestPauses:
    """Processes that are stopped for a while, as all are when a machine goes to sleep."""

    @pytest.mark.parametrize(
        ("who", "workers"), [("gateway", ()), ("pytest", ()), ("all", ("-n1",))], ids=["gateway", "pytest", "xdist"]
    )
    def test_goes_on(self, suite: Suite, who: str, workers: tuple[str, ...]) -> None:
        """The run waits, and goes on as if nothing had been."""
        process = start(suite, *workers)
        gateway = suite.gateway()
        pids = {"gateway": [gateway], "pytest": below(process.pid), "all": [gateway, *below(process.pid)]}[who]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        assert process.poll() is None
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        finish(suite, process)


JUMPS = """
import socket
import pytest

@pytest.mark.parametrize("seconds", ["-86400", "86400"])
def test_jumps(seconds):
    with open("clock", "w") as file:
        file.write(seconds)
    with pytest.raises(OSError):
        socket.create_connection(("203.0.113.1", 80), 5)

def test_next(netns_service):
    with socket.create_server(("127.0.0.1", 8080)):
        netns_service.wait()
"""


def test_clock_jumps(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the wall clock jumps in the middle of a test, nothing waits for it, and what was tried is still told."""
    monkeypatch.setenv("NETNS_CLOCK", str(suite.path / "clock"))
    monkeypatch.setenv("PYTHONPATH", str(FAULTY))
    suite.write(test_jumps=JUMPS)
    result = suite.run("--netns", "--netns-egress=fail")
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(['blocked: tcp 203.0.113.1:80; allow with "203.0.113.1:80"'] * 2)

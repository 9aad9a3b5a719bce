"""What the user reads: sections of failed tests, the summary, what was left running, why it cannot work."""

from __future__ import annotations

import os

import pytest
from places import Run

ATTEMPTS = """
import socket, urllib.request
import pytest

def dial(*address):
    socket.create_connection(address, timeout=5).close()

@pytest.fixture(scope="session")
def needy():
    dial("203.0.113.7", 5432)

def test_tcp():
    for _ in range(2):
        with pytest.raises(OSError):
            dial("203.0.113.5", 443)
    dial("2001:db8::5", 443)
def test_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("203.0.113.6", 123))
        udp.send(b"time?")
        udp.settimeout(5)
        udp.recv(1)
def test_name():
    dial("api.example.com", 443)
def test_session_fixture(needy): pass
def test_swallowed():
    with pytest.raises(OSError):
        dial("203.0.113.5", 443)
@pytest.mark.xfail
def test_expected():
    dial("203.0.113.5", 80)
@pytest.fixture
def closing():
    yield
    dial("203.0.113.8", 25)
def test_tear_down(closing): pass
"""


class TestBlockedAttempts:
    """What was tried in vain is told."""

    @pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
    def test_sections_and_summary(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """In the section of each failed phase, and counted over the run in a summary."""
        pytester.makepyfile(test_it=ATTEMPTS)
        result = run("--netns", "--tb=short", "-rN", *workers)
        result.assert_outcomes(passed=2, failed=3, errors=2, xfailed=1)
        assert "No route to host" in result.stdout.str()
        assert "timed out" not in result.stdout.str()
        result.stdout.fnmatch_lines_random(
            [
                "leaf *-t1: 198.18.*, fd*",
                'blocked: tcp 203.0.113.5:443 (2 times); allow with "203.0.113.5:443"',
                'blocked: tcp [[]2001:db8::5[]]:443; allow with "[[]2001:db8::5[]]:443"',
                'blocked: udp 203.0.113.6:123; allow with "203.0.113.6:123/udp"',
                'blocked: dns *api.example.com*; allow with "api.example.com"',
                "blocked: tcp 203.0.113.7:5432, in the worker's network; allow with --netns-allow=203.0.113.7:5432",
                'blocked: tcp 203.0.113.8:25; allow with "203.0.113.8:25"',
                "*netns: blocked attempts*",
                'tcp 203.0.113.5:443: 3 times, first by test_it.py::test_tcp; allow with "203.0.113.5:443"',
                'tcp 203.0.113.5:80: 1 time, first by test_it.py::test_expected; allow with "203.0.113.5:80"',
                "(allow with --netns-allow=RULE, or netns_allow in pyproject.toml)",
            ]
        )
        assert result.stdout.str().count("blocked: tcp 203.0.113.5:443") == 1

    @pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
    def test_reason(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """What no rule would allow is told with the reason, in the summary, too."""
        pytester.makepyfile(
            """
            import socket
            def test_it():
                with socket.create_connection(("198.18.0.1", 53)) as one:
                    query = bytes.fromhex("000101000001000000000000 03617069 07 6578616d706c65 03636f6d 00 0010 0001")
                    one.sendall(len(query).to_bytes(2, "big") + query)
                    assert one.recv(100)
            """
        )
        result = run("--netns", "--netns-allow=api.example.com", *workers)
        result.assert_outcomes(passed=1)
        why = "an allowed name, but only its addresses are looked up"
        result.stdout.fnmatch_lines([f"dns api.example.com: 1 time, first by test_reason.py::test_it: {why}"])

    @pytest.mark.parametrize("scope", ["module", "session"])
    def test_shared_leaf(self, pytester: pytest.Pytester, run: Run, scope: str) -> None:
        """Where tests share a leaf, each is told of its own attempts only."""
        pytester.makepyfile(
            """
            import socket
            def test_1(): socket.create_connection(("203.0.113.1", 1), 5)
            def test_2(): socket.create_connection(("203.0.113.2", 2), 5)
            """
        )
        result = run("--netns", f"--netns-scope={scope}", "--tb=short")
        result.assert_outcomes(failed=2)
        assert [line for line in result.outlines if line.startswith("blocked:")] == [
            'blocked: tcp 203.0.113.1:1; allow with "203.0.113.1:1"',
            'blocked: tcp 203.0.113.2:2; allow with "203.0.113.2:2"',
        ]
        result.stdout.fnmatch_lines(["tcp 203.0.113.1:1: 1 time, first by *::test_1;*", "tcp 203.0.113.2:2: *test_2;*"])

    @pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has to say it")
    def test_summary_without_the_option(self, pytester: pytest.Pytester, run: Run) -> None:
        """Under xdist the summary comes from the workers where nothing was said at the start."""
        pytester.makepyfile(
            """
            import socket, pytest
            @pytest.mark.parametrize("n", range(4))
            def test_1(n, netns):
                with pytest.raises(OSError): socket.create_connection(("203.0.113.1", 1), 5)
            """
        )
        result = run("-n2")
        result.assert_outcomes(passed=4)
        result.stdout.fnmatch_lines(["tcp 203.0.113.1:1: 4 times, first by *::test_1*"])


class TestLeftovers:
    """What a test leaves running."""

    @pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
    def test_processes_are_ended_and_named(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """Daemons, double forks and children that ignore SIGTERM; session-scoped ones are left alone until the end."""
        mark = os.getpid()  # tells them from those of another run of this test
        pytester.makepyfile(
            """
            import os, subprocess, sys, textwrap
            import pytest
            STUBBORN = '''
            import signal, time
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            print("ready", flush=True)
            time.sleep(99)
            '''
            def sleep(seconds, **kwargs):
                return subprocess.Popen(["sleep", str(seconds)], **kwargs)
            @pytest.fixture(scope="session")
            def server():
                return sleep("70.MARK")
            def test_1(server):
                sleep("71.MARK")
                subprocess.run(["sh", "-c", "setsid sleep 72.MARK & setsid sleep 73.MARK &"])
                stubborn = subprocess.Popen([sys.executable, "-c", textwrap.dedent(STUBBORN)], stdout=subprocess.PIPE)
                assert stubborn.stdout.readline()
                stubborn.stdout.close()
            def test_2(server):
                assert server.poll() is None
                running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
                assert not {"sleep 71.MARK", "sleep 72.MARK", "sleep 73.MARK"} & set(running.splitlines())
            """.replace("MARK", str(mark))
        )
        result = run("--netns", "-W", "ignore::pytest.PytestUnraisableExceptionWarning", *workers)
        result.assert_outcomes(passed=2)
        result.stdout.fnmatch_lines(["*netns: processes left running*"])
        result.stdout.fnmatch_lines_random(
            [
                *[
                    f"*::test_1 left running, ended with SIGTERM: pid *: *sleep {number}.{mark}"  # or its setsid
                    for number in (71, 72, 73)
                ],
                "*::test_1 left running, ended with SIGKILL: pid *: *python* -c *",
            ]
        )
        result.stdout.no_fnmatch_line("*sleep 70*")
        running = pytester.run("ps", "-eo", "args").outlines
        assert not {f"sleep {number}.{mark}" for number in range(70, 74)} & set(running)

    @pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
    def test_threads_are_named_in_a_warning(
        self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]
    ) -> None:
        """The warning stands in the summary and fails nothing, even where warnings are errors; it can be ignored."""
        pytester.makepyfile(
            """
            import threading, pytest
            end = threading.Event()
            def start(name):
                threading.Thread(target=end.wait, args=(20,), name=name, daemon=True).start()
            @pytest.fixture(scope="module")
            def server():
                start("server thread")
            def test_1(server): start("stray thread")
            def test_2(request): request.getfixturevalue("server")
            def test_3():
                thread = threading.Thread(target=lambda: threading.Event().wait(0.03), name="brief thread")
                thread.start()
            """
        )
        result = run("--netns", "-W", "error", *workers)
        result.assert_outcomes(passed=3, warnings=1)
        result.stdout.fnmatch_lines(["*NetnsWarning: *::test_1 left running in its network, *: thread stray thread"])
        result = run("--netns", "-W", "ignore::pytest_netns.report.NetnsWarning", *workers)
        result.assert_outcomes(passed=3, warnings=0)

    @pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
    @pytest.mark.parametrize("scope", ["module", "session"])
    def test_starters_are_named(
        self, pytester: pytest.Pytester, run: Run, scope: str, workers: tuple[str, ...]
    ) -> None:
        """Where tests share a leaf, what is left is told of the test that started it, not of the last one."""
        pytester.makepyfile(
            test_it="""
            import subprocess, threading, pytest
            def sleep(number):
                subprocess.Popen(["sh", "-c", f"setsid sleep {number} &"]).wait()
            @pytest.fixture(scope="module")
            def shared(): sleep(81)
            @pytest.mark.parametrize("word", ["odd, ended with"])
            def test_1(word):
                sleep(82)
                threading.Thread(target=threading.Event().wait, args=(20,), name="stray", daemon=True).start()
            def test_2(shared): pass
            def test_3(): sleep(83)
            def test_4(): assert False
            """
        )
        result = run("--netns", f"--netns-scope={scope}", "-W", "ignore::ResourceWarning", *workers)
        result.assert_outcomes(passed=3, failed=1, warnings=int(scope == "module"))
        told = [line.split(" left running, ended with SIGTERM: pid ") for line in result.outlines if "sleep 8" in line]
        summary = {line[1].partition(": ")[2]: line[0] for line in told if len(line) == 2}
        assert summary == {
            "sleep 81": "test_it.py::test_2",
            "sleep 82": "test_it.py::test_1[odd, ended with]",
            "sleep 83": "test_it.py::test_3",
        }
        result.stdout.fnmatch_lines(["left running by test_it.py::test_3, ended with SIGTERM: pid *: sleep 83"])
        if scope == "module":
            result.stdout.fnmatch_lines(["left running by test_it.py::test_1*: thread stray"])
            result.stdout.fnmatch_lines(["*NetnsWarning: *::test_1[[]*] left running in its network*: thread stray"])

    def test_multiprocessing_goes_on_working(self, pytester: pytest.Pytester, run: Run) -> None:
        """Its helper processes are nobody's leftovers, and what the fork server starts is in the right leaf."""
        pytester.makepyfile(
            """
            import multiprocessing, os
            from multiprocessing import shared_memory
            import pytest

            def where(queue):
                queue.put(os.stat("/proc/self/ns/net").st_ino)

            @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"] * 2)
            def test_it(method):
                context = multiprocessing.get_context(method)
                queue = context.Queue()
                process = context.Process(target=where, args=(queue,))
                process.start()
                assert queue.get(timeout=20) == os.stat("/proc/self/ns/net").st_ino
                process.join()
                queue.close()
                queue.join_thread()
                memory = shared_memory.SharedMemory(create=True, size=16)
                memory.close()
                memory.unlink()
            """
        )
        result = run("--netns", "-W", "error", "-W", "ignore:.*fork.*:DeprecationWarning", "-rA")
        result.assert_outcomes(passed=6)
        assert "left running" not in result.stdout.str()


class TestUnsupported:
    """Machines on which isolation cannot work."""

    BROKEN = """
    import errno
    from pytest_netns.errors import KernelError
    from pytest_netns.gateway.client import GatewayClient

    def refuse(*args, **kwargs):
        raise KernelError(errno.EPERM, "unshare(CLONE_NEWNET): on purpose")

    GatewayClient.connect = refuse
    """
    TESTS = """
    import pytest
    def test_1(): pass
    @pytest.mark.netns
    def test_2(): pass
    def test_3(netns): pass
    """

    @pytest.mark.parametrize("arguments", [("--netns",), ("--netns-marked",), ("--netns", "-n1")], ids=" ".join)
    def test_stops_before_collection(self, pytester: pytest.Pytester, run: Run, arguments: tuple[str, ...]) -> None:
        """The run ends as a usage error, with what is missing, and the command that tells more."""
        pytester.makepyfile(broken=self.BROKEN, test_it="print('collected')")
        result = run("-s", "-p", "broken", *arguments)
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["ERROR: netns: *on purpose*", "*python -m pytest_netns doctor*"])
        result.stdout.no_fnmatch_line("*collected*")

    @pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
    def test_skips_if_wanted(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """With ``--netns-unsupported=skip`` the tests that would be isolated are skipped, with the reason."""
        pytester.makepyfile(broken=self.BROKEN, test_it=self.TESTS)
        result = run("-p", "broken", "--netns", "--netns-unsupported=skip", "-rs", *workers)
        result.assert_outcomes(skipped=3)
        result.stdout.fnmatch_lines(["SKIPPED [[]1[]] test_it.py:*: netns: *on purpose*"])
        result = run("-p", "broken", "--netns-marked", "--netns-unsupported=skip", *workers)
        result.assert_outcomes(passed=1, skipped=2)

    @pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has to say it")
    def test_unsaid(self, pytester: pytest.Pytester, run: Run) -> None:
        """Where nothing was said, only the tests that ask are errors."""
        pytester.makepyfile(broken=self.BROKEN, test_it=self.TESTS)
        result = run("-p", "broken")
        result.assert_outcomes(passed=1, errors=2)
        result.stdout.fnmatch_lines(["netns: *on purpose*", "*python -m pytest_netns doctor*"])

    def test_a_thread_that_is_left_is_refused_at_once(self, pytester: pytest.Pytester, run: Run) -> None:
        """A thread that outlives its test is not let wait in vain for names and hosts: it is blocked like any other."""
        pytester.makepyfile(
            """
            import socket, threading, time
            go, told = threading.Event(), []
            def try_all():
                go.wait()
                began = time.monotonic()
                for where in ("example.com", "192.0.2.1", "2001:db8::1", "127.0.0.1"):
                    try:
                        socket.create_connection((where, 80), 10).close()
                    except OSError as error:
                        told.append(error.strerror)
                told.append(time.monotonic() - began < 5)
            def test_1():
                threading.Thread(target=try_all, name="late").start()
            def test_2():
                go.set()
                next(thread for thread in threading.enumerate() if thread.name == "late").join()
                blocked = "No route to host"
                assert told == ["Name or service not known", blocked, blocked, "Connection refused", True]
            """
        )
        run("--netns").assert_outcomes(passed=2, warnings=1)

"""Tests that do their worst to their process and their network: the next one is sound, and the culprit is named."""

from __future__ import annotations

import re

import pytest
from runs import OWN_NETWORK, Suite, requires

SOUND = f'''{OWN_NETWORK}
import contextlib, ctypes, errno, os, socket, subprocess, sys
from pytest_netns.kernel import privilege

HOME = os.getcwd()
LIBC = ctypes.CDLL(None, use_errno=True)
ROOT = os.geteuid() == 0

def call(name, *arguments):
    """Make a call of the C library, which has to succeed."""
    assert getattr(LIBC, name)(*arguments) == 0, os.strerror(ctypes.get_errno())

@contextlib.contextmanager
def mighty():
    """Let the test, and what it starts, do what root may: an ordinary user's has only set these rights aside."""
    with privilege.inheritable(), privilege.raised():
        yield

def error_of(function, *arguments):
    """Return the error that a call ends with."""
    try:
        function(*arguments)
    except OSError as error:
        return error.errno
    return None

def check():
    """Check all that a test may count on: a network of its own that leads nowhere, names, files and processes."""
    own_network()
    assert error_of(socket.create_connection, ("203.0.113.1", 80), 5) == errno.EHOSTUNREACH
    assert error_of(socket.getaddrinfo, "example.com", 80) == socket.EAI_NONAME
    with open("/etc/resolv.conf") as file:
        assert "198.18.0.1" in file.read()
    assert subprocess.run(["true"]).returncode == 0
    assert os.getcwd() == HOME
'''

TESTS = '''
import asyncio, contextlib, errno, os, resource, select, signal, socket, subprocess, sys, tempfile, threading, time
from sound import LIBC, ROOT, call, check, mighty

KEPT = socket.socket, select.poll, time.time, time.monotonic, time.sleep
SIGNALS = sorted(signal.valid_signals())
HANDLERS = [signal.getsignal(number) for number in SIGNALS]
os.umask(0o022)

def broken(*_, **__):
    raise RuntimeError("broken")

def test_0(): check()

def test_1_removes_its_directory():
    os.chdir(tempfile.mkdtemp())
    os.rmdir(os.getcwd())

def test_1(): check()

def test_2_changes_the_process():
    os.umask(0o777)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGALRM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, broken)
    os.environ.clear()

def test_2(tmp_path):
    assert HANDLERS == [signal.getsignal(number) for number in SIGNALS]
    tmp_path.joinpath("file").write_text("")
    assert tmp_path.joinpath("file").stat().st_mode & 0o777 == 0o644
    os.environ["PATH"] = "/usr/bin:/bin"
    check()

def test_3_moves_away():
    with mighty():
        if ROOT:
            home = os.open(f"/proc/{os.getppid()}/ns/net", os.O_RDONLY)
            call("setns", home, 0x40000000)
        call("unshare", 0x40000000 | 0x20000)

def test_3(): check()

def test_4_drops_capabilities(tmp_path):
    """In a thread, as a root process without any is a process without a way back."""
    def drop():
        header = (CU32 * 2)(0x20080522, 0)
        call("capset", header, (CU32 * 6)())
    import ctypes
    CU32 = ctypes.c_uint32
    thread = threading.Thread(target=drop)
    thread.start()
    thread.join()

def test_4(): check()

def test_5_may_open_nothing():
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

def test_5(): check()

def test_6_replaces_functions(monkeypatch):
    for module, name in ((os, "close"), (os, "open"), (socket, "socket"), (time, "time"), (time, "monotonic")):
        monkeypatch.setattr(module, name, broken)

def test_6(): check()

def test_6_replaces_functions_for_good():
    socket.socket = select.poll = time.time = time.monotonic = time.sleep = broken

def test_6_for_good():
    socket.socket, select.poll, time.time, time.monotonic, time.sleep = KEPT
    check()

def test_7_leaves_threads():
    for number in range(3):
        threading.Thread(target=time.sleep, args=(60,), daemon=True, name=f"left-{number}").start()

def test_7(): check()

def test_7_leaves_event_loops():
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    threading.Thread(target=loop.run_forever, daemon=True, name="left-loop").start()
    asyncio.run_coroutine_threadsafe(asyncio.start_server(print, "127.0.0.1", 8080), loop).result()

def test_7_again(): check()

def test_7_fills_the_process_table():
    """Of root's processes there is no end; 200 it is then."""
    resource.setrlimit(resource.RLIMIT_NPROC, (60, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
    with contextlib.suppress(BlockingIOError):
        for _ in range(200):
            if os.fork() == 0:
                time.sleep(600)

def test_7_once_more(): check()

DAEMONS = """
import os, signal, time
for number in range(500):
    if os.fork() == 0:
        os.setsid()
        if number % 3 == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if number % 3 == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(600)
"""

def test_8_leaves_daemons():
    subprocess.run([sys.executable, "-S", "-c", DAEMONS], check=True)

def test_8(): check()

def test_9_goes_on_twice():
    os.fork()

def test_9(): check()

def test_a_covers_proc():
    with mighty():
        call("mount", b"none", b"/proc", b"tmpfs", 0, None)

def test_a(): check()

def test_b_breaks_its_network():
    with mighty():
        for command in ("addr add 198.18.0.1/32 dev lo", "link set eth0 address 02:00:00:00:00:01", "link del eth0"):
            subprocess.run(["ip", *command.split()], check=True)

def test_b(): check()
'''


@pytest.mark.parametrize(
    "workers", [(), pytest.param(("-n1",), marks=requires("pytest-xdist"))], ids=["alone", "xdist"]
)
def test_the_next_is_sound(suite: Suite, workers: tuple[str, ...]) -> None:
    """Whatever a test did, the next has a network of its own, and what outlived the test is named with it."""
    suite.write(sound=SOUND, test_hostile=TESTS)
    result = suite.run("--netns", *workers, "-W", "ignore::DeprecationWarning", timeout=90)
    assert {key: value for key, value in result.parseoutcomes().items() if key != "warnings"} == {"passed": 29}
    text = result.stdout.str()
    assert text.count(" passed") == 1
    assert (
        "test_hostile.py::test_2_changes_the_process left changed in its process, where it is put back now: "
        "umask 0777, SIGHUP ignored, SIGINT ignored, SIGUSR1 handled by broken, SIGPIPE at its default, "
        "SIGALRM ignored, SIGTERM ignored, SIGCHLD ignored"
    ) in text
    assert re.search(
        r"test_7_leaves_threads left running in its network, (main|gw0)-t\d+, .*left-0, left-1, left-2", text
    )
    assert re.search(r"test_7_leaves_event_loops left running in its network, (main|gw0)-t\d+, .*left-loop", text)
    assert "test_hostile.py::test_8_leaves_daemons left running, ended with SIGKILL: " in text
    assert "test_hostile.py::test_8_leaves_daemons left running: 495 more" in text
    assert re.search(r"test_hostile.py::test_7_fills_the_process_table left running: \d+ more", text)
    assert "test_hostile.py::test_9_goes_on_twice left running, ended with SIG" in text


TWICE = """
import os, time
from tools import note
def test_1():
    os.fork()
def test_2():
    note("ran")
    time.sleep(0.3)  # in which the other one would run it, too
"""


def test_who_goes_on_twice_is_named(suite: Suite) -> None:
    """A process that a test forked and let go on ends with the test, and runs no other one."""
    suite.write(test_twice=TWICE)
    result = suite.run("--netns", "-W", "ignore::DeprecationWarning")
    assert result.parseoutcomes()["passed"] == 2
    result.stdout.fnmatch_lines(["test_twice.py::test_1 left running, ended with SIG*: pid *: *pytest*"])
    assert result.stdout.str().count(" passed") == 1
    assert suite.notes() == ["ran"]


CLOSING = """
import os
from sound import check
def test_1(): check()
def test_2(): os.closerange(3, 4096)
def test_3(): check()
"""


@requires("pytest-xdist")
def test_who_closes_everything_is_named(suite: Suite) -> None:
    """A test that closes all descriptors takes its worker along; another goes on, with a sound next test."""
    suite.write(sound=SOUND, test_close=CLOSING)
    result = suite.run("--netns", "-n1", timeout=60)
    outcomes = result.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"]) == (2, 1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running 'test_close.py::test_2'*"])


@pytest.mark.parametrize("capture", ["fd", "sys"])
def test_who_closes_everything_ends_the_run(suite: Suite, capture: str) -> None:
    """Alone, a test that closes all descriptors is the end of the run, as it is without us; but it is named."""
    suite.write(sound=SOUND, test_close=CLOSING)
    result = suite.run("--netns", f"--capture={capture}")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["*netns: test_close.py::test_2 has closed pytest's descriptors, and no other test *"])


@requires("freezegun")
def test_who_stops_the_clock(suite: Suite) -> None:
    """Where a test leaves the time frozen, the next is sound, and what the first left running is still ended."""
    suite.write(
        sound=SOUND,
        test_frozen="""
import subprocess, sys
import freezegun
from sound import check

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(99)"

def test_1(): check()
def test_2():
    freezegun.freeze_time("2040-01-01").start()
    subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE).stdout.readline()
def test_3(): check()
""",
    )
    result = suite.run("--netns", "-W", "ignore::ResourceWarning")
    assert result.parseoutcomes()["passed"] == 3
    result.stdout.fnmatch_lines(["test_frozen.py::test_2 left running, ended with SIGKILL: *"])


def test_who_uses_up_descriptors_is_told(suite: Suite) -> None:
    """A test that fails for want of descriptors, which it keeps, has its report; so have those that lack them, too."""
    suite.write(
        conftest="""
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (200, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
""",
        test_fills="""
import os
KEPT = []
def test_1():
    while True:
        KEPT.append(os.open("/", os.O_RDONLY))
def test_2():
    KEPT.append(os.open("/", os.O_RDONLY))
""",
    )
    result = suite.run("--netns")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*__ test_1 __*", "nobody can tell *: * Too many open files: *ulimit -n*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


DROPS = """
import ctypes
from sound import call, check
def test_1(): check()
def test_2():
    call("capset", (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
def test_3(): check()
"""


def test_who_gives_up_its_rights_ends_the_run(suite: Suite) -> None:
    """A process without capabilities can't leave a test's network: no other test runs there; the culprit is named."""
    suite.write(sound=SOUND, test_drops=DROPS)
    result = suite.run("--netns")
    result.stdout.fnmatch_lines(["*Exit: netns: test_drops.py::test_2 has left pytest without the right to leave *"])
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    assert result.parseoutcomes()["passed"] == 2


@requires("pytest-xdist")
def test_who_gives_up_its_rights_in_a_worker(suite: Suite) -> None:
    """A worker without capabilities is replaced, and the next test is sound."""
    suite.write(sound=SOUND, test_drops=DROPS)
    result = suite.run("--netns", "-n1", "-rp", timeout=60)
    assert result.parseoutcomes()["failed"] == 1
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running 'test_drops.py::test_2'*"])
    result.stdout.fnmatch_lines(["PASSED test_drops.py::test_3"])


@pytest.mark.parametrize("scope", ["module", "session"])
def test_broader_scopes(suite: Suite, scope: str) -> None:
    """Where tests share a network, a forked pytest still does not go on."""
    suite.write(test_twice=TWICE)
    result = suite.run("--netns", f"--netns-scope={scope}", "-W", "ignore::DeprecationWarning")
    assert result.parseoutcomes()["passed"] == 2
    assert result.stdout.str().count(" passed") == 1
    assert suite.notes() == ["ran"]

"""The umask and signals: what a test leaves changed is put back and told; what is there to stay, stays."""

from __future__ import annotations

import sys

import pytest
from places import ROOT, Run

CHANGED = "left changed in its process, where it is put back now"
WAYS = pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])

TOOLS = """
import os, signal

SIGNALS = sorted(signal.valid_signals())

def traits():
    mask = os.umask(0o022)
    os.umask(mask)
    return [mask, *map(signal.getsignal, SIGNALS), signal.pthread_sigmask(signal.SIG_BLOCK, ())]
"""

CULPRITS = """
import functools, os, signal, time
from unittest.mock import Mock
import pytest
from traits import traits

FIRST = traits()

def handler(number, frame):
    raise RuntimeError("handled")

class Handler:
    def __call__(self, number, frame): pass
    def method(self, number, frame): pass

def check():
    assert traits() == FIRST

def test_umask(): os.umask(0o777)
def test_1(): check()

@pytest.mark.parametrize("it", [
    signal.SIG_IGN, handler, lambda *_: None, Handler(), Handler().method, functools.partial(handler, 1), Mock(),
], ids=range(7))
def test_handler(it): signal.signal(signal.SIGTERM, it)
def test_2(): check()

def test_all():
    for number in set(range(1, 65)) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
def test_3(): check()

def test_timers():
    '''Timers that are left would end the process.'''
    for number, timer in ((signal.SIGALRM, 0), (signal.SIGVTALRM, 1), (signal.SIGPROF, 2)):
        signal.signal(number, handler)
        signal.setitimer(timer, 100)
def test_4():
    check()
    assert [signal.getitimer(timer) for timer in range(3)] == [(0, 0)] * 3

def test_blocks():
    '''What has waited would end the process, or the run.'''
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
    signal.raise_signal(signal.SIGUSR1)
def test_5(): check()

def test_replaces(monkeypatch):
    os.umask(0o777)
    for module, name in ((os, "umask"), (signal, "signal"), (signal, "getsignal"), (signal, "setitimer")):
        monkeypatch.setattr(module, name, handler)
def test_6(): check()

def test_raises():
    os.umask(0o777)
    raise RuntimeError("raised")
def test_7(): check()
"""


@WAYS
def test_culprits(pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
    """What a test's body has left is put back, and told in a warning, and in the section of a failure."""
    pytester.makepyfile(traits=TOOLS, test_it=CULPRITS)
    result = run("--netns", "-W", "error", *workers)
    result.assert_outcomes(passed=19, failed=1, warnings=13)
    result.stdout.fnmatch_lines_random(
        [
            f"*NetnsWarning: test_it.py::test_umask {CHANGED}: umask 0777",
            f"*NetnsWarning: test_it.py::test_handler[[]0[]] {CHANGED}: SIGTERM ignored",
            f"*NetnsWarning: test_it.py::test_handler[[]1[]] {CHANGED}: SIGTERM handled by handler",
            f"*NetnsWarning: test_it.py::test_handler[[]4[]] {CHANGED}: SIGTERM handled by Handler.method",
            f"*NetnsWarning: test_it.py::test_handler[[]6[]] {CHANGED}: SIGTERM handled by Mock",
            f"*NetnsWarning: test_it.py::test_all {CHANGED}: SIGHUP *, SIGPIPE at its default, * more",
            f"*NetnsWarning: test_it.py::test_timers {CHANGED}: SIGALRM handled by handler, SIGVTALRM *, SIGPROF *",
            f"*NetnsWarning: test_it.py::test_blocks {CHANGED}: SIGUSR1 and 1 more blocked",
            f"*NetnsWarning: test_it.py::test_replaces {CHANGED}: umask 0777",
            f"*NetnsWarning: test_it.py::test_raises {CHANGED}: umask 0777",
        ]
    )
    result.stdout.fnmatch_lines(["*- netns teardown -*", "left changed: umask 0777"])


LEGITIMATE = """
import asyncio, contextlib, os, signal, subprocess, sys
import library, pytest
from traits import traits

FIRST = traits()

def handler(number, frame): pass

@contextlib.contextmanager
def changed(mask, number):
    mask, before = os.umask(mask), signal.signal(number, handler)
    yield
    assert os.umask(mask) != mask
    assert signal.signal(number, before) is handler

@pytest.fixture(scope="session")
def for_session():
    with changed(0o027, signal.SIGUSR1):
        yield traits()

@pytest.fixture(scope="module")
def for_module():
    with changed(0o037, signal.SIGUSR2):
        yield traits()

@pytest.fixture
def for_function():
    with changed(0o077, signal.SIGTERM):
        yield

def test_function(for_function): pass
def test_first(): assert traits() == FIRST

def test_asked_for_in_the_body(request):
    request.getfixturevalue("for_session")
    request.getfixturevalue("for_function")
def test_session(for_session): assert traits() == for_session
def test_module(for_module): assert traits() == for_module

class TestClass:
    @classmethod
    def setup_class(cls):
        cls.mask = os.umask(0o057)
    @classmethod
    def teardown_class(cls):
        assert os.umask(cls.mask) == 0o057
    def setup_method(self):
        signal.signal(signal.SIGHUP, handler)
    def teardown_method(self):
        assert signal.signal(signal.SIGHUP, signal.SIG_DFL) is handler
    def test_1(self): os.umask(0o057)
    def test_2(self): assert signal.getsignal(signal.SIGHUP) is handler

def test_still(for_module): assert traits() == for_module

def test_monkeypatch(monkeypatch):
    for module, name in ((os, "umask"), (signal, "signal"), (signal, "getsignal")):
        monkeypatch.setattr(module, name, None)

def test_context():
    with changed(0o000, signal.SIGTERM):
        pass

def test_asyncio():
    asyncio.run(asyncio.sleep(0))

LOOP = asyncio.new_event_loop()

def test_library(for_module):
    '''Both count on what they have put in place when it was first needed.'''
    library.install()
    LOOP.add_signal_handler(signal.SIGWINCH, print)
    for_module[:] = traits()
def test_library_goes_on(for_module):
    assert signal.getsignal(signal.SIGALRM) is library.handler
    assert traits() == for_module
def test_library_ends():
    LOOP.close()
    assert signal.getsignal(signal.SIGWINCH) == signal.SIG_DFL

def test_child():
    child = os.fork()
    if child == 0:
        os.umask(0o777)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os._exit(0)
    os.waitpid(child, 0)

def test_back_to_the_start():
    '''Whose fixture it is may be gone, and what it has put in place with it.'''
    os.umask(0o022)
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)
def test_is_there():
    assert signal.getsignal(signal.SIGUSR2) == signal.SIG_DFL
    assert os.umask(0o037) == 0o022
    signal.signal(signal.SIGUSR2, handler)  # as the fixture has it
"""

LIBRARY = """
import signal

def handler(number, frame): pass

def install():
    if signal.getsignal(signal.SIGALRM) is not handler:
        signal.signal(signal.SIGALRM, handler)
"""


@WAYS
def test_legitimate(pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
    """Fixtures put back what they change, whenever that is, and what libraries put in place stays there."""
    pytester.makeconftest("import os\nos.umask(0o022)")
    pytester.makepyfile(traits=TOOLS, library=LIBRARY, test_it=LEGITIMATE)
    result = run("--netns", "-W", "error", "-W", "ignore:.*fork.*:DeprecationWarning", *workers)
    result.assert_outcomes(passed=17)
    assert CHANGED not in result.stdout.str()


SHARED = """
import os, signal
from traits import traits

FIRST = traits()

def test_1(): os.umask(0o027)
def test_2(): signal.signal(signal.SIGTERM, signal.SIG_IGN)
def test_3():
    assert os.umask(0o037) == 0o027
    assert signal.signal(signal.SIGTERM, signal.SIG_DFL) == signal.SIG_IGN
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
def test_4():
    assert os.umask(0o077) == 0o037
"""


def test_shared_network(pytester: pytest.Pytester, run: Run) -> None:
    """Tests that share a network share this, too: it is put back with the end of that, to how the first found it."""
    next_one = f"import test_it\n{TOOLS}\ndef test_next():\n    assert traits() == test_it.FIRST"
    pytester.makepyfile(traits=TOOLS, test_it=SHARED, test_next=next_one)
    result = run("--netns", "--netns-scope=module")
    result.assert_outcomes(passed=5, warnings=2)
    result.stdout.fnmatch_lines_random(
        [
            f"*NetnsWarning: test_it.py::test_3 {CHANGED}: SIGHUP ignored",
            f"*NetnsWarning: test_it.py::test_4 {CHANGED}: umask 0077",
        ]
    )


def test_interrupt(pytester: pytest.Pytester, run: Run) -> None:
    """Where a test has left SIGINT ignored, Ctrl-C ends the run all the same."""
    pytester.makepyfile(
        """
        import os, signal
        def test_1(): signal.signal(signal.SIGINT, signal.SIG_IGN)
        def test_2(): os.kill(os.getpid(), signal.SIGINT)
        def test_3(): pass
        """
    )
    result = run("--netns")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.assert_outcomes(passed=1, warnings=1)


def test_senders(pytester: pytest.Pytester, run: Run) -> None:
    """Who sends signals that a test has handled is ended before they are handled no more, which would end the run."""
    pytester.makepyfile(
        """
        import os, signal, subprocess, sys, time
        def test_1():
            seen = []
            signal.signal(signal.SIGUSR1, lambda *_: seen.append(1))
            subprocess.Popen(["sh", "-c", f"while kill -USR1 {os.getpid()}; do :; done"])
            while not seen:
                time.sleep(0.01)
        def test_2():
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        """
    )
    result = run("--netns", "-W", "ignore::ResourceWarning")
    result.assert_outcomes(passed=2, warnings=1)


THREAD = """
import signal, sys, threading
import pytest

asked, done, status = threading.Event(), threading.Event(), []

def main():
    status.append(pytest.main(sys.argv[1:]))
    asked.set()

if __name__ == "__main__":
    threading.Thread(target=main).start()
    asked.wait()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    done.set()
"""


@pytest.mark.skipif(not ROOT, reason="an ordinary user's process may have no other thread yet when it is isolated")
def test_another_thread(pytester: pytest.Pytester, run: Run) -> None:
    """Tests may be run by a thread that may not handle signals, as the main thread alone may; the umask is put back."""
    pytester.makepyfile(
        start=THREAD,
        test_it="""
        import os, signal, __main__
        MASK = os.umask(0o022)
        def test_1():
            os.umask(0o777)
            __main__.asked.set()
            assert __main__.done.wait(10)
        def test_2():
            assert os.umask(0o022) == 0o022
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        """,
    )
    plugins = ("-p", "pytest_netns.plugin", "-p", "no:cacheprovider")
    result = pytester.run(sys.executable, "start.py", *plugins, "--netns")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines([f"*NetnsWarning: test_it.py::test_1 {CHANGED}: umask 0777"])

"""Runs whose gateway is killed: the test in hand fails and says why, another takes over, and the run goes on."""

from __future__ import annotations

import pytest
from runs import Suite, requires

KILL = '''
import os, signal, socket, struct, time
import pytest
from pytest_netns.session import SESSION
from tools import answer, ask, leaf, listen, note

@pytest.fixture(scope="session")
def server():
    """A server in the worker's leaf, which outlives the gateway that made that."""
    return answer(listen(9000), 99)

@pytest.fixture
def kill(request):
    """Kill the gateway, and return when it has ended."""
    connection = request.config.stash[SESSION].client._connection
    pid, _, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    def kill():
        ended = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        while not select.select([ended], [], [], 10)[0]: pass
        os.close(ended)
    import select
    return kill

def check():
    """Have a network that leads to the worker's leaf, and nowhere else."""
    assert ask(9000) == b"hello"
    listen()
    with pytest.raises(OSError, match="No route to host"):
        socket.create_connection(("203.0.113.1", 80), 5)
    note(*leaf())
'''
TESTS = (
    KILL
    + """
def test_1(server): check()
def test_2(server, kill):
    check()
    kill()
def test_3(server): check()
def test_4(server): check()
"""
)
AGAIN = "def test_5(server, kill): kill()\ndef test_6(server): check()\n"
REASON = "netns: the gateway has ended while this test was running, and with it the test's way out;*"


def test_another_takes_over(suite: Suite) -> None:
    """Each time, the next test has a new gateway, and finds what a session fixture started in the worker's leaf."""
    suite.write(test_killed=TESTS + AGAIN)
    result = suite.run("--netns")
    assert result.parseoutcomes() == {"passed": 6, "errors": 2}
    result.stdout.fnmatch_lines(["*ERROR at teardown of test_2*", REASON, "*netns: a gateway was lost*"])
    assert len(suite.notes()) == 5


def test_at_the_last_test(suite: Suite) -> None:
    """Also where no leaf is needed any more; its files are removed, as `suite.run` sees."""
    suite.write(test_killed=KILL + "def test_1(server, kill):\n    check()\n    kill()\n")
    result = suite.run("--netns")
    assert result.parseoutcomes() == {"passed": 1, "errors": 1}
    result.stdout.fnmatch_lines([REASON])


def test_broader_leaves(suite: Suite) -> None:
    """A leaf that several tests share goes on, too, with what listens there."""
    text = TESTS.replace('"session"', '"module"').replace("    listen()\n    with", "    with")
    suite.write(test_killed=text)
    outcomes = suite.run("--netns", "--netns-scope=module", "-Wignore").parseoutcomes()
    assert (outcomes["passed"], outcomes["errors"]) == (4, 1)
    assert len({line.split()[1] for line in suite.notes()}) == 1


@requires("pytest-xdist")
def test_in_another_workers_test(suite: Suite) -> None:
    """A test that waits in another worker meanwhile fails, too, and says why; the rest passes."""
    wait = "def test_1(server):\n    note('waits')\n    while not os.path.exists('killed'): time.sleep(0.01)\n"
    kill = "def test_1(server, kill):\n    while not os.path.exists('notes'): time.sleep(0.01)\n    kill()\n"
    kill += "    open('killed', 'w').close()\n"
    rest = "def test_2(server): check()\ndef test_3(server): check()\n"
    suite.write(test_a=KILL + wait + rest, test_b=KILL + kill + rest)
    result = suite.run("--netns", "-n2", "--dist=loadfile", timeout=60)
    assert result.parseoutcomes() == {"passed": 6, "errors": 2}
    result.stdout.fnmatch_lines([REASON])


@requires("pytest-xdist")
def test_a_worker_that_notices_late(suite: Suite) -> None:
    """The new one waits for it, though all who have come by then have gone: an ordinary user could not have another."""
    leaves = "def pytest_sessionfinish():\n    open(os.environ['PYTEST_XDIST_WORKER'], 'w').close()\n"
    kill = "def test_1(server, kill):\n    while not os.path.exists('notes'): time.sleep(0.01)\n    kill()\n"
    wait = "def test_1(server):\n    me = os.environ['PYTEST_XDIST_WORKER']\n    note(me)\n"
    wait += "    while not os.path.exists({'gw0': 'gw1', 'gw1': 'gw0'}[me]): time.sleep(0.01)\n    time.sleep(0.5)\n"
    rest = "def test_2(server): check()\n"
    hook = f"import os\nif 'PYTEST_XDIST_WORKER' in os.environ:\n    {leaves.replace(chr(10), chr(10) + '    ')}"
    suite.write(conftest=hook, test_a=KILL + wait + rest, test_b=KILL + kill + rest)
    result = suite.run("--netns", "-n2", "--dist=loadfile", timeout=60)
    assert result.parseoutcomes() == {"passed": 4, "errors": 2}


@pytest.mark.parametrize("variable", [False, True], ids=["marked", "recording"])
def test_other_modes(suite: Suite, *, variable: bool) -> None:
    """The new one is told what the old one was: whose tests ask, and that all is let through."""
    mode = ("--netns", "--netns-egress=record") if variable else ("--netns-marked",)
    body = "def test_{0}(netns{1}):\n    assert netns.is_inside()\n{2}"
    tests = body.format(1, "", "") + body.format(2, ", kill", "    kill()\n") + body.format(3, "", "")
    suite.write(test_killed=KILL + tests)
    assert suite.run(*mode).parseoutcomes() == {"passed": 3, "errors": 1}

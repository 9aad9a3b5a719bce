"""``--pdb``, at a terminal."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest
from runs import Suite
from terminals import Terminal

SUITE = """
import socket, threading
import pytest
from tools import answer, leaf, listen, note

@pytest.fixture(scope="module")
def other():
    yield listen(9000)

@pytest.fixture
def server(other):
    server = listen()
    yield server
    note("down", *leaf())

def test_fails(server):
    answer(server, 2)
    note("test", *leaf())
    answered = 42
    assert answered == 43

def test_stops(server):
    note("test", *leaf())
    breakpoint()
    answer(server)
"""


def test_prompts_are_in_the_leaf(suite: Suite) -> None:
    """After a failure and at a breakpoint, the prompt is in the test's leaf, and its servers can be asked."""
    suite.write(test_suite=SUITE)
    command = suite.command("--netns", "--pdb", plugins="pytest_timeout timeout")
    terminal = Terminal(command, suite.path)
    terminal.expect(r"\(Pdb\) ")
    assert terminal.evaluate("answered") == "42"
    assert terminal.evaluate("__import__('os').environ['PYTEST_NETNS']") == "'main-t1'"
    assert terminal.evaluate("__import__('tools').ask()") == "b'hello'"
    inode = suite.notes()[0].split()[2]
    assert terminal.evaluate("__import__('tools').leaf()[1]") == inode
    found = re.search(r"netns: in main-t1; from another terminal: (.*?)\r\n", terminal.seen)
    assert found is not None
    leaf = shlex.split(found.group(1))[-1]
    command = [sys.executable, "-m", "pytest_netns", "exec", leaf, "--", "readlink", "/proc/self/ns/net"]
    assert subprocess.check_output(command, text=True) == f"net:[{inode}]\n"
    terminal.write("c")
    terminal.expect(r"\(Pdb\) ")
    assert terminal.evaluate("__import__('os').environ['PYTEST_NETNS']") == "'main-t2'"
    assert terminal.evaluate("__import__('tools').answer(server)").startswith("<Thread")
    assert terminal.evaluate("__import__('tools').ask()") == "b'hello'"
    terminal.write("c")
    terminal.expect("1 failed, 1 passed")
    assert terminal.end() == pytest.ExitCode.TESTS_FAILED
    suite.assert_nothing_left()
    assert [line.split()[:2] for line in suite.notes()] == [
        ["down", "main-t1"],
        ["test", "main-t2"],
        ["down", "main-t2"],
    ]


def test_a_broader_fixture_is_in_the_workers_leaf(suite: Suite) -> None:
    """At a breakpoint in a fixture that outlives the test, the prompt says that it is in the worker's leaf."""
    suite.write(
        test_suite="""
import pytest

@pytest.fixture(scope="session")
def server():
    breakpoint()

def test_asks(server):
    pass
"""
    )
    terminal = Terminal(suite.command("--netns"), suite.path)
    terminal.expect(r"\(Pdb\) ")
    assert "netns: in main; from another terminal: " in terminal.seen
    assert terminal.evaluate("__import__('os').environ['PYTEST_NETNS']") == "'main'"
    terminal.write("c")
    terminal.expect("1 passed")
    assert terminal.end() == pytest.ExitCode.OK
    suite.assert_nothing_left()


def test_quit(suite: Suite) -> None:
    """Who leaves the debugger with ``q`` ends the run, and leaves nothing."""
    suite.write(test_suite=SUITE)
    terminal = Terminal(suite.command("--netns", "--pdb", plugins="debugging"), suite.path)
    terminal.expect(r"\(Pdb\) ")
    terminal.write("q")
    terminal.expect("Exit: Quitting debugger")
    assert terminal.end() == pytest.ExitCode.INTERRUPTED
    suite.assert_nothing_left()
    assert [line.split()[0] for line in suite.notes()] == ["test", "down"]


def test_interrupt_at_a_terminal(suite: Suite) -> None:
    """Ctrl-C typed at the terminal ends the run, with its summary."""
    suite.write(
        test_slow="import time, tools\ndef test_1():\n    tools.listen()\n    print('here')\n    time.sleep(99)"
    )
    terminal = Terminal([*suite.command("--netns", "-s")], suite.path)
    terminal.expect("here")
    os.write(terminal.fd, b"\x03")
    terminal.expect("no tests ran in")
    assert terminal.end() == pytest.ExitCode.INTERRUPTED

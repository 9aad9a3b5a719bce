"""pytest-rerunfailures."""

from __future__ import annotations

from runs import Suite, requires

pytestmark = requires("pytest-rerunfailures")

FLAKY = """
import os, subprocess, sys
import pytest
from tools import leaf, listen, note

@pytest.fixture(scope="session")
def base():
    return leaf()

@pytest.mark.parametrize("name", ["one", "two"])
def test_flaky(base, name):
    assert leaf() != base
    note(name, *leaf())
    listen()
    subprocess.Popen([sys.executable, "-c", "import time, tools; tools.listen(9000); time.sleep(99)"])
    with open(name, "a+") as file:
        file.write("x")
        assert file.tell() == 3
"""
CRASHING = """
import os
from tools import leaf, listen, note

def test_crashing():
    note("crashing", *leaf())
    listen()
    with open("crashes", "a") as file:
        file.write("x")
        file.flush()
        if file.tell() < 3:
            os._exit(1)

def test_after():
    listen()
"""
FIXTURE = """
import os
import pytest
from tools import answer, ask, leaf, listen, note

@pytest.fixture(scope="session")
def server():
    with listen(9000) as server:
        with open("starts", "a+") as file:
            file.write("x")
            assert file.tell() == 2
        answer(server, 2)
        yield leaf()

@pytest.mark.parametrize("number", range(2))
def test_server(server, number):
    assert ask(9000) == b"hello"
    note(server[0], leaf()[0])
"""


def test_fresh_leaf_each_time(suite: Suite) -> None:
    """A test finds the port free again, whatever it has left running in the leaf before."""
    suite.write(test_flaky=FLAKY)
    result = suite.run("--netns", "--reruns=2", "-rR", plugins="rerunfailures")
    result.stdout.fnmatch_lines(["*2 passed, 4 rerun in *"])
    assert leaves(suite, "one", "two") == {f"main-t{number}" for number in range(1, 7)}


def test_fixture(suite: Suite) -> None:
    """A session's fixture that failed is set up again where it belongs, and serves on."""
    suite.write(test_fixture=FIXTURE)
    result = suite.run("--netns", "--reruns=1", plugins="rerunfailures")
    result.stdout.fnmatch_lines(["*2 passed, 1 rerun in *"])
    assert suite.notes() == ["main main-t2", "main main-t3"]


@requires("pytest-xdist")
def test_workers(suite: Suite) -> None:
    """So it does in a worker; one whose worker died is run again by the next worker, in a leaf of that one."""
    suite.write(test_flaky=FLAKY, test_crashing=CRASHING)
    result = suite.run("--netns", "--reruns=2", "-n2", plugins="rerunfailures")
    result.stdout.fnmatch_lines(["*4 passed, 6 rerun in *"])
    assert len(leaves(suite, "one", "two", "crashing")) == 9


def leaves(suite: Suite, *tests: str) -> set[str]:
    """Return the names of the leaves that these tests ran in, three times each."""
    lines = [line.split() for line in suite.notes()]
    assert sorted(name for name, *_ in lines) == sorted(3 * tests)
    return {leaf for _, leaf, _ in lines}

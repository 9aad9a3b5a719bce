"""pytest-rerunfailures."""

from __future__ import annotations

import pytest
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


class TestReruns:
    """A test that is run again."""

    @pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
    def test_fresh_leaf_each_time(self, suite: Suite, workers: tuple[str, ...]) -> None:
        """It finds the port free again, whatever it has left running in the leaf before."""
        suite.write(test_flaky=FLAKY)
        result = suite.run("--netns", "--reruns=2", "-rR", *workers, plugins="rerunfailures")
        result.stdout.fnmatch_lines(["*2 passed, 4 rerun in *"])
        lines = suite.notes()
        assert len(lines) == 6
        assert len({line.split(maxsplit=1)[1].split()[0] for line in lines if line.startswith("one")}) == 3
        assert len({line.split(maxsplit=1)[1] for line in lines}) == 6

    @requires("pytest-xdist")
    def test_crashed_worker(self, suite: Suite) -> None:
        """A test whose worker died is run again by the next worker, in a leaf of that one."""
        suite.write(test_crashing=CRASHING)
        result = suite.run("--netns", "--reruns=2", "-n2", plugins="rerunfailures")
        lines = suite.notes()
        result.stdout.fnmatch_lines(["*2 passed, 2 rerun in *"])
        assert len({line.split()[1] for line in lines}) == 3

"""Output that is captured, or not."""

from __future__ import annotations

import re

import pytest
from runs import Suite

SUITE = """
import subprocess, sys
from tools import listen

def test_it(capfd, netns):
    listen()
    print("first")
    netns.run(["echo", "from within"], check=True)
    assert capfd.readouterr().out == "first\\nfrom within\\n"

def test_loud(netns):
    listen()
    print("loud from python")
    sys.stdout.flush()
    subprocess.run(["echo", "loud from a program"], check=True)
    netns.run(["echo", "loud from the handle"], check=True)
    assert 0
"""
PYTHON, PROGRAMS = ["loud from python"], ["loud from a program", "loud from the handle"]


@pytest.mark.parametrize(
    ("mode", "outside", "section"),
    [
        ("no", PYTHON + PROGRAMS, []),
        ("sys", PROGRAMS, PYTHON),
        ("fd", [], PYTHON + PROGRAMS),
        ("tee-sys", PYTHON + PROGRAMS, PYTHON),
    ],
)
def test_modes(suite: Suite, mode: str, outside: list[str], section: list[str]) -> None:
    """What tests and their programs print goes where it goes without us."""
    suite.write(test_suite=SUITE)
    lines = suite.run("--netns", f"--capture={mode}").outlines
    failures = next(number for number, line in enumerate(lines) if line.startswith("=") and " FAILURES " in line)
    # tee-sys flushes nothing, so that what Python printed may come after what programs did.
    assert sorted(re.findall(r"loud from [a-z ]+", "\n".join(lines[:failures]))) == sorted(outside)
    assert [line for line in lines[failures:] if line in PYTHON + PROGRAMS] == section

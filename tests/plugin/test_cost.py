"""What isolation costs a test, counted rather than timed: the same on every machine, however busy."""

from __future__ import annotations

import json

import pytest
from places import Run

_TESTS = 50
_COUNTING = """
import collections, json, sys
import pytest
from pytest_netns.gateway import protocol

counts = collections.Counter()
marks = []

def counted(name):
    original = getattr(protocol, name)
    def call(*arguments):
        counts[name] += 1
        return original(*arguments)
    setattr(protocol, name, call)

counted("send")
counted("receive")

def profile(frame, event, argument):
    if event == "call":
        path = frame.f_code.co_filename
        counts["calls" if "pytest_netns" in path else "other calls"] += 1
    elif event == "c_call":
        counts["C calls"] += 1

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    marks.append(dict(counts))
    sys.setprofile(profile)
    try:
        return (yield)
    finally:
        sys.setprofile(None)

def pytest_sessionfinish():
    with open("counts", "w") as file:
        json.dump([marks[5], marks[-5]], file)
"""


_KINDS = ("calls", "other calls", "C calls")


def test_cost_of_a_test(pytester: pytest.Pytester, run: Run) -> None:
    """One message to the gateway and its answer, and less than a third of the calls that pytest makes itself."""
    pytester.makeconftest(_COUNTING)
    pytester.makepyfile(
        f"import pytest\n@pytest.mark.parametrize('number', range({_TESTS}))\ndef test_nothing(number): pass"
    )
    found = {}
    for option in ("--no-netns", "--netns"):
        run(option).assert_outcomes(passed=_TESTS)
        first, last = json.loads(pytester.path.joinpath("counts").read_text(encoding="utf-8"))
        found[option] = {name: (last[name] - first.get(name, 0)) / (_TESTS - 10) for name in last}
    isolated = found["--netns"]
    assert (isolated["send"], isolated["receive"]) == (1, 1)
    calls, calls_isolated = (sum(one.get(kind, 0) for kind in _KINDS) for one in found.values())
    assert calls_isolated < 1.3 * calls, (calls, calls_isolated)

"""Plugins that have little to do with networks; a test of each has to do with one, on the one port."""

from __future__ import annotations

import pytest
from runs import IN_EVERY_WAY, Suite, requires

REPEAT = """
import pytest
from tools import answer, ask, listen

@pytest.mark.repeat(4)
def test_repeat():
    with listen() as server:
        answer(server)
        assert ask() == b"hello"
"""
ORDER = """
import pytest
from tools import listen

DONE = []

@pytest.mark.order(2)
def test_second():
    assert DONE == ["first"]
    listen().close()

@pytest.mark.order(1)
def test_first():
    listen().close()
    DONE.append("first")
"""
MOCK = """
import socket, urllib.request
import pytest
from tools import answer, ask, listen

@pytest.mark.parametrize("name", ["socket.socket", "os.open", "os.stat", "os.getcwd", "time.time", "builtins.open"])
def test_replaced(mocker, name):
    mocker.patch(name, side_effect=RuntimeError("a test's own"))

@pytest.fixture(scope="module")
def always(module_mocker):
    return module_mocker.patch("urllib.request.urlopen", return_value="page")

@pytest.mark.parametrize("number", range(2))
def test_module(always, mocker, number):
    assert urllib.request.urlopen("http://api.example.com") == "page"
    spy = mocker.spy(socket, "create_connection")
    with listen() as server:
        answer(server)
        assert ask() == b"hello"
    assert spy.call_count == 1
"""
SYRUPY = """
import pytest
from tools import answer, ask, listen

@pytest.mark.parametrize("number", range(2))
def test_snapshot(snapshot, number):
    with listen() as server:
        answer(server)
        assert f"{ask()} at {server.getsockname()}" == snapshot
"""
SNAPSHOTS = """# serializer version: 1
# name: test_snapshot[0]
  "b'hello' at ('127.0.0.1', 8080)"
# ---
# name: test_snapshot[1]
  "b'hello' at ('127.0.0.1', 8080)"
# ---
"""
HYPOTHESIS = """
import socket
import pytest
from hypothesis import given, settings, strategies
from tools import listen

@pytest.mark.parametrize("number", range(2))
@settings(max_examples=10, deadline=None)
@given(text=strategies.binary(max_size=100))
def test_echo(number, text):
    with listen() as server, socket.create_connection(server.getsockname()) as client, server.accept()[0] as accepted:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        assert accepted.makefile("rb").read() == text
"""
BDD = """
import pytest
from pytest_bdd import given, scenarios, then, when
from tools import answer, ask, listen

scenarios("service.feature")

@given("a service", target_fixture="service")
def service():
    with listen() as server:
        answer(server)
        yield server

@when("it is asked", target_fixture="reply")
def reply(service):
    return ask()

@then("it answers")
def answers(reply):
    assert reply == b"hello"
"""
FEATURE = """
Feature: Service
    Scenario: Answer
        Given a service
        When it is asked
        Then it answers
"""
SUBTESTS = """
import pytest
from tools import answer, ask, listen

def test_subtests(subtests):
    for number in range(3):
        with subtests.test(number=number), listen() as server:
            answer(server)
            assert ask() == b"hello"

@pytest.mark.parametrize("number", range(2))
def test_failing(subtests, number):
    with subtests.test("refused"):
        ask(port=81, host="192.0.2.1")
    with subtests.test("fine"):
        pass
"""
BENCHMARK = """
import pytest
from tools import answer, ask, listen

def asking():
    with listen() as server:
        answer(server)
        return ask()

@pytest.mark.parametrize("number", range(2))
def test_asking(benchmark, number):
    assert benchmark.pedantic(asking, rounds=20, warmup_rounds=1) == b"hello"
"""


@requires("hypothesis", "pytest-bdd", "pytest-benchmark", "pytest-mock", "pytest-order", "pytest-repeat", "syrupy")
@IN_EVERY_WAY
def test_together(suite: Suite, way: tuple[str, ...]) -> None:
    """Repeated, ordered, mocked, generated, measured, told as stories, compared to snapshots: tests pass as ever."""
    suite.write(test_bdd=BDD, test_benchmark=BENCHMARK, test_hypothesis=HYPOTHESIS, test_mock=MOCK)
    suite.write(test_order=ORDER, test_repeat=REPEAT, test_syrupy=SYRUPY)
    suite.path.joinpath("service.feature").write_text(FEATURE, encoding="utf-8")
    suite.path.joinpath("__snapshots__").mkdir()
    suite.path.joinpath("__snapshots__", "test_syrupy.ambr").write_text(SNAPSHOTS, encoding="utf-8")
    plugins = "benchmark hypothesispytest pytest-bdd pytest_mock pytest_order repeat syrupy"
    loadfile = ("--dist=loadfile",) if "-n2" in way else ()  # the tests that are ordered know of each other
    result = suite.passes(*way, *loadfile, plugins=plugins, passed=21)
    if not loadfile:  # pytest-benchmark measures nothing in workers
        result.stdout.fnmatch_lines(["*benchmark: 2 tests*", "test_asking*", "test_asking*"])


@pytest.mark.skipif(pytest.version_tuple < (9,), reason="pytest has subtests from version 9 on")
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_subtests(suite: Suite, workers: tuple[str, ...]) -> None:
    """A subtest that fails tells what it tried in vain, and the rest go on."""
    suite.write(test_subtests=SUBTESTS)
    result = suite.run("--netns", *workers, plugins="subtests")
    result.assert_outcomes(passed=1, failed=4)
    result.stdout.fnmatch_lines(['blocked: tcp 192.0.2.1:81; allow with "192.0.2.1:81"'])
    result.stdout.fnmatch_lines(["tcp 192.0.2.1:81: 2 times, first by test_subtests.py::test_failing*"])

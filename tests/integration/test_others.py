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
        assert {"port": server.getsockname(), "answer": ask()} == snapshot
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


@requires("pytest-repeat", "pytest-order", "pytest-mock", "hypothesis", "pytest-bdd")
@IN_EVERY_WAY
def test_together(suite: Suite, way: tuple[str, ...]) -> None:
    """Repeated, ordered, mocked, generated and told as stories, tests pass as they do without us."""
    suite.write(test_repeat=REPEAT, test_order=ORDER, test_mock=MOCK, test_hypothesis=HYPOTHESIS, test_bdd=BDD)
    suite.path.joinpath("service.feature").write_text(FEATURE, encoding="utf-8")
    plugins = "repeat pytest_order pytest_mock hypothesispytest pytest-bdd"
    suite.passes(*way, *(("--dist=loadfile",) if "-n2" in way else ()), plugins=plugins, passed=17)


@requires("syrupy")
@IN_EVERY_WAY
def test_syrupy(suite: Suite, way: tuple[str, ...]) -> None:
    """Snapshots that were taken in one way hold in another, as the port is always the same."""
    suite.write(test_syrupy=SYRUPY)
    suite.run("--snapshot-update", plugins="syrupy").stdout.fnmatch_lines(["2 snapshots generated.*"])
    result = suite.passes(*way, plugins="syrupy", passed=2)
    result.stdout.fnmatch_lines(["2 snapshots passed.*"])


@requires("pytest-benchmark")
@IN_EVERY_WAY
def test_benchmark(suite: Suite, way: tuple[str, ...]) -> None:
    """What is measured is the test's own doing, which is in one network; workers measure nothing, as without us."""
    suite.write(test_benchmark=BENCHMARK)
    result = suite.passes(*way, plugins="benchmark", passed=2)
    if "-n2" not in way:
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

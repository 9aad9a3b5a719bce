"""``--netns-report``: a page on tests, networks and flows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from places import Run

from pytest_netns.gateway.flows import BLOCKED, Flow
from pytest_netns.page.model import _read as read_flows
from pytest_netns.page.render import render

SUITE = """
import socket
import pytest
from tools import PORT, dial

@pytest.mark.netns(allow=[f"localhost:{PORT}"])
def test_allowed():
    assert dial() == b"hello"

@pytest.mark.parametrize("sign", ["</script><b>", "{data}"])
def test_blocked(netns, sign):
    with pytest.raises(OSError):
        socket.create_connection(("203.0.113.5", 443))
    assert sign == "{data}"

@pytest.mark.skip
def test_skipped(): pass

@pytest.mark.xfail
def test_expected(netns): assert 0

@pytest.fixture
def broken():
    yield
    assert 0

def test_broken(netns, broken): pass
@pytest.mark.no_netns
def test_outside(): pass
"""


def model_of(path: Path) -> dict[str, Any]:
    """Return what a page shows."""
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))
    assert len(found) == 1
    model: dict[str, Any] = json.loads(found[0])
    return model


def drawn(page: Path, home: Path) -> str:
    """Return what a browser makes of a page; skip where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("chromium is not installed")
    still = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", *still, f"--user-data-dir={home}"]
    shown = ["--enable-logging=stderr", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    done = subprocess.run([*command, *shown], capture_output=True, text=True, check=True, timeout=60)
    assert "CONSOLE" not in done.stderr
    return done.stdout


@pytest.mark.parametrize(("mode", "workers"), [("--netns", ("-n2",)), ("--netns-marked", ())])
def test_model(pytester: pytest.Pytester, run: Run, outside: str, mode: str, workers: tuple[str, ...]) -> None:
    """The page has every test with its outcome and its network, every flow with its test, and the rules it takes."""
    pytester.makepyfile(test_it=SUITE)
    result = run(mode, "--netns-report=page.html", *workers)
    result.assert_outcomes(passed=4, failed=1, skipped=1, xfailed=1, errors=1)
    result.stdout.fnmatch_lines(["*netns: report in page.html*"])
    model = model_of(pytester.path / "page.html")
    tests = {test["name"].partition("::")[2]: test for test in model["tests"]}
    outcomes = {name: test["outcome"] for name, test in tests.items()}
    assert outcomes == {
        "test_allowed": "passed",
        "test_blocked[</script><b>]": "failed",
        "test_blocked[{data}]": "passed",
        "test_skipped": "skipped",
        "test_expected": "xfailed",
        "test_broken": "error",
        "test_outside": "passed",
    }
    assert model["workers"] == (["gw0", "gw1"] if workers else ["main"])
    isolated = {name: test for name, test in tests.items() if test["setup"]}
    assert {"test_allowed", "test_blocked[{data}]", "test_expected", "test_broken"} <= isolated.keys()
    assert all("-t" in test["leaf"] and 0 < test["setup"] < 30 for test in isolated.values())
    assert (tests["test_blocked[{data}]"]["blocked"], tests["test_allowed"]["allowed"]) == (1, 1)
    flows = [(model["tests"][flow["test"]]["name"].partition("::")[2], flow["verdict"]) for flow in model["flows"]]
    assert sorted(flows) == sorted(
        [("test_allowed", "allowed"), ("test_blocked[</script><b>]", "blocked"), ("test_blocked[{data}]", "blocked")]
    )
    assert model["counts"] == {"allowed": 1, "blocked": 2}
    assert model["needed"]["all"] == ["203.0.113.5:443"]
    assert list(model["needed"]["tests"]) == ["test_it.py::test_blocked"]


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user has to say it")
def test_unsaid(pytester: pytest.Pytester, run: Run, outside: str) -> None:
    """Where only tests that ask are isolated, their flows are there all the same."""
    pytester.makepyfile(test_it=SUITE)
    run("--netns-report=page.html", "-n2")
    assert model_of(pytester.path / "page.html")["counts"] == {"allowed": 1, "blocked": 2}


def test_without_isolation(pytester: pytest.Pytester, run: Run) -> None:
    """A run that isolates nothing has a page, too; a path that cannot be written is a usage error."""
    pytester.makepyfile("def test_it(): pass")
    run("--no-netns", "--netns-report=page.html").assert_outcomes(passed=1)
    assert [test["outcome"] for test in model_of(pytester.path / "page.html")["tests"]] == ["passed"]
    result = run("--netns-report=missing/page.html")
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        ["ERROR: --netns-report: 'missing/page.html' cannot be written: *; make the directory*"]
    )


def _large() -> dict[str, Any]:
    """Return a run of ten thousand tests."""
    outcomes = ["passed"] * 97 + ["failed", "skipped", "xfailed"]
    tests = [
        {
            "name": f"test_it.py::test_number[{number}]",
            "worker": number % 8,
            "start": 1e9 + number / 100,
            "duration": 0.05,
            "outcome": outcomes[number % 100],
            "leaf": f"gw{number % 8}-t{number}",
            "blocked": number % 50 == 0,
            "allowed": 0,
            "setup": 0.001 + number / 1e6,
        }
        for number in range(10_000)
    ]
    flow = {
        "name": None,
        "rule": None,
        "reason": None,
        "sent": 0,
        "received": 0,
        "duration": 0.0,
        "worker": 0,
        "owner": "",
    }
    flows = [
        {
            **flow,
            "time": tests[number]["start"],
            "leaf": tests[number]["leaf"],
            "test": number,
            "protocol": "tcp",
            "address": "203.0.113.5",
            "port": number,
            "verdict": "blocked",
            "endpoint": f"tcp 203.0.113.5:{number}",
            "allow": f"203.0.113.5:{number}",
        }
        for number in range(0, 10_000, 50)
    ]
    return {
        "title": "<large>",
        "application": "pytest-netns",
        "settings": "netns: all",
        "started": 1e9,
        "finished": 1e9 + 101,
        "workers": [f"gw{number}" for number in range(8)],
        "tests": tests,
        "flows": flows,
        "left_out": 0,
        "counts": {"allowed": 0, "blocked": len(flows)},
        "needed": {"all": ["203.0.113.5"], "tests": {}, "blocked": len(flows), "table": "[tool.pytest]"},
    }


def test_in_a_browser(tmp_path: Path) -> None:
    """Ten thousand tests are drawn, counted and turned over page by page, and the page asks nobody for anything."""
    page = tmp_path / "page.html"
    page.write_text(render(_large()), encoding="utf-8")
    assert not re.search(r'(?:src|href)="', page.read_text(encoding="utf-8"))
    document = drawn(page, tmp_path / "chromium")
    assert "<h1>&lt;large&gt;</h1>" in document
    assert "<b>10,000</b><span>tests</span>" in document
    assert "<b>200</b><span>attempts blocked</span>" in document
    assert "page 1 of 200" in document
    assert "and 182 more, in the table below" in document
    assert document.count("<tr data-test=") < 200


def test_pytest_html(pytester: pytest.Pytester, run: Run) -> None:
    """The report of pytest-html has the summary, and leads to the page."""
    pytest.importorskip("pytest_html")
    pytester.makepyfile(
        """
        import socket
        def test_it(): socket.create_connection(("203.0.113.5", 443))
        """
    )
    html = ("-p", "pytest_metadata.plugin", "-p", "pytest_html.plugin", "--html=reports/tests.html")
    pytester.mkdir("reports")
    run("--netns", "--netns-report=page.html", *html).assert_outcomes(failed=1)
    text = (pytester.path / "reports/tests.html").read_text(encoding="utf-8")
    assert "<summary>netns: blocked attempts to leave</summary><pre>tcp 203.0.113.5:443: 1 time" in text
    assert 'href="../page.html"' in text
    assert "leaf main-t1" in text


def test_directory_that_is_no_text(pytester: pytest.Pytester, run: Run) -> None:
    """A page is written for a project whose directory has a name that is no text, too."""
    pytester.makepyfile("def test_it(): pass")
    root = pytester.mkdir(os.fsdecode(b"caf\xe9"))
    run("-q", "--no-header", "--no-netns", "--netns-report=page.html", f"--rootdir={root}").assert_outcomes(passed=1)
    assert [test["outcome"] for test in model_of(pytester.path / "page.html")["tests"]] == ["passed"]


def test_flows_that_found_no_room(tmp_path: Path) -> None:
    """What a full disk had no room for is missing from the page, and nothing else is."""
    flow = Flow(1e9, "main-t1", "test_it", "tcp", None, "203.0.113.5", 443, BLOCKED)
    line = json.dumps({"kind": "flow", **flow.to_dict()})
    (tmp_path / "flows").write_text(f"{line}\n{line[:40]}")
    assert list(read_flows(str(tmp_path / "flows"))) == [flow]

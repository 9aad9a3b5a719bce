"""What becomes of attempts that no rule allows, and where all are written down."""

from __future__ import annotations

import json

import pytest
from places import ROOT, Run

WORKERS = pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
TRYING = """
import socket
import pytest
from tools import PORT, refused

def quietly_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(("203.0.113.6", 123))
        udp.send(b"time?")
        udp.settimeout(5)
        try: udp.recv(1)
        except OSError: pass
def quietly_look_up():
    with pytest.raises(OSError): socket.getaddrinfo("api.example.com", 443)
@pytest.fixture(scope="session")
def broad(): return refused("203.0.113.7", 5432)
@pytest.fixture
def narrow(): return refused("203.0.113.8", 25)
@pytest.fixture
def closing():
    yield
    refused("203.0.113.9", 25)

def test_tcp(): assert refused("203.0.113.5", 443) and refused("203.0.113.5", 443)
def test_udp(): quietly_udp()
def test_name(): quietly_look_up()
def test_broad(broad): raise AssertionError("it has not come to this")
def test_broad_again(broad): pass
def test_narrow(narrow): raise AssertionError("it has not come to this")
def test_closing(closing): pass
def test_nothing_tried(): pass
@pytest.mark.netns(allow=[f"localhost:{PORT}"])
def test_allowed(): assert not refused()
"""


@pytest.mark.usefixtures("outside")
class TestFail:
    """``--netns-egress=fail``: who tries fails, even if it does not mind."""

    @pytest.mark.parametrize(
        ("scope", "workers"),
        [("function", ()), ("function", ("-n2",)), ("module", ()), ("session", ()), ("session", ("-n2",))],
    )
    def test_each_phase(self, pytester: pytest.Pytester, run: Run, scope: str, workers: tuple[str, ...]) -> None:
        """Each phase of a test answers for what was tried in it, and says what, and what would allow it."""
        pytester.makepyfile(test_it=TRYING)
        distribution = ("--dist=loadfile",) if workers else ()
        result = run("--netns", f"--netns-scope={scope}", "--netns-egress=fail", *workers, *distribution)
        result.assert_outcomes(failed=3, passed=4, errors=3)
        told = result.stdout.str()
        assert "it has not come to this" not in told
        broad = (
            'blocked: tcp 203.0.113.7:5432; allow with "203.0.113.7:5432"'
            if scope == "session"
            else "blocked: tcp 203.0.113.7:5432, in the worker's network; allow with --netns-allow=203.0.113.7:5432"
        )
        result.stdout.fnmatch_lines_random(
            [
                "netns: all (*, egress fail",
                "*ERROR at setup of test_broad *",
                "*ERROR at setup of test_narrow *",
                "*ERROR at teardown of test_closing *",
                'blocked: tcp 203.0.113.5:443 (2 times); allow with "203.0.113.5:443"',
                'blocked: udp 203.0.113.6:123; allow with "203.0.113.6:123/udp"',
                'blocked: dns *api.example.com*; allow with "api.example.com"',
                broad,
                "FAILED test_it.py::test_tcp - *blocked: tcp 203.0.113.5:443*",
            ]
        )
        blocked = [line for line in result.outlines if line.startswith("blocked: ")]
        assert len(blocked) == len(set(blocked))
        assert "All traceback entries are hidden" not in told

    def test_own_outcomes_stay(self, pytester: pytest.Pytester, run: Run) -> None:
        """A phase that failed by itself keeps its error, a skipped test stays skipped, and ``-x`` stops."""
        pytester.makepyfile(
            """
            import pytest, unittest
            from tools import refused
            class TestUnit(unittest.TestCase):
                @unittest.expectedFailure
                def test_passing(self): assert refused("203.0.113.5", 443)
            def test_error():
                assert refused("203.0.113.5", 443)
                raise ValueError("its own")
            def test_skipped():
                assert refused("203.0.113.5", 443)
                pytest.skip("no server")
            @pytest.mark.xfail(reason="dials out")
            def test_expected(): assert refused("203.0.113.5", 443)
            @pytest.mark.xfail(raises=ValueError)
            def test_expected_otherwise(): assert refused("203.0.113.5", 443)
            def test_trying(): assert refused("203.0.113.5", 443)
            """
        )
        result = run("--netns", "--netns-egress=fail", "-rs")
        result.assert_outcomes(failed=4, skipped=1, xfailed=1)
        for own in ("Unexpected success", "E * ValueError: its own"):
            result.stdout.fnmatch_lines([own, "leaf *", "blocked: tcp 203.0.113.5:443; allow with *"])
        run("--netns", "--netns-egress=fail", "-x", "-k", "trying or error").assert_outcomes(failed=1)

    @pytest.mark.parametrize("scope", ["function", "module"])
    def test_reruns(self, pytester: pytest.Pytester, run: Run, scope: str) -> None:
        """Such a test is run again, and may pass then, even in the same network."""
        pytest.importorskip("pytest_rerunfailures")
        pytester.makepyfile(
            """
            import pytest
            from tools import refused
            runs = []
            @pytest.fixture(scope="module")
            def broad(): return []
            def test_flaky(broad):
                runs.append(1)
                assert len(runs) > 1 or refused("203.0.113.5", 443)
            def test_always(): assert refused("203.0.113.5", 443)
            """
        )
        plugin = ("-p", "pytest_rerunfailures", "--reruns=2")
        result = run("--netns", f"--netns-scope={scope}", "--netns-egress=fail", *plugin)
        result.stdout.fnmatch_lines(["*1 failed, 1 passed, 3 rerun in *"])

    def test_opted_out(self, pytester: pytest.Pytester, run: Run) -> None:
        """A test that opts out answers only for what the worker's network blocks."""
        pytester.makepyfile(
            """
            import contextlib, pytest, socket
            @pytest.mark.no_netns
            def test_1():
                with contextlib.suppress(OSError):
                    socket.create_connection(("203.0.113.5", 443), timeout=0.3).close()
            @pytest.mark.no_netns
            def test_2(): pass
            """
        )
        outcomes = {"passed": 2} if ROOT else {"passed": 1, "failed": 1}
        run("--netns", "--netns-egress=fail").assert_outcomes(**outcomes)

    def test_nothing_isolated(self, pytester: pytest.Pytester, run: Run) -> None:
        """Where nothing is isolated, nothing fails."""
        pytester.makepyfile("def test_it(): pass")
        run("--no-netns", "--netns-egress=fail").assert_outcomes(passed=1)
        run("--netns-marked", "--netns-egress=fail").assert_outcomes(passed=1)


@pytest.mark.usefixtures("outside")
class TestRecord:
    """``--netns-egress=record``: everything is let through, and the allow-list that it takes is told."""

    SUITE = """
    import pytest
    from tools import PORT, dial, refused
    @pytest.fixture(scope="session")
    def broad(): return dial()
    @pytest.mark.parametrize("number", range(3))
    def test_loopback(number): assert dial() == b"hello"
    def test_other_port():
        with pytest.raises(ConnectionRefusedError): dial("127.0.0.1", 1)
    @pytest.mark.netns(allow=[f"localhost:{PORT}"])
    def test_allowed(): assert dial() == b"hello"
    """

    @WORKERS
    @pytest.mark.parametrize(
        "mode",
        [
            ("--netns",),
            ("--netns-marked",),
            pytest.param((), marks=pytest.mark.skipif(not ROOT, reason="an ordinary user has to say it")),
        ],
        ids=["all", "marked", "unsaid"],
    )
    def test_allow_list(
        self, pytester: pytest.Pytester, run: Run, outside: str, mode: tuple[str, ...], workers: tuple[str, ...]
    ) -> None:
        """It can be pasted, for the run or test by test, and is all that it takes."""
        suite = self.SUITE if mode == ("--netns",) else self.SUITE.replace("test_loopback(", "test_loopback(netns, ")
        pytester.makepyfile(test_it=suite)
        result = run(*mode, "--netns-egress=record", "--netns-allow=a.example:443", *workers)
        result.assert_outcomes(passed=5)
        expected = [
            "netns: *, egress record, 1 egress rule",
            "*= netns: egress that was needed =*",
            "[[]tool.pytest*[]]*",
            "netns_allow = [[]",
            '    "a.example:443",',
            f'    "{outside}",',
            "[]]",
            f'test_it.py::test_loopback: @pytest.mark.netns(allow=[[]"{outside}"[]])',
        ]
        result.stdout.fnmatch_lines(expected)
        told = result.stdout.str()
        assert "::test_allowed:" not in told
        assert told.count("::test_loopback:") == 1
        lines = result.outlines
        table = lines[lines.index("netns_allow = [") - 1 : lines.index("]") + 1]
        (pytester.path / "pyproject.toml").write_text("\n".join(table), encoding="utf-8")
        result = run(*mode, "--netns-egress=fail", *workers)
        result.assert_outcomes(passed=5)
        result.stdout.fnmatch_lines(["*, egress fail, 2 egress rules"])

    def test_outside_of_tests(self, pytester: pytest.Pytester, run: Run, outside: str) -> None:
        """What was needed outside of any test is in the run's list, and no marker is proposed for it."""
        pytester.makepyfile(
            """
            import pytest
            from tools import dial
            @pytest.fixture(scope="session")
            def broad(): return dial()
            def test_it(broad): assert broad == b"hello"
            """
        )
        result = run("--netns", "--netns-egress=record")
        result.assert_outcomes(passed=1)
        result.stdout.fnmatch_lines(
            [f'    "{outside}",', f'(outside of any test): no marker reaches there: "{outside}"']
        )
        assert "@pytest.mark.netns(allow" not in result.stdout.str()

    def test_nothing_needed(self, pytester: pytest.Pytester, run: Run) -> None:
        """A run that needs no more than it is allowed is told so, and one that isolates nothing is told nothing."""
        pytester.makepyfile("def test_it(): pass")
        result = run("--netns", "--netns-egress=record")
        result.stdout.fnmatch_lines(["*netns: egress that was needed*", "nothing that is not allowed already"])
        assert "egress that was" not in run("--no-netns", "--netns-egress=record").stdout.str()

    def test_table_of_the_file(self, pytester: pytest.Pytester, run: Run) -> None:
        """A file that has the table in ini style is given that one, for it must not have both."""
        (pytester.path / "pyproject.toml").write_text("[tool.pytest.ini_options]\nnetns = 'all'", encoding="utf-8")
        pytester.makepyfile("from tools import dial\ndef test_it(): dial()")
        result = run("--netns-egress=record")
        result.stdout.fnmatch_lines(["[[]tool.pytest.ini_options[]]", "netns_allow = [[]"])


@pytest.mark.usefixtures("outside")
class TestLog:
    """``--netns-egress-log``."""

    @WORKERS
    @pytest.mark.parametrize("mode", ["--netns", "--netns-marked"])
    def test_lines(
        self, pytester: pytest.Pytester, run: Run, outside: str, mode: str, workers: tuple[str, ...]
    ) -> None:
        """Every attempt is a line of JSON, in a file that begins anew with each run, in a path from where it began."""
        pytester.makepyfile(
            """
            import os, pytest
            from tools import PORT, dial, refused
            os.chdir("/")
            @pytest.mark.netns(allow=[f"localhost:{PORT}"])
            def test_1(): assert dial() == b"hello"
            @pytest.mark.netns
            def test_2(): assert refused("203.0.113.5", 443)
            """
        )
        path = pytester.mkdir("logs") / "egress.jsonl"
        path.write_text("from the run before\n", encoding="utf-8")
        run(mode, "--netns-egress-log=logs/egress.jsonl", *workers).assert_outcomes(passed=2)
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        flows = [record for record in records if record["kind"] == "flow"]
        told = {(flow["test"].partition("::")[2], flow["verdict"], flow["rule"], flow["received"]) for flow in flows}
        assert told == {("test_1", "allowed", outside, 5), ("test_2", "blocked", None, 0)}
        tests = {record["test"].partition("::")[2]: record for record in records if record["kind"] == "test"}
        assert {name: (one["allowed"], one["blocked"]) for name, one in tests.items()} == {
            "test_1": (1, 0),
            "test_2": (0, 1),
        }
        assert all(one["leaf"] and 0 < one["duration"] < 60 < one["time"] for one in tests.values())
        run("--no-netns", "--collect-only", f"--netns-egress-log={path}", *workers)
        assert path.read_text(encoding="utf-8") == ""

    @WORKERS
    @pytest.mark.parametrize("file", ["missing/egress.jsonl", "."])
    def test_unwritable(self, pytester: pytest.Pytester, run: Run, file: str, workers: tuple[str, ...]) -> None:
        """A file that cannot be written is a usage error, even where isolation is not."""
        pytester.makepyfile("def test_it(): pass")
        result = run("--netns", "--netns-unsupported=skip", f"--netns-egress-log={file}", *workers)
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        remedy = f"make the directory {pytester.path}/missing*" if file != "." else "name a file that can be written"
        result.stderr.fnmatch_lines([f"ERROR: --netns-egress-log: '{file}' cannot be written: *; {remedy}"])

"""What a test may reach: options, configuration files, markers and the fixture."""

from __future__ import annotations

import pytest
from places import Run

SCOPES = pytest.mark.parametrize(
    ("scope", "workers"),
    [("function", ()), ("function", ("-n2",)), ("class", ()), ("module", ("-n2",)), ("session", ())],
    ids=["function", "function xdist", "class", "module xdist", "session"],
)
WORKERS = pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])


@pytest.mark.usefixtures("outside")
class TestRules:
    """Where rules are written, and what they hold for."""

    @WORKERS
    def test_nothing_is_allowed(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """Without a rule a test reaches nothing, and the host's loopback is one's own, where nobody listens."""
        pytester.makepyfile(
            """
            import pytest
            from tools import dial
            def test_loopback():
                with pytest.raises(ConnectionRefusedError): dial()
            def test_elsewhere():
                with pytest.raises(OSError, match="No route to host"): dial("203.0.113.5", 443)
            """
        )
        run("--netns", *workers).assert_outcomes(passed=2)

    @WORKERS
    def test_option(self, pytester: pytest.Pytester, run: Run, outside: str, workers: tuple[str, ...]) -> None:
        """What ``--netns-allow`` names is open to every test, to fixtures of any scope and at import, and only that."""
        pytester.makepyfile(
            """
            import pytest
            from tools import PORT, dial, refused
            assert dial() == b"hello"
            @pytest.fixture(scope="session")
            def greeting():
                return dial()
            def test_1(greeting): assert greeting == dial() == b"hello"
            def test_2(): assert dial() == b"hello"
            def test_3(): assert refused("127.0.0.1", PORT + 1 if PORT < 65535 else 1) and refused("203.0.113.5", PORT)
            """
        )
        result = run("--netns", f"--netns-allow={outside}", "--netns-allow=a.example:443", *workers)
        result.assert_outcomes(passed=3)
        result.stdout.fnmatch_lines(["netns: all (*, root*, 2 egress rules"])

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("pytest.toml", "[pytest]\nnetns_allow = ['{}', '*.example.org']\nnetns_egress = 'block'"),
            ("pyproject.toml", "[tool.pytest]\nnetns_allow = ['{}']"),
            ("pyproject.toml", "[tool.pytest.ini_options]\nnetns_allow = ['*.example.org', '{}']"),
            ("pyproject.toml", "[tool.pytest.ini_options]\nnetns_allow = '''\n*.example.org\n{}'''"),
            ("tox.ini", "[pytest]\nnetns_allow =\n  *.example.org\n\n  # the host\n  {}\nnetns_egress = block"),
            ("pytest.ini", "[pytest]\nnetns_allow = {}"),
            ("pytest.ini", "[pytest]\naddopts = --netns-allow={}"),
        ],
        ids=["pytest.toml", "tool.pytest", "ini_options list", "ini_options lines", "tox.ini", "one line", "addopts"],
    )
    def test_configuration_files(self, pytester: pytest.Pytester, run: Run, outside: str, name: str, text: str) -> None:
        """All of pytest's files hold rules: a list, or one a line, with comments."""
        if pytest.version_tuple < (9,) and "ini" not in name + text:
            pytest.skip("native TOML is new in pytest 9")
        (pytester.path / name).write_text(text.format(outside), encoding="utf-8")
        pytester.makepyfile("from tools import dial\ndef test_it(): assert dial() == b'hello'")
        run("--netns", *(["-n1"] if name == "tox.ini" else [])).assert_outcomes(passed=1)

    @SCOPES
    def test_markers(self, pytester: pytest.Pytester, run: Run, scope: str, workers: tuple[str, ...]) -> None:
        """A marker's rules hold for its tests alone, wherever it stands, and however long a leaf lives."""
        pytester.makepyfile(
            test_a="""
            import pytest
            from tools import PORT, dial, refused
            OURS = f"localhost:{PORT}"
            def test_before(): assert refused()
            @pytest.mark.netns(allow=[OURS])
            def test_marked(): assert dial() == b"hello"
            def test_after(): assert refused()
            @pytest.mark.netns(allow=OURS)
            class TestClass:
                @pytest.mark.netns(allow=("a.example:443",))
                def test_added(self, netns_egress):
                    assert dial() == b"hello"
                    assert netns_egress.rules == ["run.example", OURS, "a.example:443"]
            @pytest.mark.netns(allow=[OURS], sni=False)
            def test_sni(): assert dial() == b"hello"
            """,
            test_b="""
            import pytest
            from tools import PORT, dial
            pytestmark = pytest.mark.netns(allow=[f"localhost:{PORT}"])
            @pytest.mark.netns(port=9000)
            def test_module(): assert dial() == b"hello"
            """,
            test_c="""
            from tools import refused
            def test_module(): assert refused()
            """,
        )
        run("--netns", f"--netns-scope={scope}", "--netns-allow=run.example", *workers).assert_outcomes(passed=7)

    @pytest.mark.parametrize("mode", ["--netns", "--netns-marked"])
    def test_marker_is_not_for_broader_fixtures(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, run: Run, mode: str
    ) -> None:
        """Fixtures that outlive the test keep to the run's own rules, or are outside under ``--netns-marked``."""
        pytester.makepyfile(
            """
            import os, pytest
            from tools import PORT, dial, refused
            @pytest.fixture(scope="module")
            def broad():
                return refused()
            @pytest.fixture
            def narrow():
                return refused()
            @pytest.mark.netns(allow=[f"localhost:{PORT}"])
            def test_it(broad, narrow): assert (broad, narrow) == (bool(os.environ["CLOSED"]), False)
            """
        )
        monkeypatch.setenv("CLOSED", "x" if mode == "--netns" else "")
        run(mode).assert_outcomes(passed=1)

    @WORKERS
    def test_opted_out(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """A test that opts out is outside or, of an ordinary user, in the worker's network, with the run's rules."""
        pytester.makepyfile(
            """
            import os, pytest
            from tools import PORT, refused
            @pytest.mark.netns(allow=[f"localhost:{PORT}"])
            def test_marked(): assert not refused()
            @pytest.mark.no_netns
            def test_opted_out(): assert refused() is (os.geteuid() != 0)
            """
        )
        run("--netns", "--netns-scope=session", *workers).assert_outcomes(passed=2)


class TestWrongRules:
    """A rule that is none stops the run, or its test's collection, and is told with the place that it stands in."""

    @WORKERS
    def test_option(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """On the command line it is a usage error."""
        pytester.makepyfile("def test_it(): pass")
        result = run("--netns", "--netns-allow=https://api.example.com/v1", *workers)
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            ["ERROR: --netns-allow: 'https://api.example.com/v1' is no egress rule: *; write api.example.com:443"]
        )

    @pytest.mark.parametrize(
        ("name", "text", "words"),
        [
            (
                "tox.ini",
                "[pytest]\nnetns_allow =\n a.example:443\n a.example:http",
                "'a.example:http' is no egress rule",
            ),
            ("pytest.toml", "[pytest]\nnetns_allow = 'a.example'", "*write a list of rules*"),
            ("pytest.toml", "[pytest]\nnetns_allow = [443]", "*write a list of rules*"),
            ("tox.ini", "[pytest]\nnetns_egress = warn", "'warn' is no egress mode; write one of block, record, fail"),
        ],
        ids=["rule", "no list", "no texts", "mode"],
    )
    def test_configuration_file(self, pytester: pytest.Pytester, run: Run, name: str, text: str, words: str) -> None:
        """In a configuration file, too."""
        if pytest.version_tuple < (9,) and name.endswith(".toml"):
            pytest.skip("native TOML is new in pytest 9")
        (pytester.path / name).write_text(text, encoding="utf-8")
        result = run()
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: ini option netns_*: {words}*"])

    @WORKERS
    def test_marker(self, pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
        """In a marker it is a collection error, even if nothing is isolated."""
        pytester.makepyfile(
            """
            import pytest
            @pytest.mark.netns(allow=["a.example:443", "b.example:no"])
            def test_it(): pass
            @pytest.mark.netns(sni="no")
            def test_sni(): pass
            """
        )
        result = run("--no-netns", *workers)
        assert result.ret is not pytest.ExitCode.OK
        result.stdout.fnmatch_lines(
            [
                "marker netns on test_marker.py::test_it, allow: 'b.example:no' is no egress rule: *",
                "marker netns on test_marker.py::test_sni, sni: 'no' is neither; write True or False",
            ]
        )

    def test_mode(self, run: Run) -> None:
        """What is no mode is told by pytest itself."""
        result = run("--netns-egress=warn")
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(["*--netns-egress*'warn'*block*record*fail*"])


@pytest.mark.usefixtures("outside")
class TestFixture:
    """``netns_egress``."""

    @SCOPES
    def test_use(self, pytester: pytest.Pytester, run: Run, scope: str, workers: tuple[str, ...]) -> None:
        """It allows more to its test, tells what holds and what was tried, and is over when the test is."""
        pytester.makepyfile(
            """
            import pytest
            from pytest_netns import Egress, EgressRule, Flow, NamespaceClosedError, RuleError
            from tools import PORT, dial, refused
            RULE = f"localhost:{PORT}"
            kept = []
            @pytest.mark.netns(allow=["A.example:443"])
            def test_1(netns_egress, netns):
                assert isinstance(netns_egress, Egress) and netns.is_inside()
                assert netns_egress.rules == ["a.example:443"]
                assert (netns_egress.flows, netns_egress.blocked) == ([], [])
                assert refused("203.0.113.5", 443) and refused()
                with pytest.raises(RuleError, match="'b.example:no' is no egress rule"):
                    netns_egress.allow(RULE, "b.example:no")
                assert netns_egress.rules == ["a.example:443"] and refused()
                netns_egress.allow(RULE, "A.example:443")
                assert dial() == b"hello"
                assert netns_egress.rules == ["a.example:443", RULE]
                assert repr(netns_egress) == f"<Egress of {netns.name}: a.example:443, {RULE} allowed>"
                blocked, = netns_egress.blocked
                assert isinstance(blocked, Flow) and blocked.endpoint == "tcp 203.0.113.5:443"
                assert blocked.allow == "203.0.113.5:443" and blocked.test.endswith("::test_1")
                allowed = netns_egress.flows[-1]
                assert (allowed.verdict, allowed.rule) == ("allowed", RULE)
                kept.append(netns_egress)
            def test_2(netns_egress):
                assert refused() and netns_egress.rules == [] and netns_egress.flows == []
                for old in kept:
                    assert repr(old).endswith(" closed>")
                    for use in (lambda: old.rules, lambda: old.flows, lambda: old.blocked, lambda: old.allow(RULE)):
                        with pytest.raises(NamespaceClosedError, match="netns_egress fixture"): use()
                assert str(EgressRule.parse(RULE)) == RULE
            """
        )
        run("--netns", f"--netns-scope={scope}", *workers).assert_outcomes(passed=2)

    def test_isolates(self, pytester: pytest.Pytester, run: Run) -> None:
        """Who asks for it is isolated from the start; at run time, from then on."""
        pytester.makepyfile(
            """
            from tools import dial, refused
            def test_asking(netns_egress): assert refused()
            def test_late(request):
                assert dial() == b"hello"
                egress = request.getfixturevalue("netns_egress")
                assert refused() and egress.rules == []
            """
        )
        run("--netns-marked").assert_outcomes(passed=2)
        run("--no-netns", "-k", "asking").assert_outcomes(skipped=1)

    def test_fixture_is_described(self, run: Run) -> None:
        """``--fixtures``, ``--markers`` and ``--help`` tell of it all."""
        run("--fixtures").stdout.fnmatch_lines(["netns_egress --*"])
        run("--markers").stdout.fnmatch_lines(["@pytest.mark.netns(*allow=*sni=*"])
        lines = ["*--netns-allow=RULE*", "*--netns-egress=block|record|fail*", "*--netns-egress-log=FILE*"]
        lines += ["*netns_allow (linelist):*", "*netns_egress (string):*"]
        run("--help").stdout.fnmatch_lines_random(lines)

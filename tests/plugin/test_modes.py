"""Which tests are isolated: options, configuration files and markers."""

from __future__ import annotations

import sys

import pytest
from places import HOST, ROOT, Places, Run

SUITE = """
import pytest
from notes import note

def test_plain(): note("plain")
@pytest.mark.netns
def test_marked(): note("marked")
def test_fixture(netns):
    note("fixture")
    assert netns.is_inside()
def test_service(netns_service): note("service")
def test_late(request):
    note("before")
    netns = request.getfixturevalue("netns")
    note("after")
    assert netns.is_inside()
@pytest.mark.netns
class TestClass:
    def test_in_class(self): note("class")
    @pytest.mark.no_netns
    def test_opted_out(self): note("opted out")
def test_port(netns_port):
    note(f"port {netns_port}")
"""
ASKING = {"marked", "fixture", "service", "after", "class"}
OTHERS = {"plain", "before", "opted out", "port 8080"}


class TestModes:
    """``--netns``, ``--netns-marked``, ``--no-netns``, and nothing said."""

    def test_all(self, pytester: pytest.Pytester, run: Run, places: Places) -> None:
        """Every test is in a leaf of its own; the path after the option is a path; an opt-out stays outside."""
        pytester.makepyfile(test_suite=SUITE)
        result = run("--netns", "test_suite.py")
        result.assert_outcomes(passed=8)
        found = places()
        leaves = {what: place for what, place in found.items() if what not in {"before", "opted out"}}
        assert found["before"] == found["after"]
        assert [place.name for place in leaves.values()] == [f"main-t{number}" for number in range(1, 8)]
        assert HOST.net not in {place.net for place in leaves.values()}
        assert HOST.mnt not in {place.mnt for place in leaves.values()}
        assert found["opted out"].name == (None if ROOT else "main")
        assert (found["opted out"] == HOST) is ROOT
        result.stdout.fnmatch_lines(
            [f"netns: all (every test), scope function, port 8080, {'root' if ROOT else 'rootless'}"]
        )

    @pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
    def test_marked(self, pytester: pytest.Pytester, run: Run, places: Places, workers: tuple[str, ...]) -> None:
        """Only who asks is isolated, at run time too; others stay where pytest was started, or in the worker leaf."""
        pytester.makepyfile(test_suite=SUITE)
        run("--netns-marked", *workers).assert_outcomes(passed=8)
        found = places()
        assert len({found[what].name for what in ASKING}) == len(ASKING)
        if ROOT:
            assert {found[what] for what in OTHERS} == {HOST}
        else:
            assert {found[what].name for what in OTHERS} <= ({"gw0", "gw1"} if workers else {"main"})

    @pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
    def test_unsaid(self, pytester: pytest.Pytester, run: Run, places: Places, workers: tuple[str, ...]) -> None:
        """Root gets the same as with ``--netns-marked``; an ordinary user is told what to add."""
        pytester.makepyfile(test_suite=SUITE)
        result = run(*workers)
        found = places()
        assert {found[what] for what in OTHERS} == {HOST}
        if ROOT:
            result.assert_outcomes(passed=8)
            assert len({found[what].name for what in ASKING}) == len(ASKING)
        else:
            result.assert_outcomes(passed=3, failed=1, errors=4)
            result.stdout.fnmatch_lines(['*--netns-marked*netns = "marked" to the configuration*--netns*'])

    def test_off(self, pytester: pytest.Pytester, run: Run, places: Places) -> None:
        """Nothing is isolated; who needs a network of its own is skipped; the port is there all the same."""
        pytester.makepyfile(test_suite=SUITE)
        pytester.makeini("[pytest]\nnetns = all\nnetns_port = 9000")
        result = run("--no-netns", "-rs")
        result.assert_outcomes(passed=5, skipped=3)
        found = places()
        assert set(found) == {"plain", "marked", "before", "class", "opted out", "port 9000"}
        assert set(found.values()) == {HOST}
        result.stdout.fnmatch_lines(["netns: off", "SKIPPED *needs a network of its own, but netns is off"])

    def test_contradiction(self, pytester: pytest.Pytester, run: Run) -> None:
        """A test that opts out and asks for the fixture is told so."""
        pytester.makepyfile(
            """
            import pytest
            pytestmark = pytest.mark.no_netns
            def test_it(netns): pass
            """
        )
        result = run("--netns")
        result.assert_outcomes(errors=1)
        result.stdout.fnmatch_lines(["*test_it asks for a network of its own*no_netns*(the marker is on test_contra*"])


class TestConfigurationFiles:
    """Native TOML, TOML in ini style, and ini files."""

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("pytest.toml", "[pytest]\nnetns = 'all'\nnetns_scope = 'module'\nnetns_port = 9000"),
            ("pyproject.toml", "[tool.pytest]\nnetns = 'all'\nnetns_scope = 'module'\nnetns_port = 9000"),
            ("pyproject.toml", "[tool.pytest.ini_options]\nnetns = 'all'\nnetns_scope = 'module'\nnetns_port = 9000"),
            ("tox.ini", "[pytest]\nnetns = all\nnetns_scope = module\nnetns_port = 9000"),
        ],
        ids=["pytest.toml", "tool.pytest", "ini_options", "tox.ini"],
    )
    def test_forms(self, pytester: pytest.Pytester, run: Run, name: str, text: str) -> None:
        """The three settings have the same meaning in each; a marker and an option beat them."""
        if "ini" not in text and pytest.version_tuple < (9,) and name != "tox.ini":
            pytest.skip("native TOML came with pytest 9")
        pytester.path.joinpath(name).write_text(text, encoding="utf-8")
        pytester.makepyfile(
            """
            import os, pytest
            seen = []
            def test_1(netns_port):
                assert netns_port == 9000
                seen.append(os.environ["PYTEST_NETNS"])
            def test_2():
                seen.append(os.environ["PYTEST_NETNS"])
                assert len(set(seen)) == 1
            @pytest.mark.netns(port=80, scope="function")
            def test_3(netns_port, netns_service):
                assert netns_port == netns_service.port == 80
                assert os.environ["PYTEST_NETNS"] not in seen
            """
        )
        result = run("-v")
        result.assert_outcomes(passed=3)
        result.stdout.fnmatch_lines(["netns: all (every test), scope module, port 9000, *", "*::test_3 PASSED*"])

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("netns = true", ["ini option netns:*", "*all, marked, off"]),
            ("netns = 'sometimes'", ["ini option netns:*'sometimes'*all, marked, off"]),
            ("netns_port = '80'", ["ini option netns_port:*'80'*a whole number from 1 to 65535"]),
            ("netns_port = true", ["ini option netns_port:*True*a whole number from 1 to 65535"]),
            ("netns_port = 70000", ["ini option netns_port:*70000*a whole number from 1 to 65535"]),
            ("netns_scope = 'test'", ["ini option netns_scope:*'test'*function, class, module, package, session"]),
        ],
    )
    @pytest.mark.skipif(pytest.version_tuple < (9,), reason="native TOML came with pytest 9")
    def test_wrong_value(self, pytester: pytest.Pytester, run: Run, text: str, words: list[str]) -> None:
        """It is a usage error that names option, value and the right forms."""
        pytester.path.joinpath("pytest.toml").write_text(f"[pytest]\n{text}", encoding="utf-8")
        result = run()
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        pytest.LineMatcher([" ".join(result.errlines)]).fnmatch_lines([f"*{'*'.join(words)}*"])


class TestOptions:
    """The command line."""

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["--netns-port=http"], "*--netns-port: 'http'*1 to 65535*"),
            (["--netns-port=0"], "*--netns-port: '0'*1 to 65535*"),
            (["-o", "netns_port=0"], "*ini option netns_port: 0 is no port; write a whole number from 1 to 65535"),
            (["-o", "netns_port=x"], "*ini option netns_port: 'x' is no number; write a whole number from 1 to 65535"),
            (["-o", "netns_sandbox=overlay=maybe"], "*ini option netns_sandbox: overlay='maybe' is neither; *"),
            (["--netns-scope=test"], "*--netns-scope: invalid choice: 'test'*function*session*"),
            (["--netns-unsupported=ignore"], "*--netns-unsupported: invalid choice: 'ignore'*"),
        ],
    )
    def test_wrong_value(self, run: Run, arguments: list[str], words: str) -> None:
        """It is a usage error that names option, value and the right forms."""
        result = run(*arguments)
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([words])

    def test_help_groups_the_options(self, run: Run) -> None:
        """``--help`` has a group for them, even where the configuration file is wrong."""
        result = run("--help", "-o", "netns=sometimes")
        assert result.ret == 0
        lines = [
            "*pytest-netns*:",
            "*--netns *",
            "*--netns-marked *",
            "*--no-netns *",
            "*--netns-scope*",
            "*--netns-port*",
        ]
        result.stdout.fnmatch_lines(lines)

    def test_fixtures_and_markers_are_described(self, run: Run) -> None:
        """``--fixtures`` and ``--markers`` tell what there is."""
        run("--fixtures").stdout.fnmatch_lines_random(["netns --*", "netns_port *scope*", "netns_service --*"])
        run("--markers").stdout.fnmatch_lines_random(["@pytest.mark.netns(port=*scope=*", "@pytest.mark.no_netns:*"])

    @pytest.mark.usefixtures("run")
    def test_plugin_is_found(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is there once the distribution is installed, among all the plugins that are."""
        monkeypatch.delenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
        pytester.makepyfile("import os\ndef test_it(): assert os.environ['PYTEST_NETNS'] == 'main-t1'")
        result = pytester.runpytest_subprocess("--netns", "-p", "no:cacheprovider")
        result.assert_outcomes(passed=1)


class TestMarkers:
    """``netns`` and ``no_netns``."""

    def test_wrong_marker_is_a_collection_error(self, pytester: pytest.Pytester, run: Run) -> None:
        """On functions, classes, modules and unittest classes, with and without xdist."""
        pytester.makepyfile(
            test_a="""
            import pytest
            @pytest.mark.netns(8080)
            def test_positional(netns_port): pass
            @pytest.mark.netns(prot=80)
            class TestKeyword:
                def test_1(self): pass
                def test_2(self): pass
            """,
            test_b="""
            import pytest, unittest
            pytestmark = pytest.mark.netns(scope="file")
            class TestScope(unittest.TestCase):
                def test_3(self): pass
            """,
            test_c="""
            import pytest
            @pytest.mark.netns(port=65536)
            def test_port(netns_port): pass
            """,
        )
        for workers in ((), ("-n1",)):
            result = run(*workers)
            assert result.ret is (pytest.ExitCode.TESTS_FAILED if workers else pytest.ExitCode.INTERRUPTED)
            result.stdout.fnmatch_lines_random(
                [
                    "*on test_a.py::test_positional: unexpected positional 8080; write @pytest.mark.netns(port=*",
                    "*on test_a.py::TestKeyword: unknown keyword 'prot'; known are port, scope, allow, sni",
                    "*on test_b.py, scope: 'file' is no scope; write one of function, class, *",
                    "*on test_c.py::test_port, port: 65536 is no port; write a whole number from 1 to 65535",
                ]
            )
            told, _, _ = result.stdout.str().partition("short test summary info")  # which tells it again in CI
            assert told.count("unknown keyword 'prot'") == 1

    def test_wrong_marker_that_comes_late(self, pytester: pytest.Pytester, run: Run) -> None:
        """One that a hook adds after the collection is told of in the test's report, once."""
        add = "def pytest_collection_modifyitems(items): items[0].add_marker(pytest.mark.netns(port=65536))"
        pytester.makeconftest(f"import pytest\n{add}")
        pytester.makepyfile("def test_1(): pass\ndef test_2(): pass")
        result = run("--netns")
        result.assert_outcomes(errors=1, passed=1)
        result.stdout.fnmatch_lines(["*, port: 65536 is no port; write a whole number from 1 to 65535"])
        result.stdout.no_fnmatch_line("During handling of *")

    def test_port_reaches_session_fixtures(self, pytester: pytest.Pytester, run: Run) -> None:
        """A session-scoped server follows the marker's port; the ids of the tests do not change."""
        pytester.makepyfile(
            """
            import pytest
            @pytest.fixture(scope="session")
            def server(netns_port):
                return f"server on {netns_port}"
            def test_1(server): assert server == "server on 8080"
            @pytest.mark.netns(port=9000)
            def test_2(server): assert server == "server on 9000"
            @pytest.mark.netns(port=9000)
            @pytest.mark.parametrize("letter", "ab")
            def test_3(server, letter): assert server == "server on 9000"
            @pytest.mark.parametrize("netns_port", [7000], indirect=True)
            @pytest.mark.netns(port=9000)
            def test_4(server): assert server == "server on 7000"
            """
        )
        result = run("-v", "--netns")
        result.assert_outcomes(passed=5)
        names = ["test_1", "test_2", "test_3[[]a[]]", "test_3[[]b[]]", "test_4[[]7000[]]"]
        result.stdout.fnmatch_lines([f"*::{name} PASSED*" for name in names])


@pytest.mark.parametrize("name", ["resource", "selectors", "platform", "filelock"])
@pytest.mark.parametrize("mode", ["--netns", "--netns-marked"])
def test_module_of_pythons_name(pytester: pytest.Pytester, run: Run, name: str, mode: str) -> None:
    """A module beside the tests that is called as one of Python's, or of ours, is none of what we start."""
    pytester.mkdir("tests")
    pytester.path.joinpath("tests", f"{name}.py").write_text("HELPER = 1\n")
    pytester.path.joinpath("tests", "test_it.py").write_text("def test_it(netns_sandbox, netns): pass\n")
    run(mode, "tests").assert_outcomes(passed=1)


def test_without_what_macos_lacks(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be isolated, who asks for nothing does not notice, and others are told the reason."""
    program = """
        import _signal, ctypes.util, socket, subprocess, sys
        import pytest
        del _signal.sigtimedwait
        sys.platform = "darwin"
        sys.exit(pytest.main(["-p", "pytest_netns.plugin", *sys.argv[1:]]))
    """
    pytester.makepyfile(on_macos=program, test_it="def test_it(): pass")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.run(sys.executable, "on_macos.py").assert_outcomes(passed=1)
    pytester.run(sys.executable, "on_macos.py", "--netns", "--netns-unsupported=skip").assert_outcomes(skipped=1)
    refused = pytester.run(sys.executable, "on_macos.py", "--netns")
    refused.stderr.fnmatch_lines(["*network namespaces are a feature of Linux, and this is darwin*"])

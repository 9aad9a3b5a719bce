"""Which namespace code runs in, at set-up and at tear-down alike."""

from __future__ import annotations

import pytest
from places import HOST, ROOT, Places, Run

FIXTURES = """
import pytest
from notes import note


def make(scope, name=None, **kwargs):
    name = name or f"{scope}_fixture"
    @pytest.fixture(scope=scope, name=name, **kwargs)
    def fixture(request):
        what = name + str(getattr(request, "param", ""))
        note(f"{what} up")
        request.addfinalizer(lambda: note(f"{what} finalizer"))
        yield what
        note(f"{what} down")
    return fixture

function_fixture = make("function")
class_fixture = make("class")
module_fixture = make("module")
package_fixture = make("package")
session_fixture = make("session")
late_fixture = make("session", "late_fixture")
parametrized = make("session", "parametrized", params=["-a", "-b"])

@pytest.fixture
def failing():
    note("failing")
    raise RuntimeError("on purpose")

@pytest.fixture(scope="session")
def failing_session(request):
    note("failing_session")
    request.addfinalizer(lambda: note("failing_session finalizer"))
    raise RuntimeError("on purpose")
"""

SUITE = """
import unittest
import pytest
from notes import note

note("import")

def setup_module(): note("setup_module")
def teardown_module(): note("teardown_module")
def setup_function(function):
    if function.__name__ != "test_parametrized":
        note(f"setup_function {function.__name__}")
def teardown_function(function):
    if function.__name__ != "test_parametrized":
        note(f"teardown_function {function.__name__}")

@pytest.fixture(autouse=True, scope="module")
def autouse_module():
    note("autouse_module up")
    yield
    note("autouse_module down")

def test_all(function_fixture, class_fixture, module_fixture, package_fixture, session_fixture):
    note("test_all")

def test_late(request):
    note("test_late before")
    request.getfixturevalue("late_fixture")
    note("test_late after")

def test_parametrized(parametrized):
    note(f"test_{parametrized}")

class TestXunit:
    @classmethod
    def setup_class(cls): note("setup_class")
    @classmethod
    def teardown_class(cls): note("teardown_class")
    def setup_method(self): note("setup_method")
    def teardown_method(self): note("teardown_method")
    def test(self): note("xunit test")

class TestUnit(unittest.TestCase):
    @classmethod
    def setUpClass(cls): note("setUpClass")
    @classmethod
    def tearDownClass(cls): note("tearDownClass")
    def setUp(self): note("setUp")
    def tearDown(self): note("tearDown")
    def test(self): note("unittest test")

def test_failing_set_up(failing): pass
def test_failing_session_set_up(request):
    with pytest.raises(RuntimeError):
        request.getfixturevalue("failing_session")
    note("test_failing_session_set_up")
"""

DOCUMENTED = """
def documented():
    '''
    >>> from notes import note
    >>> note("doctest")
    '''
"""

PACKAGE = """
from notes import note
def setup_module(): note("package setup_module")
def teardown_module(): note("package teardown_module")
"""

WHEN = ("up", "finalizer", "down")
IN_BASE = [
    *[f"{scope}_fixture {when}" for scope in ("class", "module", "package", "session") for when in WHEN],
    *[f"late_fixture {when}" for when in WHEN],
    *[f"parametrized-{letter} {when}" for letter in "ab" for when in WHEN],
    *["setup_module", "teardown_module", "setup_class", "teardown_class", "setUpClass", "tearDownClass"],
    *["package setup_module", "package teardown_module", "autouse_module up", "autouse_module down"],
    *["failing_session", "failing_session finalizer", "import"],
]  # fmt: skip
IN_ONE_LEAF = [
    ["test_all", "setup_function test_all", "teardown_function test_all"],
    ["test_late before", "test_late after", "setup_function test_late"],
    ["test_parametrized-a"],
    ["test_parametrized-b"],
    ["xunit test", "setup_method", "teardown_method"],
    ["unittest test", "setUp", "tearDown"],
    ["failing"],
    ["test_failing_session_set_up"],
    ["doctest"],
]


def write(pytester: pytest.Pytester) -> None:
    """Write the suite."""
    pytester.makeconftest(FIXTURES)
    pytester.mkpydir("pkg").joinpath("__init__.py").write_text(PACKAGE, encoding="utf-8")
    pytester.path.joinpath("pkg", "test_suite.py").write_text(SUITE, encoding="utf-8")
    pytester.path.joinpath("pkg", "documented.py").write_text(DOCUMENTED, encoding="utf-8")


class TestFunctionScope:
    """The default: a leaf lives for one test."""

    @pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
    def test_each_thing_runs_where_it_belongs(
        self, pytester: pytest.Pytester, run: Run, places: Places, workers: tuple[str, ...]
    ) -> None:
        """Tests and function fixtures run in the test's leaf; broader ones, imports and collection in the worker's."""
        write(pytester)
        result = run("--netns", "--doctest-modules", *workers, "pkg/documented.py", "pkg/test_suite.py")
        result.assert_outcomes(passed=8, errors=1)
        found = {what: place for what, place in places().items() if "function_fixture" not in what}
        base = found["session_fixture up"]
        assert base != HOST
        assert base.name == ("gw0" if workers else "main")
        assert {what: found[what] for what in IN_BASE} == dict.fromkeys(IN_BASE, base)
        leaves = [found[group[0]] for group in IN_ONE_LEAF]
        assert [{found[what] for what in group} for group in IN_ONE_LEAF] == [{leaf} for leaf in leaves]
        assert len({leaf.name for leaf in leaves} | {base.name}) == len(leaves) + 1

    def test_marked(self, pytester: pytest.Pytester, run: Run, places: Places) -> None:
        """Where only some tests are isolated, the fixtures that they share with others run where those others do."""
        write(pytester)
        pytester.makeconftest(
            FIXTURES
            + """
def pytest_collection_modifyitems(items):
    for item in items:
        if item.name in ("test_late", "test_parametrized[-b]"):
            item.add_marker("netns")
"""
        )
        result = run("--netns-marked", "--doctest-modules", "pkg/documented.py", "pkg/test_suite.py")
        result.assert_outcomes(passed=8, errors=1)
        found = places()
        base = found["session_fixture up"]
        assert (base == HOST) is ROOT
        assert {what: found[what] for what in IN_BASE} == dict.fromkeys(IN_BASE, base)
        isolated = ["test_late before", "test_late after", "test_parametrized-b"]
        elsewhere = [what for group in IN_ONE_LEAF for what in group if what not in isolated and "late" not in what]
        assert {found[what] for what in elsewhere} == {base}
        assert len({found[what].name for what in isolated}) == 2
        assert base not in {found[what] for what in isolated}


class TestBroaderScopes:
    """``--netns-scope`` and the marker's ``scope``: a leaf lives for a class, a module, a package or the whole run."""

    def test_module(self, pytester: pytest.Pytester, run: Run, places: Places) -> None:
        """Fixtures that do not outlive a module run in the module's leaf, others in the worker's."""
        write(pytester)
        pytester.makepyfile(test_other="from notes import note\ndef test_a(): note('a')\ndef test_b(): note('b')")
        run("--netns", "--netns-scope=module", "pkg", "test_other.py").assert_outcomes(passed=9, errors=1)
        found = places()
        leaf, base = found["test_all"], found["session_fixture up"]
        assert leaf != base
        for what in ("function", "class", "module"):
            assert {found[f"{what}_fixture {when}"] for when in WHEN} == {leaf}
        for what in ("package", "session"):
            assert {found[f"{what}_fixture {when}"] for when in WHEN} == {base}
        assert {found[what] for what in ("setup_module", "teardown_module", "setUpClass", "xunit test")} == {leaf}
        assert {found[f"package {when}_module"] for when in ("setup", "teardown")} == {base}
        assert found["a"] == found["b"]
        assert found["a"] not in {leaf, base}

    @pytest.mark.parametrize("scope", ["class", "package", "session"])
    def test_others(self, pytester: pytest.Pytester, run: Run, places: Places, scope: str) -> None:
        """Each scope has as many leaves as a fixture of that scope would have instances."""
        for package in ("one", "two"):
            pytester.mkpydir(package).joinpath(f"test_{package}.py").write_text(
                f"""
from notes import note
class TestA:
    def test_1(self): note("{package}.A.1")
    def test_2(self): note("{package}.A.2")
class TestB:
    def test_3(self): note("{package}.B.3")
def test_4(): note("{package}.4")
def test_5(): note("{package}.5")
""",
                encoding="utf-8",
            )
        run("--netns", f"--netns-scope={scope}").assert_outcomes(passed=10)
        found = places()
        leaves = {place.name for place in found.values()}
        if scope == "class":
            assert found["one.A.1"] == found["one.A.2"]
            assert len(leaves) == 8
        elif scope == "package":
            assert len(leaves) == 2
            assert found["one.A.1"] == found["one.5"]
        else:
            assert {place.name for place in found.values()} == {"main"}

    def test_marker(self, pytester: pytest.Pytester, run: Run, places: Places) -> None:
        """A marker's scope holds for its class or module, and the closest marker wins."""
        pytester.makepyfile(
            """
            import pytest
            from notes import note
            pytestmark = pytest.mark.netns(scope="module")
            def test_1(): note("1")
            @pytest.mark.netns(scope="class")
            class TestC:
                def test_2(self): note("2")
                @pytest.mark.netns(scope="function", port=80)
                def test_3(self, netns_port, netns_service):
                    assert (netns_port, netns_service.port) == (80, 80)
                    note("3")
                def test_4(self, netns_port):
                    assert netns_port == 8080
                    note("4")
            def test_5(): note("5")
            """
        )
        run("--netns", "--netns-scope=session").assert_outcomes(passed=5)
        found = places()
        assert found["1"] == found["5"]
        assert found["2"] == found["4"]
        assert len({found[number].name for number in "123"}) == 3


class TestInterruptions:
    """Runs that end early."""

    @pytest.mark.parametrize("how", ["raise KeyboardInterrupt", "pytest.exit('enough')", "assert False"])
    @pytest.mark.parametrize("scope", ["function", "module"])
    def test_fixtures_are_torn_down_where_they_were_set_up(
        self, pytester: pytest.Pytester, run: Run, places: Places, how: str, scope: str
    ) -> None:
        """With Ctrl-C, ``pytest.exit`` and ``-x``, what remains is torn down at the end, in its own place."""
        pytester.makeconftest(FIXTURES)
        pytester.makepyfile(
            f"""
            import pytest
            from notes import note
            def test_1(function_fixture, module_fixture, session_fixture):
                note("test_1")
                {how}
            def test_2(): note("test_2")
            """
        )
        run("--netns", f"--netns-scope={scope}", "-x")
        found = places()
        assert "test_2" not in found
        leaf, base = found["test_1"], found["session_fixture up"]
        assert leaf != base
        assert {found[f"session_fixture {when}"] for when in WHEN} == {base}
        assert {found[f"function_fixture {when}"] for when in WHEN} == {leaf}
        expected = leaf if scope == "module" else base
        assert {found[f"module_fixture {when}"] for when in WHEN} == {expected}

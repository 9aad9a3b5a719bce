"""Suites of many kinds, in full isolation."""

from __future__ import annotations

import pytest
from runs import IN_EVERY_WAY, Suite, requires


@requires("pytest-xdist")
def test_one_port_for_all(suite: Suite) -> None:
    """Eight workers, each test on the same port of every kind, and none in the other's way."""
    suite.write(
        test_port="""
        import socket, threading, time
        import pytest

        @pytest.mark.parametrize("number", range(40))
        @pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
        @pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
        def test_it(number, host, kind):
            server = socket.socket(socket.AF_INET, socket.SocketKind[kind])
            server.bind((host, 8080))
            client = socket.socket(socket.AF_INET, server.type)
            time.sleep(0.01)
            if kind == "SOCK_STREAM":
                server.listen()
            client.connect(("127.0.0.1", 8080))
            accepted = server.accept()[0] if kind == "SOCK_STREAM" else server
            client.send(str(number).encode())
            assert accepted.recv(10) == str(number).encode()
            for one in (server, client, accepted):
                one.close()
        """
    )
    suite.run("--netns", "-n8", "-Werror").assert_outcomes(passed=160)


@requires("pytest-httpserver")
@IN_EVERY_WAY
def test_httpserver(suite: Suite, way: tuple[str, ...]) -> None:
    """The session's server is reached from every test, at its one address."""
    suite.write(
        test_http="""
        import urllib.request
        import pytest
        from tools import listen
        @pytest.fixture(scope="session")
        def httpserver_listen_address():
            return "127.0.0.1", 9000
        @pytest.mark.parametrize("number", range(6))
        def test_it(httpserver, number):
            listen().close()
            httpserver.expect_request("/number").respond_with_json(number)
            assert httpserver.url_for("/number") == "http://127.0.0.1:9000/number"
            with urllib.request.urlopen("http://localhost:9000/number", timeout=5) as answer:
                assert answer.read() == str(number).encode()
            httpserver.check()
        """
    )
    suite.passes(*way, plugins="pytest_httpserver", passed=6)


@requires("pytest-randomly")
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_random_order(suite: Suite, workers: tuple[str, ...]) -> None:
    """pytest-randomly shuffles classes and functions; whatever the order, each test has its own leaf."""
    suite.write(
        test_order="""
        import pytest
        from tools import leaf, listen
        @pytest.fixture(scope="class")
        def of_class():
            return leaf()
        class TestA:
            def test_1(self, of_class): self.check(of_class)
            def test_2(self, of_class): self.check(of_class)
            def test_3(self): self.check(None)
            def check(self, base):
                listen()
                assert leaf() != base
        class TestB(TestA):
            pass
        def test_4(): listen()
        """
    )
    suite.passes("--netns", "--randomly-seed=1", *workers, plugins="randomly", passed=7)


def test_kinds_of_tests(suite: Suite) -> None:
    """Test classes of unittest, doctests in modules and text files, and functions, with every warning an error."""
    suite.write(
        documented="""
        def listen():
            '''
            >>> import tools
            >>> _ = tools.listen()
            >>> tools.leaf()[0].startswith("main-t")
            True
            '''
        """,
        test_kinds="""
        import subprocess, unittest
        import pytest
        from tools import answer, ask, leaf, listen

        class TestUnit(unittest.TestCase):
            @classmethod
            def setUpClass(cls):
                cls.base = leaf()
                answer(listen(9000), 2)
            def setUp(self):
                self.server = listen()
                self.place = leaf()
                self.addCleanup(lambda: self.assertEqual(leaf(), self.place))
            def tearDown(self):
                self.assertEqual(leaf(), self.place)
            def test_1(self):
                answer(self.server)
                self.assertEqual(ask(), b"hello")
                self.assertEqual(ask(9000), b"hello")
            def test_2(self):
                for number in range(2):
                    with self.subTest(number=number):
                        self.assertNotEqual(leaf(), self.base)
                self.assertEqual(ask(9000), b"hello")
            @unittest.skip("for no reason")
            def test_3(self): pass
            @unittest.expectedFailure
            def test_4(self):
                self.fail()

        class TestAsync(unittest.IsolatedAsyncioTestCase):
            async def asyncSetUp(self):
                self.place = leaf()
                listen()
            async def test_5(self):
                self.assertEqual(leaf(), self.place)

        class TestXunit:
            def setup_method(self):
                listen()
            def test_6(self): pass
        """,
    )
    suite.path.joinpath("text.txt").write_text(">>> import tools\n>>> _ = tools.listen()\n", encoding="utf-8")
    result = suite.run(
        "--netns", "-Werror", "--doctest-modules", "--doctest-glob=*.txt", plugins="unraisableexception threadexception"
    )
    outcomes = result.parseoutcomes()
    outcomes.pop("subtests passed", None)
    assert outcomes == {"passed": 6, "skipped": 1, "xfailed": 1}


@IN_EVERY_WAY
def test_usual_fixtures(suite: Suite, way: tuple[str, ...]) -> None:
    """Fixtures from a plugin module and by ``usefixtures``, log records, directories and variables work as ever."""
    suite.write(
        conftest="pytest_plugins = ['services']",
        services="""
        import logging, os
        import pytest
        from tools import answer, listen

        @pytest.fixture
        def service():
            with listen() as server:
                answer(server)
                yield
            logging.getLogger("service").warning("stopped")

        @pytest.fixture(scope="module", autouse=True)
        def directory(tmp_path_factory):
            before = os.getcwd()
            os.chdir(tmp_path_factory.mktemp("directory"))
            os.environ["WHERE"] = os.getcwd()
            yield
            os.chdir(before)
            del os.environ["WHERE"]
        """,
        test_usual="""
        import logging, os, subprocess
        import pytest
        from tools import ask

        @pytest.mark.usefixtures("service")
        class TestUsual:
            @pytest.mark.parametrize("number", range(3))
            def test_it(self, number, caplog, tmp_path, monkeypatch, capfd):
                assert os.getcwd() == os.environ["WHERE"]
                monkeypatch.setenv("NUMBER", str(number))
                monkeypatch.chdir(tmp_path)
                subprocess.run("echo $NUMBER in $PWD", shell=True, check=True)
                assert capfd.readouterr().out == f"{number} in {tmp_path}\\n"
                assert ask() == b"hello"
                logging.getLogger("service").warning("answered")
                assert caplog.messages == ["answered"]
        """,
    )
    suite.passes(*way, "--log-file=log", passed=3)
    if "-n2" not in way:
        log = (suite.path / "log").read_text(encoding="utf-8")
        assert [line.split()[-1] for line in log.splitlines()] == ["answered", "stopped"] * 3


def test_multiprocessing(suite: Suite) -> None:
    """A pool and a manager of the session's serve every test; a pool of a test's own is in its leaf."""
    suite.write(
        test_processes="""
        import multiprocessing, os, sys
        from concurrent.futures import ProcessPoolExecutor
        import pytest
        from tools import leaf

        @pytest.fixture(scope="session", params=["fork", "spawn", "forkserver"])
        def context(request):
            return multiprocessing.get_context(request.param)

        @pytest.fixture(scope="session")
        def pool(context):
            with context.Pool(1, maxtasksperchild=1) as pool:
                yield pool

        @pytest.fixture(scope="session")
        def known(context):
            with context.Manager() as manager:
                yield manager.dict(base=leaf()[1])

        @pytest.mark.parametrize("number", range(2))
        def test_it(context, pool, known, number):
            places = {pool.apply(leaf)[1] for _ in range(2)}
            assert places == {known["base"]} != {leaf()[1]}
            known[number] = leaf()[0]
            assert len(set(known.values())) == number + 2
            if context.get_start_method() != "forkserver":  # the one server that there is may be the session's
                with ProcessPoolExecutor(1, mp_context=context) as own:
                    assert own.submit(leaf).result() == leaf()
        """
    )
    suite.run("--netns").assert_outcomes(passed=6)


def test_questions(suite: Suite) -> None:
    """``--collect-only`` and ``--setup-plan`` answer as they do without us, and make no leaf but the worker's."""
    suite.write(test_few="import tools\ntools.note(*tools.leaf())\ndef test_1(): pass\ndef test_2(netns): pass")
    result = suite.run("--netns", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["test_few.py::test_1", "test_few.py::test_2", "", "2 tests collected in *"])
    assert [line.split()[0] for line in suite.notes()] == ["main"]
    result = suite.run("--netns", "--setup-plan")
    result.stdout.fnmatch_lines(
        ["*test_few.py::test_1", "*SETUP * netns", "*test_few.py::test_2 *", "*TEARDOWN * netns"]
    )


@IN_EVERY_WAY
def test_children(suite: Suite, way: tuple[str, ...]) -> None:
    """Suites wait for any child of theirs, count them, or end them all: there is none that they have not started."""
    suite.write(
        test_children="""
        import os
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_it(number):
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                assert file.read() == ""
        """
    )
    suite.passes(*way, passed=2)

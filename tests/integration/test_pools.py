"""Event loops and pools of a whole session, and what tests hand over to their threads and processes."""

from __future__ import annotations

from runs import IN_EVERY_WAY, Suite, requires

POOLS = """
import os, subprocess, sys, threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
import pytest
from tools import answer, ask, listen

def network():
    return os.stat("/proc/thread-self/ns/net").st_ino

def serve_and_ask():
    with listen() as server:
        answer(server)
        return ask(), network()

@pytest.fixture(scope="session")
def threads():
    with ThreadPoolExecutor(1) as executor:
        yield executor

@pytest.fixture(scope="session", params=["fork", "spawn"])
def processes(request):
    import multiprocessing
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(request.param)) as executor:
        yield executor, network()

@pytest.mark.parametrize("number", range(3))
def test_threads(threads, monkeypatch, tmp_path, number):
    monkeypatch.chdir(tmp_path)
    assert threads.submit(serve_and_ask).result() == (b"hello", network())
    assert threads.submit(os.getcwd).result() == str(tmp_path)
    assert list(threads.map(int, "12")) == [1, 2]
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result()

@pytest.mark.parametrize("number", range(2))
def test_processes(processes, number):
    executor, home = processes
    assert executor.submit(network).result() == home
    with listen() as server:
        answer(server)
        assert executor.submit(ask).result() == b"hello"
"""
LOOP = """
import asyncio, socket
import pytest
from test_pools import network, serve_and_ask

@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("number", range(3))
async def test_session_loop(number):
    assert await asyncio.to_thread(serve_and_ask) == (b"hello", network())
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "localhost", 8080)
    reader, writer = await asyncio.open_connection("localhost", 8080)
    assert await reader.read() == b""
    writer.close()
    server.close()
    await server.wait_closed()
"""
TRIO = """
import pytest, trio
from test_pools import network, serve_and_ask

@pytest.mark.parametrize("number", range(3))
def test_trio(number):
    assert trio.run(trio.to_thread.run_sync, serve_and_ask) == (b"hello", network())
"""


@IN_EVERY_WAY
def test_executors(suite: Suite, way: tuple[str, ...]) -> None:
    """A session's threads work where the work comes from, its processes where they were made, and none is warned of."""
    suite.write(test_pools=POOLS)
    suite.passes(*way, "-Werror", passed=7)


def test_functions_that_a_test_replaces(suite: Suite) -> None:
    """Work is handed over and moved as well where a test, or a fixture of every test, forbids calls that block."""
    suite.write(
        test_replaced="""
        import os
        from concurrent.futures import ThreadPoolExecutor
        import pytest
        executor = ThreadPoolExecutor(1)

        @pytest.mark.parametrize("number", range(2))
        def test_it(monkeypatch, number):
            def forbidden(*arguments, **keywords):
                raise AssertionError("it blocks")
            for name in ("chdir", "close", "getcwd", "open", "stat"):
                monkeypatch.setattr(os, name, forbidden)
            assert executor.submit(int, "1").result() == 1
            monkeypatch.undo()
            assert executor.submit(os.stat, "/proc/thread-self/ns/net").result() == os.stat("/proc/self/ns/net")
        """
    )
    suite.passes("--netns", "-Werror", passed=2)


def test_descriptors_that_a_test_counts(suite: Suite) -> None:
    """Handing work over neither opens a descriptor in the test nor closes one that the test before it needed."""
    suite.write(
        test_counted="""
        import os
        from concurrent.futures import ThreadPoolExecutor
        import pytest
        executor = ThreadPoolExecutor(1)

        @pytest.mark.parametrize("number", range(3))
        def test_it(number):
            before = os.listdir("/dev/fd")
            for _ in range(2):
                executor.submit(int, "1").result()
                executor.submit(int, "1").result()
                assert os.listdir("/dev/fd") == before
        """
    )
    suite.passes("--netns", "-Werror", passed=3)


@requires("pytest-asyncio", "trio")
@IN_EVERY_WAY
def test_loops(suite: Suite, way: tuple[str, ...]) -> None:
    """So do the threads of an event loop that is the session's, and those of trio, which outlive any."""
    suite.write(test_pools=POOLS, test_loop=LOOP, test_trio=TRIO)
    options = ("-Werror", "-o", "asyncio_default_fixture_loop_scope=function")
    suite.passes(*way, *options, "test_loop.py", "test_trio.py", plugins="asyncio", passed=6)


def test_work_of_its_own(suite: Suite) -> None:
    """A thread that goes on working in a test's leaf is warned of, be it a pool's; once it is done, no more."""
    suite.write(
        test_work="""
        import threading
        from concurrent.futures import ThreadPoolExecutor
        executor, go_on = ThreadPoolExecutor(1, "pool"), threading.Event()
        def test_first():
            executor.submit(go_on.wait)
        def test_second():
            go_on.set()
        """
    )
    result = suite.run("--netns")
    result.assert_outcomes(passed=2, warnings=1)
    result.stdout.fnmatch_lines(["*NetnsWarning: test_work.py::test_first left running in its network*thread pool_0"])


def test_kept_connection(suite: Suite) -> None:
    """A connection that a session's client has opened in one test to a session's server is of use in the next."""
    suite.write(
        test_kept="""
        import socket, threading
        import pytest
        from tools import listen

        def echo(server):
            connection, _ = server.accept()
            while words := connection.recv(100):
                connection.sendall(words)
            connection.close()

        @pytest.fixture(scope="session")
        def client():
            with listen(9000) as server, socket.socket() as client:
                thread = threading.Thread(target=echo, args=(server,))
                thread.start()
                yield client
                client.close()
                thread.join()

        def test_first(client):
            client.connect(("127.0.0.1", 9000))

        @pytest.mark.parametrize("number", range(3))
        def test_next(client, number):
            client.settimeout(5)
            client.sendall(b"hello")
            assert client.recv(100) == b"hello"
        """
    )
    suite.passes("--netns", "-Werror", passed=4)

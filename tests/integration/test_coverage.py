"""pytest-cov."""

from __future__ import annotations

import pytest
from runs import IN_EVERY_WAY, Suite, requires

pytestmark = requires("pytest-cov")


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_subprocesses(suite: Suite, workers: tuple[str, ...]) -> None:
    """A test's subprocesses are measured, even one that had to be ended; the gateway is not."""
    suite.write(
        service="""
        import socket, sys
        def main(word):
            server = socket.create_server(("127.0.0.1", 8080))
            if word == "once":
                server.accept()[0].sendall(b"hello")
            else:
                server.close()
        if __name__ == "__main__":
            main(sys.argv[1])
        """,
        test_service="""
        import socket, sys
        import pytest
        @pytest.mark.parametrize("word", ["once", "never"])
        def test_it(netns, netns_service, word):
            service = netns.popen([sys.executable, "service.py", word])
            if word == "once":
                netns_service.wait()
                assert socket.create_connection(("127.0.0.1", netns_service.port)).recv(9) == b"hello"
            assert service.wait() == 0
        """,
    )
    suite.path.joinpath(".coveragerc").write_text("[run]\npatch = subprocess\n", encoding="utf-8")
    result = suite.run("--netns", "--cov=.", "--cov-report=term-missing", *workers, plugins="pytest_cov")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["service.py * 100%*"])
    result.stdout.no_fnmatch_line("*pytest_netns*")
    result.stdout.no_fnmatch_line("*warning*")
    assert sorted(path.name for path in suite.path.glob(".coverage*")) == [".coverage", ".coveragerc"]


@IN_EVERY_WAY
def test_threads_and_processes(suite: Suite, way: tuple[str, ...]) -> None:
    """What a session's pools of threads and processes do is measured, in every network, and told by test."""
    suite.write(
        work="""
        def in_thread():
            return "thread"
        def in_process():
            return "process"
        """,
        test_work="""
        import multiprocessing
        from concurrent.futures import ThreadPoolExecutor
        import pytest, work
        from tools import listen
        @pytest.fixture(scope="session")
        def pools():
            with ThreadPoolExecutor(1) as threads, multiprocessing.get_context("spawn").Pool(1) as processes:
                yield threads, processes
                processes.close()
                processes.join()
        @pytest.mark.parametrize("number", range(2))
        def test_it(pools, number):
            threads, processes = pools
            listen().close()
            assert threads.submit(work.in_thread).result() == "thread"
            assert processes.apply(work.in_process) == "process"
        """,
    )
    suite.path.joinpath(".coveragerc").write_text("[run]\nconcurrency = multiprocessing, thread\n", encoding="utf-8")
    options = ("--cov=.", "--cov-context=test", "--cov-report=term-missing")
    result = suite.passes(*way, *options, plugins="pytest_cov", passed=2)
    result.stdout.fnmatch_lines(["work.py * 100%*"])

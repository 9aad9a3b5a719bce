"""pytest-cov."""

from __future__ import annotations

import pytest
from runs import Suite, requires

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
    assert [path.name for path in suite.path.glob(".coverage*")] == [".coverage", ".coveragerc"]

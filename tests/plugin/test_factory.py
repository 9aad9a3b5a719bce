"""Further namespaces for one test."""

from __future__ import annotations

import pytest
from places import Run

TESTS = """
import os, socket
import pytest
import pytest_netns

@pytest.fixture(scope="session", autouse=True)
def session_server():
    with socket.create_server(("127.0.0.1", 5432)):
        yield

def refusal(*where):
    with pytest.raises(OSError) as caught:
        socket.create_connection(where, 5)
    return caught.value.strerror

def test_addresses(netns, netns_factory):
    made = [netns_factory(), netns_factory(port=80)]
    assert [one.service_port for one in made] == [8080, 80]
    for number, other in enumerate(made):
        with other, socket.create_server((other.ipv4, 8080)) as server:
            assert os.environ["PYTEST_NETNS"] == other.name != netns.name
            with netns.worker:
                socket.create_connection((other.ipv4, 8080), 5).close()
            assert server.accept()[1][0] == netns.worker.ipv4
            socket.create_connection(("127.0.0.1", 5432), 5).close()
            with made[not number]:
                assert refusal(other.ipv4, 8080) == "No route to host"
            with netns:
                assert refusal(other.ipv4, 8080) == "No route to host"

def test_loopback_stays_the_tests(netns, netns_factory):
    other = netns_factory()
    with netns, socket.create_server(("127.0.0.1", 8080)), other, socket.create_server(("127.0.0.1", 8081)):
        with netns.worker:
            socket.create_connection(("127.0.0.1", 8080), 5).close()
            assert refusal("127.0.0.1", 8081) == "Connection refused"

def test_published(netns_factory):
    other = netns_factory()
    with other, socket.create_server(("127.0.0.1", 8080)):
        assert other.publish(8080) > 0

@pytest.mark.parametrize("allow", ["no rule:at all", [":80"]])
def test_wrong(netns_factory, allow):
    with pytest.raises(ValueError, match="allow="):
        netns_factory(allow=allow)
    with pytest.raises(ValueError, match="port="):
        netns_factory(port=0)

LATE = []
def test_leaves(netns, netns_factory):
    other = netns_factory(allow=["192.0.2.1:80"])
    LATE[:] = [other, netns_factory]
    other.popen(["sleep", "91"])
    with other:
        assert refusal("192.0.2.2", 80) == "No route to host"
    assert False

def test_over():
    if LATE:
        other, factory = LATE
        assert other.closed
        with pytest.raises(pytest_netns.NamespaceClosedError, match="is over"):
            factory()
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
@pytest.mark.parametrize("mode", [("--netns",), ("--netns", "--netns-scope=module")], ids=" ".join)
def test_factory(pytester: pytest.Pytester, run: Run, mode: tuple[str, ...], workers: tuple[str, ...]) -> None:
    """A test has as many namespaces as it likes, each apart; what comes of them stands in its report."""
    pytester.makepyfile(test_it=TESTS)
    result = run("-W", "ignore::ResourceWarning", *mode, *workers)
    result.assert_outcomes(passed=6, failed=1)
    result.stdout.fnmatch_lines(
        [
            "in *: running: pid *: sleep 91",
            'blocked: tcp 192.0.2.2:80; allow with "192.0.2.2:80"',
            "test_it.py::test_leaves left running, ended with SIGTERM: pid *: sleep 91",
        ]
    )


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_scope_session(pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
    """Where tests share their worker's namespace, its loopback is not continued in a further one."""
    pytester.makepyfile(
        """
        import socket, pytest
        def test_1(netns, netns_factory):
            with netns_factory(), socket.create_server(("127.0.0.1", 8080)):
                with netns, pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", 8080), 5)
        def test_2(): pass
        """
    )
    run("--netns", "--netns-scope=session", *workers).assert_outcomes(passed=2)


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_marked(pytester: pytest.Pytester, run: Run, workers: tuple[str, ...]) -> None:
    """To ask for further namespaces is to ask for the first."""
    pytester.makepyfile(
        """
        import os
        def test_1(netns_factory):
            own = os.environ["PYTEST_NETNS"]
            other = netns_factory()
            with other:
                assert os.environ["PYTEST_NETNS"] == other.name != own
        def test_2():
            assert "-t" not in os.environ.get("PYTEST_NETNS", "")
        """
    )
    run("--netns-marked", *workers).assert_outcomes(passed=2)


def test_off(pytester: pytest.Pytester, run: Run) -> None:
    """Without isolation, a test that asks for it is skipped; one that is marked to stay out fails."""
    pytester.makepyfile(
        """
        import pytest
        def test_1(netns_factory): pass
        @pytest.mark.no_netns
        def test_2(netns_factory): pass
        """
    )
    run("--no-netns").assert_outcomes(skipped=2)
    run("--netns").assert_outcomes(passed=1, errors=1)

"""The service port of a leaf, without pytest's plugin and without a gateway; each test has namespaces of its own."""

from __future__ import annotations

import os
import sys
import time

import pytest
from test_namespace import Recorder, ended, make_leaf
from unshared import unshared

from pytest_netns.errors import ServiceNotReadyError
from pytest_netns.namespace import Namespace
from pytest_netns.service import Published, ServicePort

SERVER = """
import socket, sys, time
time.sleep({delay})
server = socket.create_server(("{host}", {port}), family=socket.{family}, dualstack_ipv6={dual})
connection, peer = server.accept()
connection.sendall(b"first")
time.sleep(60)
"""


def start(
    leaf: Namespace, host: str = "127.0.0.1", port: int = 8080, family: str = "AF_INET", delay: float = 0
) -> None:
    """Start a server inside that serves one connection."""
    code = SERVER.format(host=host, port=port, family=family, delay=delay, dual=host == "::")
    leaf.popen([sys.executable, "-c", code])


@unshared
def test_attributes() -> None:
    """Host, port and URL are the same for each leaf, the port is the leaf's unless given, the address its own."""
    leaf = make_leaf()
    served = ServicePort(leaf)
    assert (served.host, served.port, served.url) == ("127.0.0.1", 8080, "http://127.0.0.1:8080")
    assert served.address == leaf.ipv4
    assert ServicePort(leaf, 80).url == "http://127.0.0.1:80"
    assert repr(served) == "<ServicePort 127.0.0.1:8080 in w0-t1>"


@unshared
@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", "AF_INET"), ("0.0.0.0", "AF_INET"), ("::", "AF_INET6")], ids=["lo", "any", "v6"]
)
def test_wait_returns_when_the_service_is_up(host: str, family: str) -> None:
    """Waiting, from outside, ends soon after the service has started to listen."""
    leaf = make_leaf()
    with ended(leaf):
        before = time.monotonic()
        start(leaf, host, family=family, delay=0.3)
        ServicePort(leaf).wait()
        assert 0.3 <= time.monotonic() - before < 5
        assert not leaf.is_inside()


@unshared
def test_wait_says_what_does_listen() -> None:
    """Where the service is not up in time, the error says what listens inside, and which processes there are."""
    leaf = make_leaf()
    with ended(leaf):
        start(leaf, "0.0.0.0", 9090)
        start(leaf, "::1", 8080, "AF_INET6")
        ServicePort(leaf, 9090).wait()
        time.sleep(0.3)
        before = time.monotonic()
        with pytest.raises(ServiceNotReadyError) as caught:
            ServicePort(leaf).wait(timeout=0.2)
        assert 0.2 <= time.monotonic() - before < 1
        text = str(caught.value)
        assert "nothing accepted a connection at 127.0.0.1:8080 in w0-t1 within 0.2 s" in text
        assert "what listens there: 0.0.0.0:9090, [::1]:8080" in text
        assert os.path.basename(sys.executable) in text
        assert isinstance(caught.value, TimeoutError)
        assert not leaf.is_inside()


@unshared
def test_wait_in_an_empty_leaf() -> None:
    """Where nothing was started, the error says so; a timeout of zero looks once."""
    with pytest.raises(ServiceNotReadyError, match=r"no program listens on any TCP port there; processes there: none"):
        ServicePort(make_leaf()).wait(0)


@unshared
def test_publish() -> None:
    """The service is reachable at a port of the host until the leaf is given up."""
    recorder = Recorder()
    leaf = make_leaf(recorder=recorder)
    published = ServicePort(leaf).publish()
    assert published == Published("127.0.0.1", 48080) == ServicePort(leaf).publish()
    assert published.url == "http://127.0.0.1:48080"
    leaf.close()
    assert recorder.asked == [("publish", ("w0-t1", 8080)), ("unpublish", 48080), ("release", "w0-t1")]

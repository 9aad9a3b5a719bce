"""Suites that are run while one of our system calls fails, by what of the product they use."""

from __future__ import annotations

from typing import Final, NamedTuple

from runs import OWN_NETWORK

__all__ = ["SUITES", "Faulted"]


class Faulted(NamedTuple):
    """A suite, and what comes of it without a fault.

    Attributes:
        text: the module's.
        passed: how many tests pass.
        failed: how many fail, which is what they are for.
        errors: how many end in an error, because a test has killed the gateway.
        options: pytest's, in place of ``--netns``.
        conftest: a conftest file's text.
        calls: whether tests call the product themselves, so that their tracebacks lead through it.
    """

    text: str
    passed: int
    failed: int = 0
    errors: int = 0
    options: str = "--netns"
    conftest: str = ""
    calls: bool = False


_CHECK: Final = f"""{OWN_NETWORK}
import errno

def check():
    own_network()
    try:
        socket.create_connection(("203.0.113.1", 80), 15)
        raise AssertionError("left")
    except OSError as error:
        assert error.errno == errno.EHOSTUNREACH, error
    try:
        socket.getaddrinfo("example.com", 80)
        raise AssertionError("resolved")
    except socket.gaierror as error:
        assert error.errno == socket.EAI_NONAME, error

"""

_KILL: Final = """
import select, signal, struct
import pytest
from pytest_netns.session import SESSION

@pytest.fixture
def kill(request):
    client = request.config.stash[SESSION].client
    pid = struct.unpack("iII", client._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    with open(os.pidfd_open(pid), "rb", buffering=0) as ended:
        yield
        os.kill(pid, signal.SIGKILL)
        assert select.select([ended], [], [], 10)[0]
    SEEN.clear()  # the next gateway begins with the first name again, and the kernel gives numbers again

@pytest.fixture(scope="session", autouse=True)
def server():
    with socket.create_server(("127.0.0.1", 9000)) as server:
        yield
"""

#: A server of the host's, TCP and UDP, that answers with what it is sent; it ends with who started it.
_HOST: Final = """
import os, subprocess, sys

ECHO = '''
import contextlib, select, socket, sys, threading
tcp = socket.create_server(("127.0.0.1", 0))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.1", 0))
def serve(connection):
    with connection, contextlib.suppress(OSError):
        while data := connection.recv(65536):
            connection.sendall(data)
def accept():
    while True:
        threading.Thread(target=serve, args=(tcp.accept()[0],), daemon=True).start()
def answer():
    while True:
        udp.sendto(*udp.recvfrom(2000))
for work in (accept, answer):
    threading.Thread(target=work, daemon=True).start()
print(tcp.getsockname()[1], udp.getsockname()[1], flush=True)
sys.stdin.read()
'''

def pytest_configure(config):
    command = [sys.executable, "-S", "-c", ECHO]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("NETNS_", "PYTHONPATH"))}
    config.echo = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    os.environ["ECHO_TCP"], os.environ["ECHO_UDP"] = config.echo.stdout.readline().decode().split()

def pytest_unconfigure(config):
    config.echo.communicate()
"""

_FEATURES: Final = """
import concurrent.futures, contextlib, os, socket, subprocess, threading, time
import pytest

POOL = concurrent.futures.ThreadPoolExecutor(1)

@pytest.fixture(scope="module")
def server():
    with socket.create_server(("127.0.0.1", 9000)) as server:
        yield server
    assert os.environ["PYTEST_NETNS"]

def test_service(netns_service, server):
    with socket.create_server((netns_service.host, netns_service.port)):
        netns_service.wait()
        netns_service.publish()
        socket.create_connection(("127.0.0.1", 9000), 15).close()
        server.accept()[0].close()

def test_stream(netns_egress):
    port = int(os.environ["ECHO_TCP"])
    netns_egress.allow(f"localhost:{port}")
    with socket.create_connection(("127.0.0.1", port), 15) as client:
        for size in (10, 300_000):
            client.sendall(bytes(size))
            while size:
                data = client.recv(65536)
                assert data, "Connection reset by peer"
                size -= len(data)
    assert [flow.port for flow in netns_egress.flows] == [port]

def test_datagrams(netns_egress):
    port = int(os.environ["ECHO_UDP"])
    netns_egress.allow(f"localhost:{port}/udp")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(3)
        client.connect(("127.0.0.1", port))
        for _ in range(5):  # one of them may be lost
            client.send(b"hello")
            with contextlib.suppress(TimeoutError):
                assert client.recv(10) == b"hello"
                break
        else:
            raise AssertionError("no answer")

def test_handle(netns, tmp_path):
    netns.add_host("db.example.com", "127.0.0.1")
    netns.sysctl["net.ipv4.ip_default_ttl"] = "32"
    (tmp_path / "file").write_text("text")
    netns.hide(str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == ""
    netns.tmpfs("/opt")
    netns.bind("/usr", "/opt", readonly=True)
    assert netns.run(["/opt/bin/true"]).returncode == 0
    assert socket.gethostbyname("db.example.com") == "127.0.0.1"

def test_factory(netns, netns_factory):
    other = netns_factory()
    with other, socket.create_server((other.ipv4, 8080)), netns.worker:
        socket.create_connection((other.ipv4, 8080), 15).close()

def test_capture(netns):
    with netns.capture() as capture, socket.create_server(("127.0.0.1", 8080)) as server:
        socket.create_connection(("127.0.0.1", 8080), 15).close()
    assert capture.packets

def test_pool():
    assert POOL.submit(os.getpid).result() == os.getpid()

def test_leaves(netns):
    left = subprocess.Popen(["sleep", "60"])
    assert left.pid in [process.pid for process in netns.processes()]
    del left
    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()

def test_fails():
    with pytest.raises(OSError):
        socket.create_connection(("203.0.113.1", 80), 15)
    socket.create_connection(("127.0.0.1", 8080), 15)
"""

_BOXES: Final = """
import pytest

@pytest.mark.parametrize("number", range(3))
def test_box(netns_sandbox, tmp_path, number):
    (tmp_path / "notes").write_text("one\\n")
    done = netns_sandbox.run("echo two >> notes; echo said", shell=True, capture_output=True, text=True)
    assert done.stdout == "said\\n", done
    assert [str(change) for change in done.changes] == ["modified notes"]

def test_process(netns_sandbox):
    with netns_sandbox.popen(["cat"], stdin=-1, stdout=-1) as process:
        assert process.communicate(b"text")[0] == b"text"
"""

SUITES: Final = {
    "plain": Faulted(_CHECK + "".join(f"def test_{number}(): check()\n" for number in range(1, 5)), passed=4),
    "features": Faulted(_FEATURES, passed=8, failed=1, options="--netns -Wignore", conftest=_HOST, calls=True),
    "lost": Faulted(
        f"{_CHECK}{_KILL}"
        "def test_1(): check()\n"
        "def test_2(kill): check()\n"
        "@pytest.mark.netns(scope='module')\n"
        "def test_3(): check()\n"
        "@pytest.mark.netns(scope='module')\n"
        "def test_4(kill): pass\n"
        "@pytest.mark.netns(scope='module')\n"
        "def test_5(): socket.create_connection(('127.0.0.1', 9000), 15).close()\n"
        "def test_6(): check()\n",
        passed=6,
        errors=2,
    ),
    "boxes": Faulted(_BOXES, passed=4, calls=True),
}

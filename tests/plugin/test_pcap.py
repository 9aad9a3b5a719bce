"""Captures: the packets of a test, in a file that tshark reads."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from places import ROOT, Run

SUITE = """
import socket, sys
import pytest

def talk(port=8080):
    with socket.create_server(("127.0.0.1", port)) as server:
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as answering:
            client.sendall(b"the question")
            assert answering.recv(100) == b"the question"
            answering.sendall(b"the answer")
            assert client.recv(100) == b"the answer"

def test_passes():
    talk()

def test_fails():
    talk()
    with pytest.raises(OSError):
        socket.create_connection(("203.0.113.5", 443))
    with pytest.raises(OSError):
        socket.getaddrinfo("api.example.com", 443)
    assert 0

@pytest.fixture
def broken():
    yield
    talk(81)
    assert 0

def test_tear_down(broken):
    talk(80)
"""
QUESTION, ANSWER = b"the question", b"the answer"
TLS = """
import http.server, ssl, subprocess, threading, urllib.request

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"behind the lock")
    def log_message(self, *_): pass

def test_page():
    new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out cert -subj /CN=x"
    subprocess.run([*new.split(), "-addext", "subjectAltName=DNS:localhost"], check=True, capture_output=True)
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain("cert", "key")
    with http.server.HTTPServer(("127.0.0.1", 443), Page) as server:
        server.socket = served.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        trusting = ssl.create_default_context(cafile="cert")
        with urllib.request.urlopen("https://localhost/a-secret-page", context=trusting) as page:
            assert page.read() == b"behind the lock"
        thread.join()
"""


@pytest.fixture(scope="module")
def tshark() -> str:
    """Find tshark, or skip; in CI it must be there."""
    found = shutil.which("tshark")
    if found is None:
        (pytest.fail if "CI" in os.environ else pytest.skip)("tshark is not installed")
    return found


class Reader:
    """What tshark makes of a file."""

    def __init__(self, tshark: str, path: Path) -> None:
        """Read a capture."""
        self._command = [tshark, "-r", str(path)]

    def fields(self, *names: str, only: str = "") -> list[list[str]]:
        """Return these fields of each packet, or of those only that a display filter lets through."""
        wanted = [argument for name in names for argument in ("-e", name)]
        output = self._run("-T", "fields", *wanted, *(["-Y", only] if only else []))
        return [line.split("\t") for line in output.splitlines()]

    def conversation(self, number: int = 0) -> str:
        """Follow a TCP conversation."""
        return self._run("-q", "-z", f"follow,tcp,ascii,{number}")

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_failures(pytester: pytest.Pytester, run: Run, tshark: str, workers: tuple[str, ...]) -> None:
    """Of each test that fails there is a file, tear-down included, and the report names it; of none that passes."""
    pytester.makepyfile(test_it=SUITE)
    stale = pytester.path / "test-results/test-it-py-test-passes/netns.pcapng"
    stale.parent.mkdir(parents=True)
    stale.touch()
    result = run("--netns", "--netns-pcap=retain-on-failure", "--tb=short", *workers)
    result.assert_outcomes(passed=2, failed=1, errors=1)
    results = pytester.path / "test-results"
    assert {path.name for path in results.iterdir()} == {"test-it-py-test-fails", "test-it-py-test-tear-down"}
    named = "test-results/test-it-py-test-fails/netns.pcapng"
    result.stdout.fnmatch_lines([f"capture: {named} (* packets): tshark -r {named}"])

    failed = Reader(tshark, results / "test-it-py-test-fails/netns.pcapng")
    rows = failed.fields("frame.interface_name", "frame.comment", "frame.time_epoch")
    comments = [row[:2] for row in rows if row[1]]
    assert comments == [
        ["eth0", 'netns: blocked: tcp 203.0.113.5:443; allow with "203.0.113.5:443"'],
        ["eth0", 'netns: blocked: dns api.example.com; allow with "api.example.com"'],
    ]
    assert {row[0] for row in rows} == {"lo", "eth0"}
    assert any(not row[2].endswith("000") for row in rows), "times are in nanoseconds"
    assert b"test_it.py::test_fails" in (results / "test-it-py-test-fails/netns.pcapng").read_bytes()
    assert QUESTION.decode() in failed.conversation()
    assert ANSWER.decode() in failed.conversation()

    torn = Reader(tshark, results / "test-it-py-test-tear-down/netns.pcapng")
    assert {row[0] for row in torn.fields("tcp.dstport", only="tcp.flags.syn == 1 && tcp.flags.ack == 0")} == {
        "80",
        "81",
    }


def test_all_of_a_shared_network(pytester: pytest.Pytester, run: Run, tshark: str) -> None:
    """With ``on`` there is a file of each test, with its own packets only, also where tests share a network."""
    pytester.makepyfile(
        test_it="""
        import socket, pytest
        @pytest.mark.parametrize("port", [1001, 1002])
        def test_port(port):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
                udp.sendto(b"hello", ("127.0.0.1", port))
        """
    )
    for scope in ("module", "session"):
        result = run("--netns", "--netns-pcap=on", f"--netns-scope={scope}", f"--netns-output={scope}")
        result.assert_outcomes(passed=2)
        assert "capture:" not in result.stdout.str()
        for port in (1001, 1002):
            path = pytester.path / scope / f"test-it-py-test-port-{port}/netns.pcapng"
            seen = Reader(tshark, path).fields("udp.dstport", only="udp && frame.interface_name == lo && !icmp")
            assert seen == [[str(port)]]


def test_tls_keys(pytester: pytest.Pytester, run: Run, tshark: str) -> None:
    """With the clients' keys in the file, what they said can be read; the keys are nowhere else."""
    pytester.makepyfile(test_it=TLS)
    path = pytester.path / "test-results/test-it-py-test-page/netns.pcapng"
    for option, pages in ((), []), (("--netns-tls-keys",), [["/a-secret-page"]]):
        run("--netns", "--netns-pcap=on", *option).assert_outcomes(passed=1)
        assert Reader(tshark, path).fields("http.request.uri", only="http.request") == pages
    assert "SSLKEYLOGFILE" not in os.environ


def test_reruns_and_namesakes(pytester: pytest.Pytester, run: Run) -> None:
    """Tests whose names differ in signs only have files of their own."""
    pytester.makepyfile(
        test_it="""
        import pytest
        @pytest.mark.parametrize("n", ["a-b", "a.b"])
        def test_it(n): assert 0
        """
    )
    run("--netns", "--netns-pcap=retain-on-failure").assert_outcomes(failed=2)
    found = {path.name for path in pytester.path.joinpath("test-results").iterdir()}
    assert found == {"test-it-py-test-it-a-b", "test-it-py-test-it-a-b-2"}


def test_bounded(pytester: pytest.Pytester, run: Run, tshark: str) -> None:
    """Of a test that moves much, the first packets are kept; how many are missing is said."""
    pytester.makepyfile(
        test_it="""
        import socket, threading
        def test_bulk():
            with socket.create_server(("127.0.0.1", 80)) as server:
                client = socket.create_connection(("127.0.0.1", 80))
                taking, _ = server.accept()
                def take():
                    while taking.recv(1 << 20): pass
                thread = threading.Thread(target=take)
                thread.start()
                for _ in range(100):
                    client.sendall(bytes(1 << 20))
                client.sendall(b"the end")
                client.close()
                thread.join()
                taking.close()
            assert 0
        """
    )
    result = run("--netns", "--netns-pcap=on")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["capture: * packets, * missing): *"])
    path = pytester.path / "test-results/test-it-py-test-bulk/netns.pcapng"
    assert path.stat().st_size < 14 << 20
    reader = Reader(tshark, path)
    first = reader.fields("tcp.flags.syn", only="tcp")[0]  # the kernel's own greetings may precede
    assert first in (["True"], ["1"])


@pytest.mark.parametrize(
    ("directory", "why"),
    [("file", "Not a directory"), ("file/below/it", "Not a directory"), ("x" * 256, "File name too long")],
    ids=["file", "below a file", "too long"],
)
def test_unusable_directory(pytester: pytest.Pytester, run: Run, directory: str, why: str) -> None:
    """A directory that cannot be one is a usage error, where packets are kept."""
    pytester.makepyfile("def test_it(): pass")
    pytester.path.joinpath("file").touch()
    result = run("--netns", "--netns-pcap=retain-on-failure", f"--netns-output={directory}")
    assert result.ret is pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --netns-output: '{directory}' cannot be written to: {why}; name a directory *"]
    )
    run("--netns", f"--netns-output={directory}").assert_outcomes(passed=1)


@pytest.mark.parametrize("directory", ["closed", "closed/below/it"])
def test_closed_directory(pytester: pytest.Pytester, run: Run, directory: str) -> None:
    """So is one that the user may not write to, or not make; root may, always."""
    pytester.makepyfile("def test_it(): pass")
    pytester.mkdir("closed").chmod(0o555)
    result = run("--netns", "--netns-pcap=on", f"--netns-output={directory}", "-n1")
    if ROOT:
        result.assert_outcomes(passed=1)
    else:
        assert result.ret is pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines(
            [f"ERROR: --netns-output: '{directory}' cannot be written to: Permission denied; *"]
        )


def test_unwritable(pytester: pytest.Pytester, run: Run) -> None:
    """Where a file turns out to be one that cannot be written, that is said, and fails nothing; none is made early."""
    pytester.makepyfile(
        """
        def test_passes(): pass
        def test_fails():
            open("results", "x").close()
            assert 0
        """
    )
    result = run("--netns", "--netns-pcap=retain-on-failure", "--netns-output=results")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["capture: *Not a directory*"])


def test_unlistable(pytester: pytest.Pytester, run: Run) -> None:
    """Where captures of an earlier run can't be looked for, new ones are written all the same."""
    pytester.makepyfile("def test_it(): pass")
    pytester.mkdir("results").chmod(0o300)
    run("--netns", "--netns-pcap=on", "--netns-output=results", "test_unlistable.py").assert_outcomes(passed=1)
    assert pytester.path.joinpath("results/test-unlistable-py-test-it/netns.pcapng").is_file()


def test_off(pytester: pytest.Pytester, run: Run) -> None:
    """Without the option nothing is written, nor loaded."""
    pytester.makepyfile(
        """
        import sys
        def test_it():
            assert not {"pytest_netns.keeping", "pytest_netns.capture", "pytest_netns.scene"} & set(sys.modules)
            assert "SSLKEYLOGFILE" not in __import__("os").environ
        """
    )
    run("--netns", "--netns-tls-keys").assert_outcomes(passed=1)
    assert not pytester.path.joinpath("test-results").exists()


def test_handle(pytester: pytest.Pytester, run: Run, tshark: str) -> None:
    """``netns.capture()`` shows a block's packets, without any option, and no thread or process of ours helps."""
    pytester.makepyfile(
        test_it="""
        import os, socket, threading
        import pytest
        def test_it(netns):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, netns.capture() as capture:
                assert threading.active_count() == 1 and not netns.processes()
                udp.sendto(b"hello", ("127.0.0.1", 53))
                assert [packet.payload for packet in capture.packets if packet.interface == "lo"] == [b"hello"]
                with pytest.raises(OSError):
                    socket.create_connection(("203.0.113.5", 443))
            udp = next(packet for packet in capture.packets if packet.interface == "lo")
            assert (udp.protocol, udp.source, udp.destination, udp.destination_port) == ("udp", *["127.0.0.1"] * 2, 53)
            assert ("eth0", "tcp", "203.0.113.5", 443) in [
                (packet.interface, packet.protocol, packet.destination, packet.destination_port)
                for packet in capture.packets
            ]
            assert capture.lost == 0
            before = len(capture.packets)
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"later", ("127.0.0.1", 53))
            assert len(capture.packets) == before
            capture.save("saved.pcapng")
        """
    )
    run("-W", "ignore::ResourceWarning", "--netns-marked").assert_outcomes(passed=1)
    rows = Reader(tshark, pytester.path / "saved.pcapng").fields("frame.interface_name", "udp.dstport")
    assert ["lo", "53"] in rows


def test_directory_with_a_space(pytester: pytest.Pytester, run: Run) -> None:
    """The command that a report gives can be pasted, whatever the directory is called."""
    pytester.makepyfile("def test_it(): assert 0")
    result = run("--netns", "--netns-pcap=on", "--netns-output=my results")
    result.stdout.fnmatch_lines(["capture: * tshark -r 'my results/*/netns.pcapng'"])


def test_no_file_of_keys(pytester: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty SSLKEYLOGFILE is none, as TLS clients have it."""
    monkeypatch.setenv("SSLKEYLOGFILE", "")
    pytester.makepyfile("import os\ndef test_it(): assert os.path.isabs(os.environ['SSLKEYLOGFILE'])")
    run("--netns", "--netns-pcap=on", "--netns-tls-keys").assert_outcomes(passed=1)

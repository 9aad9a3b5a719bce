"""The section of a failed test: who was there, what was tried, what is left, and what that smells of."""

from __future__ import annotations

import pytest
from places import Run

SUITE = """
import os, socket, subprocess, sys, threading, time
import pytest
from tools import PORT, dial

@pytest.fixture(scope="session")
def database():
    with socket.create_server(("127.0.0.1", 5432)) as server:
        yield server

@pytest.fixture
def server():
    with subprocess.Popen([sys.executable, "-m", "http.server", "8080"], stderr=subprocess.DEVNULL) as process:
        yield
        process.terminate()

def test_crowded(database, server, netns_service):
    netns_service.wait()
    subprocess.Popen(["sleep", "171"])
    threading.Thread(target=threading.Event().wait, args=(5,), name="stray", daemon=True).start()
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 5353))
    assert 0, "x" * 50_000

@pytest.mark.netns(allow=[f"localhost:{PORT}"])
def test_allowed():
    assert dial() == b"hello"
    time.sleep(0.1)
    assert 0

def test_needs_the_host():
    dial("localhost")

def test_quiet():
    with pytest.raises(OSError):
        dial("203.0.113.5", 443)
"""


@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_section(pytester: pytest.Pytester, run: Run, outside: str, workers: tuple[str, ...]) -> None:
    """It tells of listeners, attempts, processes and threads, arrives whole, and is not there on success."""
    pytester.makepyfile(test_it=SUITE)
    result = run("--netns", "--tb=short", "-rA", "-W", "ignore::ResourceWarning", *workers)
    result.assert_outcomes(passed=1, failed=3, warnings=1)
    leaf = "gw0" if workers else "main"
    result.stdout.fnmatch_lines(
        [
            "leaf *-t1: 198.18.*",
            "listening: tcp 0.0.0.0:8080, pid *: *python* -m http.server 8080",
            "listening: udp 127.0.0.1:5353, the test's own process",
            "listening in the worker's network: tcp 127.0.0.1:5432, the test's own process",
            "running: pid *: sleep 171",
            "running: thread stray",
            "*- netns teardown -*",
            "left running, ended with SIGTERM: pid *: sleep 171",
            "left running: thread stray",
            f"leaf {leaf}-t2: *",
            f'allowed: tcp 127.0.0.1:* by "{outside}": 0 B sent, 5 B received',
            f"leaf {leaf}-t3: *",
            (
                f"hint: connection refused on {outside}; the host has a listener there: "
                f'allow = [[]"{outside}"[]], or --netns-allow={outside}'
            ),
        ]
    )
    assert f"leaf {leaf}-t4" not in result.stdout.str()
    assert "may reach" not in result.stdout.str() + result.stderr.str()
    assert "hint" not in result.stdout.str().partition(f"leaf {leaf}-t3")[0]


def test_names(pytester: pytest.Pytester, run: Run) -> None:
    """It tells which allowed names were asked for, and what they were told."""
    pytester.makepyfile(
        test_it="""
        import socket, pytest
        @pytest.mark.netns(allow=["nowhere.invalid", "localhost.localdomain"])
        def test_name():
            socket.getaddrinfo("nowhere.invalid", 80)
        """
    )
    result = run("--netns", "--tb=short")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["asked: nowhere.invalid: *"])

"""The section of a test that ended its worker, which tells of it no more."""

from __future__ import annotations

import pytest
from places import ROOT, Run

SUITE = """
import ctypes, os, socket, subprocess
import pytest
from tools import PORT, dial, refused

ENDS = {"exit": lambda: os._exit(3), "fault": lambda: ctypes.string_at(0)}

@pytest.mark.netns(allow=[f"localhost:{PORT}"])
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_crash(netns, end):
    server = socket.create_server(("127.0.0.1", 8080))
    subprocess.Popen(["sleep", "171"], pass_fds=[server.fileno()])
    assert dial() == b"hello"
    assert refused("203.0.113.5", 443) and refused("203.0.113.5", 443)
    with pytest.raises(OSError):
        socket.getaddrinfo("api.example.com", 443)
    end()

def test_other(netns): pass
"""
WAITING = """
import time
from pathlib import Path

def test_waits(netns):
    Path("waiting").touch()
    deadline = time.monotonic() + 30
    while not Path("told").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
"""
TELLING = """
import pathlib, time
import pytest

@pytest.fixture(autouse=True)
def company(request):
    deadline = time.monotonic() + 30
    while "exit" in request.node.name and not pathlib.Path("waiting").exists() and time.monotonic() < deadline:
        time.sleep(0.02)

@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_handlecrashitem():
    pathlib.Path("told").touch()
"""
TOLD = [
    "worker 'gw*' crashed while running 'test_it.py::test_crash[[]{end}[]]'",
    "*- netns -*",
    "leaf gw?-t?: 198.18.*, fd6e:*",
    "listening: tcp 127.0.0.1:8080",
    'blocked: tcp 203.0.113.5:443 (2 times); allow with "203.0.113.5:443"',
    'blocked: dns api.example.com; allow with "api.example.com"',
    'allowed: tcp 127.0.0.1:* by "localhost:*": 0 B sent, 5 B received',
    "running: pid *: sleep 171",
]


@pytest.mark.usefixtures("outside")
def test_crash(pytester: pytest.Pytester, run: Run) -> None:
    """It has what the gateway knows, whatever ended the worker, and the packets, if these are kept."""
    pytester.makepyfile(test_it=SUITE)
    result = run("--netns", "-n1", "--netns-pcap=retain-on-failure")
    result.assert_outcomes(passed=1, failed=2)
    for end in ("exit", "fault"):
        file = f"test-results/test-it-py-test-crash-{end}/netns.pcapng"
        told = [line.format(end=end) for line in TOLD]
        result.stdout.fnmatch_lines([*told, f"capture: {file} (* packets): tshark -r {file}"])
        assert b"203.0.113.5:443" in (pytester.path / file).read_bytes()


@pytest.mark.skipif(not ROOT, reason="an ordinary user has to say what is wanted")
@pytest.mark.usefixtures("outside")
def test_unsaid(pytester: pytest.Pytester, run: Run) -> None:
    """It is there, too, where the controller has no part in isolation, as long as another worker has."""
    pytester.makepyfile(test_it=SUITE, test_more=WAITING, conftest=TELLING)
    result = run("-n2", "-k", "exit or waits")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines([line.format(end="exit") for line in TOLD])
    assert not (pytester.path / "test-results").exists()

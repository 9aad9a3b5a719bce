"""The worker's loopback while no test has a namespace to continue it in."""

from __future__ import annotations

import pytest
from places import Run

TESTS = """
import os, socket

def told(host, kind, port):
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, kind) as one:
        one.settimeout(5)
        try:
            one.connect((host, port))
            one.send(b"x")
            one.recv(1)
        except OSError as error:
            return type(error).__name__
    return None

def everything():
    kinds = (socket.SOCK_STREAM, socket.SOCK_DGRAM)
    return {told(host, kind, 8080) for host in ("127.0.0.1", "::1") for kind in kinds}

EARLY, REACHED = everything(), told("127.0.0.1", socket.SOCK_STREAM, int(os.environ["OUTSIDE"]))

def test_1():
    assert EARLY == everything() == {"ConnectionRefusedError"}
    assert REACHED == os.environ.get("WANTED")
"""


WAYS = pytest.mark.parametrize("way", [(), ("--netns-scope=session",), ("--netns-scope=session", "-n1")], ids=" ".join)


@WAYS
def test_refused(
    pytester: pytest.Pytester, run: Run, outside: str, monkeypatch: pytest.MonkeyPatch, way: tuple[str, ...]
) -> None:
    """A port that nobody listens on refuses, at import too, and where tests share the worker's namespace."""
    pytester.makepyfile(test_it=TESTS)
    monkeypatch.setenv("WANTED", "ConnectionRefusedError")
    result = run("--netns", *way)
    result.assert_outcomes(passed=1)
    assert "blocked attempts" not in result.stdout.str()


@WAYS
def test_host(pytester: pytest.Pytester, run: Run, outside: str, way: tuple[str, ...]) -> None:
    """Where the host's loopback is allowed, it is found there as well, and refuses where nobody listens."""
    pytester.makepyfile(test_it=TESTS)
    rules = (outside, "localhost:8080", "localhost:8080/udp")
    run("--netns", *way, *(f"--netns-allow={rule}" for rule in rules)).assert_outcomes(passed=1)

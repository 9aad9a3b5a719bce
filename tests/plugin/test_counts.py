"""What dashboards and the curious are told: JUnit's properties, and ``--netns-verbose``."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest
from places import Run

SUITE = """
import logging, socket
import pytest
from tools import PORT, dial

@pytest.mark.netns(allow=[f"localhost:{PORT}"])
def test_allowed(caplog):
    assert dial() == b"hello"
    logging.getLogger("theirs").warning("a word")
    assert [record.name for record in caplog.records] == ["theirs"]

def test_blocked(netns_egress):
    for _ in range(2):
        with pytest.raises(OSError):
            socket.create_connection(("203.0.113.5", 443))
    netns_egress.allow("api.example.com:443")

@pytest.mark.no_netns
def test_outside(): pass
"""


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_told(pytester: pytest.Pytester, run: Run, outside: str, workers: tuple[str, ...]) -> None:
    """Each isolated test has its counts and times; each network and rule is told as it comes, past all capturing."""
    pytester.makepyfile(test_it=SUITE)
    result = run("--netns", "--junitxml=junit.xml", "--netns-verbose", *workers)
    result.assert_outcomes(passed=3)
    told = {}
    for case in ET.parse(pytester.path / "junit.xml").getroot().iter("testcase"):
        told[case.get("name")] = {one.get("name"): one.get("value") or "" for one in case.iter("property")}
    for name, allowed, blocked in (("test_allowed", "1", "0"), ("test_blocked", "0", "2")):
        assert (told[name]["netns_allowed"], told[name]["netns_blocked"]) == (allowed, blocked)
        assert "-t" in told[name]["netns_leaf"]
        assert 0 < float(told[name]["netns_setup_seconds"]) < 30

    output = (result.stderr if workers else result.stdout).str()
    first = output.index("for test_it.py::test_allowed: port 8080")
    assert first < output.index(f"may reach {outside}", first)
    assert "netns: connected to the gateway" in result.stdout.str()
    for line in ("in the worker's network, leaf ", "may reach api.example.com:443 from now on", "-t1 is given back"):
        assert line in output

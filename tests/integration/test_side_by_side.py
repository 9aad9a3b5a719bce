"""Many runs at once on one machine, of several users where root can play them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import machines
from runs import ROOT

SESSIONS = 8
PATIENCE = 120.0  # seconds for all of them together, on a machine that has other work
#: What the eight sessions are on. An ordinary user plays those of the second list, within a user namespace.
MACHINES: list[tuple[str, ...]] = [
    ("container",),
    ("container", "docker-grants"),
    ("nested-root", "container"),
    ("chroot",),
    ("no-tun", "read-only-root"),
    ("no-ipv6",),
    ("linked-resolv-conf",),
    ("missing-resolv-conf",),
]
USERS_MACHINES = [*MACHINES[:1], *MACHINES[4:], ("no-cgroups",), ("container", "no-ipv6"), ("masked-sys",)]
USERS = 4 if ROOT and machines.open_to_strangers() else 1

SUITE = f"""
import os, pathlib, socket, time
import pytest

KEPT = []
HERE = pathlib.Path(os.environ["MEETING"])

def test_meet():
    "Every session has come this far, and is in its own test, before any goes on."
    KEPT.append(socket.create_server(("127.0.0.1", 8080)))
    HERE.joinpath(os.environ["NAME"]).touch()
    deadline = time.monotonic() + {PATIENCE}
    while len(list(HERE.iterdir())) < {SESSIONS}:
        assert time.monotonic() < deadline, sorted(HERE.iterdir())
        time.sleep(0.02)

@pytest.mark.parametrize("number", range(5))
def test_port(number):
    KEPT.append(socket.create_server(("127.0.0.1", 8080)))
    socket.create_connection(("127.0.0.1", 8080), 5).close()

def test_outside():
    with pytest.raises(OSError, match="No route to host"):
        socket.create_connection(("203.0.113.5", 80), 5)
"""


class Session(NamedTuple):
    """One of the sessions: what its machine is like, and who starts it."""

    scenarios: tuple[str, ...] = ()
    uid: int = os.geteuid()


def test_sessions_side_by_side(capable: None) -> None:
    """Eight sessions that run at the same time, with one port and one directory for temporary files, all pass."""
    owners = _all_pass([Session(uid=_uid(number)) for number in range(SESSIONS)])
    assert owners == {_uid(number) for number in range(SESSIONS)}


def test_machines_side_by_side(capable: None) -> None:
    """So do eight sessions each of which is on a machine of another kind, which it shares a kernel with."""
    played = MACHINES if ROOT else [("nested-root", *scenarios, "nested-user") for scenarios in USERS_MACHINES]
    _all_pass([Session(scenarios) for scenarios in played])


def _all_pass(sessions: list[Session]) -> set[int]:
    """Run them all at once, see to it that all of each passes and nothing is left; return whose files they made."""
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        shared = Path(directory)
        shared.chmod(0o1777)
        meeting = shared / "meeting"
        meeting.mkdir()
        meeting.chmod(0o1777)
        shared.joinpath("test_it.py").write_text(SUITE, encoding="utf-8")
        runs = [stack.enter_context(_started(shared, number, one)) for number, one in enumerate(sessions)]
        outputs = [run.communicate(timeout=PATIENCE)[0] for run in runs]
        assert [run.returncode for run in runs] == [0] * SESSIONS, "\n".join(outputs)
        assert all("7 passed" in output and "NetnsWarning" not in output for output in outputs), "\n".join(outputs)
        _wait_until_clean(shared)
        return {path.stat().st_uid for path in meeting.iterdir()}


def _wait_until_clean(shared: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := list(shared.glob("pytest-netns-*")):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def _uid(number: int) -> int:
    """Return who a session belongs to: root has the others be strangers, each with two sessions."""
    return machines.STRANGER + number % USERS if USERS > 1 and number % USERS else os.geteuid()


def _started(shared: Path, number: int, session: Session) -> subprocess.Popen[str]:
    others = ("PYTEST_", "COV_CORE_", "COVERAGE_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    own = {"TMPDIR": str(shared), "MEETING": str(shared / "meeting"), "NAME": f"session{number}", "HOME": str(shared)}
    stranger = session.uid if session.uid != os.geteuid() else None
    return subprocess.Popen(
        [*machines.player(*session.scenarios), *machines.PYTEST, str(shared / "test_it.py")],
        env=kept | own | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=shared,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        user=stranger,
        group=stranger,
        extra_groups=[] if stranger else None,
    )

"""The commands' side of the gateway: find the live runs of this user, and ask them, never without a time limit."""

from __future__ import annotations

import _socket
import contextlib
import difflib
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_netns.errors import GatewayError, NetnsError
from pytest_netns.gateway import protocol
from pytest_netns.gateway.launch import dial
from pytest_netns.gateway.paths import OBSERVERS_NAME, PREFIX, directory_of
from pytest_netns.kernel import privilege

__all__ = ["Entrance", "LeafRow", "Run", "RunEndedError", "command", "connect", "find", "live_runs", "short_id"]

_TIMEOUT: Final = 5.0  # seconds for any one answer
_SHORT: Final = 6


@dataclass(frozen=True, slots=True)
class LeafRow:
    """A live leaf, as a run lists it.

    Attributes:
        name: what it is called.
        test: the node id of the test that it serves, or served last.
        worker: whether it is a worker's own.
        ipv4: its IPv4 address.
        ipv6: its IPv6 address.
        port: the port of the service under test.
        age: seconds since it began to serve the test.
        held: why its test waits for somebody to look inside; None where it does not.
        listening: what listens in it, as ``127.0.0.1:8080`` or ``[::1]:53/udp``.
    """

    name: str
    test: str
    worker: bool
    ipv4: str
    ipv6: str
    port: int
    age: float
    held: str | None
    listening: list[str]


class RunEndedError(GatewayError):
    """A run ended while it was asked."""


class Entrance(NamedTuple):
    """What it takes to enter a leaf; the descriptors are the receiver's to close."""

    net_fd: int
    mnt_fd: int
    user_fd: int


class Run:
    """A connection to a live run that counts for nothing there; what was opened by it is closed with it.

    Attributes:
        id: the run's id.
        pid: the pytest process that began it; None as long as nothing was asked.
        page_port: the host's port that browsers find its leaves at; None if there is none, or nothing was asked.
    """

    def __init__(self, run_id: str, connection: _socket.socket) -> None:
        """Take over a connected socket; ``live_runs`` is how one gets here."""
        self.id = run_id
        self.pid: int | None = None
        self.page_port: int | None = None
        self._connection = connection

    def leaves(self) -> list[LeafRow]:
        """List the live leaves, the workers' own included."""
        rows: list[dict[str, Any]] = []
        while True:
            answer, _ = self._ask(op="list", since=len(rows))
            rows += answer["rows"]
            self.pid, self.page_port = answer["pid"], answer["page_port"]
            if not answer["more"]:
                return [LeafRow(**row) for row in rows]

    def fate(self, leaf: str) -> str | None:
        """Return the test of a leaf that has ended, as far as the run remembers it."""
        test: str | None = self._ask(op="fate", leaf=leaf)[0]["test"]
        return test

    def enter(self, leaf: str) -> Entrance:
        """Get what it takes to enter a leaf."""
        _, descriptors = self._ask(op="enter", leaf=leaf)
        return Entrance(*descriptors)

    def forward(self, leaf: str, port: int, host_port: int = 0) -> int:
        """Forward a port of the host's 127.0.0.1, a free one for 0, to a leaf's, until ``close``; return the host's."""
        return int(self._ask(op="forward", leaf=leaf, port=port, host_port=host_port)[0]["port"])

    def wait_for_end(self, leaf: str) -> None:
        """Wait until a leaf has ended, however long that takes, or its run has."""
        with contextlib.suppress(NetnsError):
            self._ask(op="watch", leaf=leaf, timeout=0.0)

    def resume(self, leaf: str) -> None:
        """Let a held test go on."""
        self._ask(op="resume", leaf=leaf)

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def _ask(self, *, op: str, timeout: float = _TIMEOUT, **fields: Any) -> tuple[dict[str, Any], list[int]]:
        protocol.limit(self._connection, timeout)
        try:
            protocol.send(self._connection, {"op": op, **fields})
            answer, descriptors = protocol.receive(self._connection)
        except BlockingIOError:
            raise GatewayError(_silent(self.id)) from None
        except (OSError, ValueError) as error:
            raise RunEndedError(f"run {short_id(self.id)} has ended: {error}") from None
        if answer is None:
            raise RunEndedError(f"run {short_id(self.id)} has ended")
        if not answer.pop("ok"):
            text = answer["error"] if answer["errno"] else answer["error"].partition(": ")[2]
            raise GatewayError(f"run {short_id(self.id)}: {text}")
        return answer, descriptors


def short_id(run_id: str) -> str:
    """Return what a run is called in commands: the beginning of its id."""
    return run_id[:_SHORT]


def live_runs() -> tuple[list[Run], list[str]]:
    """Connect to every live run of this user, whatever terminal and directory it was started in.

    Returns the runs, and for each that does not answer a line that says so.
    """
    runs, troubles = [], []
    for run_id, directory in {path.name: path for path in (*_started(), *_below_temporary())}.items():
        try:
            connection = dial(directory, OBSERVERS_NAME, _TIMEOUT)
        except (FileNotFoundError, NotADirectoryError):  # it has just ended
            continue
        except NetnsError:
            troubles.append(_silent(run_id))
            continue
        if connection is not None:
            runs.append(Run(run_id, connection))
    return runs, troubles


def connect(run_id: str) -> Run | None:
    """Connect to one run; None where it is not alive, or not yet.

    Raises:
        GatewayError: it does not answer.
    """
    connection = dial(directory_of(run_id), OBSERVERS_NAME, _TIMEOUT)
    return Run(run_id, connection) if connection is not None else None


def _silent(run_id: str) -> str:
    return f"run {short_id(run_id)} did not answer within {_TIMEOUT:.0f} s; is its gateway stopped?"


def _below_temporary() -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from sorted(Path(tempfile.gettempdir(), f"{PREFIX}{os.geteuid()}").iterdir())


def _started() -> Iterator[Path]:
    """Yield the directories that this user's gateways were started with: a run may have another TMPDIR than we."""
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == os.geteuid():
                    words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
                    if words[1:3] == [b"-m", b"pytest_netns.gateway"] and len(words) > 4:
                        yield Path(os.fsdecode(words[3]))


def find(spec: str, runs: Iterable[Run]) -> tuple[Run, LeafRow]:
    """Return the leaf that a user means.

    Args:
        spec: the leaf's name; where several runs have such a leaf, with the beginning of the run's id before it,
            ``RUN/LEAF``.
        runs: the live runs.

    Raises:
        NetnsError: none or several are meant; the text tells which there are.
    """
    wanted_run, _, wanted = spec.rpartition("/")
    known = [(run, row) for run in runs for row in _leaves(run)]
    if not known:
        raise NetnsError(_nothing_alive())
    found = [(run, row) for run, row in known if row.name == wanted and run.id.startswith(wanted_run)]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{short_id(run.id)}/{row.name} ({row.test})" for run, row in found)
        raise NetnsError(f"several live runs have a leaf {wanted}; say which: {names}")
    fates = [fate for run in runs if run.id.startswith(wanted_run) and (fate := _fate(run, wanted))]
    if fates:
        remedy = "to keep the leaf of a failed test, run pytest with --netns-hold=failed"
        raise NetnsError(f"the leaf {wanted} has ended with its test, {fates[0]}; {remedy}")
    raise NetnsError(f"no live leaf is called {spec!r}; {_similar(spec, known)}")


def _leaves(run: Run) -> list[LeafRow]:
    """List a run's leaves: none where it has just ended, which is no concern of who means another's."""
    try:
        return run.leaves()
    except RunEndedError:
        return []


def _fate(run: Run, leaf: str) -> str | None:
    with contextlib.suppress(RunEndedError):
        return run.fate(leaf)
    return None


def _similar(spec: str, known: list[tuple[Run, LeafRow]]) -> str:
    names = {form: None for run, row in known for form in (row.name, f"{short_id(run.id)}/{row.name}")}
    near = difflib.get_close_matches(spec, names, 1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"{meant}live are: {', '.join(row.name for _, row in known)} (see pytest-netns ps)"


def _nothing_alive() -> str:
    text = f"no run of uid {os.geteuid()} has a live leaf"
    others = sorted(path.name[len(PREFIX) :] for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}[0-9]*"))
    users = [uid for uid in others if uid != str(os.geteuid())]
    if users:
        text += f"; other users have runs (uid {', '.join(users)}), which only they can look into"
    return f"{text}. Leaves live as long as their tests; pytest --netns-hold=failed keeps those of failed ones"


def command(action: str, run_id: str, leaf: str) -> list[str]:
    """Return a command that a user can give at any terminal of theirs, whatever is on the PATH there."""
    script = Path(sys.executable).with_name("pytest-netns")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "pytest_netns"]
    rights = ["sudo"] if privilege.is_root() and "SUDO_USER" in os.environ else []
    return [*rights, *program, action, f"{short_id(run_id)}/{leaf}"]

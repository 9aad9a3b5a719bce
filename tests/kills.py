"""Ends a process of a run at a step of it, lets what is left go on, and tells what came of that."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Container, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

from runs import TOOLS, children

from pytest_netns.sandbox import cgroups

__all__ = ["SIGNALS", "STEPS", "Case", "Outcome", "Step", "carry_out", "cases", "family"]

_STEPS: Final = Path(__file__).parent / "steps"
_PATIENCE: Final = 30.0  # seconds for anything that has to come
_APPROACH: Final = 120.0  # seconds to come to the step, on a machine that others use, too
_POLL: Final = 0.005
_PEER: Final = struct.Struct("iII")  # struct ucred; see unix(7)

#: By name, what is sent one after the other.
SIGNALS: Final[Mapping[str, tuple[signal.Signals, ...]]] = {
    "KILL": (signal.SIGKILL,),
    "TERM": (signal.SIGTERM,),
    "INT": (signal.SIGINT,),
    "STOP, KILL": (signal.SIGSTOP, signal.SIGKILL),
}

SUITE: Final = """
import subprocess, sys
import pytest
from sitecustomize import stop
from tools import answer, ask, listen

SLEEP = [sys.executable, "-S", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(99)"]

@pytest.fixture(scope="session")
def server():
    answer(listen(9000), 99)
    subprocess.Popen(SLEEP, start_new_session=True)
    stop("session fixture, set-up")
    yield
    stop("session fixture, tear-down")

@pytest.fixture
def program(server):
    subprocess.Popen(SLEEP, start_new_session=True)
    stop("fixture, set-up")
    yield
    stop("fixture, tear-down")

@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("number", range(COUNT))
def test_it(program, number):
    listen()
    stop("call")
    assert ask(9000) == b"hello"
"""
BOX: Final = """
@pytest.fixture(autouse=True)
def box(netns, tmp_path):
    box = netns.sandbox(tmp_path, memory="64M")
    process = box.popen(["sleep", "99"])
    stop("a command in a box")
"""


class Step(NamedTuple):
    """Where a process of a run is to be stopped.

    Attributes:
        phase: of the run.
        place: what it is about to do, or has just done; see ``steps/sitecustomize.py``.
        when: before or after.
        time: which time it is.
    """

    phase: str
    place: str
    when: str = "before"
    time: int = 1

    @property
    def boxed(self) -> bool:
        """Whether the tests make boxes."""
        return self.phase == "box"

    @property
    def text(self) -> str:
        """As NETNS_STEP has it."""
        return f"{self.place} {self.when} {self.time}"


_BOTH: Final = ("before", "after")
_ONE: Final = ("before",)

#: By phase: where, when, and which time.
_PLACES: Final[Mapping[str, tuple[tuple[str, tuple[str, ...], int], ...]]] = {
    "start-up": (
        ("kernel.privilege:enter_user_namespace", _BOTH, 1),
        ("gateway.launch:begin", _BOTH, 1),
        ("gateway.paths:make", _BOTH, 1),
        ("gateway.launch:finish", _BOTH, 1),
        ("gateway.server:Gateway.start", _ONE, 1),
        ("gateway.factory:Factory.start", _BOTH, 1),
        ("gateway.server:Gateway.serve", _ONE, 1),
        ("gateway.client:GatewayClient.join", _BOTH, 1),
        ("gateway.grants:Grants._take_on", _ONE, 1),
        ("gateway.factory:Factory.make", _BOTH, 1),
        ("scoping:Traveller.go", _BOTH, 1),
    ),
    "set-up": (
        ("leases:Leases.take", _BOTH, 2),
        ("scoping:Traveller.go", _BOTH, 2),
        ("gateway.grants:Grants._lease", ("after",), 2),
        ("gateway.grants:Grants._hand_out", _ONE, 2),
        ("gateway.factory:Factory.make", _ONE, 3),
        ("test:session fixture, set-up", _ONE, 1),
        ("test:fixture, set-up", _ONE, 1),
    ),
    "call": (("test:call", _ONE, 1), ("test:call", _ONE, 2)),
    "tear-down": (
        ("test:fixture, tear-down", _ONE, 1),
        ("leases:Leases.release", _BOTH, 1),
        ("kernel.processes:end_members", _BOTH, 1),
        ("gateway.client:GatewayClient.order", _BOTH, 2),
        ("namespace:Namespace.close", _ONE, 1),
        ("gateway.server:Gateway._release_now", _ONE, 1),
        ("gateway.factory:_close", _ONE, 1),
    ),
    "shut-down": (
        ("test:session fixture, tear-down", _ONE, 1),
        ("session:Session.finish", _BOTH, 1),
        ("leases:Leases.release_all", _BOTH, 1),
        ("gateway.client:GatewayClient.close", _BOTH, 1),
        ("gateway.server:Gateway._bury", _ONE, 1),
        ("gateway.server:Gateway._clear", _ONE, 1),
        ("gateway.server:Gateway.stop", _ONE, 1),
        ("gateway.factory:Factory.stop", ("after",), 1),
    ),
    "box": (
        ("sandbox.helper:Warden.__init__", _BOTH, 1),
        ("sandbox.warden:Warden.serve", _ONE, 1),
        ("sandbox.keeper:_set_up", _BOTH, 1),
        ("sandbox.stage:Stage.set_up", _BOTH, 1),
        ("sandbox.command:Command.__init__", _ONE, 1),
        ("test:a command in a box", _ONE, 1),
        ("sandbox.box:Sandbox.close", _ONE, 1),
        ("sandbox.warden:Warden._end", _ONE, 1),
    ),
}


def _steps() -> Iterator[Step]:
    for phase, places in _PLACES.items():
        for place, whens, number in places:
            where = place if place.startswith("test:") else f"pytest_netns.{place}"
            for when in whens:
                yield Step(phase, where, when, number)


STEPS: Final = tuple(_steps())


class Case(NamedTuple):
    """What is done to a run: a signal to one of its processes while one of them has come to a step."""

    step: Step
    target: str
    signals: str
    workers: bool

    @property
    def name(self) -> str:
        """What it is called."""
        way = "xdist" if self.workers else "alone"
        return f"{self.step.phase}: {self.step.text}; {self.signals} to {self.target}, {way}"


def cases(*, root: bool) -> list[Case]:
    """Return them all."""
    found = []
    for step in STEPS:
        if root and step.place.endswith(":enter_user_namespace"):
            continue
        for workers in (False, True):
            targets = ["controller", "worker", "gateway"] if workers else ["pytest", "gateway", "understudy"]
            targets += ["warden", "keeper", "box"] if step.boxed else []
            found += [Case(step, target, signals, workers) for target in targets for signals in SIGNALS]
    return found


class Outcome(NamedTuple):
    """What came of a case.

    Attributes:
        seconds: from the last signal, or the end of a run that went on, until nothing was left.
        problems: what should not have been.
        absent: whether there was no such step or process, as with another order of things.
    """

    seconds: float
    problems: list[str]
    absent: bool = False


class _Run:
    """One run of pytest, as a child whose own children are adopted when they become orphans."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._before = set(children())
        self._began = time.time()
        (folder / "tools.py").write_text(TOOLS)
        count = "4" if case.workers else "3"
        text = SUITE.replace("COUNT", count) + (BOX if case.step.boxed else "")
        (folder / "test_it.py").write_text(text)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "step"))
        (folder / "step").chmod(0o777)
        self._listener.listen()
        self._listener.settimeout(_PATIENCE)
        self.output = folder / "output"

    def start(self) -> subprocess.Popen[bytes]:
        """Start it."""
        known = {entry.name for entry in metadata.entry_points(group="pytest11")}
        wanted = {"netns", *(("xdist", "xdist.looponfail") if self.case.workers else ())}
        command = [sys.executable, "-m", "pytest", *(f"-pno:{name}" for name in sorted(known - wanted))]
        command += ["-pno:cacheprovider", "--netns", "-rA", "--tb=short", *(["-n2"] if self.case.workers else [])]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        path = os.pathsep.join(filter(None, (str(_STEPS), os.environ.get("PYTHONPATH"))))
        environment |= {"PYTHONPATH": path, "TMPDIR": str(self.temporary), "NETNS_STEP": self.case.step.text}
        environment |= {"NETNS_STEP_SOCKET": str(self.folder / "step")}
        with self.output.open("wb") as output:
            return subprocess.Popen(
                command, cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def await_step(self, process: subprocess.Popen[bytes]) -> socket.socket | None:
        """Wait until a process has come to the step; None where none does. Later ones do not stop."""
        self._listener.settimeout(0.1)
        deadline = time.monotonic() + _APPROACH
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                stopped, _ = self._listener.accept()
                threading.Thread(target=self._wave_through, daemon=True).start()
                return stopped
            if process.poll() is not None:
                return None
        return None

    def _wave_through(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with contextlib.suppress(TimeoutError):
                    self._listener.accept()[0].close()

    def find(self, stopped: socket.socket, process: subprocess.Popen[bytes]) -> int | None:
        """Return the process that is to be ended; the one at the step, if that is of the kind."""
        peer, _, _ = _PEER.unpack(stopped.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        if self.case.target in ("pytest", "controller"):
            return process.pid
        kinds = [pid for pid, kind in family(self._before).items() if kind == self.case.target]
        return peer if peer in kinds else next(iter(kinds), None)

    def left(self) -> list[str]:
        """Return what is there of the run."""
        processes = [f"process {pid}: {_command(pid)}" for pid in set(children()) - self._before if not _reap(pid)]
        files = [path for path in _files(self.temporary) if "/pytest-netns-" in path]
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        mounts = [line for line in mounts if str(self.temporary) in line]
        return [*processes, *files, *mounts, *_groups(since=self._began)]

    def end(self) -> None:
        """End what is left after all."""
        self._listener.close()
        for pid in set(children()) - self._before:
            if not _reap(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def carry_out(case: Case) -> Outcome:
    """Do it, and see what comes of it; this process has to adopt orphans."""
    folder = Path(tempfile.mkdtemp(prefix="kill-", dir="/var/tmp"))  # a box covers /tmp
    folder.chmod(0o755)
    links = socket.if_nameindex()
    run = _Run(case, folder)
    process = run.start()
    try:
        outcome = _carry_out(case, run, process)
    finally:
        run.end()
    if socket.if_nameindex() != links:
        outcome.problems.append(f"interfaces: {socket.if_nameindex()}")
    if outcome.problems:
        outcome.problems.append(f"(see {run.output})")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return outcome


def _carry_out(case: Case, run: _Run, process: subprocess.Popen[bytes]) -> Outcome:
    stopped = run.await_step(process)
    pid = run.find(stopped, process) if stopped is not None else None
    if stopped is None or pid is None:
        if stopped is not None:
            stopped.close()
        ended = _wait(process)
        return Outcome(0.0, [] if ended else ["the run did not end"], absent=True)
    for number in SIGNALS[case.signals]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        if number is signal.SIGSTOP:
            _await_stop(pid)
    began = time.monotonic()
    stopped.close()
    problems = []
    if not _wait(process):
        problems.append("hung")
        os.kill(process.pid, signal.SIGKILL)
    text = run.output.read_text(errors="replace")
    lasted = time.monotonic() - began
    if case.target in ("pytest", "controller"):
        if case.signals != "INT" and process.returncode >= 0 and case.step.phase != "shut-down":
            problems.append(f"went on: {process.returncode}")
    else:
        problems += _went_on(case, text, process.returncode)
        began = time.monotonic()
        lasted = 0.0
    deadline = began + 10 + lasted
    while (left := run.left()) and time.monotonic() < deadline:
        time.sleep(_POLL)
    seconds = time.monotonic() - began
    return Outcome(seconds, [*problems, *(f"left: {one}" for one in left)])


def _went_on(case: Case, text: str, status: int) -> list[str]:
    """Return what is wrong about how a run went on that has lost something."""
    problems = []
    if "INTERNALERROR" in text:
        problems.append("INTERNALERROR")
    counts = {name: int(count) for count, name in re.findall(r"(\d+) (passed|failed|error)", text.rpartition("\n=")[2])}
    wrong = counts.get("failed", 0) + counts.get("error", 0)
    if case.step.phase == "start-up":
        if status not in (0, 1, 3, 4):
            problems.append(f"ended with {status}: {counts}")
        return problems
    if not counts.get("passed"):
        problems.append(f"no test passed: {counts}")
    if case.target == "gateway" and wrong and "the gateway has ended" not in text:
        problems.append("fails without the reason")
    if wrong > (4 if case.workers else 2):
        problems.append(f"too many fail: {counts}")
    return problems


def _wait(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _await_stop(pid: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and _state(pid) not in "TZX":
        time.sleep(_POLL)


def family(others: Container[int] = ()) -> dict[int, str]:
    """Return the processes below this one, but for these children and theirs, and what each of them is."""
    found = [pid for one in children() if one not in others for pid in _descendants(one)]
    return {pid: _kind(pid) for pid in found if _state(pid) not in "ZX"}


def _kind(pid: int) -> str:
    command = _command(pid)
    if "-m pytest_netns.gateway" in command:
        return "gateway" if "-m pytest_netns.gateway" in _command(_parent(pid)) else "understudy"
    if "sandbox import warden" in command:
        return "keeper" if "sandbox import warden" in _command(_parent(pid)) else "warden"
    if command.startswith("bwrap ") or command == "sleep 99":
        return "box"
    worker = "exec(eval(sys.stdin.readline()))"
    return "worker" if worker in command and worker not in _command(_parent(pid)) else ""  # no fork of one


def _files(folder: Path) -> Iterator[str]:
    """Yield what is below a folder, in which things vanish meanwhile."""
    for parent, directories, files in os.walk(folder):
        yield from (os.path.join(parent, name) for name in (*directories, *files))


def _groups(since: float) -> list[str]:
    """Return control groups of boxes that were made since then, and whose pytest process has ended."""
    found = {group.path for group in cgroups.find().values()}
    names = (path for place in found for path in Path(place).glob("pytest-netns-*"))
    dead = (path for path in names if not Path("/proc", path.name.split("-")[2]).exists())
    return [f"group {path}" for path in dead if _is_newer(path, since)]


def _is_newer(path: Path, since: float) -> bool:
    try:
        return path.stat().st_ctime >= since - 1
    except FileNotFoundError:
        return False


def _descendants(pid: int) -> Iterator[int]:
    yield pid
    for child in children(pid):
        yield from _descendants(child)


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return ["X", "0"]


def _state(pid: int) -> str:
    return _stat(pid)[0]


def _parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _reap(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True

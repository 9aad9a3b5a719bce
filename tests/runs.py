"""Runs of pytest as a user starts them, and what they leave behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import pytest

__all__ = ["IN_EVERY_WAY", "OWN_NETWORK", "ROOT", "Suite", "adopt_orphans", "requires"]

ROOT: Final = os.geteuid() == 0

_PR_SET_CHILD_SUBREAPER: Final = 36  # prctl(2)
_PATIENCE: Final = 10.0  # seconds for the gateway to end after its last worker
_POLL: Final = 0.01
_TURN: Final = 90.0  # seconds for another run's plain suite to end

_WAYS: Final = {"plain": (), "netns": ("--netns",), "workers": ("--netns", "-n2")}
IN_EVERY_WAY: Final = pytest.mark.parametrize("way", _WAYS.values(), ids=_WAYS)

TOOLS: Final = '''
import contextlib, os, socket, threading

KEPT = []

def leaf():
    """The leaf that this code runs in, by name and as the kernel has it, which uses numbers again."""
    return os.environ["PYTEST_NETNS"], os.stat("/proc/thread-self/ns/net").st_ino

def listen(port=8080, host="127.0.0.1"):
    """Listen there and never stop: who comes next in the same namespace fails."""
    server = socket.create_server((host, port))
    KEPT.append(server)
    return server

def answer(server, times=1):
    """Answer so many clients, from a thread."""
    def serve():
        for _ in range(times):
            connection = server.accept()[0]
            with connection:
                connection.sendall(b"hello")
    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return thread

def ask(port=8080, host="127.0.0.1"):
    """What the server there answers."""
    with socket.create_connection((host, port), 5) as client:
        return client.recv(100)

def note(*words):
    """Write down a line."""
    with open("notes", "a") as file:
        print(*words, file=file)
'''

#: For what a suite checks in each of its tests, one after the other.
OWN_NETWORK: Final = '''
import os, socket

SEEN = set()
# What the kernel may put into each network by itself.
TUNNELS = {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}

def own_network():
    """The test has a network that no other had, with nothing in it but what it needs, and its port is free."""
    place = os.environ["PYTEST_NETNS"], os.stat("/proc/thread-self/ns/mnt").st_ino
    assert place not in SEEN
    SEEN.add(place)
    assert {name for _, name in socket.if_nameindex()} - TUNNELS == {"eth0", "lo"}
    with socket.create_server(("127.0.0.1", 8080)) as server, socket.create_connection(("127.0.0.1", 8080)):
        server.accept()[0].close()
'''


def adopt_orphans(*, wanted: bool) -> None:
    """Become the parent of every process below this one whose own parent ends; or be it no more."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, int(wanted), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def requires(*distributions: str, program: str | None = None) -> pytest.MarkDecorator:
    """Return a marker that skips where one of these, or the program, is not installed.

    Raises:
        RuntimeError: it is to be installed here, says ``NETNS_WITH_PLUGINS`` in the environment.
    """
    missing = [name for name in distributions if not _installed(name)]
    if program is not None and shutil.which(program) is None and not Path(program).exists():
        missing.append(program)
    reason = f"not installed: {', '.join(missing)}"
    if missing and "NETNS_WITH_PLUGINS" in os.environ:
        raise RuntimeError(reason)
    return pytest.mark.skipif(bool(missing), reason=reason)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


class Suite:
    """A test suite in a directory of its own, and the runs of it.

    Each run sees but those of the installed plugins that it asks for, and has a directory for temporary
    files of its own. This process must adopt orphans: whatever a run leaves is our child in the end.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.temporary = Path(tempfile.mkdtemp(prefix="run-"))
        self._children = set(children())
        self.write(tools=TOOLS)
        self.path.joinpath("tmp").mkdir()

    def write(self, **modules: str) -> None:
        """Write modules, by name."""
        self.pytester.makepyfile(**modules)

    def notes(self) -> list[str]:
        """Return what the last runs have written down, and forget it."""
        path = self.path / "notes"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    def command(self, *arguments: str, plugins: str = "") -> list[str]:
        """Return the command line of a run with these plugins, by the names of their entry points."""
        wanted = {"netns", *plugins.split()}
        if any(argument.startswith("-n") for argument in arguments):
            wanted |= {"xdist", "xdist.looponfail"}
        known = {entry.name for entry in metadata.entry_points(group="pytest11")}
        blocked = [f"-pno:{name}" for name in sorted(known - wanted)]
        return [sys.executable, "-m", "pytest", *blocked, *arguments]

    def run(self, *arguments: str, plugins: str = "", timeout: float = 40) -> pytest.RunResult:
        """Run pytest to its end, and see to it that nothing is left."""
        result = self.pytester.run(*self.command(*arguments, plugins=plugins), timeout=timeout)
        self.assert_nothing_left()
        return result

    def passes(self, *arguments: str, plugins: str = "", timeout: float = 60, **outcomes: int) -> pytest.RunResult:
        """Run pytest to its end, and see to it that it has these outcomes, and nothing of ours to complain of."""
        with contextlib.nullcontext() if "--netns" in arguments else _ports_of_the_host():
            result = self.run(*arguments, plugins=plugins, timeout=timeout)
        result.assert_outcomes(**outcomes)
        result.stdout.no_re_match_line("=+ netns: |.*NetnsWarning")
        return result

    def start(self, *arguments: str, plugins: str = "") -> subprocess.Popen[str]:
        """Start pytest in a session and process group of its own."""
        return subprocess.Popen(
            self.command(*arguments, plugins=plugins),
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def gateway(self) -> int:
        """Return the process of the gateway, which is nobody's child and so ours."""
        (found,) = (pid for pid in set(children()) - self._children if "-m pytest_netns.gateway" in _command(pid))
        return found

    def assert_nothing_left(self) -> None:
        """Fail if a process of the run is alive, or anything of ours is in the file system or mounted."""
        deadline = time.monotonic() + _PATIENCE
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(_POLL)
        assert not left, "\n".join(left)

    def _left(self) -> list[str]:
        processes = [_command(pid) for pid in set(children()) - self._children if not _reap(pid)]
        parents = [path for path in self.temporary.iterdir() if path.name.startswith("pytest-netns-")]
        directories = [where for parent in parents for where, _, _ in os.walk(parent)]
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        return [*processes, *directories, *(mount for mount in mounts if str(self.temporary) in mount)]

    def end(self) -> None:
        """End what is left after all, having failed for it."""
        for pid in set(children()) - self._children:
            if not _reap(pid):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


@contextlib.contextmanager
def _ports_of_the_host() -> Iterator[None]:
    """Keep another run of these tests, whoever's it is, from the fixed ports of plain suites.

    The lock is an abstract Unix socket: every user can bind it, and it goes with its process.
    """
    deadline = time.monotonic() + _TURN
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind("\0pytest-netns: tests that run plain")
                break
            except OSError:
                assert time.monotonic() < deadline, f"another run of these tests has the ports for over {_TURN:.0f} s"
            time.sleep(_POLL)
        yield


def children(pid: int | str = "self") -> list[int]:
    """Return the children of a process; its threads may end meanwhile, and so may it."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, task.joinpath("children").read_text(encoding="ascii").split())
    return found


def _reap(pid: int) -> bool:
    """Tell whether a child has ended, and let it go."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        words = []
    return f"process {pid}: {b' '.join(words).decode(errors='replace')}"

"""Runs of pytest in which one of our system calls fails, and what there is to say of them afterwards."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from faulted import SUITES, Faulted

import pytest_netns

__all__ = ["ERRNOS", "Fault", "Finding", "faults_of", "places_of", "run"]

HOOKS: Final = Path(__file__).parent / "faulty"
_LIMIT: Final = 60.0  # seconds; the product's own longest wait is half of that
_PATIENCE: Final = 5.0  # seconds for what a run leaves to end
_POLL: Final = 0.02

_SOUP: Final = r"Traceback \(most recent|INTERNALERROR|Exception ignored|never retrieved"
#: How pytest-xdist tells of a worker that could not begin; it goes on with another one.
_NODE_DOWN: Final = r"(?s)node down: Traceback.*?UsageError: netns: "
_TWICE: Final = "During handling of the above|direct cause of the following"
_OURS: Final = r"pytest_netns/[\w/]+\.py"
_INSIDE: Final = rf"{_SOUP}|{_TWICE}|{_OURS}"
#: What asyncio says of its own socket; strace makes a test's calls fail, too, one while it handles what another led to.
_WAKER: Final = r"(?s)Exception in callback BaseSelectorEventLoop\._read_from_self\(\).*?\n\w+Error: [^\n]*\n"
_INSIDE_ANY: Final = rf"{_SOUP}|{_OURS}"
_DESCRIPTORS: Final = "EMFILE ENFILE"
#: What the pages of the manual say that a call can fail with, but for EFAULT, and EINTR, after which Python goes on;
#: close(2) is left out, as it fails for files on network file systems only, and we have none there.
ERRNOS: Final = {
    "libc.unshare": "EINVAL ENOMEM ENOSPC EPERM EUSERS",
    "libc.setns": "EBADF EINVAL ENOMEM EPERM ESRCH",
    "libc.mount": "EACCES EBUSY EINVAL ELOOP EMFILE ENAMETOOLONG ENODEV ENOENT ENOMEM ENOSPC ENOTBLK ENOTDIR ENXIO "
    "EPERM EROFS",
    "libc.umount2": "EAGAIN EBUSY EINVAL ENAMETOOLONG ENOENT ENOMEM EPERM",
    "libc.prctl": "EINVAL EPERM",
    "libc.capget": "EINVAL EPERM ESRCH",
    "libc.capset": "EINVAL EPERM ESRCH",
    "libc.chdir": "EACCES EIO ENOENT ENOMEM ENOTDIR",
    "libc.setsockopt": "EBADF EINVAL ENOMEM ENOPROTOOPT EBUSY EPERM",
    "libc.syscall": "EPERM ENOSYS EINVAL ENOMEM",
    "os.open": f"EACCES EDQUOT ELOOP ENOENT ENOMEM ENOSPC EPERM EROFS {_DESCRIPTORS}",
    "io.open": f"EACCES EDQUOT ELOOP ENOENT ENOMEM ENOSPC EPERM EROFS {_DESCRIPTORS}",
    "os.read": "EIO EBADF EINVAL",
    "os.write": "EDQUOT EINVAL EIO ENOSPC EPERM EPIPE",
    "os.pipe": f"ENOMEM {_DESCRIPTORS}",
    "os.dup": "EBADF EMFILE ENOMEM",
    "os.fork": "EAGAIN ENOMEM ENOSYS",
    "os.stat": "EACCES ELOOP ENOENT ENOMEM",
    "os.lstat": "EACCES ELOOP ENOENT ENOMEM",
    "os.fstat": "EBADF ENOMEM",
    "os.statvfs": "EACCES EIO ENOMEM ENOSYS",
    "os.listdir": f"EACCES ENOENT ENOMEM {_DESCRIPTORS}",
    "os.scandir": f"EACCES ENOENT ENOMEM {_DESCRIPTORS}",
    "os.readlink": "EACCES EIO ENOENT ENOMEM",
    "os.mkdir": "EACCES EDQUOT ENOENT ENOMEM ENOSPC EPERM EROFS",
    "os.rmdir": "EACCES EBUSY ENOMEM ENOTEMPTY EPERM EROFS",
    "os.unlink": "EACCES EBUSY EIO ENOMEM EPERM EROFS",
    "os.chmod": "EACCES EIO ENOMEM EPERM EROFS",
    "os.getcwd": "EACCES ENOENT ENOMEM",
    "os.pidfd_open": f"EINVAL ENODEV ENOMEM ESRCH {_DESCRIPTORS}",
    "os.waitpid": "ECHILD",
    "os.splice": "EINVAL ENOMEM ESPIPE",
    "signal.pidfd_send_signal": "EBADF EINVAL EPERM ESRCH",
    "resource.setrlimit": "EINVAL EPERM",
    "fcntl.fcntl": "EBUSY EPERM EINVAL",
    "fcntl.ioctl": "EINVAL ENOTTY EPERM",
    "mmap.mmap": "EACCES EAGAIN EINVAL ENFILE ENODEV ENOMEM EPERM",
    "subprocess._fork_exec": "EAGAIN ENOMEM",
    "socket.socket": f"EACCES EAFNOSUPPORT EINVAL ENOBUFS ENOMEM EPROTONOSUPPORT {_DESCRIPTORS}",
    "socket.bind": "EACCES EADDRINUSE EADDRNOTAVAIL EINVAL ENOMEM EROFS",
    "socket.listen": "EADDRINUSE EOPNOTSUPP",
    "socket.connect": "EACCES EAGAIN ECONNREFUSED ENETUNREACH EPERM ETIMEDOUT",
    "socket.accept": f"ECONNABORTED EINVAL ENOBUFS ENOMEM EPERM EPROTO {_DESCRIPTORS}",
    "socket.send": "EAGAIN ECONNRESET ENOBUFS ENOMEM EPIPE EACCES",
    "socket.sendto": "EAGAIN ECONNRESET ENOBUFS ENOMEM EPIPE EACCES EPERM ENETUNREACH",
    "socket.sendmsg": "EAGAIN ECONNRESET ENOBUFS ENOMEM EPIPE ETOOMANYREFS EMSGSIZE",
    "socket.recv": "EAGAIN ECONNREFUSED ECONNRESET ENOMEM ENOBUFS",
    "socket.recvfrom": "EAGAIN ECONNREFUSED ENOMEM",
    "socket.recvmsg": "EAGAIN ECONNRESET ENOMEM",
    "socket.setsockopt": "EINVAL ENOPROTOOPT ENOMEM EPERM",
    "socket.getsockopt": "EINVAL ENOPROTOOPT ENOBUFS",
    "socket.getsockname": "ENOBUFS",
}
#: What becomes of netlink's answers; a refusal of each kind that rtnetlink(7) and nf_tables know.
ANSWERS: Final = (
    "TRUNCATED REORDERED LOST REFUSED_EAFNOSUPPORT REFUSED_EBUSY REFUSED_EEXIST REFUSED_EINVAL REFUSED_ENOBUFS "
    "REFUSED_ENODEV REFUSED_ENOENT REFUSED_ENOMEM REFUSED_ENOSPC REFUSED_EOPNOTSUPP REFUSED_EPERM REFUSED_ERANGE"
)
_ANSWERED: Final = "kernel.netlink:_receive:socket.recv"

_PLAIN: Final = SUITES["plain"]

#: What is said of another process that had its reasons, and could not tell them.
_CARRIERS: Final = "gateway|gateway.p"  # pump and pipes: what can't be carried on is reset
_NO_OTHER: Final = "the gateway and its understudy have ended"
_UNTOLD: Final = f"(did|does) not answer|ended as soon as it was started|ended before there was one|{_NO_OTHER}"

#: Calls whose failing is what they are made to be told.
_EXPECTED: Final = ("kernel.netlink:_settle:socket.recv", "aftermath:_inode:os.fstat")

#: Errors that are believed, as they say that there is no such file, what a command has made of one, or that it is over.
_BELIEVED: Final = {
    "kernel.mounts:_provide:os.stat": "ENOENT",
    "sandbox.snapshot:_read:os.stat": "ENOENT",
    "sandbox.snapshot:entry_at:os.stat": "ENOENT EACCES ELOOP",
    "sandbox.streams:_feed:os.write": "EPIPE",
}


class Fault(NamedTuple):
    """A call that fails: where, with what, from which passage on, and how often."""

    place: str
    what: str
    first: int = 1
    times: int = 1

    @property
    def text(self) -> str:
        """What the processes are told."""
        return f"{self.place.replace('|', '/')}|{self.what}|{self.first}|{self.times}"

    @property
    def outside(self) -> list[str]:
        """What strace is to be told; nothing where the processes do it themselves."""
        if not self.place.startswith("strace:"):
            return []
        call = self.place.removeprefix("strace:")
        when = f"{self.first}..{self.first + self.times - 1}"
        return [
            "-qq",
            "-f",
            "--seccomp-bpf",
            "-e",
            f"trace={call}",
            "-e",
            f"inject={call}:error={self.what}:when={when}",
        ]


class Finding(NamedTuple):
    """What was seen of one run.

    Attributes:
        fault: what failed.
        fired: how often.
        outcome: ``unharmed``, ``told`` of a test, ``refused`` of a run that said why it cannot go on; else what is bad.
        seconds: how long it took.
        output: what the user read.
    """

    fault: Fault | None
    fired: int
    outcome: str
    seconds: float
    output: str

    @property
    def is_bad(self) -> bool:
        """Whether it is to be mended."""
        return self.outcome not in {"unharmed", "told", "refused", "not reached"}


def faults_of(places: Iterable[str], first: int = 1, times: int = 1) -> Iterator[Fault]:
    """Yield each fault that can befall each of the places."""
    for place in places:
        call = place.rpartition(":")[2]
        believed = _BELIEVED.get(place.partition("|")[2], "").split()
        errnos = [] if place.endswith(_EXPECTED) else ERRNOS.get(call, "").split()
        answers = ANSWERS.split() if place.endswith(_ANSWERED) else []
        for what in [one for one in errnos if one not in believed] + answers:
            yield Fault(place, what, first, times)


def places_of(options: tuple[str, ...], suite: Faulted = _PLAIN) -> list[str]:
    """Return the places that a run without a fault comes by."""
    with _folder(suite) as folder:
        finding = _run(folder, None, suite, options)
        assert finding.outcome == "unharmed", finding.output
        lines = Path(folder, "log").read_text(encoding="utf-8").splitlines()
    return sorted({line.removeprefix("seen ") for line in lines if line.startswith("seen ")})


def run(fault: Fault, options: tuple[str, ...], suite: Faulted = _PLAIN) -> Finding:
    """Run the suite with a fault."""
    with _folder(suite) as folder:
        return _run(folder, fault, suite, options)


@contextlib.contextmanager
def _folder(suite: Faulted) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="fault-"))
    try:
        (folder / "test_it.py").write_text(suite.text, encoding="utf-8")
        (folder / "conftest.py").write_text(suite.conftest, encoding="utf-8")
        (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        (folder / "tmp").mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: Path, fault: Fault | None, suite: Faulted, options: tuple[str, ...]) -> Finding:
    log = folder / "log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))}
    environment |= {
        "PYTHONPATH": f"{HOOKS}{os.pathsep}{Path(pytest_netns.__file__).parent.parent}",
        "NETNS_FAULT_LOG": str(log),
        "NETNS_FAULT": fault.text if fault and not fault.outside else "",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TMPDIR": str(folder / "tmp"),
    }
    workers = ("-p", "xdist") if any(option.startswith("-n") for option in options) else ()
    plugins = ("-p", "pytest_netns.plugin", *workers, "-p", "no:cacheprovider")
    before, begin = set(_children()), time.monotonic()
    strace = ["strace", "-o", str(folder / "strace"), *fault.outside] if fault and fault.outside else []
    command = [*strace, sys.executable, "-m", "pytest", *plugins, *options]
    output, status = _finished(command, folder, environment)
    seconds = time.monotonic() - begin
    fired = sum(
        line.startswith("fault ") or "(INJECTED)" in line
        for path in (log, folder / "strace")
        if path.exists()
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines()
    )
    outcome = _judged(fault, fired, suite, output, status)
    left = _left(folder / "tmp", before)
    if left:
        outcome = f"left behind: {left}"
    return Finding(fault, fired, outcome, seconds, output)


def _finished(command: list[str], folder: Path, environment: dict[str, str]) -> tuple[str, int | None]:
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        return process.communicate(timeout=_LIMIT)[0], process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0], None


def _judged(fault: Fault | None, fired: int, suite: Faulted, output: str, status: int | None) -> str:
    passed, failed, errors = (_count(output, what) for what in ("passed", "failed", "errors?"))
    usual = int(bool(suite.failed or suite.errors))
    named = fault is None or _is_named(fault, output)
    output = re.sub(_NODE_DOWN, "", output)
    inside = _SOUP if suite.calls else _INSIDE
    if fault is not None and fault.outside:
        output, inside = re.sub(_WAKER, "", output), _INSIDE_ANY
    lost = 0 if fault is None else fired if fault.outside else min(2, fired)
    if fault is not None and (fault.times > 1 or _NO_OTHER in output):
        lost = suite.passed
    if status is None:
        outcome = "hung"
    elif re.search(inside, output):
        outcome = "traceback"
    elif (status, passed, failed, errors) == (usual, *suite[1:4]):
        outcome = "unharmed" if fired or fault is None else "not reached"
    elif status == 0:
        outcome = "lost tests"
    elif not named:
        outcome = "not named"
    elif status == 1:
        outcome = "told" if passed >= suite.passed - lost else f"unsound: {passed} passed"
    else:
        outcome = "refused" if "netns: " in output else f"ended with {status}"
    return outcome


def _count(output: str, what: str) -> int:
    found = re.findall(rf"(\d+) {what}\b", output)
    return int(found[-1]) if found else 0


def _is_named(fault: Fault, output: str) -> bool:
    import errno

    name = fault.what.removeprefix("REFUSED_")
    if re.search(_UNTOLD, output) or (_CARRIERS in fault.place and "Connection reset by peer" in output):
        return True
    if not hasattr(errno, name):
        return "netns" in output
    return os.strerror(getattr(errno, name)) in output


def _left(temporary: Path, before: set[int]) -> str:
    deadline = time.monotonic() + _PATIENCE
    while True:
        processes = [pid for pid in set(_children()) - before if not _reaped(pid)]
        paths = [str(path.relative_to(temporary)) for path in temporary.rglob("pytest-netns-*/**/*")]
        if not processes and not paths:
            return ""
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    commands = []
    for pid in processes:
        with contextlib.suppress(OSError):
            commands.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return ", ".join([*commands, *paths])


def _children() -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in task.joinpath("children").read_text(encoding="ascii").split()]


def _reaped(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True

"""Start the gateway, and find the one that serves a run."""

from __future__ import annotations

import _socket  # tests replace what is in socket, and so do gevent and eventlet
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from pytest_netns.errors import GatewayError, KernelError, UnsupportedError
from pytest_netns.gateway import protocol
from pytest_netns.gateway.paths import (
    ATTEMPTS,
    SOCKET_NAME,
    is_held,
    is_there,
    locked,
    make,
    remove,
    removed,
    short_path,
)
from pytest_netns.kernel import clock, privilege
from pytest_netns.kernel.imports import import_path
from pytest_netns.kernel.readiness import is_readable

TIMEOUT: Final = 10.0  # seconds for any one answer
START_TIMEOUT: Final = 30.0  # seconds for a new gateway, on a machine under load
SILENCE: Final = "; it is stopped, or the machine is overloaded: let it go on, or run fewer workers"
"""What to say after how long a gateway did not answer."""

_LOG_TAIL: Final = 2000
_POLL: Final = 0.01  # seconds
_LIVES: Final = 2  # of a new gateway: whoever kills one that has just been started does not do so twice


def dial(run_dir: Path, name: str = SOCKET_NAME, timeout: float = TIMEOUT) -> _socket.socket | None:
    """Connect to the gateway that serves a run; None where none does, or one that is just ending."""
    connection = _socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    protocol.limit(connection, timeout)
    try:
        with short_path(run_dir / name) as path:
            connection.connect(path)
        protocol.send(connection, {"op": "hello"})
        answer, _ = protocol.receive(connection)
    except BlockingIOError:
        connection.close()
        raise GatewayError(f"the gateway in {run_dir} did not answer within {timeout:.0f} s{SILENCE}") from None
    except OSError as error:
        connection.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
            return None
        raise GatewayError(f"cannot reach the gateway in {run_dir}: {error}") from error
    if answer is None:
        connection.close()
        return None
    return connection


def find(run_dir: Path) -> _socket.socket | None:
    """Connect to the gateway that serves a run, be it only about to, after one that was killed; None where none is."""
    if not is_there(run_dir):
        return None
    deadline = clock.monotonic() + START_TIMEOUT
    while True:
        connection = dial(run_dir)
        if connection is not None or not is_held(run_dir) or clock.monotonic() > deadline:
            return connection
        time.sleep(_POLL)


def find_or_start(run_dir: Path) -> _socket.socket:
    """Connect to the gateway of a run, whoever comes first starting it.

    Raises:
        KernelError, UnsupportedError, GatewayError: see ``GatewayClient.connect``.
    """
    for _ in range(ATTEMPTS):
        make(run_dir)
        with locked(run_dir, START_TIMEOUT) as is_in_place:
            connection = find(run_dir)
            if connection is None and is_in_place():  # or one has just ended, and taken the directory away
                connection = start(run_dir)
        if connection is not None:
            return connection
    raise removed(run_dir)


class Begun(NamedTuple):
    """A gateway that is about to serve a run; ``start`` closes the descriptors.

    Attributes:
        run_dir: the run's directory.
        process: what gives way to the gateway.
        ready: the descriptor on which it reports.
        log: the file that it writes to, which has no name.
    """

    run_dir: Path
    process: subprocess.Popen[bytes]
    ready: int
    log: IO[bytes]


def begin(run_dir: Path) -> Begun:
    """Start the gateway; ``start`` has to follow.

    It makes the run's directory itself, so that there is none without a process that will remove it.
    """
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile(buffering=0))
        ready, told = os.pipe()
        stack.callback(os.close, ready)
        try:
            with privilege.inheritable():
                process = subprocess.Popen(
                    [sys.executable, "-m", "pytest_netns.gateway", str(run_dir), str(told)],
                    cwd="/",  # nothing in the user's directory is taken for a module
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[told],
                    start_new_session=True,
                )
        finally:
            os.close(told)
        stack.pop_all()
    return Begun(run_dir, process, ready, log)


def start(run_dir: Path, begun: Begun | None = None) -> _socket.socket:
    """Connect to a new gateway, which may have been begun already; its errors become ours.

    Raises:
        KernelError, UnsupportedError, GatewayError: see ``GatewayClient.connect``.
    """
    for _ in range(_LIVES):
        begun = begun or begin(run_dir)
        with begun.log:
            connection = find(run_dir) if finish(begun) else None
            last_words = _log(begun)
        if connection is not None:
            return connection
        begun = None
    raise GatewayError(f"the gateway in {run_dir} ended as soon as it was started\n{last_words}")


def finish(begun: Begun) -> bool:
    """Wait until a gateway that was started serves; its errors become ours. False where it has ended without a word."""
    _, process, ready, _ = begun
    try:
        report = _read_report(ready)
    finally:
        os.close(ready)
    if report is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()  # it has given way to the gateway long since, which is nobody's child
    if report is None:
        raise GatewayError(f"the gateway did not start within {START_TIMEOUT:.0f} s{SILENCE}\n{_log(begun)}")
    if report.get("error"):
        raise _start_error(report, _log(begun))
    return bool(report["serves"])


def _read_report(ready: int) -> dict[str, Any] | None:
    """Return what a gateway reports, be it only its end; None where that takes too long."""
    deadline = clock.monotonic() + START_TIMEOUT
    data = b""
    while (left := deadline - clock.monotonic()) > 0:
        if not is_readable(ready, left):
            break
        chunk = os.read(ready, 65536)
        data += chunk
        if not chunk or data.endswith(b"\n"):
            report: dict[str, Any] = json.loads(data) if data else {"serves": False}
            return report
    return None


def _start_error(report: dict[str, Any], log: str) -> Exception:
    text = f"{report['error']}\n{log}".rstrip()
    if report["kind"] == "UnsupportedError":
        return UnsupportedError(text)
    if report["errno"]:
        return KernelError(report["errno"], text)
    return GatewayError(text)


def clear(run_dir: Path) -> None:
    """Remove the directory of a run whose gateway was killed, unless there is another one."""
    with contextlib.suppress(OSError, GatewayError), locked(run_dir, timeout=0) as is_in_place:
        if is_in_place() and dial(run_dir) is None:
            remove(run_dir)


def _environment() -> dict[str, str]:
    """Return the environment for the gateway: the same modules, and no coverage measurement of it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_CORE_", "COVERAGE_"))}
    environment["PYTHONPATH"] = os.pathsep.join(import_path())
    return environment


def _log(begun: Begun) -> str:
    """Return the end of what a gateway has written to its log."""
    log = begun.log.fileno()
    since = max(0, os.fstat(log).st_size - _LOG_TAIL)
    return os.pread(log, _LOG_TAIL, since).decode(errors="replace")  # the gateway goes on to write where it was

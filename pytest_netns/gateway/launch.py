"""Start the gateway, and find the one that serves a run."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_netns.errors import GatewayError, KernelError, UnsupportedError
from pytest_netns.gateway import protocol
from pytest_netns.gateway.paths import LOCK_NAME, LOG_NAME, SOCKET_NAME, hold, is_held, remove, short_path
from pytest_netns.kernel import privilege

TIMEOUT: Final = 10.0  # seconds for any one answer
START_TIMEOUT: Final = 30.0  # seconds for a new gateway, on a machine under load
SILENCE: Final = "; it is stopped, or the machine is overloaded: let it go on, or run fewer workers"
"""What to say after how long a gateway did not answer."""

_LOG_TAIL: Final = 2000
_POLL: Final = 0.01  # seconds


def dial(run_dir: Path, name: str = SOCKET_NAME, timeout: float = TIMEOUT) -> socket.socket | None:
    """Connect to the gateway that serves a run; None where none does, or one that is just ending."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    protocol.limit(connection, timeout)
    try:
        with short_path(run_dir / name) as path:
            connection.connect(path)
        protocol.send(connection, {"op": "hello"})
        answer, _ = protocol.receive(connection)
    except BlockingIOError:
        connection.close()
        raise GatewayError(f"the gateway in {run_dir} did not answer within {TIMEOUT:.0f} s{SILENCE}") from None
    except OSError as error:
        connection.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
            return None
        raise GatewayError(f"cannot reach the gateway in {run_dir}: {error}") from error
    if answer is None:
        connection.close()
        return None
    return connection


def find(run_dir: Path) -> socket.socket | None:
    """Connect to the gateway that serves a run, be it only about to, after one that was killed; None where none is."""
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        connection = dial(run_dir)
        if connection is not None or not is_held(run_dir) or time.monotonic() > deadline:
            return connection
        time.sleep(_POLL)


class Begun(NamedTuple):
    """A gateway that is about to serve a run; ``finish`` closes the descriptors.

    Attributes:
        run_dir: the run's directory.
        process: what gives way to the gateway.
        ready: the descriptor on which it reports.
        held: the one that keeps the directory from being swept.
    """

    run_dir: Path
    process: subprocess.Popen[bytes]
    ready: int
    held: int


def begin(run_dir: Path) -> Begun:
    """Start the gateway; ``finish`` has to follow."""
    (run_dir / SOCKET_NAME).unlink(missing_ok=True)
    held = hold(run_dir)
    ready, told = os.pipe()
    try:
        with (run_dir / LOG_NAME).open("wb") as output, privilege.inheritable():
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest_netns.gateway", str(run_dir), str(told)],
                cwd="/",  # nothing in the user's directory is taken for a module
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[told, held],
                start_new_session=True,
            )
    except BaseException:
        os.close(ready)
        os.close(held)
        raise
    finally:
        os.close(told)
    return Begun(run_dir, process, ready, held)


def finish(begun: Begun) -> bool:
    """Wait until a gateway that was started serves; its errors become ours. False where it has ended without a word."""
    run_dir, process, ready, held = begun
    try:
        report = _read_report(ready)
    finally:
        os.close(ready)
        os.close(held)
    if report is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()  # it has given way to the gateway long since, which is nobody's child
    if report is None:
        raise GatewayError(f"the gateway did not start within {START_TIMEOUT:.0f} s\n{log(run_dir)}")
    if report.get("error"):
        raise _start_error(report, log(run_dir))
    return bool(report["serves"])


def _read_report(ready: int) -> dict[str, Any] | None:
    """Return what a gateway reports, be it only its end; None where that takes too long."""
    deadline = time.monotonic() + START_TIMEOUT
    data = b""
    readable = select.poll()  # select(2) knows no descriptor above 1023
    readable.register(ready, select.POLLIN)
    while (left := deadline - time.monotonic()) > 0:
        if not readable.poll(left * 1000):
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
    from filelock import FileLock, Timeout  # noqa: PLC0415 - not needed where nothing is isolated

    if not os.path.isdir(run_dir):  # the lock would make it
        return
    with contextlib.suppress(OSError, Timeout, GatewayError), FileLock(run_dir / LOCK_NAME, timeout=0):
        if dial(run_dir) is None:
            remove(run_dir)


def _environment() -> dict[str, str]:
    """Return the environment for the gateway: the same modules, and no coverage measurement of it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("COV_CORE_", "COVERAGE_"))}
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return environment


def log(run_dir: Path) -> str:
    """Return the end of what a gateway has written to its log; nothing where there is none."""
    try:
        return (run_dir / LOG_NAME).read_text(encoding="utf-8", errors="replace")[-_LOG_TAIL:]
    except OSError:
        return ""

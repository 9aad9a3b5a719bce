"""``python -m pytest_netns.gateway RUN_DIRECTORY READY_FD``: started by the first pytest process of a run."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from pytest_netns.errors import NetnsError, describe
from pytest_netns.gateway.paths import (
    FLOWS_NAME,
    KEYS_PREFIX,
    LOG_NAME,
    OBSERVERS_NAME,
    SOCKET_NAME,
    short_path,
)


def _spare_pyroute2() -> None:
    """Let single modules of pyroute2 be imported without the package's own start, which takes longer than all else.

    It imports everything that pyroute2 has; the gateway encodes five kinds of message.
    """
    found = importlib.util.find_spec("pyroute2")
    if found is not None:
        sys.modules["pyroute2"] = importlib.util.module_from_spec(found)
        try:
            importlib.import_module("pytest_netns.kernel.links")
        except (ImportError, AttributeError):  # a release whose modules do need it
            for name in [name for name in sys.modules if name.split(".")[0] == "pyroute2"]:
                del sys.modules[name]


def _tell(ready: int, report: dict[str, Any]) -> bool:
    """Report to the process that started this one, and return whether it is still there."""
    try:
        os.write(ready, json.dumps(report).encode())
    except BrokenPipeError:
        return False
    finally:
        os.close(ready)
    return True


def _orphan() -> int:
    """Go on as nobody's child, and return a pidfd of the process that started this one.

    Suites wait for any child of theirs, count them, or end them all: the gateway is none of those.
    """
    starter = os.pidfd_open(os.getppid())
    if os.fork():
        os._exit(0)
    return starter


async def _run(directory: Path, ready: int, starter: int) -> None:
    from pytest_netns.gateway.server import Gateway  # noqa: PLC0415 - after _spare_pyroute2

    gateway = Gateway()
    try:
        await gateway.start()
    except (NetnsError, OSError) as error:
        report = {"error": describe(error), "errno": getattr(error, "errno", None), "kind": type(error).__name__}
        _tell(ready, report)
        return
    sockets = [directory / name for name in (SOCKET_NAME, OBSERVERS_NAME)]
    with contextlib.ExitStack() as stack:
        listener, observers = (stack.enter_context(_listener(path)) for path in sockets)
        if _tell(ready, {}):
            await gateway.serve(listener, observers, starter)
        for path in sockets:
            with contextlib.suppress(OSError):
                path.unlink()
    await gateway.stop()


def _listener(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of a gateway that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with short_path(path) as short:
        listener.bind(short)
    listener.listen(socket.SOMAXCONN)
    listener.setblocking(False)
    return listener


def main() -> None:
    """Serve one run, then leave nothing behind."""
    starter = _orphan()
    for number in (signal.SIGINT, signal.SIGHUP):  # a user's Ctrl-C is for pytest; we end after it
        signal.signal(number, signal.SIG_IGN)
    sys.setswitchinterval(0.0002)  # the factory's thread must not keep an answer waiting for 5 ms
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # each relayed connection takes two, and more
    directory, ready = Path(sys.argv[1]), int(sys.argv[2])
    _spare_pyroute2()
    try:
        asyncio.run(_run(directory, ready, starter))
    finally:
        with contextlib.suppress(OSError):
            for name in ("lock", LOG_NAME, FLOWS_NAME):
                (directory / name).unlink(missing_ok=True)
            for path in directory.glob(f"{KEYS_PREFIX}*"):
                path.unlink(missing_ok=True)
            directory.rmdir()
            directory.parent.rmdir()


if __name__ == "__main__":
    main()

"""``python -m pytest_netns.gateway RUN_DIRECTORY READY_FD``: started by the first pytest process of a run."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib.util
import json
import os
import resource
import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from pytest_netns.errors import NetnsError, describe
from pytest_netns.gateway import paths
from pytest_netns.gateway.paths import OBSERVERS_NAME, SOCKET_NAME, short_path

_LIVES: Final = 100


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


def _tell(ready: IO[bytes], report: dict[str, Any]) -> bool:
    """Report to the process that started this one, and return whether it is still there."""
    try:
        with ready:
            ready.write(json.dumps(report).encode() + b"\n")
    except BrokenPipeError:
        return False
    return True


class _Start(NamedTuple):
    """What a gateway begins with.

    Attributes:
        starter: a pidfd of the process that started the run's first.
        first: that process, where this one takes the place of a gateway that was killed, so that nobody waits for its
            report; None where it is the run's first itself.
    """

    starter: int
    first: int | None


def _begin() -> _Start:
    """Go on as nobody's child, below an understudy that starts the next gateway where one is killed.

    Suites wait for any child of theirs, count them, or end them all: the gateway is none of those. The understudy stays
    in the host's network, which an ordinary user's pytest can't start anything in once it has left.
    """
    parent = os.getppid()
    starter = os.pidfd_open(parent)
    if os.fork():
        os._exit(0)
    for first in (None, *[parent] * _LIVES):
        child = os.fork()
        if not child:
            return _Start(starter, first)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            os._exit(0)
    os._exit(1)


async def _run(directory: Path, ready: IO[bytes], start: _Start, leave: Callable[[], None]) -> None:
    from pytest_netns.gateway.conversation import Run  # noqa: PLC0415 - after _spare_pyroute2
    from pytest_netns.gateway.server import Gateway  # noqa: PLC0415

    gateway, names = Gateway(), (SOCKET_NAME, OBSERVERS_NAME)
    await gateway.start()
    doors = [_listener(directory / name) for name in names]
    with contextlib.ExitStack() as stack:
        listener, observers = (stack.enter_context(door) for door in doors)
        # Whatever ends this process from the last client's end on, no file of it is left.
        gateway.begin(listener, observers, Run(start.starter, leave, awaited=start.first))
        if _tell(ready, {"serves": True}) or start.first is not None:
            await gateway.serve(listener)
    await gateway.stop()


def _listener(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)  # of a gateway that was killed
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with short_path(path) as short:
        listener.bind(short)
    listener.listen(socket.SOMAXCONN)
    listener.setblocking(False)
    return listener


def _leave(directory: Path, held: int) -> None:
    """Remove the run's directory; not one that has taken its place, as the next gateway of the same run makes it."""
    with contextlib.suppress(OSError):
        if os.path.samestat(directory.stat(), os.fstat(held)):
            paths.remove(directory)


def main() -> None:
    """Serve one run, then leave nothing behind."""
    for number in (signal.SIGINT, signal.SIGHUP):  # a user's Ctrl-C is for pytest; we end after it
        signal.signal(number, signal.SIG_IGN)
    directory, ready = Path(sys.argv[1]), os.fdopen(int(sys.argv[2]), "wb", buffering=0)
    held = None
    try:
        paths.make(directory)
        held = paths.hold(directory)  # with all that this process becomes, its understudy and those that follow
        leave = functools.partial(_leave, directory, held)
        start = _begin()
        sys.setswitchinterval(0.0002)  # the factory's thread must not keep an answer waiting for 5 ms
        _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError):  # then as many connections as there may be
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # each relayed one takes two files, and more
        ours, theirs = socket.socketpair()  # asyncio begins with these, and makes a noise of where there are none
        with ours, theirs, selectors.DefaultSelector() as selector:
            selector.register(ours, selectors.EVENT_READ)
        _spare_pyroute2()
        asyncio.run(_run(directory, ready, start, leave))
    except (NetnsError, OSError) as error:
        if ready.closed:  # it has served already
            raise
        report = {"error": describe(error), "errno": getattr(error, "errno", None), "kind": type(error).__name__}
        _tell(ready, report)
    finally:
        if held is not None:  # or the directory, and the one that it is in, may be a stranger's
            paths.sweep(directory.parent)
            _leave(directory, held)


if __name__ == "__main__":
    main()

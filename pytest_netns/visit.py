"""One stay of a thread in a leaf, from going in to coming back."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Final

from pytest_netns.kernel.position import Position

__all__ = ["ENVIRONMENT", "GUEST", "Visit", "Visits", "announce", "is_guest"]

ENVIRONMENT: Final = "PYTEST_NETNS"
GUEST: Final = "PYTEST_NETNS_GUEST"
"""Set for what a user starts in a leaf from another terminal, which no test is to blame for."""


class Visits(threading.local):
    """Where each thread came from, as the namespaces of a process are those of its threads."""

    def __init__(self) -> None:
        self.stack: list[Visit] = []


class Visit:
    """One stay; ``position`` is where the thread came from."""

    def __init__(self, position: Position) -> None:
        self.position = position
        self._arrival = position.cwd
        self._environment = os.environ.get(ENVIRONMENT)

    def begin(self, net_fd: int, mnt_fd: int, name: str) -> None:
        """Move the calling thread inside."""
        self.position.hop_to(net_fd, mnt_fd)
        self._arrival = _cwd()
        self._announce(name)

    def end(self) -> None:
        """Bring the thread back, to the directory it has changed into meanwhile or else the one it was in."""
        cwd = _cwd()
        self.position.restore()
        if cwd != self._arrival:
            with contextlib.suppress(OSError):
                os.chdir(cwd)
        self._announce(self._environment)

    def _announce(self, name: str | None) -> None:
        if threading.current_thread() is threading.main_thread():  # the environment is the whole process's
            announce(name)


def is_guest(pid: int) -> bool:
    """Tell whether a process, or the one that it descends from, came into its leaf from another terminal."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return any(entry.startswith(GUEST.encode() + b"=") for entry in file.read().split(b"\0"))
    except OSError:
        return False


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "/"


def announce(name: str | None) -> None:
    """Let programs know which leaf they are in."""
    if name is None:
        os.environ.pop(ENVIRONMENT, None)
    else:
        os.environ[ENVIRONMENT] = name

"""A helper of one pytest process that makes the boxes: small, without threads, and the only one with the right to.

``python -I -S -c ... <descriptor>``. It forks a keeper for each box, removes the control groups of boxes that have
ended, and ends with the pytest process, however that ends.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import Final, NoReturn

from pytest_netns.kernel import privilege, syscalls
from pytest_netns.sandbox import cgroups, keeper, wire
from pytest_netns.sandbox.cgroups import Group, Groups
from pytest_netns.sandbox.wire import Message

__all__ = ["main"]

_RETRY: Final = 0.1  # seconds
_PATIENCE: Final = 2.0  # seconds in which boxes have died after their keeper, before their groups are given up


class Warden:
    """The boxes of one pytest process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._keepers: dict[int, Groups] = {}
        self._orphans: list[Groups] = []

    def serve(self) -> None:
        """Serve until the pytest process has gone, and then until its boxes have."""
        wake, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wake, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll(_RETRY * 1000 if self._orphans else None)}
            self._clear()
            if wake in ready:
                os.read(wake, 64)
                self._bury()
            if self._control.fileno() in ready and not self._attend():
                break
        self._end()

    def _attend(self) -> bool:
        message, descriptors = wire.receive(self._control)
        if message is None:
            return False
        channel = socket.socket(fileno=descriptors[0])
        child = os.fork()
        if not child:
            self._control.close()
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _exit_after(channel, message, descriptors[1:])
        groups = {limit: Group(*where) for limit, where in message.get("groups", {}).items()}
        self._keepers[child] = Groups(groups)
        for fd in (channel.detach(), *descriptors[1:]):
            os.close(fd)
        return True

    def _bury(self) -> None:
        """Take notice of keepers that have ended."""
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                self._orphans.append(self._keepers.pop(pid, Groups()))
        self._clear()

    def _clear(self) -> None:
        """Remove the control groups of boxes that have ended, those apart in which somebody is just dying."""
        self._orphans = [groups for groups in self._orphans if not groups.remove()]

    def _end(self) -> None:
        """End the keepers; their boxes end with them, and their groups are removed once they have."""
        for pid in self._keepers:
            with contextlib.suppress(ProcessLookupError), privilege.raised():
                os.kill(pid, signal.SIGKILL)
        self._orphans += self._keepers.values()
        deadline = time.monotonic() + _PATIENCE
        while self._orphans and time.monotonic() < deadline:
            self._clear()
            time.sleep(0.005 if self._orphans else 0)


def _exit_after(channel: socket.socket, message: Message, descriptors: list[int]) -> NoReturn:
    """Be a keeper, or its helper, and end."""
    status = 1
    try:
        keeper.main(channel, message, descriptors)
        status = 0
    except BaseException as error:  # noqa: BLE001 - whoever asked is told
        keeper.confess(channel, error)
    finally:
        os._exit(status)


def main() -> None:
    """Serve the pytest process at the other end of the socket that is inherited."""
    control = socket.socket(fileno=int(sys.argv[1]))
    with contextlib.suppress(OSError), privilege.raised():
        syscalls.unshare(syscalls.CLONE_NEWNET)  # no test ends it as something that was left in its network
    cgroups.sweep(cgroups.find())
    codecs.lookup("ascii")  # a keeper that looked for it would load a module of its own
    gc.freeze()  # what keepers never write to, they share
    gc.disable()
    Warden(control).serve()

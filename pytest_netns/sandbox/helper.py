"""The warden, as the pytest process knows it."""

from __future__ import annotations

import _socket
import contextlib
import json
import subprocess
import sys
import time
from typing import Final, NamedTuple

from pytest_netns.errors import KernelError, NetnsError, SandboxError, UnsupportedError
from pytest_netns.kernel import clock, privilege
from pytest_netns.kernel.imports import import_path
from pytest_netns.sandbox import wire
from pytest_netns.sandbox.cgroups import Group, Groups
from pytest_netns.sandbox.wire import Message

__all__ = ["Warden"]

_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from pytest_netns.sandbox import warden; warden.main()"
)
_PATIENCE: Final = 10.0  # seconds for the answer to anything
_GRACE: Final = 10.0  # seconds for boxes to die in, on a machine that is overloaded
_POLL: Final = 0.005
_KINDS: Final = {"SandboxError": SandboxError, "UnsupportedError": UnsupportedError}


class Answer(NamedTuple):
    """What a fork of the warden said, and the channel to it."""

    channel: _socket.socket
    message: Message
    descriptors: list[int]


class Warden:
    """The process that makes boxes; it ends with this one at the latest."""

    def __init__(self, before: Warden | None = None) -> None:
        """Start it, in place of one that has ended before, if any; whose boxes go on."""
        self._control, theirs = wire.pair()
        self._groups: list[Groups] = []
        self._inherited = [] if before is None else before.orphaned()
        command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(theirs.fileno()), json.dumps(import_path())]
        with contextlib.closing(theirs), privilege.inheritable():
            self._process = subprocess.Popen(
                command, cwd="/", stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True, env={}
            )

    def ask(self, message: Message, descriptors: tuple[int, ...]) -> Answer:
        """Have something done by a fork of the warden, and return what it says, and the channel that it goes on with.

        Raises:
            SandboxError, KernelError, UnsupportedError: it cannot be done.
        """
        ours, theirs = wire.pair()
        if "groups" in message:
            made = Groups({limit: Group(*where) for limit, where in message["groups"].items()})
            self._groups = [*(groups for groups in self._groups if groups.are_there), made]
        with contextlib.closing(theirs):
            try:
                wire.send(self._control, message, (theirs.fileno(), *descriptors))
            except OSError as error:
                ours.close()
                raise SandboxError(f"the process that makes boxes has ended: {error}") from error
        ours.settimeout(_PATIENCE)
        try:
            answer, handed = wire.receive(ours)
        except TimeoutError as error:
            ours.close()
            raise SandboxError(f"no box was made within {_PATIENCE:.0f} s") from error
        if answer is None or not answer["ok"]:
            ours.close()
            raise _refusal(answer)
        ours.settimeout(None)
        return Answer(ours, answer, handed)

    def close(self) -> None:
        """End it, and with it every box; doing so twice is harmless."""
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            _clear(self.orphaned() if self._process.wait(_PATIENCE) else self._inherited)

    def orphaned(self) -> list[Groups]:
        """Return the control groups of boxes that nobody removes once this one has been killed."""
        self._control.close()
        return [*self._inherited, *self._groups]

    @property
    def has_ended(self) -> bool:
        """Whether it is of no use any more, as somebody has killed it."""
        return self._process.poll() is not None


def _clear(left: list[Groups]) -> None:
    """Remove control groups that no warden removes any more; boxes end when they are closed."""
    deadline = clock.monotonic() + _GRACE
    while (left := [groups for groups in left if not groups.remove()]) and clock.monotonic() < deadline:
        time.sleep(_POLL)


def _refusal(answer: Message | None) -> NetnsError:
    if answer is None:
        return SandboxError("the process that keeps the box ended before there was one; look at the kernel's log")
    kind = _KINDS.get(answer["kind"])
    if kind is not None:
        return kind(answer["error"])
    if answer["errno"]:
        return KernelError(answer["errno"], f"cannot make a box: {answer['error']}")
    return SandboxError(f"cannot make a box: {answer['error']}")

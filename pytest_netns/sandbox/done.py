"""What a command in a box has come to."""

from __future__ import annotations

import errno
import functools
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_netns.sandbox.changes import Change

if TYPE_CHECKING:
    from pytest_netns.gateway.flows import Flow

__all__ = ["Done", "Usage"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What a command has used.

    Attributes:
        memory: the most memory at a time, in bytes.
        cpu_time: seconds of processor time, over all its processes.
        processes: the most processes that were seen at a time.
        written: bytes that it wrote, to files, pipes and sockets.
        sent: bytes that left the box's network for what it was allowed to reach.
        received: bytes that came back from there.
        duration: seconds from its start to the death of its last process.
    """

    memory: int = 0
    cpu_time: float = 0.0
    processes: int = 0
    written: int = 0
    sent: int = 0
    received: int = 0
    duration: float = 0.0


class Done(subprocess.CompletedProcess[Any]):
    """What a command in a box has come to: a ``subprocess.CompletedProcess`` that knows more.

    Attributes:
        args: the command.
        returncode: its exit status. A command that a signal ended has 128 and the signal's number; one that was ended
            for going over a limit has -9; one that could not be executed has 127.
        stdout: what it wrote to standard output, where that was captured.
        stderr: what it wrote to standard error, where that was captured apart.
        exceeded: the limit that was reached: ``memory``, ``pids``, ``file_size``, ``time``, ``disk`` or ``output``;
            None if none was.
        changes: what it did to the working directory, where that is an overlay.
    """

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: Any = None,
        stderr: Any = None,
        *,
        executed: bool = True,
        exceeded: str | None = None,
        usage: Usage | None = None,
        changes: list[Change] | None = None,
        flows: Callable[[], list[Flow]] = list,
    ) -> None:
        """Put together what is known."""
        super().__init__(args, returncode, stdout, stderr)
        self._executed = executed
        self.exceeded = exceeded
        self.changes = changes or []
        self._usage = usage or Usage()
        self._flows = flows

    def __repr__(self) -> str:
        """Tell what came of it."""
        parts = [f"args={self.args!r}", f"returncode={self.returncode}"]
        if self.exceeded:
            parts.append(f"exceeded={self.exceeded!r}")
        for name in ("stdout", "stderr", "changes"):
            value = getattr(self, name)
            parts += [f"{name}={value!r}"] if value else []
        return f"Done({', '.join(parts)})"

    @functools.cached_property
    def usage(self) -> Usage:
        """What it has used; what went over the network is asked of the gateway the first time."""
        flows = self._flows()
        sent, received = sum(flow.sent for flow in flows), sum(flow.received for flow in flows)
        return replace(self._usage, sent=sent, received=received)

    def checked(self, *, check: bool) -> Done:
        """Return itself, unless that has to be an error, as for ``subprocess.run``.

        Args:
            check: whether an exit status other than 0 is one.

        Raises:
            CalledProcessError: it has failed, and ``check`` was said.
            FileNotFoundError: there is no such program, or no such directory to start it in.
            PermissionError: it may not be executed, as far as captured errors tell.
        """
        if self._executed:
            if check:
                self.check_returncode()
            return self
        program = self.args if isinstance(self.args, (str, bytes, os.PathLike)) else self.args[0]
        if os.strerror(errno.EACCES) in f"{self.stderr!r}":
            raise PermissionError(errno.EACCES, "the box may not execute the program, or not enter its cwd", program)
        raise FileNotFoundError(
            errno.ENOENT, "no such program in the box, or one that may not be executed, or no such cwd", program
        )

    def diff(self) -> str:
        """Return what it did to the working directory as one unified diff."""
        return "".join(change.diff for change in self.changes)

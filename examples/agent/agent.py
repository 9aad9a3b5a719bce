"""An agent that works on a project: a planner chooses tools, and each tool is a command in a box.

The planner here replays a transcript, so no model is needed; one that asks a model has the same one method.
"""

from __future__ import annotations

import json
import string
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pytest_netns import Sandbox

if TYPE_CHECKING:
    from pytest_netns.sandbox.shell import Shell

PATIENCE = 30.0  # seconds for a command


class Call(NamedTuple):
    """A tool that the planner wants to be used, and what it is given."""

    tool: str
    arguments: Mapping[str, str]


class Step(NamedTuple):
    """A call, whether it succeeded, and what the planner is told of it."""

    call: Call
    succeeded: bool
    answer: str


class Planner(Protocol):
    """What decides."""

    def choose(self, steps: Sequence[Step]) -> Call | None:
        """Return what is to be done after these steps; None if nothing is left."""
        ...


class Replay:
    """A planner that does what a transcript says, whatever comes of it.

    A transcript has a call on each line: ``{"tool": "read", "arguments": {"path": "README"}}``.
    """

    def __init__(self, transcript: Path, **names: str) -> None:
        """Read a transcript, in which ``$NAME`` stands for the value of a name that is given here."""
        text = string.Template(transcript.read_text(encoding="utf-8")).safe_substitute(names)
        self._calls = [Call(**json.loads(line)) for line in text.splitlines()]

    def choose(self, steps: Sequence[Step]) -> Call | None:
        """Return the call that comes next."""
        return self._calls[len(steps)] if len(steps) < len(self._calls) else None


class Agent:
    """Does what its planner wants, in a box; a tool that names a file reaches no further there than a command does."""

    def __init__(self, box: Sandbox, planner: Planner) -> None:
        """Take a box, whose working directory is the project."""
        self._box = box
        self._planner = planner
        self._session: Shell | None = None
        self._tools: dict[str, Callable[..., subprocess.CompletedProcess[str]]] = {
            "shell": self._shell,
            "read": lambda path: self._run("cat", "--", path),
            "write": lambda path, text: self._run("dd", "status=none", f"of={path}", input=text),
            "fetch": lambda url: self._run("curl", "--silent", "--show-error", "--fail", "--", url),
        }

    def work(self) -> list[Step]:
        """Do one call after the other until the planner has no more, and return them all."""
        steps: list[Step] = []
        while (call := self._planner.choose(steps)) is not None:
            try:
                done = self._tools[call.tool](**call.arguments)
                steps.append(Step(call, done.returncode == 0, done.stdout + done.stderr))
            except (KeyError, TypeError, subprocess.TimeoutExpired) as error:
                steps.append(Step(call, succeeded=False, answer=repr(error)))
        if self._session is not None:
            self._session.close()
        return steps

    def _shell(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command where the one before has left off, unless that has ended the session."""
        if self._session is None or self._session.returncode is not None:
            self._session = self._box.shell()
        return self._session.run(command, timeout=PATIENCE)

    def _run(self, *command: str, input: str | None = None) -> subprocess.CompletedProcess[str]:  # noqa: A002 - run()'s
        return self._box.run(command, input=input, timeout=PATIENCE, capture_output=True, text=True)

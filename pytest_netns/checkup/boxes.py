"""Whether boxes can be made, which isolation does not need: what ``kernel.probe`` runs besides the trials."""

from __future__ import annotations

import subprocess
from typing import Final

from pytest_netns.checkup import names
from pytest_netns.errors import UnsupportedError
from pytest_netns.kernel import privilege
from pytest_netns.kernel.probe import Remark, Trial, perform
from pytest_netns.sandbox import bubblewrap, cgroups

__all__ = ["main"]

_SECONDS: Final = 5


def main() -> None:
    """Try it out and report it on standard output."""
    perform([Trial(names.BOXES, boxes)])


def boxes() -> str:
    """Have bubblewrap run a command with the namespaces that a box has, and see what would hold its limits."""
    try:
        program = bubblewrap.find().path
    except UnsupportedError as error:
        raise Remark(str(error).partition(":")[0], names.BUBBLEWRAP) from None
    view = ("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev")
    command = [program, *view, *bubblewrap.confinement("box", 1000, 1000), "--", "true"]
    try:
        if not privilege.is_root() and not privilege.is_entered():
            privilege.enter_user_namespace()
        privilege.disinherit()
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_SECONDS)
    except subprocess.CalledProcessError as error:
        raise Remark(f"{program} could not set a box up: {error.stderr.strip() or error}", names.SET_UP) from None
    except (OSError, subprocess.SubprocessError) as error:
        raise Remark(f"{program} could not set a box up: {error}", names.SET_UP) from None
    held = cgroups.Groups(cgroups.find())
    by = {held.mechanism(limit) or "rlimits and a watch" for limit in (cgroups.MEMORY, cgroups.PIDS)}
    return f"made by {program}; memory and processes are limited by {' and '.join(sorted(by))}"

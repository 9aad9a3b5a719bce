"""``pytest-netns shell``, ``exec``, ``forward`` and ``resume``: into a leaf, and what a held test waits for."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from typing import Final

from pytest_netns.cli import output
from pytest_netns.errors import NetnsError
from pytest_netns.gateway.runs import Entrance, LeafRow, Run, find, live_runs
from pytest_netns.kernel import syscalls
from pytest_netns.kernel.position import hop_to
from pytest_netns.visit import ENVIRONMENT, GUEST

__all__ = ["execute", "forward", "resume", "shell"]

_NOT_ENTERED: Final = 125  # as env(1), timeout(1) and container engines have it
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127


def shell(options: argparse.Namespace) -> int:
    """Become a shell in a leaf."""
    wanted = os.environ.get("SHELL", "")
    program = wanted if os.access(wanted, os.X_OK) else "/bin/sh"
    return _become([program], options.leaf, greet=sys.stdin is not None and sys.stdin.isatty())


def execute(options: argparse.Namespace) -> int:
    """Become a command in a leaf."""
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        options.parser.error("a command is missing: pytest-netns exec LEAF -- COMMAND")
    return _become(command, options.leaf)


def _become(command: list[str], leaf: str, *, greet: bool = False) -> int:
    """Turn this process into a command in a leaf; return only if that can't be."""
    try:
        run, row = _find(leaf)
        with contextlib.closing(run):
            entrance = run.enter(row.name)
        _go(entrance)
    except (NetnsError, OSError) as error:
        output.complain(error)
        return _NOT_ENTERED
    if greet:
        sys.stderr.write(f"in the leaf {row.name}, {row.ipv4}, of {row.test}; exit leaves it\n")
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and programs would go on to
        signal.signal(number, signal.SIG_DFL)
    sys.stderr.flush()
    try:
        os.execvpe(command[0], command, {**os.environ, ENVIRONMENT: row.name, GUEST: "1"})  # noqa: S606
    except FileNotFoundError:
        output.complain(f"{command[0]}: not found in the leaf {row.name}")
        return _NOT_FOUND
    except OSError as error:
        output.complain(f"{command[0]}: {error.strerror}")
        return _NOT_EXECUTABLE


def _go(entrance: Entrance) -> None:
    """Enter a leaf, by way of its run's user namespace where we are not in that: its owner has every right there."""
    if os.fstat(entrance.user_fd).st_ino != os.stat("/proc/self/ns/user").st_ino:
        syscalls.setns(entrance.user_fd, syscalls.CLONE_NEWUSER)
    hop_to(entrance.net_fd, entrance.mnt_fd)


def forward(options: argparse.Namespace) -> int:
    """Forward a port of the host's loopback until Ctrl-C, or the leaf's end."""
    try:
        run, row = _find(options.leaf)
        opened = run.forward(row.name, options.port, options.on)
        output.write(f"127.0.0.1:{opened} leads to port {options.port} of the leaf {row.name}; Ctrl-C ends it")
        run.wait_for_end(row.name)
    except KeyboardInterrupt:
        return 0
    except (NetnsError, OSError) as error:
        output.complain(error)
        return 1
    output.complain(f"the leaf {row.name} has ended")
    return 1


def resume(options: argparse.Namespace) -> int:
    """Let a held test go on."""
    try:
        run, row = _find(options.leaf)
        with contextlib.closing(run):
            run.resume(row.name)
    except (NetnsError, OSError) as error:
        output.complain(error)
        return 1
    return 0


def _find(leaf: str) -> tuple[Run, LeafRow]:
    runs, troubles = live_runs()
    for trouble in troubles:
        output.complain(trouble)
    return find(leaf, runs)

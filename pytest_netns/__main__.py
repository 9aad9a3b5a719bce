"""The command line: ``pytest-netns``, or ``python -m pytest_netns``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Final

_LEAF: Final = "the leaf, as `pytest-netns ps` lists it; RUN/LEAF where several runs have one of that name"
_OWN_STATUS: Final = (
    "The exit status is the command's own; 125 where the leaf could not be entered, 126 where the command cannot be "
    "executed, 127 where it is not found."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status."""
    options = _parser().parse_args(arguments)
    module, function = options.runs.split(".")
    status: int = getattr(importlib.import_module(f"pytest_netns.cli.{module}"), function)(options)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pytest-netns", description="Helpers around pytest --netns.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    _add_doctor(commands)
    _add_ps(commands)
    _add_visits(commands)
    _add_forward(commands)
    _add_resume(commands)
    return parser


def _add_doctor(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "doctor",
        help="check whether tests can be isolated on this machine",
        description="Try out everything that `pytest --netns` needs, in a process of its own that changes nothing, "
        "and tell how to get what is missing.",
        epilog="The exit status is 0 where tests can be isolated, 1 where something is missing, 2 for a usage error.",
    )
    check.add_argument("--json", action="store_true", help="print the checks as JSON")
    check.set_defaults(runs="checkup.run")


def _add_ps(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ps = commands.add_parser(
        "ps",
        help="list live runs and their leaves: test, addresses, what listens",
        description="List the live runs of this user, and the leaf of each test that is running or held.",
        epilog="The exit status is 0, also where nothing is alive; 1 where a run does not answer.",
    )
    ps.add_argument("--json", action="store_true", help="print them as JSON")
    ps.set_defaults(runs="listing.run")


def _add_visits(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    shell = commands.add_parser(
        "shell",
        help="open a shell in a leaf",
        description="Start $SHELL, or /bin/sh, in a leaf's network and mounts, as this user and in this directory.",
        epilog=_OWN_STATUS,
    )
    shell.add_argument("leaf", metavar="LEAF", help=_LEAF)
    shell.set_defaults(runs="inside.shell")
    run = commands.add_parser(
        "exec",
        help="run a command in a leaf",
        usage="pytest-netns exec [-h] LEAF -- COMMAND [ARGUMENT ...]",
        description="Run a command in a leaf's network and mounts, as this user and in this directory.",
        epilog=_OWN_STATUS,
    )
    run.add_argument("leaf", metavar="LEAF", help=_LEAF)
    run.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help="the command and its arguments")
    run.set_defaults(runs="inside.execute", parser=run)


def _add_forward(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    forward = commands.add_parser(
        "forward",
        help="make a port of a leaf reachable from the host",
        description="Forward a port of the host's 127.0.0.1 to a port of a leaf, until Ctrl-C or the leaf's end.",
        epilog="The exit status is 0 after Ctrl-C, 1 where the leaf has ended or the port cannot be had.",
    )
    forward.add_argument("leaf", metavar="LEAF", help=_LEAF)
    forward.add_argument("port", metavar="PORT", type=_port, help="the port in the leaf")
    forward.add_argument("--on", metavar="PORT", type=_port, default=0, help="the host's port (a free one)")
    forward.set_defaults(runs="inside.forward")


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 1 to 65535")
    return int(text)


def _add_resume(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    resume = commands.add_parser(
        "resume",
        help="let a test that --netns-hold keeps go on",
        description="Let a failed test that `pytest --netns-hold=failed` keeps be torn down, and its run go on.",
        epilog="The exit status is 0 where the test was held, else 1.",
    )
    resume.add_argument("leaf", metavar="LEAF", help=_LEAF)
    resume.set_defaults(runs="inside.resume")


if __name__ == "__main__":
    sys.exit(main())

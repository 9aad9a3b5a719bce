"""``pytest-netns ps``: the live runs of this user, and their leaves."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
from pathlib import Path
from typing import Any, Final

from pytest_netns.cli import output
from pytest_netns.errors import NetnsError
from pytest_netns.gateway.runs import LeafRow, Run, RunEndedError, live_runs, short_id

__all__ = ["run"]

_HEADINGS: Final = ("LEAF", "STATE", "FOR", "ADDRESSES", "LISTENING", "TEST")


def run(options: argparse.Namespace) -> int:
    """List all that is alive; return the exit status."""
    runs, troubles = live_runs()
    found: list[tuple[Run, list[LeafRow]]] = []
    for one in runs:
        try:
            found.append((one, one.leaves()))
        except RunEndedError:
            continue
        except NetnsError as error:
            troubles.append(str(error))
    if options.json:
        output.write(json.dumps({"runs": [_as_dict(one, rows) for one, rows in found]}, indent=2))
    elif found:
        output.write("\n\n".join("\n".join(_lines(one, rows)) for one, rows in found))
    else:
        output.write(f"no run of uid {os.geteuid()} is alive")
    for trouble in troubles:
        output.complain(trouble)
    return 1 if troubles else 0


def _as_dict(one: Run, rows: list[LeafRow]) -> dict[str, Any]:
    return {
        "run": short_id(one.id),
        "pid": one.pid,
        "page": _page(one),
        "leaves": [dataclasses.asdict(row) for row in rows],
    }


def _lines(one: Run, rows: list[LeafRow]) -> list[str]:
    lines = [f"run {short_id(one.id)}{_origin(one.pid)}"]
    if one.page_port is not None:
        lines.append(f"in a browser: {_page(one)}")
    cells = [_HEADINGS, *(_cells(row) for row in rows)]
    return [*lines, *(f"  {line}" for line in output.columns(cells))]


def _cells(row: LeafRow) -> tuple[str, ...]:
    state = "worker" if row.worker else "running"
    return (
        row.name,
        state if row.held is None else "held",
        f"{row.age:.1f} s",
        f"{row.ipv4} {row.ipv6}",
        " ".join(row.listening) or "-",
        row.test,
    )


def _page(one: Run) -> str | None:
    return None if one.page_port is None else f"http://localhost:{one.page_port}/"


def _origin(pid: int | None) -> str:
    """Return what a person knows a run by: its directory and command line, as its first process has them."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        directory = os.readlink(f"/proc/{pid}/cwd")
        return f", pid {pid}, in {directory}: {shlex.join(map(os.fsdecode, words))}"
    return ""

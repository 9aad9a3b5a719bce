"""Where code ran: noted down by the suites that tests run, read by the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

NOTES = '''
import json, os, socket

def note(what):
    """Note down where this code runs."""
    inodes = [os.stat(f"/proc/thread-self/ns/{kind}").st_ino for kind in ("net", "mnt")]
    line = json.dumps([what, os.environ.get("PYTEST_NETNS"), *inodes])
    with open(os.environ["NOTES"], "a") as file:
        file.write(line + "\\n")
'''


class Place(NamedTuple):
    """Where code ran: the leaf it was told that it is in, and the namespaces that it was in."""

    name: str | None
    net: int
    mnt: int


HOST = Place(None, os.stat("/proc/self/ns/net").st_ino, os.stat("/proc/self/ns/mnt").st_ino)
ROOT = os.geteuid() == 0

Run = Callable[..., pytest.RunResult]
Places = Callable[[], dict[str, Place]]


def read(path: Path) -> dict[str, Place]:
    """Read the notes of a run, and remove them: each thing that was noted, and where it ran."""
    found: dict[str, Place] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        what, *place = json.loads(line)
        assert what not in found, f"{what} ran twice"
        found[what] = Place(*place)
    path.unlink()
    return found

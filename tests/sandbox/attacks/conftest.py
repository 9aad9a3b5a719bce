"""What the attacks in this folder are made with. They are run by ``test_red_team``, each file as a suite of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PYTHON = "/usr/bin/python3"
PRELUDE = '''
import ctypes, errno, os, signal, socket, struct, subprocess, sys, time
libc = ctypes.CDLL(None, use_errno=True)
arm = os.uname().machine == "aarch64"

def call(label, number, *arguments):
    """Make a system call by its number, and tell what came of it."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = libc.syscall(ctypes.c_long(number[arm] if isinstance(number, tuple) else number), *words)
    print(f"{label}: {'DONE' if result >= 0 else errno.errorcode[ctypes.get_errno()]}", flush=True)
    return result

def tell(label, attempt):
    """Make an attempt, and tell what came of it."""
    try:
        result = attempt()
    except OSError as error:
        print(f"{label}: {errno.errorcode.get(error.errno, error.errno)}", flush=True)
    else:
        print(f"{label}: DONE {result!r}"[:2000], flush=True)
'''

Attempt = Callable[..., Any]


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a working directory with a file in it."""
    (tmp_path / "file").write_text("before\n")
    return tmp_path


@pytest.fixture
def box(netns: Any, work: Path) -> Iterator[Any]:
    """Return a box as somebody careful would make it."""
    with netns.sandbox(workdir=work, memory="256M", pids=32, disk="32M", timeout=20) as made:
        yield made


@pytest.fixture
def attempt(box: Any) -> Attempt:
    """Return what runs a Python program in the box, and looks whether it got at a secret."""

    def attempting(program: str, box: Any = box, **kwargs: Any) -> Any:
        arguments = {"capture_output": True, "text": True, "errors": "replace", **kwargs}
        done = box.run([PYTHON, "-I", "-c", PRELUDE + program], **arguments)
        assert "CANARY" not in (done.stdout or "") + (done.stderr or "") + done.diff()
        return done

    return attempting


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process of the user's outside of the box."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        assert process.poll() is None
        process.kill()


def secret(name: str) -> Path:
    """Return where a secret of the user's lies."""
    return Path(os.environ["HOME"], name)


def members(mark: str) -> list[int]:
    """Return the processes of the machine that have a mark in their command lines, this one apart."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                command = Path("/proc", entry, "cmdline").read_bytes()
            except OSError:
                continue
            if mark.encode() in command:
                found.append(int(entry))
    return found


def none_left(mark: str, seconds: float = 5.0) -> bool:
    """Tell whether no process with this mark is alive, or will be in a moment."""
    deadline = time.monotonic() + seconds
    while members(mark) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not members(mark)

"""What attacks on boxes are made with."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

Attempt = Callable[..., Any]
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


def new_mark() -> str:
    """Return a word for the command lines of a test's processes, by which they are found among all."""
    return f"boxmark-{os.environ.get('BATTLE', '')}-{uuid.uuid4().hex}"


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

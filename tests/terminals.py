"""Programs at a terminal, typed at and read from as a person would."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

CONTROLLED = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, command: list[str], cwd: os.PathLike[str]) -> None:
        self.fd, slave = pty.openpty()
        self.seen = ""
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CONTROLLED, *command],
                cwd=cwd,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
            )
        finally:
            os.close(slave)

    def expect(self, pattern: str) -> str:
        """Read until this is seen, and return what came before."""
        deadline = time.monotonic() + 30
        text = ""
        while (found := re.search(pattern, text)) is None:
            left = deadline - time.monotonic()
            if left < 0 or not select.select([self.fd], [], [], left)[0]:
                pytest.fail(f"{pattern!r} does not come, but: {text}")
            try:
                text += os.read(self.fd, 10000).decode()
            except OSError:  # the other end is closed
                pytest.fail(f"{pattern!r} does not come, but: {text}")
        self.seen += text
        return text[: found.start()]

    def evaluate(self, expression: str) -> str:
        """Return what the debugger prints."""
        self.write(f"p {expression}")
        return self.expect(r"\(Pdb\) ").splitlines()[-1].strip()

    def write(self, line: str) -> None:
        """Type a line."""
        os.write(self.fd, f"{line}\n".encode())

    def end(self) -> int:
        """Return the program's exit status."""
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            os.close(self.fd)

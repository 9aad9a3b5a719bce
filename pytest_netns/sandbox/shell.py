"""A shell session in a box: what one command has changed, the next one finds."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import selectors
import subprocess
from typing import IO, TYPE_CHECKING, Any, Final

from pytest_netns.errors import SandboxError
from pytest_netns.kernel import clock
from pytest_netns.sandbox.streams import OnOutput, Text

if TYPE_CHECKING:
    from types import TracebackType

    from pytest_netns.sandbox.running import Runner

__all__ = ["Shell"]

_CHUNK: Final = 64 * 1024
_LONGEST_STATUS: Final = 8  # bytes behind a mark
#: The command is read as one word and evaluated, so that an unfinished one is an error of its own, and not of the next.
_LINE: Final = "eval {command} </dev/null\nprintf '%s %d\\n' {mark} $? >&9; printf '%s\\n' {mark} >&8\n"
_BEGIN: Final = b"exec 8>&1 9>&2\n"  # so that a command which leads the shell's own output elsewhere is told to be over


class Shell:
    """A running shell; ``with box.shell() as shell:`` ends it.

    The working directory, variables, functions and ``set`` options stay from command to command. A command finds its
    standard input empty. Output comes as text.
    """

    def __init__(self, box: Runner, program: str = "/bin/bash", **kwargs: Any) -> None:
        """Start it; other arguments are those of ``box.popen``."""
        self._args = [program, *(["--noprofile", "--norc"] if os.path.basename(program) == "bash" else [])]
        self._timeout = box.timeout
        kwargs.setdefault("timeout", math.inf)
        self._process = box.popen(
            self._args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs
        )
        self._stdin: IO[bytes] = self._process.stdin  # type: ignore[assignment]  # it is a pipe
        self._left = self._process.output_limit
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(_BEGIN)
            self._stdin.flush()

    @property
    def returncode(self) -> int | None:
        """The shell's own exit status, as after ``exit 3``; None as long as it runs."""
        return self._process.poll()

    @property
    def exceeded(self) -> str | None:
        """The limit that ended the session; None if none did."""
        return self._process.exceeded

    def run(
        self, command: str, *, timeout: float | None = None, check: bool = False, on_output: OnOutput | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, or several lines, and return its exit status, output and errors.

        Args:
            command: what one would type.
            timeout: seconds after which the session is ended, with an error: a shell cannot be made to let go of a
                command otherwise. None for the box's own limit, which counts for each command here.
            check: whether an exit status other than 0 is an error.
            on_output: is called with each piece of output, and of errors, as it comes.

        Raises:
            SandboxError: the session is over.
            subprocess.TimeoutExpired: it ran for longer than ``timeout``, or the box's own limit.
            subprocess.CalledProcessError: it has failed, and ``check`` was said.
        """
        if self._process.poll() is not None:
            raise SandboxError(f"the shell session is over, with status {self.returncode}; start another: box.shell()")
        limit = self._timeout if timeout is None else timeout
        mark = secrets.token_hex(16)
        talk = _Talk(mark, on_output, self._left)
        try:
            self._stdin.write(_LINE.format(command=_quoted(command), mark=mark).encode("utf-8", "surrogateescape"))
            self._stdin.flush()
            talk.run([self._process.stdout, self._process.stderr], limit, command)
        except subprocess.TimeoutExpired:
            if timeout is None:
                self._process.overrun("time")
                self._process.wait()
            self.close()
            raise
        except BrokenPipeError:
            pass
        if talk.overrun:
            self._process.overrun("output")
        status = talk.status if talk.status is not None else self._process.wait()
        self._left = talk.left
        finished = subprocess.CompletedProcess(command, status, talk.output(0), talk.output(1))
        if check:
            finished.check_returncode()
        return finished

    def close(self) -> None:
        """End the session, and all that it has started; doing so twice is harmless."""
        self._process.close()

    def __enter__(self) -> Shell:  # noqa: PYI034 - Self came with Python 3.11
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the session."""
        self.close()


class _Talk:
    """What comes from the shell for one command: both outputs, each up to its mark."""

    def __init__(self, mark: str, on_output: OnOutput | None, left: int | None) -> None:
        self._mark = mark.encode()
        self._on_output = on_output
        self._read = [bytearray(), bytearray()]
        self._decoders = [Text("utf-8", "replace").decoder() for _ in self._read]
        self.left = left
        self.overrun = False
        self.status: int | None = None

    def output(self, number: int) -> str:
        return self._read[number].decode(errors="replace")

    def run(self, files: list[IO[Any] | None], timeout: float | None, command: str) -> None:
        deadline = None if timeout is None else clock.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            for number, file in enumerate(filter(None, files)):
                selector.register(file.fileno(), selectors.EVENT_READ, number)
            while selector.get_map() and not self.overrun:
                left = None if deadline is None else deadline - clock.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(command, timeout or 0.0, self.output(0), self.output(1))
                for key, _ in selector.select(left):
                    if self._take(key.data, os.read(key.fd, _CHUNK)):
                        selector.unregister(key.fd)

    def _take(self, number: int, data: bytes) -> bool:
        """Take what has come; return whether that was all."""
        if self.left is not None:
            self.left -= len(data)
            self.overrun = self.left < 0
        read = self._read[number]
        told = len(read)
        read += data
        found = read.find(self._mark, max(0, told - len(self._mark) - _LONGEST_STATUS))
        over = not data
        if found >= 0:
            line, end, _ = bytes(read[found:]).partition(b"\n")  # what comes then, a job in the background has said
            if not end and not over:
                return False
            if number == 1 and end:
                self.status = int(line.split()[1])
            del read[found:]
            over = True
        if self._on_output is not None:
            piece = self._decoders[number](bytes(read[told:]), over)
            if piece:
                self._on_output(piece)
        return over


def _quoted(command: str) -> str:
    return "'" + command.replace("'", "'\\''") + "'"

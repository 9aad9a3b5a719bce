"""A command that runs in a box: what ``subprocess.Popen`` is for others."""

from __future__ import annotations

import _socket
import contextlib
import signal
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from pytest_netns.errors import SandboxError
from pytest_netns.kernel import clock
from pytest_netns.kernel.readiness import is_readable
from pytest_netns.sandbox import wire
from pytest_netns.sandbox.done import Done
from pytest_netns.sandbox.streams import Exchange, OnOutput, Streams, Text
from pytest_netns.sandbox.wire import Message

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SandboxProcess"]

_KILLED: Final = -signal.SIGKILL
_NOT_SET_UP: Final = (
    "bubblewrap could not set the box up, and ended with status {}; what it says is in the command's standard error. "
    "User namespaces inside of user namespaces have to be allowed, and /proc must not be masked, as container engines "
    "do unless told: --security-opt systempaths=unconfined"
)
_ENDED: Final[Message] = {
    "event": "ended",
    "status": _KILLED,
    "exceeded": None,
    "usage": {},
    "set_up": True,
    "executed": True,
}
_NOT_EXECUTED: Final = 127  # as shells have it


class SandboxProcess:
    """A command that runs in a box, to be used like ``subprocess.Popen``.

    Attributes:
        args: the command.
        stdin: where its input is written to, if that is a pipe; else None.
        stdout: where its output is read from, if that is a pipe; else None.
        stderr: where its errors are read from, if that is a pipe; else None.
        returncode: its exit status; None as long as it runs.
        exceeded: the limit that was reached, once it has ended; None if none was.
        output_limit: how many bytes of output may be read; None for any number.
    """

    def __init__(
        self,
        args: Any,
        channel: _socket.socket,
        opened: Streams,
        text: Text,
        *,
        output: int | None,
        finish: Callable[[SandboxProcess, Message], Done],
    ) -> None:
        """Take over the channel to its keeper, and our ends of its pipes."""
        self.args = args
        self._pid: int | None = None
        self.returncode: int | None = None
        self.exceeded: str | None = None
        self.stdin, self.stdout, self.stderr = self._files = [
            None if fd is None else text.wrap(fd, "w" if number == 0 else "r") for number, fd in enumerate(opened.ours)
        ]
        self._channel = channel
        self._text = text
        self.output_limit = output
        self._finish = finish
        self._exchange: Exchange | None = None
        self._done: Done | None = None
        self._failure: Exception | None = None

    def __repr__(self) -> str:
        """Tell what it is and whether it runs."""
        state = "running" if self.returncode is None else f"returncode {self.returncode}"
        return f"<SandboxProcess {self.args!r} {state}>"

    def fileno(self) -> int:
        """Return a descriptor that is ready to be read when ``poll()`` has news."""
        return self._channel.fileno()

    @property
    def pid(self) -> int | None:
        """The process id of the box's init, as it is known outside; None until that has started."""
        if self._pid is None and self.returncode is None:
            self.poll()
        return self._pid

    def poll(self) -> int | None:
        """Return the exit status, or None as long as it runs."""
        while self.returncode is None and is_readable(self._channel):
            self._hear()
        return self._outcome()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of the command, and of everything that it has started, and return its exit status.

        Raises:
            subprocess.TimeoutExpired: it runs on after so many seconds.
        """
        deadline = None if timeout is None else clock.monotonic() + timeout
        while self.returncode is None:
            left = None if deadline is None else max(0.0, deadline - clock.monotonic())
            if not is_readable(self._channel, left):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            self._hear()
        self._outcome()
        return self.returncode

    def communicate(
        self,
        input: Any = None,  # noqa: A002 - the name that subprocess gives it
        timeout: float | None = None,
        *,
        on_output: OnOutput | None = None,
    ) -> tuple[Any, Any]:
        """Feed its input, read its output and errors to their end, wait for it, and return both.

        What comes beyond the box's limit for output is not read: the box is ended.

        Args:
            input: what it is fed.
            timeout: seconds to wait; afterwards this may be called again, and nothing is lost.
            on_output: is called with each piece of output, and of errors, as it comes.

        Raises:
            subprocess.TimeoutExpired: it runs on after so many seconds.
        """
        deadline = None if timeout is None else clock.monotonic() + timeout
        exchange = self._exchange
        if exchange is None:
            exchange = self._exchange = Exchange(self._text, input, self.output_limit, on_output)
        try:
            exchange.run(self._files, deadline, self.args)
            if exchange.overrun:
                self.overrun("output")
            self.wait(None if deadline is None else max(0.0, deadline - clock.monotonic()))
        except subprocess.TimeoutExpired as error:
            error.timeout = timeout or 0.0
            error.output, error.stderr = self._captured(exchange)
            raise
        self._close_files()
        return self._captured(exchange)

    def _captured(self, exchange: Exchange) -> tuple[Any, Any]:
        """Return what has been read by now of output and errors; None for one that is no pipe."""
        _, output, errors = self._files
        return None if output is None else exchange.output(1), None if errors is None else exchange.output(2)

    def send_signal(self, number: int) -> None:
        """Send a signal to the command; SIGKILL ends all that it has started, too."""
        if self.poll() is None:
            self._say({"op": "signal", "number": int(number)})

    def overrun(self, limit: str) -> None:
        """End it for having gone over a limit: ``output`` or ``time``."""
        self._say({"op": "kill", "exceeded": limit})

    def terminate(self) -> None:
        """Ask the command to end, by SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End everything in the box that this command has started, at once."""
        self.send_signal(signal.SIGKILL)

    @property
    def done(self) -> Done:
        """What it has come to; waits for its end."""
        self.wait()
        if self._done is None:
            raise SandboxError(f"nothing is known of what {self.args!r} has come to")
        if self._exchange is not None:
            self._done.stdout, self._done.stderr = self._captured(self._exchange)
        return self._done

    def close(self) -> None:
        """End it, if it runs, and close its pipes; doing so twice is harmless."""
        if self.returncode is None:
            with contextlib.suppress(SandboxError):
                self.kill()
                self.wait()
        self._close_files()

    def __enter__(self) -> SandboxProcess:  # noqa: PYI034 - Self came with Python 3.11
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pipes and wait for its end, as ``subprocess.Popen`` does."""
        self._close_files()
        self.wait()

    def _outcome(self) -> int | None:
        if self._failure is not None:
            raise self._failure
        return self.returncode

    def _say(self, message: Message) -> None:
        with contextlib.suppress(OSError):
            wire.send(self._channel, message)

    def _hear(self) -> None:
        """Take in one message of the keeper's."""
        message, _ = wire.receive(self._channel)
        if message is None:  # it was ended from outside, and everything with it
            message = _ENDED
        if "error" in message:
            self._end(_KILLED)
            self._failure = SandboxError(f"the command could not be started: {message['error']}")
        elif message["event"] == "started":
            self._pid = message["pid"]
        else:
            self._conclude(message)

    def _conclude(self, message: Message) -> None:
        self.exceeded = message["exceeded"]
        status: int = message["status"]
        killed = status < 0 or status > 128  # bubblewrap, or what it had started
        if status < 0 and status != _KILLED:  # by a signal that came before the command did
            status = 128 - status
        alive = self.exceeded is None and not killed
        executed = message["executed"] or not alive or not message["set_up"]
        self._end(status if executed else _NOT_EXECUTED)
        self._done = self._finish(self, {**message, "status": self.returncode, "executed": executed})
        if alive and not message["set_up"]:
            self._failure = SandboxError(_NOT_SET_UP.format(status))

    def _end(self, status: int) -> None:
        self.returncode = status
        self._channel.close()

    def _close_files(self) -> None:
        for file in self._files:
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

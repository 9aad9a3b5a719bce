"""Run commands in a box: the part of its handle that is like ``subprocess``."""

from __future__ import annotations

import abc
import contextlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from pytest_netns.errors import NamespaceClosedError, SandboxError
from pytest_netns.sandbox import streams, wire
from pytest_netns.sandbox.done import Done
from pytest_netns.sandbox.options import plain, variables
from pytest_netns.sandbox.process import SandboxProcess
from pytest_netns.sandbox.streams import OnOutput, Text
from pytest_netns.sandbox.wire import Message
from pytest_netns.subprocesses import settle_streams

if TYPE_CHECKING:
    import _socket

    from pytest_netns.sandbox.aio import AsyncProcess
    from pytest_netns.sandbox.shell import Shell

__all__ = ["Command", "Runner"]

Command: TypeAlias = Union[str, bytes, "os.PathLike[str]", Sequence["str | bytes | os.PathLike[str]"]]


class Runner(abc.ABC):
    """What runs commands in a box.

    Attributes:
        name: what the box is called.
        workdir: the directory that commands start in.
        timeout: seconds that a command may take; None for any number.
    """

    name: str
    workdir: str
    timeout: float | None
    _closed: bool
    _channel: _socket.socket
    _env: Mapping[str, str]
    _output_limit: int | None
    _running: set[SandboxProcess]

    def popen(
        self,
        args: Command,
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        shell: bool = False,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> SandboxProcess:
        """Start a command in the box, as ``subprocess.Popen`` does.

        Args:
            args: the command, and its arguments; one text is a program's name, or a line for the shell.
            stdin: where its input comes from: PIPE, DEVNULL, a file or a descriptor; None is empty.
            stdout: where its output goes: PIPE, DEVNULL, a file or a descriptor; None is where pytest's own goes.
            stderr: the same for its errors, or STDOUT.
            text: whether pipes carry text, in UTF-8 unless said.
            encoding: what pipes carry text in.
            errors: what becomes of bytes that are no text; they are replaced unless said.
            shell: whether ``args`` is a line for ``/bin/sh``.
            cwd: the directory that it starts in; a relative one is below ``workdir``.
            env: variables, in addition to the box's.
            timeout: seconds after which it is ended, and has exceeded the limit ``time``; None for the box's limit,
                infinite for none.

        Raises:
            NamespaceClosedError: the box is closed.
            SandboxError: it could not be started.
        """
        self._check_open()
        command = _command(args, shell=shell)
        wanted = {
            "command": command,
            "cwd": plain(os.path.join(self.workdir, os.fsdecode(cwd or "")).rstrip("/") or "/"),
            "env": {**self._env, **variables(env or {})},
            "timeout": _finite(self.timeout if timeout is None else timeout),
            "output": self._output_limit,
        }
        text_ = Text.of(text=text, encoding=encoding, errors=errors)
        opened = streams.open_streams(stdin, stdout, stderr)
        try:
            channel = self._hand_over({**wanted, "stdio": opened.kinds}, opened.handed)
        except BaseException:
            streams.close(opened.ours)
            raise
        finally:
            streams.close(opened.handed)
        process = SandboxProcess(args, channel, opened, text_, output=self._output_limit, finish=self._finish)
        self._running.add(process)
        return process

    def _hand_over(self, wanted: Message, handed: list[int]) -> Any:
        ours, theirs = wire.pair()
        payload = wire.write_file(json.dumps(wanted).encode(), "command")
        try:
            with contextlib.closing(theirs):
                wire.send(self._channel, {"op": "run"}, (theirs.fileno(), payload, *handed))
        except OSError as error:
            ours.close()
            raise SandboxError(f"the box {self.name} has ended: {error}. Make a new one") from error
        finally:
            os.close(payload)
        return ours

    def run(
        self,
        args: Command,
        *,
        input: Any = None,  # noqa: A002 - the name that subprocess.run gives it
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        on_output: OnOutput | None = None,
        **kwargs: Any,
    ) -> Done:
        """Run a command in the box and wait until it and all that it has started are dead, as ``subprocess.run`` does.

        Args:
            args: as for ``popen``.
            input: what it is fed.
            capture_output: whether its output and its errors are kept.
            timeout: seconds after which it is ended, with an error. The box's own limit makes no error.
            check: whether an exit status other than 0 is an error.
            on_output: is called with each piece of output, and of errors, as it comes.
            kwargs: as for ``popen``.

        Raises:
            subprocess.TimeoutExpired: it ran for longer than ``timeout``.
            subprocess.CalledProcessError: it has failed, and ``check`` was said.
            FileNotFoundError: there is no such program, or no directory ``cwd``, in the box.
            PermissionError: it may not be executed, as far as captured errors tell.
        """
        settle_streams(kwargs, input, capture_output=capture_output, piped=on_output is not None)
        with self.popen(args, **kwargs) as process:
            try:
                process.communicate(input, timeout=timeout, on_output=on_output)
            except BaseException:
                process.kill()
                raise
        return process.done.checked(check=check)

    async def run_async(self, args: Command, **kwargs: Any) -> Done:
        """Do what ``run`` does while asyncio's event loop goes on; ``kwargs`` are the arguments of ``run``."""
        from pytest_netns.sandbox.aio import run  # noqa: PLC0415 - asyncio is loaded by who uses it

        return await run(self, args, **kwargs)

    async def popen_async(self, args: Command, **kwargs: Any) -> AsyncProcess:
        """Do what ``popen`` does, for asyncio; ``kwargs`` are its arguments, except that pipes carry bytes."""
        from pytest_netns.sandbox.aio import AsyncProcess  # noqa: PLC0415 - asyncio is loaded by who uses it

        return await AsyncProcess.start(self, args, **kwargs)

    def shell(self, program: str = "/bin/bash", **kwargs: Any) -> Shell:
        """Start a shell session, in which directory and variables stay; ``kwargs`` are the arguments of ``popen``."""
        from pytest_netns.sandbox.shell import Shell  # noqa: PLC0415 - not needed by most

        return Shell(self, program, **kwargs)

    @abc.abstractmethod
    def _finish(self, process: SandboxProcess, message: Message) -> Done:
        """Take in that a command has ended, and tell what it has come to."""

    def _check_open(self) -> None:
        if self._closed:
            raise NamespaceClosedError(f"the box {self.name} is closed; make a new one with netns.sandbox()")


def _finite(seconds: float | None) -> float | None:
    return None if seconds is None or math.isinf(seconds) else seconds


def _command(args: Any, *, shell: bool) -> list[str]:
    if isinstance(args, (str, bytes, os.PathLike)):
        args = [args]
    command = [plain(argument) for argument in args]
    if not command:
        raise ValueError("a command has at least the name of a program")
    return ["/bin/sh", "-c", *command] if shell else command

"""The handle of a box: run commands that nobody trusts, and see what they have done."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, Union

from pytest_netns.errors import GatewayError, NamespaceClosedError, SandboxError
from pytest_netns.namespace import settle_streams
from pytest_netns.sandbox import opening, streams, wire
from pytest_netns.sandbox.changes import Change
from pytest_netns.sandbox.done import Done, Usage
from pytest_netns.sandbox.overlay import Overlay
from pytest_netns.sandbox.process import SandboxProcess
from pytest_netns.sandbox.streams import OnOutput, Text
from pytest_netns.sandbox.wire import Message

if TYPE_CHECKING:
    from types import TracebackType

    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.flows import Flow
    from pytest_netns.namespace import Namespace
    from pytest_netns.sandbox.aio import AsyncProcess
    from pytest_netns.sandbox.helper import Warden
    from pytest_netns.sandbox.opening import Wish
    from pytest_netns.sandbox.shell import Shell

__all__ = ["Command", "Sandbox", "checked"]

Command: TypeAlias = Union[str, "os.PathLike[str]", Sequence["str | os.PathLike[str]"]]

_PATIENCE: Final = 10.0  # seconds in which a box ends by itself


class Sandbox:
    """A box: commands in it have the network of a namespace, and a file view, processes and limits of their own.

    It is made by ``netns.sandbox()``, and ends with ``close()`` or its namespace.

    Attributes:
        name: what it is called; ``Flow.sandbox`` of what it tries to reach.
        limits: what holds each limit here: ``{"memory": "cgroup v2", "pids": "rlimit", ...}``.
        workdir: the directory that commands start in.
        home: the home directory inside, empty at first.
        timeout: seconds that a command may take; None for any number.
        keeper: the process that keeps it, and that its commands descend from.
    """

    def __init__(self, namespace: Namespace, client: GatewayClient, warden: Warden, name: str, *, wish: Wish) -> None:
        """Make it.

        Raises:
            SandboxError: it cannot be made as it was asked for.
            UnsupportedError: this machine lacks something that every box needs.
            KernelError: the kernel refuses part of it.
        """
        self.name = name
        self._namespace = namespace
        self._client = client
        self._warden = warden
        self._output_limit = wish.limits.output
        self.timeout = wish.limits.timeout
        self._running: set[SandboxProcess] = set()
        self._closed = False
        answer, self.limits = opening.start(namespace, warden, name, wish)
        self._channel = answer.channel
        self._users, self._mounts, self._stage = answer.descriptors
        said = answer.message
        self.keeper: int = said["pid"]
        self._keeper_fd = os.pidfd_open(self.keeper)
        self.home: str = said["home"]
        self.workdir: str = said["cwd"]
        self._stage_path: str = said["stage"]
        self._overlaid: str | None = said["overlaid"]
        self._overlay = None if self._overlaid is None else Overlay(self._stage, self._overlaid)
        self._env = opening.clean_environment(namespace.name, said, wish)
        self._announce()

    def __repr__(self) -> str:
        """Name it, and say whether it is over."""
        return f"<Sandbox {self.name} in {self.workdir}{' closed' if self._closed else ''}>"

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        return self._closed

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
            "cwd": os.path.join(self.workdir, os.fspath(cwd or "")).rstrip("/") or "/",
            "env": {**self._env, **{str(name): str(value) for name, value in (env or {}).items()}},
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
            with theirs:
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
        return checked(process.done, check=check)

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

    @property
    def changes(self) -> list[Change]:
        """What the box has done to the working directory since it was made, or since ``apply()`` or ``discard()``."""
        self._check_open()
        return [] if self._overlay is None else self._overlay.pending()

    def diff(self) -> str:
        """Return what the box has done to the working directory as one unified diff."""
        return "".join(change.diff for change in self.changes)

    def apply(self, *paths: str) -> list[Change]:
        """Make the box's changes in the real working directory, and return them.

        Args:
            paths: which, each with all that is below it, relative to the working directory; none for all of them. The
                others stay as they are.

        Raises:
            SandboxError: commands still run, or a link leads out of the directory.
        """
        overlay = self._resting("apply()")
        wanted = overlay.pending()
        if paths:
            wanted = [change for change in wanted if any(_is_below(change.path, path) for path in paths)]
        overlay.apply(wanted)
        if not paths:
            self.discard()
        return wanted

    def discard(self) -> None:
        """Throw the box's changes to the working directory away; home and /tmp stay as they are.

        Raises:
            SandboxError: commands still run.
        """
        overlay = self._resting("discard()")
        message = {
            "op": "renew",
            "owner": opening.owner(),
            "stage": self._stage_path,
            "overlaid": self._overlaid,
        }
        self._warden.ask(message, (self._users, self._mounts)).channel.close()
        overlay.forget()

    @property
    def flows(self) -> list[Flow]:
        """What the box has tried to reach so far, allowed or not, oldest first."""
        self._check_open()
        return [flow for flow in self._client.flows(self._namespace.name) if flow.sandbox == self.name]

    def close(self) -> None:
        """End everything in the box, and forget what it has written; doing so twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._channel.close()
        for process in list(self._running):
            with contextlib.suppress(SandboxError):
                process.wait()
        if not select.select([self._keeper_fd], [], [], _PATIENCE)[0]:
            signal.pidfd_send_signal(self._keeper_fd, signal.SIGKILL)
            select.select([self._keeper_fd], [], [])
        if self._overlay is not None:
            self._overlay.close()
        for fd in (self._keeper_fd, self._users, self._mounts, self._stage):
            os.close(fd)
        with contextlib.suppress(GatewayError):
            self._client.box(self._namespace.name, self.name, None)

    def __enter__(self) -> Sandbox:  # noqa: PYI034 - Self came with Python 3.11
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _announce(self) -> None:
        """Have what comes from the box's processes booked as the box's."""
        try:
            self._client.box(self._namespace.name, self.name, self.keeper)
        except BaseException:
            self.close()
            raise

    def _finish(self, process: SandboxProcess, message: Message) -> Done:
        """Take in that a command has ended, and tell what it has come to."""
        self._running.discard(process)
        used = Usage(**message["usage"])
        ended = time.time()
        found = [] if self._overlay is None or self._closed else self._overlay.advance()
        return Done(
            process.args,
            message["status"],
            executed=message["executed"],
            exceeded=message["exceeded"],
            usage=used,
            changes=found,
            flows=lambda: self._flows_between(ended - used.duration, ended),
        )

    def _flows_between(self, began: float, ended: float) -> list[Flow]:
        try:
            flows = self._client.flows(self._namespace.name, after=began)
        except GatewayError:
            return []
        return [flow for flow in flows if flow.sandbox == self.name and flow.time <= ended]

    def _resting(self, doing: str) -> Overlay:
        self._check_open()
        if self._overlay is None:
            raise SandboxError(
                f"{doing} needs an overlay, and {self.name} has none: say workdir=..., and not overlay=False"
            )
        running = [process for process in self._running if process.poll() is None]
        if running:
            raise SandboxError(f"{doing} has to wait for what runs in {self.name}: {running[0].args!r}; end it first")
        return self._overlay

    def _check_open(self) -> None:
        if self._closed:
            raise NamespaceClosedError(f"the box {self.name} is closed; make a new one with netns.sandbox()")


def _finite(seconds: float | None) -> float | None:
    return None if seconds is None or math.isinf(seconds) else seconds


def checked(done: Done, *, check: bool) -> Done:
    """Return what a command has come to, unless that has to be an error."""
    done.check_executed()
    if check:
        done.check_returncode()
    return done


def _command(args: Any, *, shell: bool) -> list[str]:
    if isinstance(args, (str, os.PathLike)):
        line = os.fspath(args)
        return ["/bin/sh", "-c", line] if shell else [line]
    command = [os.fspath(argument) for argument in args]
    if not command:
        raise ValueError("a command has at least the name of a program")
    return ["/bin/sh", "-c", *command] if shell else command


def _is_below(path: str, above: str) -> bool:
    above = os.path.normpath(above)
    return above in {".", path} or path.startswith(f"{above}/")

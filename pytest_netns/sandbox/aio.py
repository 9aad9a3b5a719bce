"""Boxes for programs that use asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import subprocess
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from pytest_netns.kernel import clock
from pytest_netns.sandbox.streams import Text
from pytest_netns.subprocesses import settle_streams

if TYPE_CHECKING:
    from pytest_netns.sandbox.done import Done
    from pytest_netns.sandbox.process import SandboxProcess
    from pytest_netns.sandbox.running import Runner

__all__ = ["AsyncProcess", "run"]


class AsyncProcess:
    """A command that runs in a box, to be used like ``asyncio.subprocess.Process``.

    Attributes:
        stdin: a ``StreamWriter``, if its input is a pipe; else None.
        stdout: a ``StreamReader``, if its output is a pipe; else None.
        stderr: a ``StreamReader``, if its errors are a pipe; else None.
    """

    def __init__(self, process: SandboxProcess) -> None:
        """Take over a process that has just been started; ``start`` is how one gets here."""
        self._process = process
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._transports: list[asyncio.BaseTransport] = []
        self._read: dict[asyncio.StreamReader, bytearray] = {}
        asyncio.get_running_loop().add_reader(process.fileno(), self._hear, process.fileno())

    @classmethod
    async def start(cls, box: Runner, args: Any, **kwargs: Any) -> AsyncProcess:
        """Start a command; arguments are those of ``Sandbox.popen``, except that pipes carry bytes."""
        self = cls(box.popen(args, **kwargs))
        try:
            await self._connect()
        except BaseException:  # cancelled, say, before anybody has a handle to end it by
            self.kill()
            self.close()
            for file in (self._process.stdin, self._process.stdout, self._process.stderr):
                if file is not None:
                    file.close()
            raise
        return self

    async def _connect(self) -> None:
        process, loop = self._process, asyncio.get_running_loop()
        for name in ("stdout", "stderr"):
            file = getattr(process, name)
            if file is not None:
                reader = asyncio.StreamReader()
                protocol = asyncio.StreamReaderProtocol(reader)
                transport, _ = await loop.connect_read_pipe(functools.partial(_itself, protocol), file)
                self._transports.append(transport)
                setattr(self, name, reader)
        if process.stdin is not None:
            writing, flow = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, process.stdin)
            self._transports.append(writing)
            self.stdin = asyncio.StreamWriter(writing, flow, None, loop)

    @property
    def pid(self) -> int | None:
        """The process id of the box's init, as it is known outside; None until it has started."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit status; None as long as it runs."""
        return self._process.returncode

    @property
    def done(self) -> Done:
        """What it has come to, once it has ended; its outputs have been read by others."""
        return self._process.done

    def _hear(self, fd: int) -> None:
        try:
            ended = self._process.poll() is not None
        except Exception as error:  # noqa: BLE001 - raised by wait()
            ended, self._failure = True, error
        if ended:
            asyncio.get_running_loop().remove_reader(fd)
            self._ended.set()

    async def wait(self) -> int:
        """Wait for the end of the command, and of everything that it has started, and return its exit status."""
        await self._ended.wait()
        if self._failure is not None:
            raise self._failure
        return self._process.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal to the command; SIGKILL ends all that it has started, too."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """Ask the command to end, by SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """End everything in the box that this command has started, at once."""
        self._process.kill()

    async def communicate(
        self,
        input: bytes | None = None,  # noqa: A002 - the name that asyncio gives it
        *,
        limit: int | None = None,
        on_output: Callable[[bytes], object] | None = None,
    ) -> tuple[bytes | None, bytes | None]:
        """Feed its input, read its output and errors to their end, wait for it, and return both.

        What comes beyond the limit, or the box's, is not read: the box is ended.
        """
        room = _Room(self._process.output_limit if limit is None else limit)
        streams = [stream for stream in (self.stdout, self.stderr) if stream is not None]
        await asyncio.gather(self._feed(input), *(self._take(stream, room, on_output) for stream in streams))
        await self.wait()
        self.close()
        return self.captured

    @property
    def captured(self) -> tuple[bytes | None, bytes | None]:
        """What ``communicate`` has read by now of its output and its errors; None for one that is no pipe."""
        output, errors = (
            None if stream is None else bytes(self._read.get(stream, b"")) for stream in (self.stdout, self.stderr)
        )
        return output, errors

    async def _feed(self, data: bytes | None) -> None:
        if self.stdin is None:
            return
        try:
            self.stdin.write(data or b"")
            await self.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            pass
        self.stdin.close()

    async def _take(
        self, stream: asyncio.StreamReader, room: _Room, on_output: Callable[[bytes], object] | None
    ) -> None:
        data = self._read[stream] = bytearray()
        while piece := await stream.read(1 << 16):
            if room.left is not None and len(piece) > room.left:
                self._process.overrun("output")
                data += piece[: room.left]
                break
            if on_output is not None:
                on_output(piece)
            if room.left is not None:
                room.left -= len(piece)
            data += piece

    def close(self) -> None:
        """Close its pipes; doing so twice is harmless."""
        for transport in self._transports:
            transport.close()


def _itself(protocol: asyncio.StreamReaderProtocol) -> asyncio.StreamReaderProtocol:
    return protocol


class _Room:
    """How many bytes may still be read, of both outputs together."""

    def __init__(self, left: int | None) -> None:
        self.left = left


@contextlib.contextmanager
def _limit(process: AsyncProcess, seconds: float | None) -> Iterator[asyncio.Event]:
    """End a command in time, and yield what is set if that was done.

    It goes by the kernel's clock: that of the event loop stands still where a test's does.
    """
    passed, loop = asyncio.Event(), asyncio.get_running_loop()
    if seconds is None:
        yield passed
        return
    timer = clock.timer(seconds)

    def end() -> None:
        loop.remove_reader(timer)
        if process.returncode is None:
            passed.set()
            process.kill()

    loop.add_reader(timer, end)
    try:
        yield passed
    finally:
        loop.remove_reader(timer)
        os.close(timer)


async def run(
    box: Runner,
    args: Any,
    *,
    input: Any = None,  # noqa: A002 - the name that subprocess.run gives it
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    on_output: Callable[[Any], object] | None = None,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    **kwargs: Any,
) -> Done:
    """Do what ``Sandbox.run`` does."""
    settle_streams(kwargs, input, capture_output=capture_output, piped=on_output is not None)
    form = Text.of(text=text, encoding=encoding, errors=errors)
    process = await AsyncProcess.start(box, args, **kwargs)
    decode = form.decoder()
    told = None if on_output is None else lambda data: on_output(decode(data, False))
    try:
        with _limit(process, timeout) as passed:
            await process.communicate(form.encode(input), on_output=told)
    except BaseException:
        process.kill()
        raise
    finally:
        process.close()
    output, failed = form.decode_all(process.captured)
    if passed.is_set():
        raise subprocess.TimeoutExpired(args, timeout or 0.0, output, failed)
    done = process.done
    done.stdout, done.stderr = output, failed
    return done.checked(check=check)

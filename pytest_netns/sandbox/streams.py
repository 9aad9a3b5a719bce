"""The standard streams of a command in a box, seen from the pytest process."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import selectors
import subprocess
from collections.abc import Callable, Iterable
from typing import IO, Any, Final, NamedTuple

from pytest_netns.kernel import clock

__all__ = ["Exchange", "Streams", "Text", "open_streams"]

_CHUNK: Final = 64 * 1024
_DIRECT, _PUMP = "direct", "pump"

#: Is called with each piece of output as it comes, text or bytes as was asked for.
OnOutput = Callable[[Any], object]


class Text(NamedTuple):
    """How bytes are made text; no encoding means that they are not."""

    encoding: str | None = None
    errors: str = "strict"

    @classmethod
    def of(cls, *, text: bool | None, encoding: str | None, errors: str | None) -> Text:
        """Read the arguments of subprocess's functions; what is no text is no reason to lose what a command did."""
        if not (text or encoding or errors):
            return cls()
        return cls(encoding or "utf-8", errors or "replace")

    def wrap(self, fd: int, mode: str) -> IO[Any]:
        """Return a file for one end of a pipe."""
        if self.encoding is None:
            return open(fd, f"{mode}b", buffering=-1)
        return io.TextIOWrapper(open(fd, f"{mode}b"), self.encoding, self.errors, write_through=mode == "w")

    def encode(self, data: Any) -> bytes | None:
        """Return what is to be fed as bytes."""
        return data.encode(self.encoding, self.errors) if isinstance(data, str) and self.encoding else data

    def decode(self, data: bytes) -> Any:
        """Return all of some output."""
        if self.encoding is None:
            return data
        return data.decode(self.encoding, self.errors).replace("\r\n", "\n").replace("\r", "\n")

    def decode_all(self, outputs: Iterable[bytes | None]) -> list[Any]:
        """Return all of several outputs; None for one that was not captured."""
        return [None if data is None else self.decode(data) for data in outputs]

    def decoder(self) -> Callable[[bytes, bool], Any]:
        """Return what makes text of the pieces of an output; a character may be cut by a piece's end."""
        if self.encoding is None:
            return lambda data, _: data
        return codecs.getincrementaldecoder(self.encoding)(self.errors).decode


class Streams(NamedTuple):
    """The three standard streams.

    Attributes:
        handed: descriptors for the keeper, which are to be closed once it has them.
        kinds: for each, whether the command gets it itself or the keeper pumps.
        ours: our ends of pipes, for standard input, output and error; None where there is none.
    """

    handed: list[int]
    kinds: list[str]
    ours: list[int | None]


def open_streams(stdin: Any, stdout: Any, stderr: Any) -> Streams:
    """Open what subprocess's arguments mean, except that nothing but pipes ever gets into a box.

    A descriptor of a file could be opened anew, for writing, by way of /proc, whatever the box's view is. Standard
    input is empty where nothing is said.
    """
    streams = Streams([], [], [None, None, None])
    try:
        for number, wanted in enumerate((stdin, stdout, stderr)):
            _open_one(streams, number, wanted)
    except BaseException:
        close(streams.handed)
        close(streams.ours)
        raise
    return streams


def _open_one(streams: Streams, number: int, wanted: Any) -> None:
    kind = _DIRECT
    if wanted == subprocess.PIPE and isinstance(wanted, int):
        reading, writing = os.pipe()
        streams.ours[number], fd = (writing, reading) if number == 0 else (reading, writing)
    elif wanted == subprocess.STDOUT and isinstance(wanted, int):
        if number != 2:
            raise ValueError("STDOUT is for standard error alone")
        return
    elif wanted == subprocess.DEVNULL or (wanted is None and number == 0):
        fd = os.open(os.devnull, (os.O_RDONLY if number == 0 else os.O_WRONLY) | os.O_CLOEXEC)
    else:
        kind, fd = _PUMP, _duplicate(number if wanted is None else wanted)
    streams.kinds.append(kind)
    streams.handed.append(fd)


def _duplicate(wanted: Any) -> int:
    try:
        return os.dup(wanted if isinstance(wanted, int) else wanted.fileno())
    except OSError:
        if isinstance(wanted, int) and wanted in (1, 2):  # this process has none either
            return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        raise


def close(descriptors: list[int] | list[int | None]) -> None:
    """Close what is open."""
    for fd in descriptors:
        if fd is not None:
            os.close(fd)


class Exchange:
    """Feed standard input and read standard output and error, without threads and up to a limit."""

    def __init__(self, text: Text, data: Any, limit: int | None, on_output: OnOutput | None) -> None:
        """Begin with nothing read.

        Args:
            text: how bytes are made text.
            data: what to feed; None for nothing.
            limit: how many bytes may come, in all.
            on_output: what is called with each piece as it comes.
        """
        self._data = memoryview(text.encode(data) or b"")
        self._limit = limit
        self._text = text
        self._on_output = on_output
        self._read: dict[int, bytearray] = {1: bytearray(), 2: bytearray()}
        self._decoders = {number: text.decoder() for number in self._read}
        self.overrun = False

    def output(self, number: int) -> Any:
        """Return what has been read of one stream."""
        return self._text.decode(bytes(self._read[number]))

    def run(self, files: list[IO[Any] | None], deadline: float | None, args: Any) -> None:
        """Exchange until both outputs have ended, or too much has come.

        Raises:
            subprocess.TimeoutExpired: the deadline, by the monotonic clock, has passed.
        """
        with selectors.DefaultSelector() as selector:
            for number, file in enumerate(files):
                if file is None or file.closed:
                    continue
                if number:
                    selector.register(file.fileno(), selectors.EVENT_READ, (number, file))
                elif self._data:
                    os.set_blocking(file.fileno(), False)
                    selector.register(file.fileno(), selectors.EVENT_WRITE, (number, file))
                else:
                    file.close()
            while selector.get_map() and not self.overrun:
                left = None if deadline is None else deadline - clock.monotonic()
                if left is not None and left <= 0:
                    raise subprocess.TimeoutExpired(args, 0.0)
                for key, _ in selector.select(left):
                    self._step(selector, *key.data)

    def _step(self, selector: selectors.BaseSelector, number: int, file: IO[Any]) -> None:
        over = self._feed(file) if number == 0 else self._take(number, os.read(file.fileno(), _CHUNK))
        if over:
            selector.unregister(file.fileno())
            _close(file)

    def _feed(self, file: IO[Any]) -> bool:
        try:
            self._data = self._data[os.write(file.fileno(), self._data[:_CHUNK]) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return not self._data

    def _take(self, number: int, data: bytes) -> bool:
        if self._on_output is not None:
            piece = self._decoders[number](data, not data)
            if piece:
                self._on_output(piece)
        if self._limit is not None:
            room = self._limit - sum(map(len, self._read.values()))
            self.overrun = len(data) > room
            data = data[:room]
        self._read[number] += data
        return not data and not self.overrun


def _close(file: IO[Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        file.close()

"""Pipes that data goes through from socket to socket without passing through the process; see splice(2)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from typing import Final

_SIZE: Final = 512 * 1024
_LEAST: Final = 64 * 1024
_SPARE: Final = 4
_SPLICE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """What one side said and the other has not taken yet, in the kernel, which need not copy it.

    Its methods raise OSError as splice(2) does, BlockingIOError where a socket has nothing or takes nothing.
    """

    __slots__ = ("_input", "_output", "_size", "held")

    def __init__(self) -> None:
        self._output, self._input = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with contextlib.suppress(OSError):  # the kernel limits what all pipes of a user take
            fcntl.fcntl(self._input, fcntl.F_SETPIPE_SZ, _SIZE)
        self._size = fcntl.fcntl(self._input, fcntl.F_GETPIPE_SZ)
        self.held = 0

    def room(self) -> int:
        """Return how many bytes there may still be room for; short pieces take more than their size."""
        return self._size - self.held

    def fill(self, source: socket.socket) -> int:
        """Take in what a socket has; return how many bytes, none at its end."""
        taken = os.splice(source.fileno(), self._input, self.room(), flags=_SPLICE)
        self.held += taken
        return taken

    def drain(self, sink: socket.socket) -> int:
        """Give a socket what it takes; return how many bytes."""
        given = os.splice(self._output, sink.fileno(), self.held, flags=_SPLICE)
        self.held -= given
        return given

    def close(self) -> None:
        """Give it up, with what is in it."""
        os.close(self._input)
        os.close(self._output)


class Pipes:
    """Pipes for the connections of one loop; each is lent while something is in it."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []

    def lend(self) -> Pipe | None:
        """Return an empty pipe; None where there are no descriptors for one, or only a small one is to be had."""
        if self._spare:
            return self._spare.pop()
        try:
            pipe = Pipe()
        except OSError:
            return None
        if pipe.room() >= _LEAST:
            return pipe
        pipe.close()
        return None

    def take_back(self, pipe: Pipe) -> None:
        """Keep the pipe for others, unless something is left in it or there are enough."""
        if pipe.held or len(self._spare) == _SPARE:
            pipe.close()
        else:
            self._spare.append(pipe)

    def close(self) -> None:
        """Close those that are not lent."""
        while self._spare:
            self._spare.pop().close()

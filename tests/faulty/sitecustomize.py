"""Python imports this at its start where its folder is on PYTHONPATH: then calls that pytest-netns makes can fail.

A call is told by where in the package it is made, as ``role|module:function:call``; the role is ``pytest``,
``gateway``, ``understudy``, or ``successor`` for the gateways that this one starts. ``NETNS_FAULT_LOG`` names a file
that gets a line for each such place that a process comes by, and one for each fault. ``NETNS_FAULT`` is
``role/module:function:call|what|first|times``: from the ``first`` passage on, and so many ``times``, the call fails
with the errno that is named, or what it reads is made into a bad answer. ``NETNS_CLOCK`` names a file: from when it is
there, the wall clock is wrong by as many seconds as it says.
"""

from __future__ import annotations

import builtins
import ctypes
import errno
import fcntl
import io
import mmap
import os
import posix
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

_OURS: Final = "pytest_netns."
_BETWEEN: Final = {*sys.stdlib_module_names, "filelock", "pyroute2"} - {"__main__"}
_NLMSG_ERROR: Final = struct.Struct("=IHHIIi16s")
_MADE: Final = {
    os: "open read write pipe fork stat lstat listdir scandir readlink mkdir rmdir unlink chmod fchmod chown dup "
    "chdir fchdir getcwd kill killpg pidfd_open waitpid waitid symlink link rename replace statvfs memfd_create "
    "splice sendfile eventfd truncate ftruncate path.realpath setsid getpgid fstat set_inheritable",
    signal: "pidfd_send_signal",
    resource: "setrlimit",
    fcntl: "fcntl ioctl",
    mmap: "mmap",
    subprocess: "_fork_exec",
    socket.socket: "bind listen connect accept send sendto sendmsg recv recvfrom recvmsg setsockopt getsockopt "
    "getsockname getpeername shutdown",
}


class _Injector:
    def __init__(self, fault: str, log: str) -> None:
        words = sys.orig_argv
        self._role = "gateway" if "pytest_netns.gateway" in words else "pytest"
        self._log = log
        self._seen: set[str] = set()
        self._place, self._what, first, times = fault.split("|") if fault else ("", "", "0", "0")
        self._place = self._place.replace("/", "|")
        self._first, self._times, self._count = int(first), int(times), 0
        self._forks = 0
        os.register_at_fork(after_in_parent=self._forked, after_in_child=self._born)

    def _forked(self) -> None:
        self._forks += 1

    def _born(self) -> None:
        """Take the role of a child: what is started as the gateway has the understudy, which has the gateways."""
        if self._role == "understudy":
            self._role = "successor" if self._forks else "gateway"
        elif self._role == "gateway" and not self._forks:
            self._role = "understudy"

    def due(self, call: str) -> str:
        """Note a call where it is one of the package's; return what it is to fail with, or nothing."""
        where = _caller()
        if not where:
            return ""
        place = f"{self._role}|{where}:{call}"
        if place not in self._seen:
            self._seen.add(place)
            self._note(f"seen {place}")
        if place != self._place:
            return ""
        self._count += 1
        if not self._first <= self._count < self._first + self._times:
            return ""
        self._note(f"fault {place}")
        return self._what

    def _note(self, line: str) -> None:
        descriptor = posix.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        posix.write(descriptor, line.encode() + b"\n")
        posix.close(descriptor)

    def made(self, call: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that makes a call, or fails."""

        def wrapped(*arguments: Any, **named: Any) -> Any:
            what = "" if call == "io.open" and isinstance(arguments[0], int) else self.due(call)
            if not what:
                return original(*arguments, **named)
            if what in _ANSWERS:
                return _ANSWERS[what](original, *arguments, **named)
            number = getattr(errno, what)
            raise OSError(number, os.strerror(number))

        return wrapped


def _caller() -> str:
    """Return which function of the package is at work; nothing where another's code called in between."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        if name == "__main__" and frame.f_globals.get("__package__") == "pytest_netns.gateway":
            name = "pytest_netns.gateway.__main__"
        if name.startswith(_OURS):
            return f"{name[len(_OURS) :]}:{frame.f_code.co_name}"
        if name.split(".")[0] not in _BETWEEN or name == "threading":
            return ""
        frame = frame.f_back
    return ""


def _truncated(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return original(*arguments, **named)[:10]


def _reordered(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Give an acknowledgement first that answers nothing which was asked."""
    return _NLMSG_ERROR.pack(36, 2, 0, 4_000_000, 0, 0, bytes(16)) + original(*arguments, **named)


def _refused(number: int) -> Callable[..., Any]:
    def refused(original: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Give the kernel's answer to netlink messages with an error in it."""
        data = bytearray(original(*arguments, **named))
        if len(data) >= 20:
            struct.pack_into("=i", data, 16, -number)
        return bytes(data)

    return refused


_ANSWERS: Final[dict[str, Callable[..., Any]]] = {
    "TRUNCATED": _truncated,
    "REORDERED": _reordered,
    "LOST": lambda original, *arguments, **named: (original(*arguments, **named), original(*arguments, **named))[1],
    **{f"REFUSED_{name}": _refused(getattr(errno, name)) for name in dir(errno) if name.startswith("E")},
}


class _Function:
    """A function of the C library that can fail."""

    def __init__(self, call: str, original: Any, injector: _Injector) -> None:
        self._call = call
        self._original = original
        self._injector = injector

    def __call__(self, *arguments: Any) -> Any:
        what = self._injector.due(self._call)
        if not what:
            return self._original(*arguments)
        ctypes.set_errno(getattr(errno, what))
        return -1

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            super().__setattr__(name, value)
        else:  # ``argtypes`` and the like
            setattr(self._original, name, value)


def _install(injector: _Injector) -> None:
    for owner, names in _MADE.items():
        for name in names.split():
            if hasattr(owner, name):
                call = f"{getattr(owner, '__name__', owner)}.{name}"
                wrapped = injector.made(call, getattr(owner, name))
                setattr(owner, name, wrapped)
    builtins.open = io.open = injector.made("io.open", builtins.open)
    socket.socket.__init__ = injector.made("socket.socket", socket.socket.__init__)  # type: ignore[method-assign]

    class Library(ctypes.CDLL):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or name == "clock_gettime":
                return super().__getattr__(name)
            function = _Function(f"libc.{name}", super().__getattr__(name), injector)
            setattr(self, name, function)
            return function

    ctypes.CDLL = Library  # type: ignore[misc]


def _let_jump(path: str) -> None:
    """Let the wall clock of this process go wrong by as many seconds as a file says, from when there is one."""

    def wrong() -> int:
        try:
            with open(path, encoding="ascii") as file:
                return int(file.read() or 0)
        except FileNotFoundError:
            return 0

    class Library(ctypes.CDLL):
        def __getattr__(self, name: str) -> Any:
            original = super().__getattr__(name)
            if name != "clock_gettime":
                return original

            def clock_gettime(clock: int, reference: Any) -> int:
                result: int = original(clock, reference)
                if clock == time.CLOCK_REALTIME:
                    reference._obj.seconds += wrong()
                return result

            return clock_gettime

    ctypes.CDLL = Library  # type: ignore[misc]
    right = time.time
    time.time = lambda: right() + wrong()


if "NETNS_FAULT_LOG" in os.environ:
    _install(_Injector(os.environ.get("NETNS_FAULT", ""), os.environ["NETNS_FAULT_LOG"]))
if "NETNS_CLOCK" in os.environ:
    _let_jump(os.environ["NETNS_CLOCK"])

"""One command in a box, from the start of bubblewrap to the death of the last process, seen from the keeper."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import socket
import time
from collections.abc import Iterator
from typing import Final

from pytest_netns.kernel.readiness import is_readable
from pytest_netns.sandbox import launch, meter, wire
from pytest_netns.sandbox.launch import Setting
from pytest_netns.sandbox.meter import Account
from pytest_netns.sandbox.pump import Budget, Pump
from pytest_netns.sandbox.watch import Watch
from pytest_netns.sandbox.wire import Message

__all__ = ["Command"]

_STDIN: Final = 0


class Command:
    """A command, and the channel by which the pytest process hears of it."""

    def __init__(self, setting: Setting, channel: socket.socket, descriptors: list[int]) -> None:
        """Start it; descriptors are those of what is wanted, and of standard input, output and error."""
        wanted = json.loads(wire.read_file(descriptors[0]))
        self._setting = setting
        self._channel = channel
        self._began = time.monotonic()
        self._limit = wanted["timeout"]
        self._budget = Budget(wanted["output"])
        self._exceeded: str | None = None
        self._ended = False
        self._status: int | None = None
        self._used = [0.0, 0.0, 0.0]
        self._written = 0
        self._init = 0
        self._told = b""
        self._waiting = True
        self._released = False
        self._mounts = -1
        self._account = Account(None)
        self._refused = setting.meter.refused()
        self._killed = setting.meter.killed()
        self._time = setting.meter.cpu_time()
        self._pumps: list[Pump] = []
        self._outputs: list[Pump] = []
        self._report, report = launch.pipe()
        os.set_blocking(self._report, False)
        self._block, self._unblock = launch.pipe()
        setting.meter.reset()
        stdio = self._stdio(wanted["stdio"], descriptors[1:])
        try:
            self._outer = launch.launch(setting, wanted, [*stdio, report, self._block])
        except OSError:
            self._let_go()
            raise
        finally:
            for fd in {*stdio, report}:
                os.close(fd)
        self._watch = Watch(setting.memory)

    def _stdio(self, kinds: list[str], handed: list[int]) -> list[int]:
        """Return what the command gets as its standard streams: pipes, whatever the other end is."""
        own = []
        for number, (kind, fd) in enumerate(zip(kinds, handed, strict=False)):
            if kind == "direct":
                own.append(launch.high(fd))
                continue
            outer, inner = launch.pipe()
            if number == _STDIN:
                own.append(outer)
                self._pumps.append(Pump(launch.high(fd), inner))
            else:
                own.append(inner)
                self._outputs.append(Pump(outer, launch.high(fd), self._budget))
        self._pumps += self._outputs
        return own if len(own) == 3 else [*own, os.dup(own[1])]

    @property
    def over(self) -> bool:
        """Whether everything of it is dead and everything is told."""
        return self._channel.fileno() < 0

    @property
    def outer(self) -> int:
        """Bubblewrap's process outside of the box; 0 once it is dead."""
        return self._outer

    @property
    def deadline(self) -> float | None:
        """When it has to be looked after next, by the monotonic clock."""
        wanted = [self._watch.next] if self._init else []
        if self._limit is not None and self._exceeded is None:
            wanted.append(self._began + self._limit)
        return min(wanted, default=None)

    def watched(self) -> Iterator[tuple[int, int]]:
        """Yield what to wait for: descriptors, each with the event."""
        yield self._channel.fileno(), select.POLLIN
        if self._report >= 0:
            yield self._report, select.POLLIN
        for pump in self._pumps:
            if not pump.over:
                yield pump.watched()

    def attend(self, fd: int) -> None:
        """Do what a descriptor is ready for."""
        if fd == self._channel.fileno():
            self._obey()
        elif fd == self._report:
            self._listen()
        for pump in self._pumps:
            pump.attend(fd)

    def _obey(self) -> None:
        message, _ = wire.receive(self._channel)
        if message is None:  # nobody wants to hear of it any more
            self.kill()
        elif message["op"] == "signal" and message["number"] != signal.SIGKILL:
            self._signal(message["number"])
        else:
            self.kill(message.get("exceeded"))

    def _listen(self) -> None:
        """Take in what bubblewrap reports: a line on the box's init, and one on the command's end, if it ever began."""
        with contextlib.suppress(BlockingIOError):
            while self._report >= 0:
                told = os.read(self._report, 4096)
                self._told += told
                if not told:
                    os.close(self._report)
                    self._report = -1
        if self._waiting and b"\n" in self._told:
            self._waiting = False
            self._release(json.loads(self._told.partition(b"\n")[0])["child-pid"])

    def _release(self, init: int) -> None:
        """Put limits on the box's init, and let it start the command."""
        self._init = init
        if self._ended:
            self.kill()
            return
        self._setting.rlimits.put_on(self._init)
        self._account = Account(self._init)
        with contextlib.suppress(OSError):  # freeing it takes time, which is better spent when nobody waits
            self._mounts = os.open(f"/proc/{self._init}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        with contextlib.suppress(OSError):
            wire.send(self._channel, {"event": "started", "pid": self._init})
        with contextlib.suppress(BrokenPipeError):
            os.write(self._unblock, b"\n")
        self._released = True

    def _signal(self, number: int) -> None:
        """Pass a signal on to the command itself, which is the first child of the box's init."""
        command = next(iter(meter.family(self._init)[1:]), None) if self._init else None
        with contextlib.suppress(ProcessLookupError):
            os.kill(command or self._outer, number)

    def kill(self, exceeded: str | None = None) -> None:
        """End everything: with its init, the kernel ends a PID namespace.

        As long as it is not known who that will be, bubblewrap is let go on to where it waits for us.
        """
        self._exceeded = self._exceeded or exceeded
        self._ended = True
        for pid in (self._init, self._outer) if self._report < 0 or not self._waiting else ():
            if pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def note(self, pid: int) -> None:
        """Take down what is known of a process of ours only as long as it has not been reaped."""
        if pid == self._init:
            self._written = self._account.read()
            self._account.close()

    def bury(self, pid: int, status: int, used: resource.struct_rusage) -> None:
        """Take notice of a death."""
        if pid not in (self._outer, self._init):
            return
        self._used[0] += used.ru_utime + used.ru_stime
        self._used[1] = max(self._used[1], used.ru_maxrss * 1024)
        if pid == self._outer:
            self._outer, self._status = 0, os.waitstatus_to_exitcode(status)
        else:
            self._init = 0

    def look_after(self) -> None:
        """End what has gone over its limits; tell of the end, once it is that."""
        now = time.monotonic()
        if self._limit is not None and now - self._began >= self._limit and self._outer:
            self.kill("time")
        if self._budget.spent:
            self.kill("output")
        if self._init and now >= self._watch.next and (self._watch.look(self._init) or self._lacks_memory()):
            self.kill("memory")
        if not self._outer:
            self._listen()
        if not self._outer and self._init and not _exists(self._init):
            self._init = 0  # bubblewrap had reaped it
        if not self._outer and not self._init and all(pump.over for pump in self._outputs):
            self._tell()

    def _tell(self) -> None:
        usage = self._usage()
        status = -signal.SIGKILL if self._ended else self._status
        message = {"event": "ended", "status": status, "exceeded": self._exceeding(), "usage": usage}
        message["set_up"] = self._released and not is_readable(self._block)
        message["executed"] = b'"exit-code"' in self._told
        with contextlib.suppress(OSError):
            wire.send(self._channel, message)
        self.close()

    def _usage(self) -> Message:
        counted = self._setting.meter.cpu_time()
        used = self._used[0]
        if counted is not None and self._time is not None:
            used = max(used, counted - self._time)
        return {
            "memory": self._setting.meter.peak() or max(int(self._used[1]), self._watch.memory),
            "cpu_time": used,
            "processes": self._watch.processes,
            "written": self._written,
            "duration": time.monotonic() - self._began,
        }

    def _exceeding(self) -> str | None:
        if self._exceeded is not None:
            return self._exceeded
        if self._lacks_memory():
            return "memory"
        if self._setting.meter.refused() > self._refused or self._watch.processes >= self._setting.rlimits.pids_seen:
            return "pids"
        if self._status == 128 + signal.SIGXFSZ:
            return "file_size"
        disk = os.statvfs(self._setting.disk)
        return "disk" if not disk.f_bavail or not disk.f_favail else None

    def _lacks_memory(self) -> bool:
        """Tell whether the kernel has ended a process of the box's for want of memory; the others would wait for it."""
        return self._setting.meter.killed() > self._killed

    def close(self) -> None:
        """Let go of everything; doing so twice is harmless."""
        self._channel.close()
        self._let_go()

    def _let_go(self) -> None:
        for pump in self._pumps:
            pump.close()
        for fd in {self._report, self._block, self._unblock, self._mounts} - {-1}:
            os.close(fd)
        self._report = self._block = self._unblock = self._mounts = -1


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

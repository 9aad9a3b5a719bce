"""The keeper of one box: forked from the warden, it sets the box up, gives up its rights, and starts its commands.

It is in the box's control groups and mount namespace, so that what it starts is, too, and no box outlives it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import time

from pytest_netns.errors import describe
from pytest_netns.kernel import confinement, identity, privilege, syscalls
from pytest_netns.kernel.readiness import LONGEST
from pytest_netns.sandbox import bubblewrap, prune, view, wire
from pytest_netns.sandbox.bubblewrap import Program
from pytest_netns.sandbox.cgroups import Group, Groups
from pytest_netns.sandbox.command import Command
from pytest_netns.sandbox.launch import Setting
from pytest_netns.sandbox.limits import Rlimits
from pytest_netns.sandbox.meter import Meter, children
from pytest_netns.sandbox.options import View
from pytest_netns.sandbox.stage import Stage
from pytest_netns.sandbox.wire import Message

__all__ = ["confess", "main"]


def main(channel: socket.socket, message: Message, descriptors: list[int]) -> None:
    """Do what the pytest process asks for, and then serve it until it has had enough."""
    if message["op"] == "renew":
        _renew(message, descriptors)
        wire.send(channel, {"ok": True})
        return
    os.setsid()
    setting, answer, handed = _set_up(message, descriptors)
    wire.send(channel, {"ok": True, **answer}, handed)
    for fd in handed:
        os.close(fd)
    Keeper(channel, setting).serve()


def confess(channel: socket.socket, error: BaseException) -> None:
    """Tell the pytest process why there is no box."""
    number = error.errno if isinstance(error, OSError) else 0
    with contextlib.suppress(OSError):
        wire.send(channel, {"ok": False, "error": describe(error), "errno": number, "kind": type(error).__name__})


def _set_up(message: Message, descriptors: list[int]) -> tuple[Setting, Message, tuple[int, ...]]:
    net_fd, mnt_fd, filter_fd, view_fd = descriptors
    wanted = json.loads(wire.read_file(view_fd))
    groups = Groups({limit: Group(*where) for limit, where in message["groups"].items()})
    owner: int | None = message["owner"]
    with privilege.raised():
        groups.join()
        meter = Meter(groups)
        syscalls.setns(net_fd, syscalls.CLONE_NEWNET)
        syscalls.setns(mnt_fd, syscalls.CLONE_NEWNS)
        program = Program(*message["program"])
        plan = view.plan(View(**{**wanted, **_tuples(wanted)}))
        inner = prune.inner(plan, mapped=owner is not None)
        hidden = [(path, os.path.isdir(path)) for path in (*plan.hidden, *inner)]
        prune.own_mounts()
        prune.prune(plan, (program.path, *program.shown.values()), reversed(inner))
        if owner is None:  # an overlay acts with the rights of who mounted it, and takes more than the tests have
            privilege.enter_plain_user_namespace()
            prune.own_mounts()
        stage = Stage(owner, message["disk"])
        plan = stage.set_up(plan, dict(program.shown))
        users, mounts = (os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt"))
        root = os.open(stage.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        if any(message["offsets"]):
            confinement.shift_clocks(*message["offsets"])
    _give_up(owner, message["processors"])
    options = (
        *bubblewrap.confinement(message["hostname"], message["uid"], message["gid"]),
        *view.arguments(plan, stage.path, hidden),
    )
    path = stage.within(_in_wheel(program)) if program.shown else program.path
    rlimits, filter_ = Rlimits(**message["rlimits"]).as_far_as_allowed(), wire.read_file(filter_fd)
    setting = Setting(
        path, options, filter_, rlimits, meter, message["watched"], stage.within("shm"), any(message["offsets"])
    )
    shown = [bind.target for bind in plan.binds] + ([plan.overlaid] if plan.overlaid else [])
    answer = {
        "covers": plan.covers,
        "shown": shown,
        "home": plan.home,
        "cwd": plan.cwd,
        "overlaid": plan.overlaid,
        "stage": stage.path,
        "pid": os.getpid(),
    }
    return setting, answer, (users, mounts, root)


def _tuples(given: Message) -> Message:
    return {name: tuple(value) for name, value in given.items() if isinstance(value, list)}


def _in_wheel(program: Program) -> str:
    name, site = next(iter(program.shown.items()))
    return os.path.join(name, os.path.relpath(program.path, site))


def _give_up(owner: int | None, processors: list[int]) -> None:
    """Become nobody of consequence, for good, and keep what is started from reaching out."""
    if owner is not None:
        identity.become(owner)
    privilege.renounce()
    syscalls.prctl(confinement.PR_SET_DUMPABLE, 1)
    syscalls.prctl(confinement.PR_SET_CHILD_SUBREAPER, 1)
    if processors:
        os.sched_setaffinity(0, processors)
    syscalls.prctl(confinement.PR_SET_NO_NEW_PRIVS, 1)
    if confinement.has_scopes():
        confinement.scope()


def _renew(message: Message, descriptors: list[int]) -> None:
    """Put a fresh overlay over the working directory of a box that runs nothing."""
    stage = Stage(message["owner"], 0, message["stage"])
    users, mounts = descriptors
    with privilege.raised():
        if stage.owner is None:
            syscalls.setns(users, syscalls.CLONE_NEWUSER)
        syscalls.setns(mounts, syscalls.CLONE_NEWNS)
        syscalls.umount2(stage.within("merged"), syscalls.MNT_DETACH)
        stage.clear()
        stage.overlay(message["overlaid"])


class Keeper:
    """The commands of one box."""

    def __init__(self, channel: socket.socket, setting: Setting) -> None:
        self._channel = channel
        self._setting = setting
        self._commands: list[Command] = []
        self._open = True
        self._wake, waker = os.pipe()
        os.set_blocking(self._wake, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def serve(self) -> None:
        """Serve until the pytest process lets go of the box; then end all that runs in it."""
        while self._open or self._commands:
            ready = self._wait()
            for fd in ready:
                if fd == self._channel.fileno():
                    self._attend()
                for command in self._commands:
                    command.attend(fd)
            if self._wake in ready:
                self._reap()
            for command in self._commands:
                command.look_after()
            self._commands = [command for command in self._commands if not command.over]

    def _wait(self) -> list[int]:
        poll = select.poll()
        if self._open:
            poll.register(self._channel, select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        deadlines = []
        for command in self._commands:
            for fd, events in command.watched():
                poll.register(fd, events)
            deadlines.append(command.deadline)
        soonest = min((deadline for deadline in deadlines if deadline is not None), default=None)
        timeout = None if soonest is None else min(max(0.0, soonest - time.monotonic()) * 1000, LONGEST)
        ready = [fd for fd, _ in poll.poll(timeout)]
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 64)
        return ready

    def _attend(self) -> None:
        message, descriptors = wire.receive(self._channel)
        if message is None:
            self._open = False
            for command in self._commands:
                command.kill()
            return
        channel = socket.socket(fileno=descriptors[0])
        try:
            self._commands.append(Command(self._setting, channel, descriptors[1:]))
        except OSError as error:
            confess(channel, error)
            channel.close()

    def _reap(self) -> None:
        """Take notice of who has died: bubblewrap outside, or what was left to the keeper by it."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                self._end_orphans()
                return
            for command in self._commands:
                command.note(found.si_pid)
            _, status, used = os.wait4(found.si_pid, 0)
            for command in self._commands:
                command.bury(found.si_pid, status, used)

    def _end_orphans(self) -> None:
        """End what bubblewrap has left to the keeper: killed early, it has not asked the kernel for that yet.

        Its child would wait for it to say who is who in the box, and so would whoever waits for the child.
        """
        known = {command.outer for command in self._commands}
        for pid in children(os.getpid()):
            if pid not in known:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

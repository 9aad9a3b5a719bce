"""The handle of a box: run commands that nobody trusts, and see what they have done."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from pytest_netns.errors import GatewayError, SandboxError
from pytest_netns.kernel import clock, processes
from pytest_netns.kernel.readiness import is_readable
from pytest_netns.sandbox import opening
from pytest_netns.sandbox.changes import Change
from pytest_netns.sandbox.done import Done, Usage
from pytest_netns.sandbox.overlay import Overlay
from pytest_netns.sandbox.process import SandboxProcess
from pytest_netns.sandbox.running import Runner
from pytest_netns.sandbox.wire import Message

if TYPE_CHECKING:
    from types import TracebackType

    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.flows import Flow
    from pytest_netns.namespace import Namespace
    from pytest_netns.sandbox.helper import Warden
    from pytest_netns.sandbox.opening import Wish

__all__ = ["Sandbox"]

_PATIENCE: Final = 10.0  # seconds in which a box ends by itself


class Sandbox(Runner):
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
        if not is_readable(self._keeper_fd, _PATIENCE):
            ending = {self.keeper: f"what keeps {self.name}"}
            ending.update((process.pid, f"what runs in {self.name}") for process in self._running if process.pid)
            processes.end([processes.Process(*each) for each in ending.items()])
        for process in list(self._running):
            with contextlib.suppress(SandboxError):
                process.wait()
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
        ended = clock.realtime()
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
        running = [process for process in list(self._running) if _runs(process)]
        if running:
            raise SandboxError(f"{doing} has to wait for what runs in {self.name}: {running[0].args!r}; end it first")
        return self._overlay


def _runs(process: SandboxProcess) -> bool:
    with contextlib.suppress(SandboxError):  # it could not be started
        return process.poll() is None
    return False


def _is_below(path: str, above: str) -> bool:
    above = os.path.normpath(above)
    return above in {".", path} or path.startswith(f"{above}/")

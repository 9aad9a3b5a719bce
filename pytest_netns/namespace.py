"""The handle of a leaf: go in, run commands inside, look at and change what is inside."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_netns import values
from pytest_netns.errors import GatewayError, NamespaceClosedError, NetnsError
from pytest_netns.kernel import mounts, privilege, processes
from pytest_netns.kernel.position import Position
from pytest_netns.kernel.processes import Process
from pytest_netns.subprocesses import communicate, settle_streams
from pytest_netns.sysctl import Sysctl
from pytest_netns.visit import ENVIRONMENT, Visit, Visits

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Unpack

    from pytest_netns.capture import Capture
    from pytest_netns.gateway.client import GatewayClient, LeafGrant
    from pytest_netns.sandbox.box import Sandbox
    from pytest_netns.sandbox.make import SandboxOptions

__all__ = ["Namespace", "Process"]


class Namespace:
    """A network namespace with a mount namespace to go with it: a leaf.

    It works from anywhere in the process, inside or outside, and for each thread on its own.
    ``with netns:`` moves the calling thread in, and back out at the end; blocks nest.

    Attributes:
        name: the leaf's name, which is the value of ``PYTEST_NETNS`` inside.
        ipv4: its own IPv4 address, on eth0.
        ipv6: its own IPv6 address, on eth0.
        gateway: the IPv4 address of its default route.
        gateway_ipv6: the IPv6 address of its default route.
        service_port: the one port that a service of the test listens on.
        worker: the worker's leaf, where broader fixtures live; None if there is none, or this is it.
        sysctl: the kernel settings below ``net.``.
    """

    def __init__(self, grant: LeafGrant, client: GatewayClient, *, worker: Namespace | None = None) -> None:
        """Take over the granted leaf; its descriptors are closed by ``close()``."""
        self.name = grant.name
        self.ipv4 = grant.ipv4
        self.ipv6 = grant.ipv6
        self.gateway = grant.gateway_ipv4
        self.gateway_ipv6 = grant.gateway_ipv6
        self.service_port = grant.service_port
        self.worker = worker
        self.sysctl = Sysctl(self._inside)
        self._client = client
        self._fds = (grant.net_fd, grant.mnt_fd)
        self._inodes = (os.fstat(grant.net_fd).st_ino, os.fstat(grant.mnt_fd).st_ino)
        self._visits = Visits()
        self._published: dict[int, int] = {}
        self._boxes: list[Sandbox] = []
        self._closed = False

    def __repr__(self) -> str:
        """Name the leaf, its address, and whether it is over."""
        return f"<Namespace {self.name} {self.ipv4}{' closed' if self._closed else ''}>"

    @property
    def addresses(self) -> tuple[ipaddress.IPv4Address, ipaddress.IPv6Address]:
        """The leaf's own addresses."""
        return ipaddress.IPv4Address(self.ipv4), ipaddress.IPv6Address(self.ipv6)

    @property
    def closed(self) -> bool:
        """Whether the handle is of no use any more."""
        return self._closed

    def fileno(self) -> int:
        """Return the descriptor of the network namespace, for setns(2), netlink or ``nsenter``."""
        return self.descriptors()[0]

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors of the network and the mount namespace; they are the handle's to close."""
        if self._closed:
            raise NamespaceClosedError(
                f"the namespace {self.name} is closed: the test or fixture that it belonged to has ended. "
                "Ask for a new one with the netns fixture"
            )
        return self._fds

    def is_inside(self) -> bool:
        """Tell whether the calling thread is in this leaf, with its network and its mounts."""
        here = (os.stat(f"/proc/thread-self/ns/{kind}").st_ino for kind in ("net", "mnt"))
        return tuple(here) == self._inodes

    def enter(self) -> Namespace:
        """Move the calling thread inside until ``exit()``; the same as ``with netns:``.

        The working directory stays, or becomes ``/`` where there is no such directory inside.
        """
        net_fd, mnt_fd = self.descriptors()
        visit = Visit(Position())
        self._visits.stack.append(visit)
        try:
            visit.begin(net_fd, mnt_fd, self.name)
        except BaseException:
            self._leave()
            raise
        return self

    def exit(self) -> None:
        """Bring the calling thread back to where it was at its last ``enter()``."""
        self._leave()

    def __enter__(self) -> Namespace:  # noqa: PYI034 - Self came with Python 3.11
        """Move the calling thread inside."""
        return self.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Bring the calling thread back; a directory that was changed into meanwhile stays the working directory."""
        self._leave()

    def popen(self, args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a command inside, as ``subprocess.Popen`` does; ``PYTEST_NETNS`` is added to its environment.

        ``cwd`` and the program are looked up inside.
        """
        environment = kwargs.pop("env", None)
        base = os.environ if environment is None else environment
        with self._inside():
            return subprocess.Popen(args, env={**base, ENVIRONMENT: self.name}, **kwargs)

    def run(
        self,
        args: Any,
        *,
        input: Any = None,  # noqa: A002 - the name that subprocess.run gives it
        capture_output: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **kwargs: Any,
    ) -> subprocess.CompletedProcess[Any]:
        """Run a command inside and wait for it, as ``subprocess.run`` does, with the same arguments and errors.

        Only the start happens inside; the caller waits where it is.
        """
        settle_streams(kwargs, input, capture_output=capture_output)
        with self.popen(args, **kwargs) as process:
            output, errors = communicate(process, input, timeout)
        finished = subprocess.CompletedProcess(process.args, process.returncode, output, errors)
        if check:
            finished.check_returncode()
        return finished

    def processes(self) -> list[Process]:
        """List the living processes of the leaf, except the calling one, and those that only keep boxes."""
        self.descriptors()
        keepers = {box.keeper for box in self._boxes}
        return [process for process in processes.members(self._inodes[0]) if process.pid not in keepers]

    def add_host(self, name: str, *addresses: str) -> None:
        """Make the name resolve to these addresses inside, through the leaf's own /etc/hosts."""
        with self._changing_mounts():
            mounts.add_host(name, addresses)

    def hide(self, path: str | os.PathLike[str]) -> None:
        """Make a file or directory appear empty, and unchangeable, inside."""
        with self._changing_mounts():
            mounts.hide(os.fspath(path))

    def tmpfs(self, path: str | os.PathLike[str], size: str = "64M") -> None:
        """Put an empty directory in memory over an existing one, inside."""
        with self._changing_mounts():
            mounts.tmpfs(os.fspath(path), size)

    def bind(self, source: str | os.PathLike[str], target: str | os.PathLike[str], *, readonly: bool = False) -> None:
        """Show a file or directory at a second place inside; both paths are looked up inside."""
        with self._changing_mounts():
            mounts.bind(os.fspath(source), os.fspath(target), readonly=readonly)

    def capture(self) -> Capture:
        """Return what sees the leaf's packets while a block runs: ``with netns.capture() as capture: ...``."""
        from pytest_netns.capture import Capture  # noqa: PLC0415 - few tests look so closely

        self.descriptors()
        return Capture(self.name, self._inside)

    def sandbox(self, workdir: str | os.PathLike[str] | None = None, **options: Unpack[SandboxOptions]) -> Sandbox:
        """Make a box for commands that nobody trusts, with this network; ``SandboxOptions`` says what can be asked for.

        Args:
            workdir: the directory that commands start in, shown by way of an overlay; None for an empty home.
            options: see ``SandboxOptions``.

        Raises:
            SandboxError: an option means nothing, or cannot be had on this machine.
            UnsupportedError: this machine lacks something that every box needs, bubblewrap for one.
        """
        from pytest_netns.sandbox.make import make  # noqa: PLC0415 - what it takes is loaded by who uses it

        self.descriptors()
        box = make(self, self._client, f"{self.name}-box{len(self._boxes) + 1}", workdir, options)
        self._boxes.append(box)
        return box

    def close_boxes(self) -> None:
        """End all boxes that were made here; doing so twice is harmless."""
        for box in self._boxes:
            box.close()

    def publish(self, port: int) -> int:
        """Make 127.0.0.1:``port`` of the leaf reachable from the host, and return the host's 127.0.0.1 port for it.

        Raises:
            SettingsError: that is no port from 1 to 65535; a ``NetnsError`` and a ``ValueError``.
        """
        port = values.port(port, "netns.publish(port)")
        self.descriptors()
        if port not in self._published:
            self._published[port] = self._client.publish(self.name, port)
        return self._published[port]

    def close(self) -> None:
        """Give the leaf up: what was published ends, and the kernel frees it when nobody is left inside.

        Doing so twice is harmless, and so is a gateway that has given it up already or is gone.
        """
        if self._closed:
            return
        self.close_boxes()
        self._closed = True
        with contextlib.ExitStack() as stack:
            for fd in self._fds:
                stack.callback(os.close, fd)
            stack.enter_context(contextlib.suppress(GatewayError))
            stack.callback(self._client.release, self.name)
            for host_port in self._published.values():
                stack.enter_context(contextlib.suppress(GatewayError))
                stack.callback(self._client.unpublish, host_port)

    def rewire(self, grant: LeafGrant) -> None:
        """Go on as what another gateway has granted for this leaf, whose own has ended."""
        self.name, self.ipv4, self.ipv6 = grant.name, grant.ipv4, grant.ipv6
        self._published.clear()
        for descriptor in (grant.net_fd, grant.mnt_fd):
            os.close(descriptor)

    def _leave(self) -> None:
        if not self._visits.stack:
            raise NetnsError(f"this thread did not enter the namespace {self.name}: exit() needs an enter() before it")
        visit = self._visits.stack[-1]
        try:
            visit.end()
        except BaseException:  # Ctrl-C in the middle of it, say.
            visit.end()
            raise
        finally:
            self._visits.stack.pop()
            visit.position.close()

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self.descriptors()
        with contextlib.nullcontext() if self.is_inside() else self:
            yield

    @contextlib.contextmanager
    def _changing_mounts(self) -> Iterator[None]:
        with self._inside(), privilege.raised():
            yield

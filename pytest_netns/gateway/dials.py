"""Make the sockets by which a flow reaches its other end; a flow may be cut while it waits for one."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeAlias

from pytest_netns.gateway.pump import reset
from pytest_netns.rules import EgressRule

InHub: TypeAlias = Callable[..., Awaitable[Any]]
Rules: TypeAlias = tuple[EgressRule, ...]
"""The rules that a flow rests on: none where it was let through without."""

CUT_SHORT: Final = "cut off: the test that it was allowed to has ended"

_TIMEOUT: Final = 130.0  # seconds; the kernel's own gives up after some 127


class Target(NamedTuple):
    """Where a flow is to be carried: an endpoint as the host sees it, or as the hub does."""

    host: str
    port: int
    in_hub: bool = False

    @property
    def family(self) -> socket.AddressFamily:
        """AF_INET6 for an IPv6 address, else AF_INET."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


async def socket_for(target: Target, kind: int, in_hub: InHub) -> socket.socket:
    """Open a socket where a target is reached from."""
    upstream: socket.socket
    if target.in_hub:
        upstream = await in_hub(socket.socket, target.family, kind)
    else:
        upstream = socket.socket(target.family, kind)
    upstream.setblocking(False)
    return upstream


async def dial(target: Target, in_hub: InHub) -> socket.socket:
    """Connect to a TCP endpoint; OSError as connect(2) would give it."""
    upstream = await socket_for(target, socket.SOCK_STREAM, in_hub)
    try:
        await _connect(upstream, target)
    except BaseException:
        upstream.close()
        raise
    return upstream


async def _connect(upstream: socket.socket, target: Target) -> None:
    """Do what asyncio has two more tasks for, to wait and to limit the time of that, with none."""
    number = upstream.connect_ex(target[:2])
    if number == errno.EINPROGRESS:
        number = await _connected(upstream)
    if number:
        raise OSError(number, os.strerror(number))


async def _connected(upstream: socket.socket) -> int:
    """Wait until a connection is made or fails; return the error's number, or 0."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[int] = loop.create_future()

    def settle(number: int | None = None) -> None:
        if not future.done():
            future.set_result(upstream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if number is None else number)

    loop.add_writer(upstream, settle)
    late = loop.call_later(_TIMEOUT, settle, errno.ETIMEDOUT)
    try:
        return await future
    finally:
        late.cancel()
        loop.remove_writer(upstream)


class Dials:
    """The sockets that are being made, by the leaf whose flow waits for them."""

    def __init__(self) -> None:
        self._by_leaf: dict[str, dict[asyncio.Future[socket.socket], Rules]] = {}

    async def wait(self, work: Awaitable[socket.socket], leaf: str, rules: Rules) -> socket.socket:
        """Return the socket once it is made; PermissionError where the flow, let through by ``rules``, is cut first."""
        task = asyncio.ensure_future(work)
        tasks = self._by_leaf.setdefault(leaf, {})
        tasks[task] = rules
        wanted = False
        try:
            await asyncio.wait([task])
            wanted = task in tasks
        finally:
            tasks.pop(task, None)
            if not tasks and self._by_leaf.get(leaf) is tasks:
                del self._by_leaf[leaf]
            if not wanted:
                task.cancel()
                task.add_done_callback(_discard)
        if not wanted:
            raise PermissionError(errno.EPERM, CUT_SHORT)
        return task.result()

    def cut(self, leaf: str, cuts: Callable[[Rules], bool]) -> None:
        """Give up a leaf's sockets whose rules are such that ``cuts`` tells of."""
        tasks = self._by_leaf.get(leaf, {})
        for task in [task for task, rules in tasks.items() if cuts(rules)]:
            del tasks[task]
            task.cancel()


def _discard(task: asyncio.Future[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        reset(task.result())

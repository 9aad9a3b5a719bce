"""Ports of the host's loopback that lead into a leaf."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from dataclasses import dataclass
from typing import Any

from pytest_netns.errors import KernelError
from pytest_netns.gateway.accepting import accept
from pytest_netns.gateway.relay import Relay
from pytest_netns.gateway.worker import LiveLeaf


def listen(port: int) -> socket.socket:
    """Listen on a port of the host's 127.0.0.1, a free one for 0.

    Raises:
        KernelError: the port is taken, or not for this user.
    """
    try:
        listener = socket.create_server(("127.0.0.1", port), backlog=128)
    except OSError as error:
        number = error.errno or errno.EIO
        text = f"127.0.0.1:{port} on the host cannot be had: {os.strerror(number)}"
        raise KernelError(number, text) from error
    listener.setblocking(False)
    return listener


@dataclass(frozen=True)
class _Published:
    live: LiveLeaf
    listener: socket.socket


class Publisher:
    """The published ports of one gateway."""

    def __init__(self, relay: Relay) -> None:
        """Start with none; ``relay`` carries the connections."""
        self._relay = relay
        self._ports: dict[int, _Published] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def open(self, live: LiveLeaf, port: int, host_port: int = 0) -> int:
        """Listen on a port of the host's 127.0.0.1, a free one unless said, for the leaf's ``port``; return the former.

        Raises:
            KernelError: the host's port is taken, or not for this user.
        """
        listener = listen(host_port)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, live.addresses, port)
        host_port = listener.getsockname()[1]
        self._ports[host_port] = _Published(live, listener)
        return host_port

    def close_port(self, host_port: int) -> None:
        """Stop listening on one port; harmless when done twice."""
        published = self._ports.pop(host_port, None)
        if published is not None:
            asyncio.get_running_loop().remove_reader(published.listener)
            published.listener.close()

    def close(self, live: LiveLeaf) -> None:
        """Stop listening for a leaf that is gone."""
        for host_port in [port for port, published in self._ports.items() if published.live is live]:
            self.close_port(host_port)

    def _accept(self, listener: socket.socket, addresses: tuple[str, str], port: int) -> None:
        accepted = accept(listener, self._accept, listener, addresses, port)
        if accepted is not None:
            task = asyncio.create_task(self._relay.forward(accepted[0], addresses, port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

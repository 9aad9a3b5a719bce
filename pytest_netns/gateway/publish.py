"""Ports of the host's loopback that lead into a leaf."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass
from typing import Any

from pytest_netns.gateway.relay import Relay
from pytest_netns.gateway.worker import LiveLeaf


@dataclass(frozen=True)
class _Published:
    leaf: str
    listener: socket.socket


class Publisher:
    """The published ports of one gateway."""

    def __init__(self, relay: Relay) -> None:
        """Start with none; ``relay`` carries the connections."""
        self._relay = relay
        self._ports: dict[int, _Published] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def open(self, live: LiveLeaf, port: int) -> int:
        """Listen on a free port of the host's 127.0.0.1 for the leaf's ``port``; return the former."""
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        asyncio.get_running_loop().add_reader(listener, self._accept, listener, live.address, port)
        host_port: int = listener.getsockname()[1]
        self._ports[host_port] = _Published(live.name, listener)
        return host_port

    def close_port(self, host_port: int) -> None:
        """Stop listening on one port; harmless when done twice."""
        published = self._ports.pop(host_port, None)
        if published is not None:
            asyncio.get_running_loop().remove_reader(published.listener)
            published.listener.close()

    def close(self, leaf: str) -> None:
        """Stop listening for a leaf that is gone."""
        for host_port in [port for port, published in self._ports.items() if published.leaf == leaf]:
            self.close_port(host_port)

    def _accept(self, listener: socket.socket, leaf_address: str, port: int) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            client, _ = listener.accept()
            client.setblocking(False)
            task = asyncio.create_task(self._relay.forward(client, leaf_address, port))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

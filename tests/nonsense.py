"""Messages to the gateway that no client of ours sends: cut, stretched, out of order, of wrong types and values."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pytest_netns.gateway import protocol
from pytest_netns.gateway.paths import OBSERVERS_NAME, SOCKET_NAME, short_path

__all__ = ["Peers", "messages"]

_LEAVES: Final = ["w0", "w0-t1", "x", "x-t1", "x-t2", "y-t1", "", "../x", "w0-t999999"]
_RULES: Final = [
    "203.0.113.5:80",
    "203.0.113.5",
    "0.0.0.0/0",
    "::/0",
    "*.example.com",
    "api.example.com:443",
    "localhost:1-65535",
    "[2001:db8::5]:80/udp",
    "",
    "*",
    ":::",
    "a" * 300,
]
_FIELDS: Final[dict[str, list[Any]]] = {
    "leaf": _LEAVES,
    "instead_of": _LEAVES,
    "worker_name": ["x", "y", "w0", "", "\0", "x" * 5000],
    "test": ["test_it.py::test_it", "", "\ud800", "t" * 3000],
    "rules": [[], _RULES[:2], _RULES, [None], [[]], "203.0.113.5:80"],
    "port": [0, 80, 65535, 65536, -1, 2**70, 8.5, "80"],
    "host_port": [0, 1, -1, 70000, None],
    "ports": [[], [80], [-1, 70000], ["x"], None],
    "pid": [None, 0, 1, -1, 2**40, "1"],
    "since": [0, -1, 5, 2**70, 0.5, None],
    "after": [0.0, -1.0, 1e400, "now"],
    "path": ["", "/proc/none/x", "/dev/null/x", "\0", None],
    "directory": ["", "/proc/none", None],
    "keys": [["", 0], ["/dev/null/x", -5], ["", "", ""], None],
    "box": ["b", "", None],
    "why": ["", None, "w" * 5000],
    **{name: [True, False, None, 3] for name in ("open_egress", "own_leaf", "record", "tapped", "sni", "wait", "own")},
    "further": [True, False],
}
_OPERATIONS: Final = {
    "join": "worker_name open_egress own_leaf rules record port tapped",
    "lease": "test rules sni port instead_of further",
    "release": "leaf",
    "activate": "leaf",
    "label": "leaf test rules port sni wait",
    "allow": "leaf rules",
    "box": "leaf box pid",
    "publish": "leaf port",
    "unpublish": "port",
    "hold": "leaf why",
    "held": "leaf",
    "flows": "leaf after since",
    "asked": "leaf after since",
    "blocked": "since own",
    "needed": "since own",
    "listening": "ports",
    "log_to": "path",
    "save": "leaf test since path directory keys",
    "hello": "",
    "list": "since",
    "fate": "leaf",
    "enter": "leaf",
    "forward": "leaf port host_port",
    "watch": "leaf",
    "resume": "leaf",
}


def messages(seed: int) -> Iterator[bytes]:
    """Yield packets without end, the same for the same seed."""
    chance = random.Random(seed)
    while True:
        yield _distorted(chance, json.dumps(_request(chance)).encode()) or b"\0"


def _request(chance: random.Random) -> dict[str, Any]:
    operation = chance.choice(list(_OPERATIONS))
    fields = {name: chance.choice(_FIELDS[name]) for name in _OPERATIONS[operation].split()}
    if operation == "join" and chance.random() < 0.5:  # one that may be right
        fields |= {"worker_name": "x", "rules": [], "port": 80, "tapped": False, "own_leaf": True, "record": False}
    for _ in range(chance.choice([0, 0, 0, 1, 2])):
        name = chance.choice([*_FIELDS, "op", "number", "worker", "self", "request"])
        if chance.random() < 0.4:
            fields.pop(name, None)
        else:
            fields[name] = _value(chance)
    return {"op": operation, "number": chance.choice([1, 2, None, "n", 2**70]), **fields}


def _value(chance: random.Random) -> Any:
    return chance.choice([None, True, 0, -1, 2**65, 1.5, "", "x", [], {}, [[]], {"": None}, "\0", "9" * 400])


def _distorted(chance: random.Random, data: bytes) -> bytes:
    kind = chance.random()
    if kind < 0.85:
        return data
    if kind < 0.9:
        return data[: chance.randrange(len(data))]
    if kind < 0.95:
        place = chance.randrange(len(data))
        return data[:place] + chance.randbytes(3) + data[place + 3 :]
    if kind < 0.98:
        return chance.randbytes(chance.randrange(1, 2000))
    return data + b" " * (protocol.MAX_BYTES + chance.randrange(2000))


class Peers:
    """Connections of this user's to a gateway, by both of its doors, that come and go."""

    def __init__(self, directory: Path, seed: int) -> None:
        """Connect nobody yet."""
        self._directory = directory
        self._chance = random.Random(seed)
        self._messages = messages(seed)
        self._open: list[socket.socket] = []
        self.hung_up = 0

    def send(self, count: int) -> None:
        """Send so many packets, each by any of the peers, some with descriptors that nobody asked for."""
        for data in (next(self._messages) for _ in range(count)):
            if len(self._open) < 6:
                self._open.append(self._connected())
            peer = self._chance.choice(self._open)
            descriptors = [0] * self._chance.choice([0, 0, 0, 0, 0, 1, 2, 3, 9])
            try:
                socket.send_fds(peer, [data], descriptors)
                _drain(peer)
            except (ConnectionError, BlockingIOError):
                self._open.remove(peer)
                peer.close()
                self.hung_up += 1

    def close(self) -> None:
        """Hang up."""
        for peer in self._open:
            peer.close()
        self._open.clear()

    def _connected(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with short_path(self._directory / self._chance.choice([SOCKET_NAME, OBSERVERS_NAME])) as path:
            peer.connect(path)
        peer.setblocking(False)
        return peer


def _drain(peer: socket.socket) -> None:
    """Take what answers there are."""
    with contextlib.suppress(BlockingIOError):
        while True:
            data, attached, _, _ = peer.recvmsg(2 * protocol.MAX_BYTES, socket.CMSG_SPACE(64), socket.MSG_DONTWAIT)
            for _, _, content in attached:
                for offset in range(0, len(content) & ~3, 4):
                    os.close(int.from_bytes(content[offset : offset + 4], "little"))
            if not data:
                raise ConnectionResetError

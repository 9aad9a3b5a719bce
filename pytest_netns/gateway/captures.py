"""What is kept of the packets of a leaf, and written to a file for a test."""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, BinaryIO, Final

from pytest_netns import addressing, pcapng
from pytest_netns.gateway import packet
from pytest_netns.gateway.flows import Key
from pytest_netns.kernel import tap
from pytest_netns.kernel.tap import Block, Packet, Tap

FILE_NAME: Final = "netns.pcapng"
INTERFACES: Final = {addressing.LO_INDEX: "lo", addressing.ETH0_INDEX: "eth0"}

_FIRST_BLOCKS: Final = 32
_LAST_BLOCKS: Final = 64
_ETHERNET: Final = 14
_LONGEST_NAME: Final = 200
_NANOSECONDS: Final = 1_000_000_000


@dataclass
class Capture:
    """The first packets of a leaf, and the last, as far as they fit a bounded size: 4 MiB and 8 MiB.

    Attributes:
        tap: where they come from.
    """

    tap: Tap
    _first: list[Block] = field(default_factory=list)
    _last: deque[Block] = field(default_factory=deque)
    _left_out: int = 0

    def collect(self) -> None:
        """Take what the kernel has gathered, so that there is room for more."""
        for block in self.tap.take():
            if len(self._first) < _FIRST_BLOCKS:
                self._first.append(block)
                continue
            self._last.append(block)
            if len(self._last) > _LAST_BLOCKS:
                self._left_out += self._last.popleft().packets

    def restart(self) -> None:
        """Forget what was collected by now: another test begins."""
        self._first, self._last, self._left_out = [], deque(), 0

    def snapshot(self) -> Snapshot:
        """Return what is kept by now."""
        self.collect()
        return Snapshot([*self._first], [*self._last, *self.tap.rest()], self._left_out, self.tap.lost)


@dataclass(frozen=True)
class Snapshot:
    """What was kept of a leaf's packets.

    Attributes:
        first: the first ones.
        last: the last ones.
        left_out: how many there were in between.
        lost: how many found no room when they came.
    """

    first: list[Block]
    last: list[Block]
    left_out: int
    lost: int

    def packets(self, since: float) -> Iterator[Packet | int]:
        """Yield them from a time on, in seconds since the epoch; a number says how many are missing at its place."""
        begin = int(since * _NANOSECONDS)
        yield from (one for one in tap.packets(self.first) if one.time >= begin)
        if self.left_out:
            yield self.left_out
        yield from (one for one in tap.packets(self.last) if one.time >= begin)


@dataclass(frozen=True)
class Label:
    """What is said of a capture: whose it is, and what there is to say of the packets of certain flows."""

    leaf: str
    test: str
    remarks: list[tuple[Key, str]]
    keys: bytes = b""


def write(path: str, snapshot: Snapshot, since: float, label: Label) -> int:
    """Write a test's packets to a file, and return how many they are; OSError as open(2) has it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        writer = Writer(file, label)
        for one in snapshot.packets(since):
            writer.add(one)
        if snapshot.lost:
            file.write(pcapng.statistics(0, time.time_ns(), dropped=snapshot.lost))
    return writer.count


class Writer:
    """One file while it is written."""

    def __init__(self, file: BinaryIO, label: Label) -> None:
        """Write what the file begins with."""
        self._file = file
        self._label = label
        self._remarks = _Remarks(label.remarks)
        self._interfaces: dict[int, int] = {}
        self._gap = 0
        self.count = 0
        system = f"{platform.system()} {platform.release()}"
        application = f"pytest-netns {metadata.version('pytest-netns')}"
        file.write(pcapng.section(comment=label.test, application=application, system=system))
        for number in INTERFACES:
            self._introduce(number)
        if label.keys:
            file.write(pcapng.secrets(label.keys))

    def add(self, one: Packet | int) -> None:
        """Write a packet, or note how many are missing."""
        if isinstance(one, int):
            self._gap = one
            return
        if one.interface not in self._interfaces:
            self._introduce(one.interface)
        comments = [f"netns: {self._gap} packets before this one were left out"] if self._gap else []
        comments += self._remarks.of(one)
        self._file.write(pcapng.packet(self._interfaces[one.interface], one.time, one.length, one.data, comments))
        self._gap = 0
        self.count += 1

    def _introduce(self, number: int) -> None:
        name = INTERFACES.get(number, f"interface {number}")
        self._interfaces[number] = len(self._interfaces)
        self._file.write(pcapng.interface(name, f"{name} of leaf {self._label.leaf}"))


class _Remarks:
    """What there is to say of flows, each said of the first packet that it is true of."""

    def __init__(self, remarks: Iterable[tuple[Key, str]]) -> None:
        self._left: dict[Key, deque[str]] = {}
        for key, text in remarks:
            self._left.setdefault(key, deque()).append(text)

    def of(self, one: Packet) -> list[str]:
        if not self._left or one.interface == tap.LOOPBACK:
            return []
        ends = packet.parse(one.data[_ETHERNET:])
        if ends is None:
            return []
        key = (str(ends.source), ends.source_port, str(ends.destination), ends.destination_port)
        texts = self._left.get(key)
        if texts is None:
            return []
        text = texts.popleft()
        if not texts:
            del self._left[key]
        return [text]


class Paths:
    """Where captures are written: each test in a folder of its own, named as pytest-playwright names them."""

    def __init__(self) -> None:
        """Start with no path taken."""
        self._taken: set[str] = set()

    def fresh(self, directory: str, test: str) -> str:
        """Return a path for a test's capture, and another where it has one already, or one that is called the same."""
        name = re.sub(r"[^a-z0-9]+", "-", test.lower()).strip("-") or "test"
        if len(name) > _LONGEST_NAME:
            digest = hashlib.sha256(test.encode()).hexdigest()[:7]
            name = f"{name[:90]}-{digest}-{name[-90:]}"
        number, path = 1, os.path.join(directory, name, FILE_NAME)
        while path in self._taken:
            number += 1
            path = os.path.join(directory, f"{name}-{number}", FILE_NAME)
        self._taken.add(path)
        return path


async def save(snapshot: Snapshot, path: str, since: float, label: Label) -> dict[str, Any]:
    """Write what is kept of a leaf's packets, off the gateway's main thread; return where, and how many there are."""
    loop = asyncio.get_running_loop()
    count = await loop.run_in_executor(None, write, path, snapshot, since, label)
    return {"path": path, "packets": count, "missing": snapshot.left_out + snapshot.lost}


def keys_from(path: str, offset: int) -> bytes:
    """Return what a file of TLS keys has from an offset on; nothing where there is no file."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read()
    except (FileNotFoundError, IsADirectoryError):
        return b""

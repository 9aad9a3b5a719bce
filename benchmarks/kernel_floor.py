"""The kernel's own share of a leaf: what the gateway's factory asks of it, recorded, and replayed by ``floor.c``.

What is recorded are the factory's own calls as it makes leaves, so the replay cannot be less, or other, work.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from unittest import mock

from pytest_netns import addressing
from pytest_netns.gateway import factory as factories
from pytest_netns.gateway import hub
from pytest_netns.gateway.recipes import Wiring, loopback_routes, values_of
from pytest_netns.kernel import mounts, syscalls
from pytest_netns.kernel.netlink import NETLINK_ROUTE, Batch, NetlinkSocket, batch

_SOURCE: Final = Path(__file__).with_name("floor.c")
_HUB: Final = 100  # the descriptor that floor.c has the hub at
_RESOLV_CONF: Final = f"nameserver {addressing.GATEWAY}\n"
_record = struct.Struct("=II")


@dataclass(frozen=True)
class Floor:
    """What one run of the program took; in seconds, but for the counts."""

    total: float
    made: list[float]


class _Recorder:
    """Writes down what the factory does while it does it."""

    def __init__(self, script: Path) -> None:
        self._file = script.open("wb")
        self._kinds: dict[int, str] = {}
        self._request, self._init = NetlinkSocket.request, NetlinkSocket.__init__
        self._write = hub.write_sysctls

    def note(self, op: str, data: bytes = b"") -> None:
        self._file.write(_record.pack(ord(op), len(data)) + data + bytes(-len(data) % 4))

    def init(self, channel: NetlinkSocket, protocol: int) -> None:
        self._init(channel, protocol)
        self._kinds[id(channel)] = "R" if protocol == NETLINK_ROUTE else "F"

    def request(self, channel: NetlinkSocket, messages: bytes | Batch, what: str) -> None:
        ready = messages if isinstance(messages, Batch) else batch(messages)
        self._request(channel, ready, what)  # the hub's ruleset is tried in two ways; only the one that works counts
        self.note(self._kinds[id(channel)], struct.pack("=I", ready.last) + ready.messages)

    def write(self, values: dict[str, str]) -> None:
        for key, value in values.items():
            directory, name = hub.divided(key)
            self.note("S", f"/proc/sys/{directory}\0{name}\0{value}".encode())
        self.note("C")
        self._write(values)

    def hub_is(self, channel: NetlinkSocket) -> None:
        self._kinds[id(channel)] = "H"

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _recording(script: Path) -> Iterator[_Recorder]:
    recorder = _Recorder(script)

    def init(channel: NetlinkSocket, protocol: int) -> None:
        recorder.init(channel, protocol)

    def request(channel: NetlinkSocket, messages: bytes | Batch, what: str) -> None:
        recorder.request(channel, messages, what)

    patches = (
        mock.patch.object(NetlinkSocket, "__init__", init),
        mock.patch.object(NetlinkSocket, "request", request),
        mock.patch.object(hub, "write_sysctls", recorder.write),
    )
    with contextlib.ExitStack() as stack:
        stack.callback(recorder.close)
        for patch in patches:
            stack.enter_context(patch)
        yield recorder


def record(script: Path, leaves: int) -> None:
    """Make a hub and that many leaves, and write down how. The process is not to be used for anything else after."""
    names = addressing.loopback(0)
    worker, test = (names.worker, names.worker6), (names.test, names.test6)
    wiring = Wiring(addressing.groups(0)[1], peer=worker, alias=test)
    maker, routes = factories.Factory(), loopback_routes(test)
    with _recording(script) as recorder:
        recorder.note("N")
        core = maker.submit(maker.start, _RESOLV_CONF).result()
        recorder.note("U")
        os.dup2(core.netns, _HUB)
        core.netns = _HUB
        for channel in (core.route, core.switch):
            recorder.hub_is(channel)
        below_sys = b"".join(os.fsencode(path) + b"\0" for path in mounts.sysfs_submounts()) + b"\0"
        for number in range(1, leaves + 1):
            recorder.note("N")
            leaf = maker.submit(maker.make, number, wiring).result()
            recorder.note("M", below_sys)
            core.switch.request(routes.filled(values_of(leaf.addresses)), "route a shared loopback")
            recorder.note("E")
            leaf.close()
    maker.stop()


def build(folder: Path) -> Path:
    """Compile the program."""
    program = folder / "floor"
    subprocess.run([shutil.which("cc") or "gcc", "-O2", "-o", program, _SOURCE], check=True)
    return program


def prepare(leaves: int) -> tuple[Path, Path]:
    """Return the program and a script for that many leaves, in a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="netns-floor-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    script = folder / "script"
    subprocess.run([sys.executable, __file__, script, str(leaves)], check=True)
    return build(folder), script


def command(program: Path, script: Path, leaves: int, alive: int) -> list[str]:
    """Return the command line for a run; its output is for ``parse``."""
    return [sys.executable, __file__, "--run", str(program), str(script), str(leaves), str(alive)]


def parse(output: str) -> Floor:
    """Return what the program printed."""
    total, *made = (int(number) / 1e9 for number in output.split())
    return Floor(total, made)


def _run(arguments: list[str]) -> None:
    """Become the program, in a mount namespace like that which leaves are copied from."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    mounts.prepare_template(_RESOLV_CONF, hide_resolvers=True)
    os.execv(arguments[0], arguments)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        _run(sys.argv[2:])
    record(Path(sys.argv[1]), int(sys.argv[2]))

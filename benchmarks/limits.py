"""How far it goes: many leaves at once, many one after the other, many workers, and how fast bytes get across.

    python benchmarks/limits.py [--only crowd,streak,workers,traffic] [--leaves 1000] [--streak 20000] [--rounds 5]

    crowd     leaves that are alive at once: memory for each, and whether the last are made as fast as the first
    streak    tests one after the other in one run of pytest --netns: what drifts
    workers   16 clients that take leaves as fast as they can, against the floor of compare.py: leaves a second, and
              how many the one with the fewest got, to those of the one with the most
    traffic   Gbit/s over one TCP connection, 128 KiB a call: from a test's leaf to its worker's, by address and by
              shared loopback, against one veth pair with the same MTU; loopback in a leaf, against that in a fresh
              namespace

Runs in a network and a mount namespace of its own. Memory and namespaces are counted for the whole machine, which
should have nothing else to do.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import ipaddress
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import kernel_floor
from compare import own_world
from egress_server import serve
from egress_traffic import upload
from egress_world import Job, Place, fresh

from pytest_netns.gateway.client import GatewayClient, LeafGrant, run_directory
from pytest_netns.kernel import links, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_ROUTE, NetlinkSocket

_WORKERS: Final = 16
_SECONDS: Final = 3.0
_MTU: Final = 65535  # the leaves' own
_ETH0: Final = 100
_NEAR, _FAR = ipaddress.IPv4Address("192.0.2.1"), ipaddress.IPv4Address("192.0.2.2")
_PARTS: Final = ("crowd", "streak", "workers", "traffic")
_STEP: Final = 1000
_WATCH: Final = f"""
import json, os, socket, struct, time
import pytest
import limits
from pytest_netns.session import SESSION

seen = []

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    yield
    seen.append(time.monotonic())
    if len(seen) % {_STEP} == 0:
        connection = item.config.stash[SESSION].client._connection
        pid, _, _ = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        state = {{"time": seen[-1], "pytest": limits.process(os.getpid()), "gateway": limits.process(pid)}}
        with open("seen", "a") as file:
            file.write(json.dumps(state | limits.machine()) + "\\n")
"""
_TESTS: Final = """
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_nothing(number):
    pass
"""


def process(pid: int) -> dict[str, int]:
    """Return the resident memory of a process, in KiB, and the number of its descriptors."""
    return {"KiB": _field(f"/proc/{pid}/status", "VmRSS"), "descriptors": len(os.listdir(f"/proc/{pid}/fd"))}


def machine() -> dict[str, int]:
    """Return the kernel's own memory, in KiB, and how many network namespaces it has not freed."""
    names = ("SUnreclaim", "Percpu", "KernelStack", "VmallocUsed", "PageTables")
    memory = sum(_field("/proc/meminfo", name) for name in names)
    with contextlib.suppress(PermissionError), open("/proc/slabinfo", encoding="ascii") as file:
        counts = [int(line.split()[1]) for line in file if line.startswith("net_namespace ")]
        return {"kernel KiB": memory, "namespaces": sum(counts)}
    return {"kernel KiB": memory}


def _field(path: str, name: str) -> int:
    with open(path, encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{name}:"))


@contextlib.contextmanager
def _client(name: str, worker: str = "benchmark") -> Iterator[GatewayClient]:
    client = GatewayClient.connect(run_directory(f"limits-{os.getpid()}-{name}"))
    try:
        client.join(worker)
        yield client
    finally:
        client.close()


def crowd(options: argparse.Namespace) -> Iterator[str]:
    """Take leaves and keep them."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    kept: list[LeafGrant] = []
    with _client("crowd") as client:
        time.sleep(1)  # for the kernel to clear what came before
        before, available, moments = machine(), _field("/proc/meminfo", "MemAvailable"), [time.perf_counter()]
        for number in range(options.leaves):
            kept.append(client.lease(f"test_{number}"))
            moments.append(time.perf_counter())
        available -= _field("/proc/meminfo", "MemAvailable")
        grown = machine()["kernel KiB"] - before["kernel KiB"]
    for leaf in kept:
        os.close(leaf.net_fd)
        os.close(leaf.mnt_fd)
    spent = [(later - sooner) * 1e3 for sooner, later in itertools.pairwise(moments)]
    early, late = statistics.median(spent[5:55]), statistics.median(spent[-50:])
    yield f"{options.leaves} leaves at once: {available / options.leaves / 1024:.3f} MiB each of available memory,"
    yield f"  {grown / options.leaves / 1024:.3f} MiB of it the kernel's own, caches left out"
    yield f"  made in {early:.2f} ms at the beginning, {late:.2f} ms at the end: {late / early:.2f} times"


def streak(options: argparse.Namespace) -> Iterator[str]:
    """Run tests one after the other and look, every thousand, at what may have grown."""
    folder: Path = options.folder / "streak"
    folder.mkdir()
    (folder / "conftest.py").write_text(_WATCH, encoding="utf-8")
    (folder / "test_nothing.py").write_text(_TESTS.format(count=options.streak), encoding="utf-8")
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "pytest_netns.plugin", "--netns"]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    states = [json.loads(line) for line in (folder / "seen").read_text().splitlines()]
    yield f"{options.streak} tests in a row; after each thousand:"
    yield "   ms a test  pytest KiB  its fds  gateway KiB  its fds  kernel KiB  namespaces"
    for before, state in itertools.pairwise(states):
        spent = (state["time"] - before["time"]) / _STEP * 1e3
        own, gateway = state["pytest"], state["gateway"]
        yield (
            f"  {spent:10.2f}{own['KiB']:12}{own['descriptors']:9}{gateway['KiB']:13}{gateway['descriptors']:9}"
            f"{state['kernel KiB']:12}{state.get('namespaces', '?'):>12}"
        )
    first, last = (states[at + 1]["time"] - states[at]["time"] for at in (0, -2))
    yield f"  the last thousand took {last / first:.2f} times what the first did"


def workers(options: argparse.Namespace) -> Iterator[str]:
    """Let many clients take and give up leaves at the same time."""
    here = Place(*(os.open(f"/proc/self/ns/{kind}", os.O_RDONLY) for kind in ("net", "mnt")))
    program, script = kernel_floor.prepare(1000)
    rates, shares, ratios = [], [], []
    for number in range(options.rounds):
        run = kernel_floor.command(program, script, 1000, 1)
        told = subprocess.run(run, stdout=subprocess.PIPE, text=True, check=True).stdout
        floor = 1000 / kernel_floor.parse(told).total
        counts = _crowded(f"workers-{number}", here)
        rates.append(sum(counts) / _SECONDS)
        ratios.append(rates[-1] / floor)
        shares.append(min(counts) / max(counts))
    yield f"{_WORKERS} clients: {_spread(rates)} leaves a second, {_spread(ratios)} of the floor's"
    yield f"  the one with the fewest got {_spread(shares)} of the one with the most"


def _crowded(run: str, here: Place) -> list[int]:
    """Return how many leaves each of the workers got."""
    parent, begin = os.getpid(), time.monotonic() + 1
    with _client(run, "first"):
        takers = [functools.partial(_take, run, f"w{number}", parent, begin) for number in range(_WORKERS)]
        return [job.result() for job in [Job(here, taker) for taker in takers]]


def _take(name: str, worker: str, parent: int, begin: float) -> int:
    client = GatewayClient.connect(run_directory(f"limits-{parent}-{name}"))
    client.join(worker)
    time.sleep(max(0.0, begin - time.monotonic()))
    count, before = 0, None
    while time.monotonic() < begin + _SECONDS:
        client.order(f"test_{count}", instead_of=before)
        leaf = client.lease(f"test_{count}")
        os.close(leaf.net_fd)
        os.close(leaf.mnt_fd)
        before = leaf.name
        count += 1
    return count


def traffic(options: argparse.Namespace) -> Iterator[str]:
    """Send as much as goes, by turns."""
    mnt = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    client = GatewayClient.connect(run_directory(f"limits-{os.getpid()}-traffic"))
    worker, leaf = client.join("benchmark"), client.lease("test")
    places = [Place(one.net_fd, one.mnt_fd) for one in (worker, leaf)]
    near, far = _pair(mnt)
    with privilege.raised():
        syscalls.setns(home, syscalls.CLONE_NEWNET)
    servers = [
        Job(place, lambda host=host: serve(host), limit=0)
        for place, host in ((places[0], "0.0.0.0"), (far, "0.0.0.0"), (near, "127.0.0.1"))
    ]
    time.sleep(0.5)
    ways = {
        "one veth pair": (near, str(_FAR)),
        "leaf to worker, by address": (places[1], worker.ipv4),
        "leaf to worker, by shared loopback": (places[1], "127.0.0.1"),
        "fresh namespace, loopback": (near, "127.0.0.1"),
        "worker's leaf, loopback": (places[0], "127.0.0.1"),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, (place, host) in ways.items():
            found[name].append(Job(place, lambda host=host: upload(host, 1.0)).result())
    for server in servers:
        server.end()
    client.close()
    for name, values in found.items():
        base = found[
            "fresh namespace, loopback" if name.endswith(" loopback") and "shared" not in name else "one veth pair"
        ]
        ratios = [value / other for value, other in zip(values, base, strict=True)]
        yield f"{name:36} {_spread(values)} Gbit/s, {_spread(ratios)} of the like"


def _pair(mnt: int) -> tuple[Place, Place]:
    """Make two namespaces that one veth pair joins."""
    near = fresh(mnt)
    far = fresh(mnt)
    with privilege.raised():
        there = NetlinkSocket(NETLINK_ROUTE)
        veth = links.add_veth(
            "eth0", _ETH0, _MTU, peer_name="eth0", peer_index=_ETH0, peer_netns=near.net_fd, peer_group=0
        )
        there.request(veth + links.set_up(_ETH0) + links.add_address(_ETH0, _FAR, 24), "make the pair")
        syscalls.setns(near.net_fd, syscalls.CLONE_NEWNET)
        here = NetlinkSocket(NETLINK_ROUTE)
        here.request(links.set_up(_ETH0) + links.add_address(_ETH0, _NEAR, 24), "raise the near end")
    return near, far


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} [{min(values):.2f} .. {max(values):.2f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(_PARTS))
    parser.add_argument("--leaves", type=int, default=1000)
    parser.add_argument("--streak", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    parts: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
        "crowd": crowd, "streak": streak, "workers": workers, "traffic": traffic,
    }  # fmt: skip
    with own_world() as options.folder:
        for name in options.only.split(","):
            for line in parts[name](options):
                print(line, flush=True)


if __name__ == "__main__":
    main()

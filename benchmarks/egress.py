"""What the way out of a leaf costs, against no relay at all and against slirp4netns and pasta.

    python benchmarks/egress.py [--rounds 5] [--seconds 1] [--only bulk,trips,...]

A server listens at 198.51.100.1 in a network namespace that plays the host; clients in other namespaces, all of them
made here, talk to it:

    loopback     none of that: client and server in one fresh namespace, at 127.0.0.1
    routed       from a namespace at the other end of a veth, by plain routing
    ours         from a leaf whose rules allow the server's ports, new for each round
    slirp4netns  from a namespace that this program serves (Debian: slirp4netns)
    pasta        likewise (Debian: passt)

Payloads, sizes of calls and socket options are the same everywhere; client, relay and server are processes of their
own. MTUs are the greatest that a program takes. The parts:

    bulk         one connection, 128 KiB a call: Gbit/s that have arrived
    trips        64 bytes there and back over an established connection
    connections  connect, one byte echoed, close: by one client, and by 8 at once
    blocked      connects and lookups that no rule allows
    crowd        500 connections that are open at once, 1 KB echoed on each
    datagrams    1,400 bytes there and back at a steady rate

Each round measures everything once, and who is first in it changes from round to round, so that a machine that slows
down slows all. A row gives the median over the rounds, and the least and greatest in brackets; ratios and differences
are taken within a round. Run it on a machine with nothing else to do, as root or an ordinary user. New connections
and round trips depend on the Python that the gateway runs on: one built without optimizations takes a fifth more.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar

import egress_server
import egress_traffic as traffic
import egress_world
from egress_server import ECHO, SINK, SOURCE
from egress_world import LIMIT, NAME, SERVER, Job, Place, World

from pytest_netns.gateway.client import GatewayClient, run_directory

T = TypeVar("T")

_HOST: Final = str(SERVER)
_RULES: Final = [f"{_HOST}:{port}" for port in (ECHO, SINK, SOURCE)]
_ALLOWED: Final = [*_RULES, f"{_HOST}:{ECHO}/udp", f"{NAME}:{ECHO}"]
_BLOCKED: Final = ("198.51.100.9", 443)
_UNKNOWN: Final = "blocked.benchmark.example"
_RIVALS: Final = ("slirp4netns", "pasta")
_ORDER: Final = ("loopback", "routed", "ours", *_RIVALS)
_BULK_TARGETS: Final = {"loopback": 0.4, "slirp4netns": 1.0, "pasta": 1.0}
_AT_ONCE: Final = 8
_ATTEMPTS: Final = 300
_RATE: Final = 2000


class Table:
    """The rows, each with a value of every round, and what they should come to."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: dict[str, list[float]] = {}
        self._targets: dict[str, tuple[str, float]] = {}

    def add(self, name: str, value: float, *, least: float | None = None, below: float | None = None) -> None:
        """Add a round's value, of which the median should be at least, or below, a target."""
        self._rows.setdefault(name, []).append(value)
        if least is not None:
            self._targets[name] = "at least", least
        elif below is not None:
            self._targets[name] = "below", below

    def print(self) -> None:
        """Print all rows."""
        for name, values in self._rows.items():
            median = statistics.median(values)
            line = f"{name:50} {median:9.2f}  [{min(values):.2f} .. {max(values):.2f}]"
            print(line + self._judged(name, median), flush=True)

    def _judged(self, name: str, median: float) -> str:
        if name not in self._targets:
            return ""
        how, bound = self._targets[name]
        met = median >= bound if how == "at least" else median < bound
        return f"  {how} {bound:g}: {'met' if met else 'MISSED'}"


class Round:
    """One round: the places in this round's order, and how long a measurement takes."""

    def __init__(self, table: Table, places: dict[str, Place], first: int, seconds: float) -> None:
        """Take the places; ``first`` tells which of them begins."""
        names = list(places)
        first %= len(names)
        self.places = {name: places[name] for name in names[first:] + names[:first]}
        self.table, self.seconds = table, seconds

    def each(self, work: Callable[[str], T], *, loopback: bool = False) -> dict[str, T]:
        """Call a function with the server's address at each place, one after the other; return what it does."""
        chosen = {name: place for name, place in self.places.items() if loopback or name != "loopback"}
        found = {
            name: self.start(place, functools.partial(work, _host(name))).result() for name, place in chosen.items()
        }
        return {name: found[name] for name in sorted(found, key=_ORDER.index)}

    def start(self, place: Place, work: Callable[[], T]) -> Job[T]:
        """Start something at one place, in a process of its own."""
        return Job(place, work, LIMIT + self.seconds)

    def ratios(self, what: str, values: dict[str, float], targets: Mapping[str, float | None]) -> None:
        """Add how ours compares to other places, and how it should at least, where that was said."""
        for name, least in targets.items():
            if name in values:
                self.table.add(f"{what}, ours : {name}", values["ours"] / values[name], least=least)


def _host(place: str) -> str:
    return "127.0.0.1" if place == "loopback" else _HOST


def _bulk(this: Round) -> None:
    for what, work in (("upload", traffic.upload), ("download", traffic.download)):
        rates = this.each(functools.partial(work, seconds=this.seconds), loopback=True)
        for name, rate in rates.items():
            this.table.add(f"{what}, {name} (Gbit/s)", rate)
        this.ratios(what, rates, _BULK_TARGETS)


def _trips(this: Round) -> None:
    medians = {}
    for name, trips in this.each(lambda host: traffic.round_trips(host, this.seconds / 2)).items():
        medians[name] = statistics.median(trips)
        this.table.add(f"round trip, {name} (us)", medians[name])
        this.table.add(f"round trip, {name}, 99 % (us)", _percentile(trips))
    this.table.add("round trip, what ours adds (us)", medians["ours"] - medians["routed"], below=60)


def _connections(this: Round) -> None:
    for clients, what in ((1, "connections"), (_AT_ONCE, f"connections, {_AT_ONCE} at once")):
        rates = {}
        for name, place in this.places.items():
            if name != "loopback":
                rates[name] = _rate(this, place, clients, _HOST)
            if name == "ours":
                rates["ours, by name"] = _rate(this, place, clients, NAME)
        for name in sorted(rates, key=[*_ORDER, "ours, by name"].index):
            this.table.add(f"{what}, {name} (1/s)", rates[name], least=1000 if name.startswith("ours") else None)
        this.ratios(what, rates, dict.fromkeys(_RIVALS))


def _rate(this: Round, place: Place, clients: int, host: str) -> float:
    work = functools.partial(traffic.connections, host, time.monotonic() + 0.1, this.seconds)
    jobs = [this.start(place, work) for _ in range(clients)]
    return sum(job.result() for job in jobs) / this.seconds


def _blocked(this: Round) -> None:
    leaf = this.places["ours"]
    times = this.start(leaf, lambda: traffic.refusals(_BLOCKED, _ATTEMPTS)).result()
    this.table.add("blocked connect (ms)", statistics.median(times), below=1)
    this.table.add("blocked connect, 99 % (ms)", _percentile(times))
    times = this.start(leaf, lambda: traffic.failed_lookups(_UNKNOWN, _ATTEMPTS)).result()
    this.table.add("blocked lookup (ms)", statistics.median(times))
    this.table.add("blocked lookup, 99 % (ms)", _percentile(times))


def _crowd(this: Round) -> None:
    crowd = this.start(this.places["ours"], lambda: traffic.crowd(_HOST)).result()
    this.table.add(f"{traffic.CROWD} at once, lost", crowd.lost, below=1)
    this.table.add(f"{traffic.CROWD} at once (ms)", crowd.seconds * 1e3)


def _datagrams(this: Round) -> None:
    for name, exchange in this.each(lambda host: traffic.datagrams(host, _RATE, this.seconds)).items():
        trips = exchange.trips or [float("inf")]
        this.table.add(f"datagrams at {_RATE}/s, {name}, lost (%)", 100 - 100 * len(exchange.trips) / exchange.sent)
        this.table.add(f"datagrams at {_RATE}/s, {name} (us)", statistics.median(trips))
        this.table.add(f"datagrams at {_RATE}/s, {name}, 99 % (us)", _percentile(trips))


def _percentile(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


_PARTS: Final = {
    "bulk": _bulk,
    "trips": _trips,
    "connections": _connections,
    "blocked": _blocked,
    "crowd": _crowd,
    "datagrams": _datagrams,
}


@contextlib.contextmanager
def _gateway(world: World) -> Iterator[GatewayClient]:
    """Start the servers, and a gateway of the host's."""
    with contextlib.ExitStack() as stack:
        for place, host in ((world.host, _HOST), (world.clients["loopback"], "127.0.0.1")):
            stack.callback(Job(place, functools.partial(egress_server.serve, host), limit=0).end)
        client = GatewayClient.connect(run_directory(f"egress-benchmark-{os.getpid()}"))
        stack.callback(client.close)
        client.join("benchmark")
        yield client


def _measure(table: Table, world: World, client: GatewayClient, number: int, options: argparse.Namespace) -> None:
    """Measure one round, in a leaf of its own."""
    leaf = client.lease(f"round {number}", rules=_ALLOWED)
    places = {**world.clients, "ours": Place(leaf.net_fd, leaf.mnt_fd)}
    this = Round(table, {name: places[name] for name in _ORDER if name in places}, number, options.seconds)
    for part in options.only.split(","):
        _PARTS[part](this)
    client.release(leaf.name)
    os.close(leaf.net_fd)
    os.close(leaf.mnt_fd)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--only", default=",".join(_PARTS))
    options = parser.parse_args()
    table = Table()
    print(f"Python {platform.python_version()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.2f}")
    with egress_world.made() as world, _gateway(world) as client:
        for program, reason in world.lacking.items():
            print(f"{program} {reason}: its rows are left out")
        for number in range(options.rounds):
            _measure(table, world, client, number, options)
    table.print()
    print(f"load at the end {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()

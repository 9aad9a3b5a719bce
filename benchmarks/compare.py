"""What a network for each test costs, against other ways to one, and against what the kernel alone takes.

    python benchmarks/compare.py [--tests 1000] [--rounds 5] [--forked PYTHON] [--only WORD]

Runs in a network and a mount namespace of its own, and touches no interface of the machine. For each row a round
measures one run of the many and one run of a single piece, so that start-up cancels out, and rows take turns.

    wall      milliseconds a piece: the median over the rounds, and the least and greatest in brackets. A piece is a
              test, a leaf, or a command; for pytest it is what a test costs beyond what it costs in plain pytest.
    x ours    that, as a multiple of what pytest --netns adds, within a round
    cpu       milliseconds of CPU time a piece, on all processors: in the processes, in the gateway and in the kernel's
              threads. The kernel's threads serve all of the machine, so it should have nothing else to do.
    x floor   that, as a multiple of the floor's

A process that waits has cold caches when it goes on, and pays for that with CPU time, the more the busier the machine
is. How much is told by tests that nap for half a millisecond, in plain pytest; isolation includes one such wait.

The floor is a C program that replays what the gateway's factory asks of the kernel, call by call, byte by byte, and
drops it, without Python or pytest or a test that runs in it: see floor.c. Docker's figure is not measured here; it is
what its makers and users publish for `docker run` of a small image.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import kernel_floor
import meter
import rivals
from meter import Cost

from pytest_netns.kernel import privilege, syscalls

_RIVALS: Final = Path(__file__).with_name("rivals.py")
_RIVAL_COUNT: Final = 50
_FORKED_COUNT: Final = 100
_DOCKER: Final = "docker run           800 .. 1200 ms a container, as published; not measured here"
_TEST: Final = """
import time
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_one(number):
    {body}
"""
_BODIES: Final = {"empty": "pass", "nap": "time.sleep(0.0005)", "5 ms": "time.sleep(0.005)"}
_ADDED: Final = "--netns adds"
_FLOOR: Final = "kernel floor, C"
_PLAIN: Final = "plain pytest"
_LONG: Final = f"{_ADDED}, test of 5 ms"
_TWO: Final = f"{_ADDED}, -n 2"
_SIXTEEN: Final = "--netns -n 16, in all"
_START: Final = "start of plain pytest"
_START_OFF: Final = "start with the plugin, off"


@dataclass(frozen=True)
class Row:
    """A way to measure: it returns the cost of a piece."""

    name: str
    measure: Callable[[], Cost]


class Bench:
    """A folder with test files, and runs of pytest in it."""

    def __init__(self, folder: Path, tests: int) -> None:
        """Write the test files."""
        self._folder = folder
        self._tests = tests
        for body, code in _BODIES.items():
            for count in {tests, 1, 64, _FORKED_COUNT}:
                self._file(body, count).write_text(_TEST.format(count=count, body=code), encoding="utf-8")

    def _file(self, body: str, count: int) -> Path:
        return self._folder / f"test_{count}_{body.replace(' ', '_')}.py"

    def pytest(
        self, *options: str, body: str = "empty", count: int = 0, python: str = sys.executable, checked: bool = True
    ) -> Cost:
        """Return what a test costs in a run with these options."""
        count = count or self._tests
        few = 1 if "-n" not in options else 64  # so that each worker has one
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        base = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
        runs = [
            meter.measure([*base, self._file(body, number)], self._folder, environment, checked=checked)[0]
            for number in (count, few)
        ]
        return runs[0].less(runs[1].unthreaded, count - few)

    def added(self, *options: str, body: str = "empty") -> Cost:
        """Return what isolation adds to a test."""
        isolated = self.pytest("-p", "pytest_netns.plugin", "--netns", *options, body=body)
        return isolated.less(self.pytest(*options, body=body).unthreaded)

    def started(self, *options: str) -> Cost:
        """Return what a run of one test costs."""
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, self._file("empty", 1)]
        return meter.measure(command, self._folder, environment)[0]

    def rival(self, way: str) -> Cost:
        """Return what one namespace costs in another way."""
        command = [sys.executable, str(_RIVALS), way]
        many, none = (meter.measure([*command, str(count)], self._folder)[0] for count in (_RIVAL_COUNT, 0))
        return many.less(none.unthreaded, _RIVAL_COUNT)

    def floor(self, program: Path, script: Path) -> Cost:
        """Return what the kernel takes for one leaf."""
        runs = [
            meter.measure(kernel_floor.command(program, script, leaves, 1), self._folder) for leaves in (self._tests, 1)
        ]
        (many, told), (one, _) = runs
        return many.less(one.unthreaded, self._tests - 1)._replace(wall=kernel_floor.parse(told).total / self._tests)


@contextlib.contextmanager
def own_world() -> Iterator[Path]:
    """Leave the machine's network and mounts for ones of our own."""
    if not privilege.is_root():
        privilege.enter_user_namespace()
    with privilege.raised():
        syscalls.unshare(syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("none", "/run", "tmpfs")  # where ip keeps the names of namespaces
    meter.adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="netns-compare-") as name:
        yield Path(name)


def _rows(bench: Bench, options: argparse.Namespace) -> list[Row]:
    program, script = kernel_floor.prepare(options.tests)
    rows = [
        Row(_ADDED, bench.added),
        Row(_FLOOR, lambda: bench.floor(program, script)),
        Row(_PLAIN, bench.pytest),
        Row("a nap adds to plain pytest", lambda: bench.pytest(body="nap").less(bench.pytest().unthreaded)),
        Row(_LONG, lambda: bench.added(body="5 ms")),
        Row(_TWO, lambda: bench.added("-p", "xdist", "-n", "2")),
        Row(f"{_ADDED}, -n 16", lambda: bench.added("-p", "xdist", "-n", "16")),
        Row(
            _SIXTEEN,
            lambda: bench.pytest("-p", "pytest_netns.plugin", "--netns", "-p", "xdist", "-n", "16"),
        ),
        Row(_START, bench.started),
        Row(_START_OFF, lambda: bench.started("-p", "pytest_netns.plugin")),
        Row("start with --netns", lambda: bench.started("-p", "pytest_netns.plugin", "--netns")),
    ]
    if options.forked:
        rows.append(Row("pytest-forked adds", lambda: _forked(bench, options.forked)))
    rows += [Row(f"rival: {way}", lambda way=way: bench.rival(way)) for way in rivals.WAYS if _is_there(way)]
    return [row for row in rows if row.name in (_ADDED, _FLOOR) or options.only in row.name]


def _forked(bench: Bench, python: str) -> Cost:
    forked = bench.pytest("-p", "pytest_forked", "--forked", count=_FORKED_COUNT, python=python)
    return forked.less(bench.pytest(count=_FORKED_COUNT, python=python))


def _is_there(way: str) -> bool:
    return way == "pyroute2" or shutil.which(way) is not None


def _spread(values: Sequence[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):.2f} .. {max(values):.2f}]"


def _table(found: dict[str, list[Cost]]) -> Iterator[str]:
    yield f"{'':28}{'wall, ms':>26}{'x ours':>24}{'cpu, ms':>26}{'x floor':>24}"
    for name, costs in found.items():
        ours, floor = found[_ADDED], found[_FLOOR]
        columns = (
            [cost.wall * 1e3 for cost in costs],
            [cost.wall / base.wall for cost, base in zip(costs, ours, strict=True)],
            [cost.cpu * 1e3 for cost in costs],
            [cost.cpu / base.cpu for cost, base in zip(costs, floor, strict=True)],
        )
        cells = [_spread(column, ".2f") for column in columns]
        yield f"{name:28}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, (26, 24, 26, 24), strict=True))
    yield _DOCKER


def _bounds(found: dict[str, list[Cost]]) -> Iterator[str]:
    """Compare with what isolation is meant to stay within."""

    def of(name: str, figure: Callable[[Cost], float], base: str = "") -> float | None:
        if name not in found or (base and base not in found):
            return None
        values = [figure(cost) for cost in found[name]]
        others = [figure(cost) for cost in found[base]] if base else []
        return statistics.median(map(operator.truediv, values, others) if base else values)

    start = [of(name, lambda cost: cost.cpu * 1e3) for name in (_START_OFF, _START)]
    for what, value, bound in (
        ("ms that an empty test takes longer", of(_ADDED, lambda cost: cost.wall * 1e3), 1.0),
        ("CPU time of that, x floor", of(_ADDED, lambda cost: cost.cpu, _FLOOR), 1.5),
        ("ms that a test of 5 ms takes longer", of(_LONG, lambda cost: cost.wall * 1e3), 0.3),
        ("ms that an empty test takes longer, -n 2", of(_TWO, lambda cost: cost.wall * 1e3), 1.0),
        ("CPU time of that, x floor, -n 2", of(_TWO, lambda cost: cost.cpu, _FLOOR), 1.5),
        ("time a test with -n 16, x floor", of(_SIXTEEN, lambda cost: cost.wall, _FLOOR), 1 / 0.8),
        ("ms of CPU that the plugin adds to a start, off", start[0] - start[1] if None not in start else None, 15.0),
    ):
        if value is not None:
            yield f"{what:48}{value:8.2f}, at most {bound:5.2f}: {'met' if value <= bound else 'MISSED'}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--forked", metavar="PYTHON", help="one whose pytest pytest-forked works with: 8, not 9")
    parser.add_argument(
        "--only", default="", metavar="WORD", help="rows with this in their names, besides ours and the floor"
    )
    options = parser.parse_args()
    with own_world() as folder:
        rows = _rows(Bench(folder, options.tests), options)
        found: dict[str, list[Cost]] = {row.name: [] for row in rows}
        for number in range(options.rounds):
            for row in rows[number % len(rows) :] + rows[: number % len(rows)]:
                found[row.name].append(row.measure())
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} processors")
    print(*_table(found), "", *_bounds(found), sep="\n")


if __name__ == "__main__":
    main()

"""What a box costs, against bubblewrap started by hand, and against no box at all.

    python benchmarks/sandbox.py [--rounds 7]

The parts:

    command   box.run(["true"]), and the same bubblewrap command, with the same arguments, started by subprocess.run()
              or the 800 ms that Docker publishes for starting a container
    first     the same with the making of the box
    idle      what a box that runs nothing adds to the processes' proportional set size
    files     git status on a tree of 10,000 files, in a box and outside: behind an overlay, and with overlay=False. The
              first one has each file looked up in the overlay for the first time, and is a row of its own

What is compared takes turns, and who is first changes, so that a machine that slows down slows both; of the turns in a
round, the median counts, or the least for git status, which other programs disturb most. A row gives the median over
the rounds, and the least and greatest in brackets; ratios are taken within a round. Run it on a machine with nothing
else to do, as root or an ordinary user, with bubblewrap and git installed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pytest_netns.gateway.client import GatewayClient, run_directory
from pytest_netns.kernel import privilege
from pytest_netns.namespace import Namespace
from pytest_netns.sandbox import bubblewrap, meter, seccomp, view
from pytest_netns.sandbox.options import View

_COMMANDS: Final = 20  # of each kind, in a round
_BOXES: Final = 10
_DOCKER: Final = 800.0  # milliseconds
_FOLDERS, _FILES = 100, 100
_STATUSES, _TURNS = 3, 6
_STATUS: Final = "git -c safe.directory='*' status --porcelain"
_TIMED: Final = "TIMEFORMAT=%3R; time for number in {{1..{count}}}; do {command}; done"

Rows = dict[str, float]


@contextlib.contextmanager
def _namespace() -> Iterator[Namespace]:
    if not privilege.is_root():
        privilege.enter_user_namespace()
        privilege.disinherit()
    client = GatewayClient.connect(run_directory(f"benchmark-{os.getpid()}"))
    try:
        namespace = Namespace(client.join("benchmark"), client)
        try:
            yield namespace
        finally:
            namespace.close()
    finally:
        client.close()


def _take_turns(runs: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """Measure several things by turns, with who is first changing; return what each has taken."""
    spent: dict[str, list[float]] = {kind: [] for kind in runs}
    for turn in range(turns):
        for kind in sorted(runs, reverse=bool(turn % 2)):
            spent[kind].append(runs[kind]())
    return spent


def _milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return (time.perf_counter() - began) * 1e3


class ByHand:
    """Bubblewrap as one would start it oneself: with the arguments of a box, and ordinary directories for its stage."""

    def __init__(self, stage: Path, workdir: Path) -> None:
        """Prepare what is the same each time."""
        plan = view.plan(View(workdir=str(workdir)))
        names = ("merged", "nothing", "shm", *(f"cover{number}" for number in range(len(plan.covers))))
        for name in names:
            (stage / name).mkdir()
        (stage / "empty").touch()
        binds = tuple(bind for bind in plan.binds if not bind.asked)
        hidden = [(path, os.path.isdir(path)) for path in plan.hidden]
        self._arguments = [
            *bubblewrap.confinement("by-hand", os.geteuid(), os.getegid()),
            *view.arguments(plan._replace(binds=binds), str(stage), hidden),
            *("--chdir", str(workdir)),
        ]
        self._filter = stage / "seccomp"
        self._filter.write_bytes(seccomp.program())

    def run(self) -> None:
        """Run ``true``."""
        with self._filter.open("rb") as file:
            fd = file.fileno()
            command = [bubblewrap.find().path, *self._arguments, "--seccomp", str(fd), "--", "true"]
            subprocess.run(command, check=True, pass_fds=[fd])


def _command(namespace: Namespace) -> Rows:
    with tempfile.TemporaryDirectory() as stage, tempfile.TemporaryDirectory() as name:
        by_hand = ByHand(Path(stage), Path(name))
        with namespace.sandbox(workdir=name) as box:
            runs = {
                "box": lambda: _milliseconds(lambda: box.run(["true"], check=True)),
                "hand": lambda: _milliseconds(by_hand.run),
            }
            spent = {kind: statistics.median(times) for kind, times in _take_turns(runs, _COMMANDS).items()}
    return {
        "bubblewrap by hand (ms)": spent["hand"],
        "box.run (ms)": spent["box"],
        "box.run : bubblewrap by hand": spent["box"] / spent["hand"],
        "Docker's 800 ms : box.run": _DOCKER / spent["box"],
    }


def _first(namespace: Namespace) -> Rows:
    """Measure from wanting a box to the end of its first command."""
    with tempfile.TemporaryDirectory() as name:
        began = time.perf_counter()
        with namespace.sandbox(workdir=name) as box:
            box.run(["true"], check=True)
            return {"a box, and its first command (ms)": (time.perf_counter() - began) * 1e3}


def _tree(folder: Path) -> None:
    for directory in range(_FOLDERS):
        (folder / str(directory)).mkdir()
        for number in range(_FILES):
            (folder / str(directory) / f"{number}.txt").write_text(f"{directory} {number}\n" * 20, encoding="utf-8")
    git = ["git", "-c", "user.name=benchmark", "-c", "user.email=benchmark@example.com", "-C", str(folder)]
    for arguments in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "all"]):
        subprocess.run([*git, *arguments], check=True)


def _timed(run: Callable[..., subprocess.CompletedProcess[str]], count: int, **kwargs: str) -> float:
    """Return the milliseconds of one ``git status``, as the shell measures it."""
    line = _TIMED.format(count=count, command=_STATUS)
    done = run(["bash", "-c", line], check=True, capture_output=True, text=True, **kwargs)
    return float(done.stderr) * 1e3 / count


def _files(namespace: Namespace, folder: str) -> Rows:
    with namespace.sandbox(workdir=folder) as box, namespace.sandbox(workdir=folder, overlay=False) as direct:
        first = _timed(box.run, 1)
        runs = {
            "overlay": lambda: _timed(box.run, _STATUSES),
            "direct": lambda: _timed(direct.run, _STATUSES),
            "outside": lambda: _timed(subprocess.run, _STATUSES, cwd=folder),
        }
        spent = {kind: min(times) for kind, times in _take_turns(runs, _TURNS).items()}
    return {
        "git status outside (ms)": spent["outside"],
        "git status, overlay=False : outside": spent["direct"] / spent["outside"],
        "git status, overlay : outside": spent["overlay"] / spent["outside"],
        "the first one, overlay : outside": first / spent["outside"],
    }


def _memory() -> int:
    return sum(map(meter.proportional, meter.family(os.getpid())))


def _idle(namespace: Namespace) -> Rows:
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as name:
        stack.enter_context(namespace.sandbox(workdir=name)).run(["true"], check=True)
        before = _memory()
        for _ in range(_BOXES):
            stack.enter_context(namespace.sandbox(workdir=name)).run(["true"], check=True)
        return {"an idle box (MB)": (_memory() - before) / _BOXES / 1e6}


def _measure(part: Callable[[], Rows], rounds: int) -> None:
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, value in part().items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        print(f"{name:40} {statistics.median(values):9.2f}  [{min(values):.2f} .. {max(values):.2f}]", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    with _namespace() as namespace, tempfile.TemporaryDirectory() as folder:
        namespace.sandbox().run(["true"], check=True)  # starts the process that makes boxes
        for part in (_command, _first, _idle):
            _measure(functools.partial(part, namespace), rounds)
        _tree(Path(folder))
        _measure(functools.partial(_files, namespace, folder), rounds)


if __name__ == "__main__":
    main()

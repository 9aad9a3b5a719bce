"""Runs tests that do all kinds of things, with faults at random, and tells what drifts.

    python benchmarks/reliability/soak.py [--leaves 100000] [--round 2000] [--workers 4] [--user tester] [--seed 1]
                                            [--seconds N]

Rounds of ``pytest --netns -n 4``, one after the other, until so many tests have had leaves, or the time is over. A
test serves, is let out or refused, runs a program, leaves a daemon, looks at packets, makes a box, or fails; in two of
three rounds the gateway or a worker is killed at a random moment. For each round a line says how long a leaf took, the
most memory and descriptors that the gateway and a worker had, what the kernel has (for the whole machine), how many
tests failed by the fault, saying so, and what went wrong: tests without an outcome, tests with another than they should
have, for which no fault is to blame, more than one failed test for a killed worker, or no other worker in its place.

``--leaves 400 --round 200 --seed 23`` is a short form, with a killed worker and a killed gateway.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from kills import family
from limits import machine, process
from runs import adopt_orphans

_PATIENCE: Final = 10.0  # seconds for what is about to end
_REASONS: Final = ("the gateway has ended", "lost the gateway", "crashed while running", "gateway could not")
_CONFTEST: Final = """
import json, os

seen, workers = {}, set()
controls = "PYTEST_XDIST_WORKER" not in os.environ
progress = open("progress", "wb", buffering=0) if controls else None

def pytest_runtest_logreport(report):
    outcome, text = seen.get(report.nodeid, ("passed", ""))
    if report.outcome == "failed":
        outcome, text = "failed", text + report.longreprtext
    if controls and report.nodeid not in seen:
        progress.write(b".")
    seen[report.nodeid] = outcome, text

def pytest_configure_node(node):
    workers.add(node.gateway.id)

def pytest_sessionfinish(session):
    if controls:
        with open("seen", "w") as file:
            json.dump([seen, sorted(workers)], file)
"""
_TESTS: Final = '''
import os, socket, subprocess, threading
import pytest

@pytest.fixture(scope="session")
def server():
    """A server in the worker's leaf."""
    listener = socket.create_server(("127.0.0.1", 9000))
    def serve():
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"hello")
            connection.close()
    threading.Thread(target=serve, daemon=True).start()

def ask(port, host="127.0.0.1"):
    with socket.create_connection((host, port), 5) as client:
        return client.recv(10)

def serves(netns, number):
    with socket.create_server(("127.0.0.1", 8080)) as listener, socket.create_connection(("127.0.0.1", 8080)):
        listener.accept()[0].close()

def shares(netns, number):
    assert ask(9000) == b"hello"

def is_refused(netns, number):
    with pytest.raises(OSError, match="No route to host"):
        socket.create_connection(("203.0.113.1", 80), 5)

def knows_no_name(netns, number):
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("example.com", 80)

def is_let_out(netns_egress, number):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", 9), 5)

def runs(netns, number):
    subprocess.run(["true"], check=True)

def leaves_a_daemon(netns, number):
    deaf = "trap '' TERM; " if number % 8 == 0 else ""
    subprocess.Popen(["sh", "-c", f"{deaf}exec sleep 600"], start_new_session=True)

def captures(netns, number):
    with netns.capture() as capture:
        serves(netns, number)

def boxes(netns, number):
    box = netns.sandbox(memory="64M")
    assert box.run(["true"]).returncode == 0

def fails(netns, number):
    pytest.fail("as it should")

KINDS = [serves, shares, is_refused, knows_no_name, is_let_out, runs, leaves_a_daemon, captures, boxes, fails]

@pytest.mark.filterwarnings("ignore")
@pytest.mark.netns(allow=["localhost:9"])
@pytest.mark.parametrize("number", range(COUNT))
def test_it(netns, netns_egress, server, number):
    some = number * 7919 % 60
    kind = KINDS[some] if some < len(KINDS) else KINDS[some % 7]
    kind(netns_egress if kind is is_let_out else netns, number)
'''

_FAILS: Final = 9


def _round(options: argparse.Namespace, folder: Path, fault: str, moment: int) -> dict[str, Any]:
    """Run the tests once, with a fault after so many of them, and return what there is to tell."""
    command = [sys.executable, "-m", "pytest", "-q", "--netns", f"-n{options.workers}", "--tb=short"]
    command += ["-ppytest_netns.plugin", "-pxdist", "-pno:cacheprovider", "-pno:faulthandler"]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    began = time.monotonic()
    progress = folder / "progress"
    progress.unlink(missing_ok=True)
    most: dict[str, dict[str, int]] = {}
    with (folder / "output").open("wb") as output:
        nothing = subprocess.DEVNULL
        run = subprocess.Popen(command, cwd=folder, env=environment, stdin=nothing, stdout=output, stderr=output)
    struck = "none"
    while run.poll() is None:
        due = progress.exists() and progress.stat().st_size >= moment
        for kind, pid in _processes():
            with contextlib.suppress(OSError, StopIteration):
                now = process(pid)
                most[kind] = {name: max(value, most.get(kind, {}).get(name, 0)) for name, value in now.items()}
            if kind == fault and struck == "none" and due:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    struck = fault
        time.sleep(0.2)
    seconds = time.monotonic() - began
    told = json.loads((folder / "seen").read_text()) if (folder / "seen").exists() else ({}, [])
    return {"seconds": seconds, "most": most, "struck": struck} | _judged(options, struck, *told)


def _processes() -> list[tuple[str, int]]:
    found = [(kind, pid) for pid, kind in family().items() if kind in ("gateway", "worker")]
    random.shuffle(found)
    return found


def _judged(
    options: argparse.Namespace, struck: str, seen: Mapping[str, tuple[str, str]], workers: Sequence[str]
) -> dict[str, Any]:
    """Return what failed by the fault, and what did not go as it should."""
    blamed, wrong = [], []
    for number in range(options.round):
        outcome, text = seen.get(f"test_it.py::test_it[{number}]", ("lost", ""))
        if outcome == ("failed" if number * 7919 % 60 == _FAILS else "passed"):
            continue
        is_blamed = outcome != "lost" and struck != "none" and any(reason in text for reason in _REASONS)
        (blamed if is_blamed else wrong).append(f"test {number}: {outcome} {text[-300:]!r}")
    if struck == "worker" and (len(blamed) > 1 or len(workers) != options.workers + 1):
        wrong.append(f"a worker was killed, and {len(blamed)} tests failed for it, and there were {workers}")
    return {"blamed": blamed, "wrong": wrong}


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaves", type=int, default=100_000)
    parser.add_argument("--round", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--user", default="")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.user and os.geteuid() == 0:
        arguments = [f"--{name}={value}" for name, value in vars(options).items() if name != "user"]
        command = ["runuser", "-u", options.user, "--", sys.executable, os.path.abspath(__file__), *arguments]
        sys.exit(subprocess.run(command, cwd="/", check=False).returncode)
    adopt_orphans(wanted=True)
    chance = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / "test_it.py").write_text(_TESTS.replace("COUNT", str(options.round)))
    print(
        "leaves  fault    ms a leaf  gateway KiB  its fds  worker KiB  its fds  kernel KiB  namespaces  by fault  wrong"
    )
    wrong = done = 0
    deadline = time.monotonic() + options.seconds
    while done < options.leaves and time.monotonic() < deadline:
        # What dies before the first test, pytest-xdist can't do without.
        fault, moment = chance.choice(["gateway", "worker", "none"]), chance.randrange(1, options.round * 3 // 4)
        told = _round(options, folder, fault, moment)
        done += options.round
        wrong += len(told["wrong"])
        gateway, worker = (told["most"].get(kind, {}) for kind in ("gateway", "worker"))
        state = machine()
        print(
            f"{done:6}  {told['struck']:8}{told['seconds'] / options.round * 1e3:10.2f}{gateway.get('KiB', 0):13}"
            f"{gateway.get('descriptors', 0):9}{worker.get('KiB', 0):12}{worker.get('descriptors', 0):9}"
            f"{state['kernel KiB']:12}{state.get('namespaces', '?'):>12}{len(told['blamed']):10}{len(told['wrong']):7}",
            flush=True,
        )
        for line in told["wrong"][:5]:
            print(f"    {line}", flush=True)
        if told["wrong"]:
            print(f"    (see {(folder / 'output').rename(folder / f'output-{done}')})", flush=True)
        (folder / "seen").unlink(missing_ok=True)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    deadline = time.monotonic() + _PATIENCE
    while (left := [f"{kind or 'process'} {pid}" for pid, kind in family().items()]) and time.monotonic() < deadline:
        time.sleep(0.1)
    print(f"left: {', '.join(left) or 'nothing'}; namespaces now: {machine().get('namespaces', '?')}")
    if not wrong:
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(bool(wrong or left))


if __name__ == "__main__":
    main()

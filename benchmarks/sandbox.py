"""What boxes cost: ``python benchmarks/sandbox.py``, as root or as an ordinary user.

- the time of ``box.run(["true"])``, beside that of the same bubblewrap command by hand,
- the time of ``git status`` on a tree of 10,000 files, beside that outside,
- the memory of an idle box.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from pytest_netns.gateway.client import GatewayClient, run_directory
from pytest_netns.kernel import privilege
from pytest_netns.namespace import Namespace
from pytest_netns.sandbox import meter
from pytest_netns.sandbox.box import Sandbox

ROUNDS = 100
FILES = 10_000


def seconds(work: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compare(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    """Do both in turns, so that a busy machine is as unfair to one as to the other; return the times in ms."""
    pairs = [(seconds(ours) * 1e3, seconds(theirs) * 1e3) for _ in range(rounds)]
    return [one for one, _ in pairs], [other for _, other in pairs]


def report(what: str, ours: list[float], theirs: list[float], names: tuple[str, str]) -> None:
    """Print medians and minima, and how they compare."""
    for name, times in zip(names, (ours, theirs), strict=True):
        print(f"{what}, {name}: median {statistics.median(times):.2f} ms, least {min(times):.2f} ms")
    medians = statistics.median(ours) / statistics.median(theirs)
    print(f"{what}: {medians:.2f} times by the medians, {min(ours) / min(theirs):.2f} times by the least")


def by_hand(workdir: str) -> list[str]:
    """Return the bubblewrap command that somebody would write for the same confinement."""
    command = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup"]
    command += ["--disable-userns", "--die-with-parent", "--new-session", "--hostname", "box"]
    command += ["--ro-bind", "/", "/", "--dev", "/dev", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    command += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    for masked in ("/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sysrq-trigger"):
        command += ["--ro-bind", "/dev/null", masked] if os.path.exists(masked) else []
    command += ["--tmpfs", "/sys/fs/cgroup"] if os.path.isdir("/sys/fs/cgroup") else []
    for hidden in ("/home", "/root", "/tmp", "/run", "/var", "/mnt", "/media"):
        command += ["--tmpfs", hidden] if os.path.isdir(hidden) else []
    return [*command, "--bind", workdir, workdir, "--chdir", workdir, "true"]


def tree(place: Path) -> Path:
    """Make a repository with many files."""
    for number in range(FILES):
        path = place / f"d{number // 100}" / f"f{number}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{number}\n")
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"], ["status", "-s"]):
        subprocess.run(["git", *command], cwd=place, check=True)
    return place


def parent(pid: int) -> int:
    """Return the parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def own_memory(pid: int) -> int:
    """Return the KB of memory that a process shares with no other."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))


def measure(box: Sandbox, namespace: Namespace, place: Path) -> None:
    """Print the numbers."""
    hand = by_hand(str(place))
    subprocess.run(hand, check=True)
    names = ("box.run", "by hand")
    report("true", *compare(lambda: box.run(["true"]), lambda: subprocess.run(hand, check=True), ROUNDS), names)
    repeated = "for i in 1 2 3 4 5 6 7 8 9 10; do git status -s; done; git status -s > /dev/null"
    status = ["sh", "-c", f"export GIT_OPTIONAL_LOCKS=0; {repeated}"]
    inside = lambda: box.run(status, check=True)  # noqa: E731
    outside = lambda: namespace.run(status, check=True, cwd=place)  # noqa: E731
    inside()
    report("11 git status", *compare(inside, outside, 10), ("in the box", "outside"))
    idle = box.popen(["sleep", "60"])
    while idle.pid is None:
        time.sleep(0.01)
    time.sleep(0.2)
    keeper = parent(parent(idle.pid))
    with privilege.raised():
        for name, pids in (("its keeper", [keeper]), ("bubblewrap and sleep", meter.family(keeper)[1:])):
            print(f"idle box, {name}: {sum(map(own_memory, pids))} KB that it shares with nobody")
    idle.close()


def main() -> None:
    """Make a leaf and a box, and measure."""
    if not privilege.is_root():
        privilege.enter_user_namespace()
    client = GatewayClient.connect(run_directory(uuid.uuid4().hex))
    place = Path(tempfile.mkdtemp(prefix="netns-bench-", dir="/var/tmp"))
    namespace = Namespace(client.join("bench"), client)
    privilege.disinherit()
    try:
        with namespace, namespace.sandbox(workdir=tree(place), memory="1G") as box:
            print(f"{'root' if privilege.is_root() else 'ordinary user'}, limits by {dict(box.limits)}")
            measure(box, namespace, place)
    finally:
        namespace.close()
        client.close()
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

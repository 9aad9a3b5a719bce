"""Limits: what a box must not use up."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from boxes import PYTHON, Attempt, new_mark, none_left


def test_fork_bomb(attempt: Attempt, netns: Any, work: Path) -> None:
    """A fork bomb gets as many processes as it may have, and the machine goes on.

    Known from: moby/moby#6479.
    """
    with netns.sandbox(workdir=work, pids=20, timeout=4) as box:
        done = attempt(
            """
while True:
    try:
        os.fork()
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
        time.sleep(0.5)
        os._exit(0)
""",
            box=box,
        )
        assert "EAGAIN" in done.stdout
        assert done.exceeded == "pids"
        assert done.usage.processes <= 20
        assert box.run(["true"]).returncode == 0


def test_memory_bomb(attempt: Attempt, netns: Any, work: Path) -> None:
    """Memory that is used beyond the limit ends the command, and says so.

    Known from: daytonaio/daytona#4489, where it did not say so.
    """
    with netns.sandbox(workdir=work, memory="64M") as box:
        done = attempt("held = []\nwhile True: held.append(b'x' * (1 << 20))", box=box)
        assert done.returncode != 0
        assert done.exceeded == "memory"
        assert done.usage.memory < 160 << 20
        assert box.run(["true"]).exceeded is None


def test_memory_bomb_of_many(attempt: Attempt, netns: Any, work: Path) -> None:
    """The limit is for all processes together."""
    with netns.sandbox(workdir=work, memory="96M", pids=20, timeout=10) as box:
        done = attempt(
            """
for _ in range(8):
    if not os.fork():
        held = os.urandom(20 << 20)
        time.sleep(30)
os.wait()
time.sleep(30)
""",
            box=box,
        )
        assert done.exceeded == "memory"


def test_memory_of_nobody(attempt: Attempt, netns: Any, work: Path) -> None:
    """Memory that belongs to no process counts, or is not to be had.

    Known from: Linux CVE-2021-3759.
    """
    with netns.sandbox(workdir=work, memory="64M", timeout=10) as box:
        done = attempt(
            """
for n in range(200):
    fd = os.memfd_create(f"m{n}")
    os.write(fd, b"x" * (1 << 20))
print("HELD")
""",
            box=box,
        )
    assert "HELD" not in done.stdout
    assert done.exceeded == "memory" or "PermissionError" in done.stderr


@pytest.mark.parametrize("where", ["~", "/tmp", ".", "/dev/shm", "/run", "/var/tmp"])
def test_disk_bomb(attempt: Attempt, netns: Any, work: Path, where: str) -> None:
    """Nowhere can more be written than the limit says.

    Known from: Kubernetes CVE-2020-8557.
    """
    with netns.sandbox(workdir=work, disk="8M", file_size=None) as box:
        done = attempt(
            f"""
where = os.path.expanduser({where!r})
for n in range(64):
    with open(f"{{where}}/{{n}}", "wb") as file: tell("write", lambda: file.write(b"x" * (1 << 20)))
""",
            box=box,
        )
        assert "ENOSPC" in done.stdout + done.stderr
        assert done.exceeded == "disk"


def test_inode_bomb(attempt: Attempt, netns: Any, work: Path) -> None:
    """Empty files run out, too.

    Known from: google/cadvisor#1422.
    """
    with netns.sandbox(workdir=work, disk="1M") as box:
        done = attempt(
            """
try:
    for n in range(100000): open(f"/tmp/{n}", "w").close()
except OSError as error: print(errno.errorcode[error.errno], n)
""",
            box=box,
        )
        assert "ENOSPC" in done.stdout
        assert done.exceeded == "disk"


def test_log_bomb_captured(box: Any) -> None:
    """10 GB to standard output end early, and take no memory of the test's.

    Known from: containerd CVE-2022-31030.
    """
    began = time.monotonic()
    done = box.run(["sh", "-c", "head -c 10G /dev/zero"], capture_output=True)
    assert done.exceeded == "output"
    assert len(done.stdout) == 16 << 20
    assert time.monotonic() - began < 10


def test_log_bomb_inherited(box: Any, tmp_path: Path) -> None:
    """10 GB to a file that standard output goes to end as early.

    Known from: moby/moby#8911.
    """
    with (tmp_path / "log").open("wb") as log:
        done = box.run(
            ["sh", "-c", "head -c 10G /dev/zero; head -c 10G /dev/zero >&2"], stdout=log, stderr=subprocess.STDOUT
        )
    assert done.exceeded == "output"
    assert (tmp_path / "log").stat().st_size <= 16 << 20


def test_long_file(attempt: Attempt, netns: Any, work: Path) -> None:
    """A file grows no longer than it may, not even one with holes."""
    with netns.sandbox(workdir=work, file_size="1M") as box:
        done = attempt(
            """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tell("truncate", lambda: os.truncate("file", 1 << 40))
tell("write", lambda: os.pwrite(os.open("file", os.O_WRONLY), b"x", 1 << 30))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
os.pwrite(os.open("file", os.O_WRONLY), b"x", 1 << 30)
""",
            box=box,
        )
    assert done.stdout.count("EFBIG") == 2
    assert done.exceeded == "file_size"


def test_descriptor_bomb(attempt: Attempt, netns: Any, work: Path) -> None:
    """A process opens no more files than it may, and cannot raise that."""
    with netns.sandbox(workdir=work, open_files=64) as box:
        done = attempt(
            """
import resource
tell("raise", lambda: libc.setrlimit(resource.RLIMIT_NOFILE, struct.pack("QQ", 4096, 4096)))
tell("open", lambda: [os.open("/dev/null", 0) for _ in range(200)])
""",
            box=box,
        )
    assert "open: EMFILE" in done.stdout
    assert "raise: DONE -1" in done.stdout


def test_sleeping_past_its_time(netns: Any, work: Path) -> None:
    """A command that takes longer than it may is ended, whatever it waits for, and so are its children.

    Known from: openai/codex#5229.
    """
    mark = new_mark()
    with netns.sandbox(workdir=work, timeout=0.5) as box:
        began = time.monotonic()
        done = box.run(
            [
                PYTHON,
                "-c",
                "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nos.fork()\ntime.sleep(60)",
                mark,
            ]
        )
        assert time.monotonic() - began < 5
        assert done.exceeded == "time"
        assert done.returncode == -9
        assert none_left(mark, 0.0)


def test_nobody_waits(netns: Any, work: Path) -> None:
    """The time of a command that nobody waits for runs out as well.

    Known from: anthropics/claude-code#84647.
    """
    mark = new_mark()
    with netns.sandbox(workdir=work, timeout=0.5) as box:
        process = box.popen([PYTHON, "-c", "import time; time.sleep(60)", mark])
        time.sleep(0.2)
        assert none_left(mark, 5.0)
        assert process.wait(5) == -9
        assert process.done.exceeded == "time"


def test_processor_hog(attempt: Attempt, netns: Any, work: Path) -> None:
    """Four busy processes get no more than the one processor that they may use.

    Known from: "Houdini's Escape: Breaking the Resource Rein of Linux Control Groups", CCS 2019.
    """
    with netns.sandbox(workdir=work, cpu=1.0) as box:
        done = attempt(
            """
try: os.sched_setaffinity(0, range(os.cpu_count()))
except OSError: pass
for _ in range(3): os.fork()
end = time.monotonic() + 1
while time.monotonic() < end: pass
time.sleep(0.1)
""",
            box=box,
        )
        assert done.usage.cpu_time < 1.35 * done.usage.duration


def test_clocks_are_shifted(netns: Any, work: Path) -> None:
    """A box with a later clock since boot sees it, and nobody else does."""
    with netns.sandbox(workdir=work, boot_offset=86400, monotonic_offset=1000) as box:
        done = box.run(["cat", "/proc/uptime"], capture_output=True, text=True)
        assert float(done.stdout.split()[0]) > float(Path("/proc/uptime").read_text().split()[0]) + 86000
        inside = box.run([PYTHON, "-c", "import time; print(time.monotonic())"], capture_output=True, text=True)
        assert 900 < float(inside.stdout) - time.monotonic() < 1001

"""Processes: what a box must not see, signal, talk to or leave behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from boxes import PRELUDE, PYTHON, Attempt, members, new_mark, none_left

from pytest_netns.kernel import confinement


@pytest.fixture
def mark() -> str:
    """Return a word that marks the command lines of an attack's processes."""
    return new_mark()


def test_outside_is_seen(attempt: Attempt, victim: subprocess.Popen[bytes]) -> None:
    """No process but the box's own is in /proc.

    Known from: tj-actions/changed-files CVE-2025-30066, which read other processes' memory.
    """
    done = attempt(
        "print([int(name) for name in os.listdir('/proc') if name.isdigit()])\n"
        f"tell('v', lambda: os.stat('/proc/{victim.pid}'))"
    )
    seen = eval(done.stdout.splitlines()[0])
    assert len(seen) <= 4
    assert max(seen) < 50


def test_outside_is_killed(attempt: Attempt, victim: subprocess.Popen[bytes]) -> None:
    """No signal reaches a process outside, neither by number nor to all."""
    done = attempt(f"""
tell("one", lambda: os.kill({victim.pid}, 9) if {victim.pid} > 50 else 1/0)
tell("parent", lambda: os.kill({os.getpid()}, 9))
call("tgkill", (234, 131), {victim.pid}, {victim.pid}, 9)
call("pidfd", 434, {victim.pid}, 0)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tell("all", lambda: os.kill(-1, signal.SIGTERM))
""")
    assert done.stdout.count("ESRCH") >= 4


def test_init_is_killed_or_stopped(attempt: Attempt, mark: str) -> None:
    """The box's init is neither ended nor stopped from inside; if it could be, the box would go with it."""
    done = attempt("""
for number in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
    os.kill(1, number)
time.sleep(0.1)
print("init:", open("/proc/1/stat").read().split()[2])
""")
    assert "init: S" in done.stdout


def test_parent_is_stopped(attempt: Attempt) -> None:
    """A command that stops its parent is told no, or stops its own box's processes only, which its time ends.

    Known from: anthropics/claude-code#45717, where the agent got its command's signal.
    """
    done = attempt(
        """
tell("parent", lambda: os.kill(os.getppid(), signal.SIGSTOP))
tell("group", lambda: os.killpg(os.getpgid(os.getppid()), signal.SIGSTOP))
print("ran on")
""",
        timeout=None,
    )
    assert done.usage.duration < 10
    assert "ran on" in done.stdout


def test_daemon(attempt: Attempt, mark: str) -> None:
    """A double fork with a session of its own ends with the command.

    Known from: containers/bubblewrap#529.
    """
    done = attempt(f"""
if not os.fork():
    os.setsid()
    if not os.fork():
        for number in range(1, 32):
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        os.execv({PYTHON!r}, [{PYTHON!r}, "-c", "import time; time.sleep(600)", {mark!r}])
    os._exit(0)
os.wait()
time.sleep(0.2)
print("left it")
""")
    assert done.stdout == "left it\n"
    assert none_left(mark, 0.0)


def test_deaf_to_sigterm(box: Any, mark: str) -> None:
    """A command that ignores SIGTERM is ended by kill(), with all that it has started.

    Known from: openai/codex#5258.
    """
    program = f"{PRELUDE}\nsignal.signal(15, signal.SIG_IGN)\nos.fork()\nprint('up', flush=True)\ntime.sleep(600)"
    process = box.popen([PYTHON, "-c", program, mark], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    assert process.wait(5) == -signal.SIGKILL
    process.close()
    assert none_left(mark, 0.0)


def test_box_is_closed(netns: Any, work: Path, mark: str) -> None:
    """Whatever runs in a box when it is closed is dead then.

    Known from: containers/bubblewrap#105.
    """
    box = netns.sandbox(workdir=work)
    program = f"{PRELUDE}\nfor _ in range(5): os.fork()\nprint('up', flush=True)\ntime.sleep(600)"
    process = box.popen([PYTHON, "-c", program, mark], stdout=subprocess.PIPE)
    process.stdout.readline()
    box.close()
    process.stdout.close()
    assert none_left(mark, 0.0)


def test_keeper_is_killed(netns: Any, work: Path, mark: str) -> None:
    """If the process that keeps the box dies, so does the box; the next one is as good as new.

    Known from: containers/bubblewrap#633.
    """
    box = netns.sandbox(workdir=work)
    process = box.popen(
        [PYTHON, "-c", "import time; print('up', flush=True); time.sleep(600)", mark], stdout=subprocess.PIPE
    )
    process.stdout.readline()
    parent = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[1])
    keeper = int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1])
    os.kill(keeper, signal.SIGKILL)
    assert process.wait(5) == -signal.SIGKILL
    process.close()
    box.close()
    assert none_left(mark)
    with netns.sandbox(workdir=work) as another:
        assert another.run(["true"]).returncode == 0


def test_abstract_sockets(attempt: Attempt) -> None:
    """An abstract Unix socket of the test's own, which its network would let through, is out of reach.

    Known from: containerd CVE-2020-15257.
    """
    if not confinement.has_scopes():
        pytest.skip("this takes Landlock's scopes, from Linux 6.12 on")
    name = f"\0{uuid.uuid4().hex}"
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()
    server.setblocking(False)
    done = attempt(f"tell('connect', lambda: socket.socket(socket.AF_UNIX).connect({name!r}))")
    assert done.stdout == "connect: EPERM\n"
    with pytest.raises(BlockingIOError):
        server.accept()
    server.close()


def test_descriptors_are_passed(attempt: Attempt, box: Any) -> None:
    """SCM_RIGHTS passes descriptors within a box, and there is nobody outside to pass one.

    Known from: containerd CVE-2020-15257.
    """
    done = attempt("""
a, b = socket.socketpair()
socket.send_fds(a, [b"x"], [0])
_, got, _, _ = socket.recv_fds(b, 1, 1)
print("inside:", os.readlink(f"/proc/self/fd/{got[0]}"))
for line in open("/proc/net/unix").read().splitlines()[1:]:
    path = line.split()[-1]
    if path.startswith(("/", "@")):
        tell(path, lambda: socket.socket(socket.AF_UNIX).connect(path.replace("@", "\\0", 1)))
""")
    assert "inside: /dev/null" in done.stdout
    assert "DONE" not in done.stdout


def test_shared_memory(attempt: Attempt) -> None:
    """System V and POSIX shared memory, semaphores and queues are the box's own."""
    Path("/dev/shm/netns-canary").write_text("outside")
    try:
        done = attempt("""
print(sorted(os.listdir("/dev/shm")))
open("/dev/shm/mine", "w").write("x")
print(open("/proc/sysvipc/shm").read().count("\\n"), open("/proc/sysvipc/msg").read().count("\\n"))
""")
        assert done.stdout == "[]\n1 1\n"
        assert not Path("/dev/shm/mine").exists()
    finally:
        Path("/dev/shm/netns-canary").unlink()


def test_user_inside_is_nobody(attempt: Attempt, netns: Any, work: Path) -> None:
    """Root inside is nobody of consequence outside.

    Known from: runc CVE-2019-5736, which took root's rights outside.
    """
    with netns.sandbox(workdir=work, uid=0) as box:
        done = attempt(
            """
print(os.getuid(), open("/proc/self/uid_map").read().split())
tell("s", lambda: open("/etc/shadow").read())
tell("chown", lambda: os.chown("file", 1, 1))
""",
            box=box,
        )
        process = box.popen(["sleep", "60"])
        while process.pid is None:
            process.poll()
            time.sleep(0.01)
        owner = os.stat(f"/proc/{process.pid}").st_uid
        uid = Path(f"/proc/{process.pid}/status").read_text().split("Uid:")[1].split()[0]
        process.kill()
        process.wait()
    assert done.stdout.startswith("0 ['0'")
    assert "s: EACCES" in done.stdout
    assert "chown: DONE" not in done.stdout
    assert int(uid) != 0 and owner != 0


def test_priority(attempt: Attempt) -> None:
    """A command takes no priority over others, nor real-time scheduling, nor its oom score back.

    Known from: kata-containers/kata-containers#1114, where the agent went first when memory ran out.
    """
    done = attempt("""
tell("nice", lambda: os.nice(-10))
tell("fifo", lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10)))
print(open("/proc/self/oom_score_adj").read())
""")
    assert done.stdout.count("EPERM") == 2
    assert "1000" in done.stdout


def test_many_at_once(box: Any, mark: str) -> None:
    """Commands that run at the same time, from several threads, keep their outputs apart and end."""
    results: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda n=n: results.append((n, box.run(["sh", "-c", f"echo {n}"], capture_output=True).stdout))
        )
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [(n, f"{n}\n".encode()) for n in range(6)]
    assert not members(mark)

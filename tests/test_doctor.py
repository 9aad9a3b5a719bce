"""The doctor tells what a machine lacks, why, and the command that mends it."""

from __future__ import annotations

import errno
import io
import json
import os
import pty
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import machines
import pytest
from machines import DOCTOR

from pytest_netns import doctor
from pytest_netns.__main__ import main
from pytest_netns.checkup import names, trials
from pytest_netns.checkup.machine import Machine
from pytest_netns.cli.checkup import render
from pytest_netns.doctor import Check, Report
from pytest_netns.errors import KernelError, UnsupportedError
from pytest_netns.kernel.probe import FAIL, OK, PLATFORM, PROBE, SKIPPED, WARN, Remark

ROOT = os.geteuid() == 0

ALL_NAMES = set(names.REASONS) - {PLATFORM, PROBE}


class TestThisMachine:
    """The doctor on the machine that the tests run on."""

    def test_finds_all_well(self) -> None:
        """Everything works where the other tests do: status 0, each check made or not needed."""
        result = machines.ran([*DOCTOR, "--json"])
        report = json.loads(result.stdout)
        rows = {check["name"]: check for check in report["checks"]}
        assert (result.returncode, report["ok"]) == (0, True), rows
        assert set(rows) == ALL_NAMES | {PLATFORM}
        assert {check["status"] for check in rows.values()} <= {OK, WARN, SKIPPED}
        assert rows[names.USER]["status"] == (SKIPPED if ROOT else OK)
        assert rows[names.PORT]["seen"] == f"bound as uid {os.geteuid()}"
        assert all(check["seen"] and check["why"] for check in rows.values())

    def test_prints_a_table(self) -> None:
        """Each check has a line, the last line sums up, and nothing is coloured where nobody looks."""
        result = machines.ran(DOCTOR)
        lines = result.stdout.splitlines()
        assert lines[-1] == "All is well: pytest --netns works here."
        assert all(any(line[8:].startswith(name) for line in lines) for name in ALL_NAMES)
        assert "\x1b" not in result.stdout
        assert not result.stderr

    @pytest.mark.parametrize(("variable", "coloured"), [("SOME", True), ("NO_COLOR", False)])
    def test_colours_a_terminal_only(self, variable: str, coloured: bool) -> None:
        """A terminal gets colours unless NO_COLOR says otherwise."""
        master, slave = pty.openpty()
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        with subprocess.Popen(DOCTOR, stdout=slave, env=environment | {"TERM": "xterm", variable: "1"}) as process:
            os.close(slave)
            output = b""
            while not output.endswith(b"here.\r\n"):
                output += os.read(master, 4096)
            assert process.wait() == 0
        os.close(master)
        assert (b"\x1b[" in output) is coloured

    @pytest.mark.skipif(ROOT, reason="root enters no user namespace")
    @pytest.mark.parametrize("step", ["pass", "privilege.disinherit()"])
    def test_works_from_within(self, step: str) -> None:
        """A process that has entered a user namespace already, as pytest has, finds all well too."""
        code = f"""
            import sys
            from pytest_netns.__main__ import main
            from pytest_netns.kernel import privilege
            privilege.enter_user_namespace()
            {step}
            sys.exit(main(["doctor"]))
        """
        result = machines.ran([sys.executable, "-c", textwrap.dedent(code)])
        assert result.returncode == 0, result.stdout + result.stderr

    def test_works_as_root_of_a_user_namespace(self) -> None:
        """Root of a rootless container, or of ``unshare --map-root-user``, is as good as any."""
        result = machines.on("nested-root", command=DOCTOR)
        assert result.returncode == 0, result.stdout

    @pytest.mark.parametrize("arguments", [[], ["surgeon"], ["doctor", "--fast"]])
    def test_rejects_what_it_does_not_know(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """A usage error has status 2 and names what is wrong."""
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert (arguments or ["command"])[-1] in capsys.readouterr().err


class TestElsewhere:
    """The doctor on other operating systems."""

    @pytest.mark.parametrize("system", ["darwin", "win32"])
    def test_says_that_linux_is_needed(self, system: str) -> None:
        """Neither Linux's C library nor its modules are needed to say so."""
        code = f"""
            import sys
            sys.platform = {system!r}
            sys.modules["pytest_netns.kernel.syscalls"] = sys.modules["pyroute2"] = sys.modules["fcntl"] = None
            from pytest_netns.doctor import explain
            from pytest_netns.__main__ import main
            print(explain(RuntimeError("no network")))
            sys.exit(main(["doctor"]))
        """
        result = machines.ran([sys.executable, "-c", textwrap.dedent(code)])
        assert result.returncode == 1, result.stderr
        assert "RuntimeError: no network" in result.stdout
        assert "missing: platform" in result.stdout
        assert ("wsl --install" if system == "win32" else "docker run --cap-add SYS_ADMIN") in result.stdout


class TestExplain:
    """What a user is told whose run could not start."""

    def test_keeps_the_error_when_nothing_is_missing(self) -> None:
        """The original error comes first, the command for the whole table last."""
        lines = doctor.explain(UnsupportedError("gateway: it did not start")).splitlines()
        assert lines[0] == "UnsupportedError: gateway: it did not start"
        assert "every check of this machine passes" in lines[1]
        assert lines[-1] == "all checks: python -m pytest_netns doctor"

    def test_says_what_is_missing(self) -> None:
        """On a machine that lacks something it is named, with reason and remedy, once and in a few lines."""
        code = "from pytest_netns.doctor import explain; print(explain(OSError(28, 'No space left on device')))"
        result = machines.on("nested-root", "no-net-namespaces", command=[sys.executable, "-c", code])
        first, missing, why, fix, *_, last = result.stdout.splitlines()
        assert first == "OSError: [Errno 28] No space left on device"
        assert missing.startswith("missing: namespace limits (user.max_net_namespaces: is 0); ")
        assert why.startswith("why: user.max_net_namespaces is low or used up")
        assert "sudo sysctl -w user.max_net_namespaces=65536" in fix
        assert last == "all checks: python -m pytest_netns doctor"
        assert len(result.stdout.splitlines()) == 5

    @pytest.mark.skipif(ROOT, reason="root needs no user namespace")
    def test_works_after_half_of_the_way_in(self) -> None:
        """A process that was refused the mapping is nobody in a namespace of its own; the cause is found yet."""
        code = """
            from pytest_netns.doctor import explain
            from pytest_netns.kernel.privilege import enter_user_namespace
            try:
                enter_user_namespace()
            except OSError as error:
                print(explain(error))
        """
        result = machines.on("landlock", command=[sys.executable, "-c", textwrap.dedent(code)])
        if "system call 444" in result.stderr:
            pytest.skip("this kernel has no Landlock")
        assert "missing: user namespace (uid_map: " in result.stdout, result.stderr
        assert "PermissionError" in result.stdout

    def test_names_the_threads_in_the_way(self) -> None:
        """A user namespace can't be entered with threads: those that run are named."""
        stop = threading.Event()
        thread = threading.Thread(target=stop.wait, name="busybody")
        thread.start()
        try:
            text = doctor.explain(KernelError(errno.EINVAL, "unshare(0x10000000): Invalid argument"))
        finally:
            stop.set()
            thread.join()
        assert "busybody" in text
        assert "-p no:" in text

    def test_is_bounded_in_time(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check that hangs is given up and named, and the time that it is given is all that it takes."""
        hanging = "import time\nfrom pytest_netns.kernel.probe import Trial, perform\n"
        hanging += "def main(): perform([Trial('lo', lambda: time.sleep(60) or '')])\n"
        (tmp_path / "hanging_trials.py").write_text(hanging, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(doctor, "_TRIALS", "hanging_trials")
        monkeypatch.setattr(doctor, "_EXPLAIN_PATIENCE", 2.5)
        started = time.monotonic()
        text = doctor.explain(TimeoutError("gateway"))
        assert time.monotonic() - started < 10
        assert "missing: lo (no answer within 2.5 s)" in text

    def test_never_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where even the checks break, the original error is told all the same."""

        def broken(timeout: float, *, boxes: bool) -> Report:
            raise RuntimeError(f"no checks within {timeout}")

        monkeypatch.setattr(doctor, "examine", broken)
        text = doctor.explain(ValueError("original"))
        assert text.startswith("ValueError: original\n")
        assert f"no checks within {doctor._EXPLAIN_PATIENCE}" in text


class TestPieces:
    """Small parts that the whole does not reach on every machine."""

    def test_render_without_colour_is_plain(self) -> None:
        """Rows of all kinds have their mark; details of several lines are aligned."""
        rows = (Check("a", OK, "x", "w"), Check("b", FAIL, "y", "w", "c", "one\ntwo"), Check("c", SKIPPED, "z", "w"))
        lines = render(Report(Machine(name="Some Linux", root=True), rows), colour=False)
        assert lines == [
            "Some Linux, as root",
            "",
            "  ok    a  x",
            "  FAIL  b  y",
            "        needed: w",
            "        cause:  c",
            "        fix:    one",
            "                two",
            "  skip  c  z",
            "",
            "1 check failed: pytest --netns can't isolate tests here.",
        ]

    def test_limits_that_are_low_are_remarked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A low limit is no failure: few workers may get by."""
        monkeypatch.setattr(trials, "_LIMIT_LOW", sys.maxsize)
        with pytest.raises(Remark, match="max_net_namespaces is"):
            trials.limits()

    def test_json_is_one_document(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What --json prints can be loaded, on a machine where nothing works too."""
        report = Report(Machine(), (Check("a", FAIL, "x", "w", "c", "f"),))
        monkeypatch.setattr(doctor, "examine", lambda: report)
        out = io.StringIO()
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["doctor", "--json"]) == 1
        assert json.loads(out.getvalue())["checks"][0]["fix"] == "f"

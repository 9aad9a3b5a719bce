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

from pytest_netns import doctor
from pytest_netns.__main__ import main, render
from pytest_netns.checkup import containers, names, trials
from pytest_netns.checkup.machine import Machine, read
from pytest_netns.checkup.remedies import find
from pytest_netns.doctor import Check, Report
from pytest_netns.errors import KernelError, UnsupportedError
from pytest_netns.kernel.probe import FAIL, OK, PLATFORM, PROBE, SKIPPED, WARN, Outcome, Remark

ROOT = os.geteuid() == 0
DOCTOR = [sys.executable, "-m", "pytest_netns", "doctor"]
ALL_NAMES = set(names.REASONS) - {PLATFORM, PROBE}


def on(*scenarios: str, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command, the doctor unless told otherwise, on a machine that lacks something."""
    player = [sys.executable, machines.__file__, *scenarios, "--"]
    return ran([*player, *(command or [*DOCTOR, "--json"])])


def ran(command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command that finds the package which is tested, installed or not."""
    where = str(Path(doctor.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": where} | variables
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def failures(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    """Return the rows of a report that failed, by name."""
    assert result.returncode == 1, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["ok"] is False
    return {check["name"]: check for check in report["checks"] if check["status"] == FAIL}


class TestThisMachine:
    """The doctor on the machine that the tests run on."""

    def test_finds_all_well(self) -> None:
        """Everything works where the other tests do: status 0, each check made or not needed, within two seconds."""
        started = time.monotonic()
        result = ran([*DOCTOR, "--json"])
        assert time.monotonic() - started < 5
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
        result = ran(DOCTOR)
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
        result = ran([sys.executable, "-c", textwrap.dedent(code)])
        assert result.returncode == 0, result.stdout + result.stderr

    @pytest.mark.xfail(reason="the factory asks for all groups to ping where just one is mapped")
    def test_works_as_root_of_a_user_namespace(self) -> None:
        """Root of a rootless container, or of ``unshare --map-root-user``, is as good as any."""
        result = on("nested-root", command=DOCTOR)
        assert result.returncode == 0, result.stdout

    @pytest.mark.parametrize("arguments", [[], ["surgeon"], ["doctor", "--fast"]])
    def test_rejects_what_it_does_not_know(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """A usage error has status 2 and names what is wrong."""
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert (arguments or ["command"])[-1] in capsys.readouterr().err


class TestLackingMachines:
    """The doctor where something really is missing."""

    @pytest.mark.skipif(not ROOT, reason="plays root in a container")
    @pytest.mark.parametrize("scenarios", [["docker-capabilities"], ["docker-capabilities", "docker-seccomp"]])
    def test_docker_as_root(self, scenarios: list[str]) -> None:
        """Root of a plain container of Docker is told which capabilities are missing."""
        rows = failures(on(*scenarios))
        assert set(rows) == {names.NETWORK, names.MOUNT}
        assert "CAP_SYS_ADMIN" in rows[names.NETWORK]["cause"]

    @pytest.mark.skipif(not ROOT, reason="plays root in a container")
    def test_root_without_net_admin(self) -> None:
        """Where namespaces can be made and not configured, the capability that is missing is named."""
        rows = failures(on("no-net-admin"))
        assert {names.LOOPBACK, names.LEAF_RULES, names.HUB_RULES} <= set(rows)
        assert (
            "no CAP_NET_ADMIN" in rows[names.LOOPBACK]["cause"] or "of CAP_NET_ADMIN" in rows[names.LOOPBACK]["cause"]
        )

    @pytest.mark.skipif(ROOT, reason="plays an ordinary user in a container")
    def test_docker_as_user(self) -> None:
        """An ordinary user in a plain container of Docker is told to do without its seccomp filter."""
        rows = failures(on("docker-seccomp"))
        assert set(rows) == {names.USER}
        assert "unshare(0x10000000): Operation not permitted" in rows[names.USER]["seen"]
        assert "seccomp" in rows[names.USER]["cause"]

    @pytest.mark.skipif(ROOT, reason="plays an ordinary user in a container")
    def test_podman_as_user(self) -> None:
        """Podman's filter, which allows unshare and refuses setns, is found out by hopping."""
        rows = failures(on("podman-seccomp"))
        assert set(rows) == {names.NETWORK}
        assert rows[names.NETWORK]["seen"].startswith("setns")

    @pytest.mark.skipif(ROOT, reason="root needs no user namespace")
    def test_security_module_that_lets_unshare_succeed(self) -> None:
        """A user namespace that was made and can't be used counts as missing."""
        try:
            rows = failures(on("landlock"))
        except AssertionError as error:
            if "system call 444" in str(error):
                pytest.skip("this kernel has no Landlock")
            raise
        assert set(rows) == {names.USER}
        assert rows[names.USER]["seen"].startswith("uid_map: ")

    @pytest.mark.parametrize(
        ("limit", "row"), [("no-net-namespaces", names.NETWORK), ("no-mnt-namespaces", names.MOUNT)]
    )
    def test_limits(self, limit: str, row: str) -> None:
        """A limit of 0 is seen, and the command that raises it given, as root and as an ordinary user."""
        sysctl = f"user.{limit.replace('no-', 'max_').replace('-', '_')}"
        as_root = failures(on("nested-root", limit))
        assert set(as_root) == {names.LIMITS, row}
        as_user = failures(on("nested-root", limit, "nested-user"))
        assert set(as_user) == {row}  # the user's own namespace has limits of its own, the one around it is in the way
        for check in (as_root[row], as_user[row]):
            assert "No space left on device" in check["seen"]
            assert f"sudo sysctl -w {sysctl}=" in check["fix"]

    def test_limit_of_user_namespaces(self) -> None:
        """Where user namespaces are used up, an ordinary user is told so."""
        result = on("nested-root", "nested-user", "no-user-namespaces")
        rows = failures(result)
        assert {names.LIMITS, names.USER} == set(rows)
        assert "sudo sysctl -w user.max_user_namespaces=" in rows[names.USER]["fix"]

    @pytest.mark.parametrize(
        "users", [["nested-root", "read-only-sysctls"], ["nested-root", "read-only-sysctls", "nested-user"]]
    )
    def test_read_only_sysctls(self, users: list[str]) -> None:
        """A read-only /proc/sys is told from a lack of rights."""
        rows = failures(on(*users))
        assert set(rows) == {names.SYSCTLS}
        assert "Read-only file system" in rows[names.SYSCTLS]["seen"]

    def test_masked_sys(self) -> None:
        """A /sys with parts masked is worth a remark and no failure: tests run, with the host's interfaces in it."""
        result = on("nested-root", "masked-sys", "nested-user")
        report = json.loads(result.stdout)
        row = next(check for check in report["checks"] if check["name"] == names.SYS)
        assert (result.returncode, row["status"]) == (0, WARN), report
        assert row["fix"]

    def test_kernel_without_netfilter(self) -> None:
        """The kernel modules that are missing are named."""
        rows = failures(on("no-netfilter"))
        assert set(rows) == {names.LEAF_RULES, names.HUB_RULES, names.QUEUE}
        assert "nf_tables" in rows[names.HUB_RULES]["cause"]
        assert "nfnetlink_queue" in rows[names.QUEUE]["cause"]

    def test_no_place_for_temporary_files(self, tmp_path: Path) -> None:
        """A directory for temporary files in which no socket fits is found, and another one proposed."""
        deep = tmp_path / ("x" * 100)
        deep.mkdir()
        rows = failures(ran([*DOCTOR, "--json"], TMPDIR=str(deep)))
        assert set(rows) == {names.RUN_DIRECTORY}
        assert rows[names.RUN_DIRECTORY]["fix"].startswith("export TMPDIR=")

    def test_prints_needs_cause_and_fix(self) -> None:
        """The table says of a failed check why it matters, why it failed and what to do; status 1."""
        result = on("nested-root", "no-net-namespaces", command=DOCTOR)
        assert result.returncode == 1
        assert "FAIL  network namespace  unshare(0x40000000): No space left on device" in result.stdout
        assert "needed: a test has ports, addresses and routes of its own" in result.stdout
        assert "fix:" in result.stdout
        assert "sudo sysctl -w user.max_net_namespaces=" in result.stdout
        assert "the same as for: namespace limits" in result.stdout
        assert result.stdout.splitlines()[-1] == "2 checks failed: pytest --netns can't isolate tests here."


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
        result = ran([sys.executable, "-c", textwrap.dedent(code)])
        assert result.returncode == 1, result.stderr
        assert "RuntimeError: no network" in result.stdout
        assert "missing: platform" in result.stdout
        assert ("wsl --install" if system == "win32" else "docker run --cap-add SYS_ADMIN") in result.stdout


UBUNTU = Machine(
    apparmor_restricts=True, apparmor="unconfined", distributions=("ubuntu", "debian"), program="/usr/bin/p"
)
REMEDIES = [
    # Ubuntu 24.04: the mapping is refused, or the namespace is made and its capabilities are worth nothing
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "uid_map"),
        UBUNTU,
        "AppArmor",
        "apparmor_restrict_unprivileged_userns=0",
    ),
    (
        Outcome(names.USER, FAIL, "", errno.EACCES, "uid_map"),
        UBUNTU,
        "AppArmor",
        "profile pytest-netns /usr/bin/p flags",
    ),
    (Outcome(names.LOOPBACK, FAIL, "", errno.EPERM), UBUNTU, "AppArmor", "sudo apparmor_parser -r"),
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "uid_map"),
        Machine(apparmor_restricts=True, github=True),
        "AppArmor",
        "- run: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "uid_map"),
        Machine(apparmor_restricts=True, container="docker"),
        "AppArmor",
        "on the host of the container: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    # Debian's own switch
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "unshare"),
        Machine(userns_clone=False),
        "kernel.unprivileged_userns_clone=0",
        "sudo sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "unshare"),
        Machine(python="py"),
        "security module",
        "sudo py -m pytest",
    ),
    (Outcome(names.USER, FAIL, "", errno.EINVAL, "unshare"), Machine(), "CONFIG_USER_NS", "standard kernel"),
    (Outcome(names.NETWORK, FAIL, "", errno.EINVAL), Machine(wsl=1), "WSL 1", "wsl --set-version"),
    (Outcome(names.NETWORK, FAIL, "", errno.EINVAL), Machine(root=True), "CONFIG_NET_NS", "standard kernel"),
    (
        Outcome(names.NETWORK, FAIL, "", errno.EPERM),
        Machine(root=True, capabilities=1 << 12),
        "deprived of CAP_SYS_ADMIN",
        "runuser",
    ),
    (
        Outcome(names.NETWORK, FAIL, "", errno.EPERM),
        Machine(root=True, container="podman"),
        "no CAP_SYS_ADMIN",
        "podman run",
    ),
    (
        Outcome(names.MOUNT, FAIL, "", errno.EACCES),
        Machine(root=True, capabilities=-1, container="docker", apparmor="docker-default"),
        "AppArmor",
        "--security-opt apparmor=unconfined",
    ),
    # kernel modules
    (
        Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "tproxy"),
        UBUNTU,
        "lacks nft_tproxy",
        "sudo apt-get install -y linux-modules-extra-$(uname -r) && sudo modprobe -a nft_tproxy",
    ),
    (
        Outcome(names.LEAF_RULES, FAIL, "", errno.ENOENT, "socket + reject"),
        Machine(distributions=("fedora",)),
        "lacks nft_socket nft_reject_inet",
        "sudo dnf install -y kernel-modules-$(uname -r) && sudo modprobe -a nft_socket nft_reject_inet",
    ),
    (
        Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "queue"),
        Machine(distributions=("debian",), release="6.1.0-18-cloud-amd64"),
        "lacks nft_queue",
        "linux-image-",
    ),
    (Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "fib"), Machine(modules=False), "update", "sudo reboot"),
    (Outcome(names.LEAF_RULES, FAIL, "", errno.ENOENT, "nat chain"), Machine(), "nft_chain_nat", "sudo modprobe -a"),
    (Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "fib"), Machine(wsl=2), "nft_fib_inet", "wsl --update"),
    (Outcome(names.VETH, FAIL, "", errno.EOPNOTSUPP), Machine(container="docker"), "veth", "on the host"),
    (Outcome(names.QUEUE, FAIL, "", errno.EINVAL), Machine(), "nfnetlink_queue", "sudo modprobe -a nfnetlink_queue"),
    # the rest
    (Outcome(names.ADDRESSES, FAIL, "", errno.EACCES, "IPv6"), Machine(), "IPv6 is disabled", "disable_ipv6=0"),
    (Outcome(names.ADDRESSES, FAIL, "", errno.EOPNOTSUPP, "IPv6"), Machine(), "IPv6 is off", "ipv6.disable=1"),
    (Outcome(names.PACKAGES, FAIL, "", 0), Machine(python="py"), "package", "py -m pip install"),
    (Outcome(PROBE, FAIL, "no answer", 0), Machine(), "hung", "python -m pytest_netns doctor"),
    (Outcome(names.WHOLE, FAIL, "?", errno.EIO), Machine(), "not known", "dmesg"),
]


class TestRemedies:
    """Which remedy belongs to which failure on which machine."""

    @pytest.mark.parametrize(("outcome", "machine", "cause", "fix"), REMEDIES)
    def test_fits_the_machine(self, outcome: Outcome, machine: Machine, cause: str, fix: str) -> None:
        """Cause and command are those of this failure on this machine."""
        remedy = find(outcome, machine)
        assert cause in remedy.cause
        assert fix in remedy.fix

    @pytest.mark.parametrize("name", sorted(ALL_NAMES | {PLATFORM, PROBE}))
    def test_leaves_nothing_without_advice(self, name: str) -> None:
        """Whatever fails, in whatever way, a cause and a command are given, and the table says why it matters."""
        assert names.REASONS[name]
        for error in (0, errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.EROFS, errno.ENOENT):
            for machine in (Machine(), Machine(root=True), UBUNTU, Machine(container="kubernetes"), read()):
                remedy = find(Outcome(name, FAIL, "seen", error), machine)
                assert remedy.cause
                assert remedy.fix

    @pytest.mark.parametrize(
        ("machine", "expected"),
        [
            (
                Machine(root=True, container="docker"),
                "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN {0} systempaths=unconfined",
            ),
            (
                Machine(root=True, container="docker", apparmor="docker-default"),
                "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN {0} apparmor=unconfined {0} systempaths=unconfined",
            ),
            (
                Machine(container="docker"),
                "docker run {0} seccomp=unconfined {0} systempaths=unconfined",
            ),
            (
                Machine(root=True, container="podman", selinux=True),
                "podman run --cap-add SYS_ADMIN --cap-add NET_ADMIN {0} label=disable {0} unmask=ALL",
            ),
        ],
    )
    def test_asks_for_no_more_than_is_needed(self, machine: Machine, expected: str) -> None:
        """Root gets two capabilities, an ordinary user none; nobody is told to run a privileged container."""
        assert containers.command(machine) == expected.format("--security-opt") + " <image> <command>"

    def test_speaks_the_words_of_the_engine(self) -> None:
        """Kubernetes and LXC are given settings instead of a command line."""
        assert "capabilities: {add: [SYS_ADMIN, NET_ADMIN]}" in containers.command(
            Machine(root=True, container="kubernetes")
        )
        assert "seccompProfile: {type: Unconfined}" in containers.command(Machine(container="kubernetes"))
        assert "security.nesting=true" in containers.command(Machine(container="lxc"))


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
        result = on("nested-root", "no-net-namespaces", command=[sys.executable, "-c", code])
        first, missing, why, fix, *_, last = result.stdout.splitlines()
        assert first == "OSError: [Errno 28] No space left on device"
        assert missing.startswith("missing: namespace limits (user.max_net_namespaces: is 0); ")
        assert why.startswith("why: user.max_net_namespaces is used up")
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
        result = on("landlock", command=[sys.executable, "-c", textwrap.dedent(code)])
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
        """A check that hangs is given up and named; the whole takes three seconds."""
        hanging = "import time\nfrom pytest_netns.kernel.probe import Trial, perform\n"
        hanging += "def main(): perform([Trial('lo', lambda: time.sleep(60) or '')])\n"
        (tmp_path / "hanging_trials.py").write_text(hanging, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(doctor, "_TRIALS", "hanging_trials")
        started = time.monotonic()
        text = doctor.explain(TimeoutError("gateway"))
        assert time.monotonic() - started < 3.5
        assert "missing: lo (no answer within 2.5 s)" in text

    def test_never_raises(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where even the checks break, the original error is told all the same."""

        def broken(timeout: float) -> Report:
            raise RuntimeError(f"no checks within {timeout}")

        monkeypatch.setattr(doctor, "examine", broken)
        text = doctor.explain(ValueError("original"))
        assert text.startswith("ValueError: original\n")
        assert "no checks within 2.5" in text


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

"""The doctor where something really is missing."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import machines
import pytest
from machines import DOCTOR
from unshared import in_child, isolate

from pytest_netns.checkup import names
from pytest_netns.checkup.bench import Bench
from pytest_netns.kernel.probe import FAIL, WARN, RefusedError

ROOT = os.geteuid() == 0


def failures(result: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    """Return the rows of a report that failed, by name."""
    assert result.returncode == 1, result.stdout + result.stderr
    report = json.loads(result.stdout)
    assert report["ok"] is False
    return {check["name"]: check for check in report["checks"] if check["status"] == FAIL}


class TestLackingMachines:
    """The doctor where something really is missing."""

    @pytest.mark.skipif(not ROOT, reason="plays root in a container")
    @pytest.mark.parametrize("scenarios", [["docker-capabilities"], ["docker-capabilities", "docker-seccomp"]])
    def test_docker_as_root(self, scenarios: list[str]) -> None:
        """Root of a plain container of Docker is told which capabilities are missing."""
        rows = failures(machines.on(*scenarios))
        assert set(rows) == {names.NETWORK, names.MOUNT}
        assert "CAP_SYS_ADMIN" in rows[names.NETWORK]["cause"]

    @pytest.mark.skipif(not ROOT, reason="plays root in a container")
    def test_what_is_asked_for_suffices(self) -> None:
        """With the two capabilities that the remedy asks for, and no more, all is well."""
        result = machines.on("docker-grants", command=DOCTOR)
        assert result.returncode == 0, result.stdout

    @pytest.mark.skipif(not ROOT, reason="plays root in a container")
    def test_root_without_net_admin(self) -> None:
        """Where namespaces can be made and not configured, the capability that is missing is named."""
        rows = failures(machines.on("no-net-admin"))
        assert {names.LOOPBACK, names.LEAF_RULES, names.HUB_RULES} <= set(rows)
        assert (
            "no CAP_NET_ADMIN" in rows[names.LOOPBACK]["cause"] or "of CAP_NET_ADMIN" in rows[names.LOOPBACK]["cause"]
        )

    @pytest.mark.skipif(ROOT, reason="plays an ordinary user in a container")
    def test_docker_as_user(self) -> None:
        """An ordinary user in a plain container of Docker is told to do without its seccomp filter."""
        rows = failures(machines.on("docker-seccomp"))
        assert set(rows) == {names.USER}
        assert "unshare(0x10000000): Operation not permitted" in rows[names.USER]["seen"]
        assert "seccomp" in rows[names.USER]["cause"]

    @pytest.mark.skipif(ROOT, reason="plays an ordinary user in a container")
    def test_podman_as_user(self) -> None:
        """Podman's filter, which allows unshare and refuses setns, is found out by hopping."""
        rows = failures(machines.on("podman-seccomp"))
        assert set(rows) == {names.NETWORK}
        assert rows[names.NETWORK]["seen"].startswith("setns")

    @pytest.mark.skipif(ROOT, reason="root needs no user namespace")
    def test_security_module_that_lets_unshare_succeed(self) -> None:
        """A user namespace that was made and can't be used counts as missing."""
        result = machines.on("landlock")
        if "system call 444" in result.stderr:
            pytest.skip("this kernel has no Landlock")
        rows = failures(result)
        assert set(rows) == {names.USER}
        assert rows[names.USER]["seen"].startswith("uid_map: ")

    @pytest.mark.parametrize(
        ("limit", "row"), [("no-net-namespaces", names.NETWORK), ("no-mnt-namespaces", names.MOUNT)]
    )
    def test_limits(self, limit: str, row: str) -> None:
        """A limit of 0 is seen, and the command that raises it given, as root and as an ordinary user."""
        sysctl = f"user.{limit.replace('no-', 'max_').replace('-', '_')}"
        as_root = failures(machines.on("nested-root", limit))
        assert set(as_root) == {names.LIMITS, row}
        as_user = failures(machines.on("nested-root", limit, "nested-user"))
        assert set(as_user) == {row}  # the user's own namespace has limits of its own, the one around it is in the way
        for check in (as_root[row], as_user[row]):
            assert "No space left on device" in check["seen"]
            assert f"sudo sysctl -w {sysctl}=" in check["fix"]

    def test_limit_of_user_namespaces(self) -> None:
        """Where user namespaces are used up, an ordinary user is told so."""
        result = machines.on("nested-root", "nested-user", "no-user-namespaces")
        rows = failures(result)
        assert {names.LIMITS, names.USER} == set(rows)
        assert "sudo sysctl -w user.max_user_namespaces=" in rows[names.USER]["fix"]

    @pytest.mark.parametrize(
        "users", [["nested-root", "read-only-sysctls"], ["nested-root", "read-only-sysctls", "nested-user"]]
    )
    def test_read_only_sysctls(self, users: list[str]) -> None:
        """A read-only /proc/sys is told from a lack of rights."""
        rows = failures(machines.on(*users))
        assert set(rows) == {names.SYSCTLS}
        assert "Read-only file system" in rows[names.SYSCTLS]["seen"]

    def test_masked_sys(self) -> None:
        """A /sys with parts masked is worth a remark and no failure: tests run, with the host's interfaces in it."""
        result = machines.on("nested-root", "masked-sys", "nested-user")
        report = json.loads(result.stdout)
        row = next(check for check in report["checks"] if check["name"] == names.SYS)
        assert (result.returncode, row["status"]) == (0, WARN), report
        assert row["fix"]

    def test_kernel_without_netfilter(self) -> None:
        """The kernel modules that are missing are named."""
        rows = failures(machines.on("no-netfilter"))
        assert set(rows) == {names.LEAF_RULES, names.HUB_RULES, names.QUEUE}
        assert "nf_tables" in rows[names.HUB_RULES]["cause"]
        assert "nfnetlink_queue" in rows[names.QUEUE]["cause"]

    def test_takes_a_long_path(self, tmp_path: Path) -> None:
        """A path too long for a socket's address is no obstacle."""
        deep = tmp_path / ("x" * 100)
        deep.mkdir()
        assert machines.ran(DOCTOR, TMPDIR=str(deep)).returncode == 0
        assert list(deep.iterdir()) == []

    def test_no_place_for_temporary_files(self, tmp_path: Path) -> None:
        """Where something else stands in the run directory's place, another place is proposed."""
        (tmp_path / f"pytest-netns-{os.geteuid()}").mkdir(mode=0o755)
        rows = failures(machines.ran([*DOCTOR, "--json"], TMPDIR=str(tmp_path)))
        assert set(rows) == {names.RUN_DIRECTORY}
        assert rows[names.RUN_DIRECTORY]["fix"].startswith("export TMPDIR=")

    def test_prints_needs_cause_and_fix(self) -> None:
        """The table says of a failed check why it matters, why it failed and what to do; status 1."""
        result = machines.on("nested-root", "no-net-namespaces", command=DOCTOR)
        assert result.returncode == 1
        assert "FAIL  network namespace  unshare(0x40000000): No space left on device" in result.stdout
        assert "needed: a test has ports, addresses and routes of its own" in result.stdout
        assert "fix:" in result.stdout
        assert "sudo sysctl -w user.max_net_namespaces=" in result.stdout
        assert "the same as for: namespace limits" in result.stdout
        assert result.stdout.splitlines()[-1] == "2 checks failed: pytest --netns can't isolate tests here."


class TestLackingExpressions:
    """A kernel that has nftables, but not all that the hub's rules are made of: it is asked for what no kernel has."""

    @pytest.mark.parametrize(
        ("word", "absent", "part"),
        [(b"tproxy\0", b"tprox!\0", "tprox!"), (b"NFQUEUE\0", b"NFQUEU!\0", "queue")],
        ids=["tproxy", "queue"],
    )
    def test_is_named(self, monkeypatch: pytest.MonkeyPatch, word: bytes, absent: bytes, part: str) -> None:
        """The check names what was refused, by which the advice names the kernel's module."""
        load = Bench._load

        def renamed(self: Bench, fd: int, ruleset: bytes) -> None:
            load(self, fd, ruleset.replace(word, absent))

        def test() -> None:
            bench = Bench()
            bench.network()
            try:
                seen = bench.hub_rules()
            except RefusedError as refusal:
                assert part in refusal.subject.split(" + ")
                assert refusal.error.errno == errno.ENOENT
            else:
                assert (part, seen) == ("queue", "loaded, with the native queue expression")

        monkeypatch.setattr(Bench, "_load", renamed)
        in_child(test, isolate)

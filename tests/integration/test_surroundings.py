"""Whole runs on machines of every kind: in containers, in a chroot, inside each other, where something is missing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import machines
import pytest
from runs import ROOT, requires

SUITE = """
import os, socket
import pytest

KEPT = []

@pytest.mark.parametrize("number", range(2))
def test_port(number):
    KEPT.append(socket.create_server(("127.0.0.1", 8080)))
    socket.create_connection(("127.0.0.1", 8080), 5).close()

def test_outside():
    with pytest.raises(OSError, match="No route to host"):
        socket.create_connection(("203.0.113.5", 80), 5)

def test_name():
    with pytest.raises(socket.gaierror):
        socket.getaddrinfo("www.example.com", 80)
    with open("/etc/resolv.conf") as file:
        assert file.read().startswith("nameserver 198.18.")

def test_root():
    assert os.path.exists("/own") is (os.environ.get("CHROOT") is not None)
"""
PASSED = 5

BOXES = """
def test_box(netns_sandbox):
    assert netns_sandbox.run(["echo", "in the box"], capture_output=True, text=True).stdout == "in the box\\n"
"""


@pytest.fixture
def suite(tmp_path: Path, capable: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with a suite that shows whether tests are isolated."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_", "COV_CORE_", "COVERAGE_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    tmp_path.joinpath("test_it.py").write_text(SUITE, encoding="utf-8")
    return tmp_path


def on(suite: Path, *scenarios: str, options: tuple[str, ...] = (), boxes: bool = False) -> None:
    """Run the suite on such a machine, and see to it that all of it passes."""
    if boxes:
        suite.joinpath("test_boxes.py").write_text(BOXES, encoding="utf-8")
    passes(machines.on(*scenarios, command=[*machines.PYTEST, *options, str(suite)]), PASSED + boxes)


def passes(done: subprocess.CompletedProcess[str], count: int = PASSED) -> None:
    """Fail if a run did not pass in full, or had something of ours to complain of."""
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{count} passed" in done.stdout
    assert "NetnsWarning" not in done.stdout


def as_whoever_runs_this(*scenarios: str) -> tuple[str, ...]:
    """Return the scenarios with those around them that let an ordinary user play them."""
    return scenarios if ROOT else ("nested-root", *scenarios, "nested-user")


class TestContainers:
    """Runs in what container engines make."""

    def test_privileged(self, suite: Path) -> None:
        """A container with every right, and namespaces of its own, is as good as a machine; with workers, too."""
        on(suite, *as_whoever_runs_this("container"), options=("-pxdist", "-n2"))

    @pytest.mark.skipif(not ROOT, reason="plays root in a container")
    def test_needed_capabilities(self, suite: Path) -> None:
        """Docker's own capabilities and the two that the doctor asks for will do."""
        on(suite, "container", "docker-grants")

    def test_rootless(self, suite: Path) -> None:
        """Root of a container that an ordinary user has started is root enough."""
        on(suite, "nested-root", "container")

    def test_ordinary_user(self, suite: Path) -> None:
        """So is an ordinary user of such a container."""
        on(suite, "nested-root", "container", "nested-user")


class TestMachines:
    """Runs on machines that lack something which isolation can do without."""

    @pytest.mark.parametrize("scenario", ["no-ipv6", "linked-resolv-conf", "missing-resolv-conf"])
    def test_without(self, suite: Path, scenario: str) -> None:
        """IPv6 may be switched off, and resolv.conf may link to nothing, or be missing."""
        on(suite, *as_whoever_runs_this(scenario))

    def test_read_only_root(self, suite: Path) -> None:
        """Only the directory for temporary files has to be writable, and /dev/net/tun may be missing."""
        on(suite, *as_whoever_runs_this("no-tun", "read-only-root"))

    @pytest.mark.parametrize(
        "scenario",
        ["no-cgroups", pytest.param("cgroup2", marks=pytest.mark.skipif(not ROOT, reason="mounts control groups"))],
    )
    @requires(program="bwrap")
    def test_control_groups(self, suite: Path, scenario: str) -> None:
        """Boxes are made with control groups of version 2 alone, and without any."""
        on(suite, *as_whoever_runs_this(scenario), boxes=True)

    @pytest.mark.parametrize(
        ("scenario", "told"), [("no-netfilter", "lacks nf_tables"), ("read-only-sysctls", "is mounted read-only")]
    )
    def test_is_told_before_the_first_test(self, suite: Path, scenario: str, told: str) -> None:
        """What isolation can't do without ends the run before collection, with cause and remedy."""
        done = machines.on(*as_whoever_runs_this(scenario), command=[*machines.PYTEST, str(suite)])
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert told in done.stderr
        assert "\nfix: " in done.stderr
        assert "passed" not in done.stdout


class TestChroot:
    """Runs in a chroot."""

    @pytest.mark.skipif(not ROOT, reason="chroot is root's")
    def test_root_stays_in_it(self, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Moving between namespaces does not lead out of a chroot, nor do workers get out of it."""
        monkeypatch.setenv("CHROOT", "1")
        on(suite, "chroot", options=("-pxdist", "-n2"))

    @pytest.mark.skipif(not ROOT, reason="chroot is root's")
    def test_root_stays_in_it_where_tests_ask(self, suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither does it where only some tests are isolated, of which the run was told nothing."""
        suite.joinpath("conftest.py").write_text(
            "import pytest\n"
            "def pytest_collection_modifyitems(items):\n"
            "    for item in items: item.add_marker(pytest.mark.netns)\n",
            encoding="utf-8",
        )
        suite.joinpath("test_later.py").write_text(
            "import os, pytest\n@pytest.mark.no_netns\ndef test_it(): assert os.path.exists('/own')\n", encoding="utf-8"
        )
        monkeypatch.setenv("CHROOT", "1")
        passes(machines.on("chroot", command=[*machines.PYTEST[:-1], str(suite)]), PASSED + 1)

    @pytest.mark.skipif(not ROOT, reason="chroot is root's")
    @pytest.mark.skipif(not machines.open_to_strangers(), reason="this Python is not everybody's")
    def test_ordinary_user_is_told(self, suite: Path) -> None:
        """The kernel makes no user namespace in a chroot, and the error names that cause."""
        suite.chmod(0o755)
        done = machines.on("chroot", "stranger", command=[*machines.PYTEST, str(suite)])
        assert done.returncode == pytest.ExitCode.USAGE_ERROR
        assert "chroot" in done.stderr
        assert "\nfix: sudo " in done.stderr


NESTED = """
import subprocess

def test_inner():
    inner = subprocess.run({command}, capture_output=True, text=True)
    assert inner.returncode == 0, inner.stdout + inner.stderr
    assert "{passed} passed" in inner.stdout
"""


def test_nested(suite: Path) -> None:
    """A test that is isolated may run pytest with isolated tests, and these may, too."""
    command, passed = [*machines.PYTEST, str(suite / "test_it.py")], PASSED
    for name in ("test_middle.py", "test_outer.py"):
        suite.joinpath(name).write_text(NESTED.format(command=command, passed=passed), encoding="utf-8")
        command, passed = [*machines.PYTEST, str(suite / name)], 1
    passes(machines.ran(command), passed)

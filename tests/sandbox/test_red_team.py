"""What boxes are attacked with, and what the machine looks like afterwards.

The attacks are in ``attacks``, each file a suite that is run once, in a pytest of its own, with this plugin and with
a home full of secrets. Each is asserted on from outside of the box; here, from outside of that run, too.
"""

from __future__ import annotations

import ast
import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from boxes import members

from pytest_netns import doctor
from pytest_netns.sandbox import cgroups

ATTACKS = Path(__file__).parent / "attacks"
FILES = sorted(path for path in ATTACKS.glob("*.py") if path.name != "conftest.py")
SECRETS = (".ssh/id_rsa", ".aws/credentials", ".netrc", ".git-credentials", ".config/gh/hosts.yml", ".bashrc")


def attacks() -> Iterator[tuple[str, str]]:
    """Yield each attack: its file and its name."""
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield path.name, node.name


class Battle:
    """The machine that is attacked, and how each attack went."""

    def __init__(self, place: Path) -> None:
        """Lay out a home with secrets, and start somebody who has no part in it."""
        self._place = place
        self._home = place / "home"
        for name in SECRETS:
            path = self._home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"CANARY-{name}\n")
        (self._home / "harmless").write_text("nothing\n")
        self.before = self.digest()
        self.bystander = subprocess.Popen(["sleep", "600"])
        self.outside = socket.create_server(("127.0.0.1", 0))
        self.outside.setblocking(False)
        self._outcomes: dict[str, dict[str, list[tuple[str, str]]]] = {}

    def digest(self) -> str:
        """Return a hash of all that is in the home: names, modes and contents."""
        hashed = hashlib.sha256()
        for path in sorted(self._home.rglob("*")):
            content = path.read_bytes() if path.is_file() else b""
            hashed.update(f"{path} {path.lstat().st_mode:o} {content!r}\n".encode())
        return hashed.hexdigest()

    def outcomes(self, file: str) -> dict[str, list[tuple[str, str]]]:
        """Return how the attacks of a file went: by name, for each case, an outcome and what is to be said of it."""
        if file not in self._outcomes:
            self._outcomes[file] = self._fight(file)
        return self._outcomes[file]

    def _fight(self, file: str) -> dict[str, list[tuple[str, str]]]:
        report = self._place / f"{file}.xml"
        command = [sys.executable, "-m", "pytest", "-p", "pytest_netns.plugin", "-p", "no:cacheprovider", "--netns"]
        environment = {
            **os.environ,
            "HOME": str(self._home),
            "OPENAI_API_KEY": "CANARY-key",
            "OUTSIDE_PORT": str(self.outside.getsockname()[1]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join([str(ATTACKS.parent.parent), *sys.path]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
            environment.pop(name, None)
        options = [f"--junitxml={report}", f"--basetemp={self._place / file}", "--tb=short"]
        run = subprocess.run(
            [*command, *options, file],
            cwd=ATTACKS,
            env=environment,
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert report.exists(), run.stdout + run.stderr
        assert "left running" not in run.stdout
        found: dict[str, list[tuple[str, str]]] = {}
        for case in ET.parse(report).iter("testcase"):
            outcome, text = "passed", ""
            for child in case:
                if child.tag in {"failure", "error", "skipped"}:
                    outcome, text = child.tag, f"{child.get('message')}\n{child.text}"
            found.setdefault(case.attrib["name"].partition("[")[0], []).append((outcome, text))
        return found


@pytest.fixture(scope="module")
def battle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Battle]:
    """Return the machine that is attacked; skip where none can be."""
    report = doctor.examine()
    if not report.ok:
        reason = "; ".join(f"{check.name}: {check.seen}" for check in report.failed)
        if "CI" in os.environ:
            pytest.fail(f"this machine cannot isolate tests: {reason}", pytrace=False)
        pytest.skip(reason)
    fought = Battle(tmp_path_factory.mktemp("battle"))
    yield fought
    fought.outside.close()
    fought.bystander.kill()
    fought.bystander.wait()


@pytest.mark.parametrize(("file", "name"), list(attacks()))
def test_attack(battle: Battle, file: str, name: str) -> None:
    """An attack fails, as its own assertions have it."""
    for outcome, text in battle.outcomes(file).get(name, [("error", "it did not run")]):
        if outcome == "skipped":
            pytest.skip(text)
        assert outcome == "passed", text


def test_there_are_enough() -> None:
    """At least forty ways out have been tried."""
    assert len(list(attacks())) >= 40


def test_nothing_is_left(battle: Battle) -> None:
    """After all attacks the secrets lie where they lay, bystanders live, and nothing of the boxes is left."""
    for path in FILES:
        battle.outcomes(path.name)
    assert battle.digest() == battle.before
    assert battle.bystander.poll() is None
    with pytest.raises(BlockingIOError):
        battle.outside.accept()
    assert not members("mark-")
    assert not [pid for pid in members("pytest_netns.sandbox") if str(ATTACKS.parent.parent).encode() in _command(pid)]
    for group in cgroups.find().values():
        left = [name.split("-")[2] for name in os.listdir(group.path) if name.startswith("pytest-netns-")]
        assert all(os.path.exists(f"/proc/{pid}") for pid in left), left


def _command(pid: int) -> bytes:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return b""

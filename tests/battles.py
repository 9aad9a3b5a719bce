"""Runs the tests in ``inside``, each file once, in a pytest of its own, with this plugin and a home full of secrets."""

from __future__ import annotations

import ast
import hashlib
import os
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from unshared import kernel_version

INSIDE = Path(__file__).parent / "sandbox" / "inside"
#: What a kernel before a version can't do for root, or for others, and what the error says.
_LACKING = {
    True: ((5, 12), "its file system cannot show it as another user's"),
    False: ((5, 11), "Overlays of ordinary users take Linux 5.11"),
}
SECRETS = (".ssh/id_rsa", ".aws/credentials", ".netrc", ".git-credentials", ".config/gh/hosts.yml", ".bashrc")


def listed(pattern: str) -> Iterator[tuple[str, str]]:
    """Yield the tests in files of this pattern: each with its file and its name."""
    for path in sorted(INSIDE.glob(pattern)):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
                yield path.name, node.name


class Battle:
    """The machine that boxes are made on, and how each test went."""

    def __init__(self, place: Path) -> None:
        """Lay out a home with secrets, and start somebody who has no part in it."""
        self.name = uuid.uuid4().hex
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
        """Return how the tests of a file went: by name, for each case, an outcome and what is to be said of it."""
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
            "BATTLE": self.name,
            "OUTSIDE_PORT": str(self.outside.getsockname()[1]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTHONPATH": os.pathsep.join([str(INSIDE.parent.parent), *sys.path]),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_CURRENT_TEST"):
            environment.pop(name, None)
        options = [f"--junitxml={report}", f"--basetemp={self._place / file}", "--tb=short"]
        run = subprocess.run(
            [*command, *options, file],
            cwd=INSIDE,
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
            version, error = _LACKING[os.geteuid() == 0]
            if error in text and kernel_version() < version:
                outcome, text = "skipped", f"Linux {'.'.join(map(str, kernel_version()))}: {error}"
            found.setdefault(case.attrib["name"].partition("[")[0], []).append((outcome, text))
        return found

    def close(self) -> None:
        """End who was started to look on."""
        self.outside.close()
        self.bystander.kill()
        self.bystander.wait()

"""The examples are run as a reader would run them: in parallel, all services on their usual ports."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
NAMES = sorted({path.parent.name for path in EXAMPLES.glob("*/test_*.py")})


def pytest_in_parallel(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run pytest with four workers, each test isolated, in a folder, without the plugins that a reader may not have."""
    plugins = ["-p", "pytest_netns.plugin", "-p", "xdist.plugin", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *plugins, "--netns", "-n", "4", "-ra"]
    return subprocess.run(
        [*command, f"--basetemp={folder / 'base'}", *arguments],
        check=False,
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


def python_blocks(path: Path) -> list[str]:
    """Return the blocks of Python in a page of documentation."""
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", NAMES)
def test_example_passes_in_parallel(name: str, tmp_path: Path) -> None:
    """Four workers run the example's tests at the same time and none gets in another's way."""
    run = pytest_in_parallel(tmp_path, EXAMPLES / name)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_readme_tells_the_truth(tmp_path: Path) -> None:
    """The README's first test does what is printed below it."""
    (tmp_path / "test_page.py").write_text(python_blocks(ROOT / "README.md")[0], encoding="utf-8")
    run = pytest_in_parallel(tmp_path)
    assert " 1 failed, 4 passed in " in run.stdout, run.stdout + run.stderr
    assert "\nblocked: dns api.example.com" in run.stdout


@pytest.mark.parametrize("document", ["fixtures.md", "sandbox.md"])
def test_documented_snippets_pass(document: str, tmp_path: Path) -> None:
    """What the reference shows of fixtures and boxes can be copied and works."""
    blocks = python_blocks(ROOT / "docs" / document)
    (tmp_path / "test_snippets.py").write_text("import subprocess\nimport sys\n" + "\n".join(blocks), encoding="utf-8")
    run = pytest_in_parallel(tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f" {len(blocks)} passed in " in run.stdout

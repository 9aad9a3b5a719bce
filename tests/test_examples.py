"""The examples are run as a reader would run them: in parallel, all services on their usual ports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir())


@pytest.mark.parametrize("name", NAMES)
def test_example_passes_in_parallel(name: str, tmp_path: Path) -> None:
    """Four workers run the example's tests at the same time and none gets in another's way."""
    command = [sys.executable, "-m", "pytest", "--netns", "-n", "4", "-p", "no:cacheprovider", "-ra"]
    run = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'base'}", EXAMPLES / name],
        check=False,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout

"""What the tests in this folder are made with; ``battles`` runs them, each file as a suite of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boxes import PRELUDE, PYTHON, Attempt


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a working directory with a file in it."""
    (tmp_path / "file").write_text("before\n")
    return tmp_path


@pytest.fixture
def box(netns: Any, work: Path) -> Iterator[Any]:
    """Return a box as somebody careful would make it."""
    with netns.sandbox(workdir=work, memory="256M", pids=32, disk="32M", timeout=20) as made:
        yield made


@pytest.fixture
def attempt(box: Any) -> Attempt:
    """Return what runs a Python program in the box, and looks whether it got at a secret."""

    def attempting(program: str, box: Any = box, **kwargs: Any) -> Any:
        arguments = {"capture_output": True, "text": True, "errors": "replace", **kwargs}
        done = box.run([PYTHON, "-I", "-c", PRELUDE + program], **arguments)
        assert "CANARY" not in (done.stdout or "") + (done.stderr or "") + done.diff()
        return done

    return attempting


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process of the user's outside of the box."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        assert process.poll() is None
        process.kill()

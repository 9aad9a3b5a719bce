"""What a suite runs in: its source at a fixed version, and an environment with that version installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from suites import Suite

__all__ = ["build_wheel", "prepare"]

_ROOT = Path(__file__).resolve().parents[2]
_CONSTRAINTS = Path(__file__).with_name("constraints")
_SETTINGS = {"PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}


def _pip(environment: Path, *arguments: str | Path) -> str:
    command = [str(environment / "bin" / "python"), "-m", "pip", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | _SETTINGS).stdout


def _make(environment: Path, python: str) -> None:
    subprocess.run([python, "-m", "venv", str(environment)], check=True)
    _pip(environment, "install", "--upgrade", "pip")


def build_wheel(work: Path, python: str) -> Path:
    """Build this tree's wheel."""
    tools = work / "tools"
    if not (tools / "bin" / "pip").exists():
        _make(tools, python)
    for old in work.glob("*.whl"):
        old.unlink()
    _pip(tools, "wheel", "--no-deps", "--wheel-dir", work, _ROOT)
    return next(work.glob("*.whl"))


def prepare(suite: Suite, work: Path, python: str, wheel: Path) -> Path:
    """Make the suite's environment with our wheel in it, and fetch its source, unless they are there already."""
    environment = work / "environments" / suite.name
    wanted = repr((suite.version, suite.extras, suite.requirements, python, _constraints(suite)))
    stamp = environment / "made-of"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(environment, ignore_errors=True)
        _make(environment, python)
        _install(environment, suite)
        _fetch(environment, suite, work)
        stamp.write_text(wanted, encoding="utf-8")
    ours = environment / "ours"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if not ours.exists() or ours.read_text(encoding="utf-8") != digest:
        _pip(environment, "install", *_constraints(suite), wheel)
        _pip(environment, "install", "--no-deps", "--force-reinstall", wheel)
        ours.write_text(digest, encoding="utf-8")
    return environment


def _constraints(suite: Suite) -> tuple[str, ...]:
    known = _CONSTRAINTS / f"{suite.name}.txt"
    return ("--constraint", str(known)) if known.exists() else ()


def _install(environment: Path, suite: Suite) -> None:
    project = f"{suite.name}[{suite.extras}]" if suite.extras else suite.name
    requirements = (f"{project}=={suite.version}", *suite.requirements, "pytest-xdist")
    _pip(environment, "install", *_constraints(suite), *requirements)


def _fetch(environment: Path, suite: Suite, work: Path) -> None:
    """Download the source distribution by means of the registry's own client, and unpack it."""
    target = work / "sources" / suite.name
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=work) as name:
        project = f"{suite.name}=={suite.version}"
        _pip(environment, "download", "--no-deps", "--no-binary", suite.name, "--dest", name, project)
        (archive,) = Path(name).iterdir()
        shutil.unpack_archive(archive, name)
        (folder,) = (path for path in Path(name).iterdir() if path.is_dir())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(folder, target)


def freeze(environment: Path) -> list[str]:
    """Return what is installed, but for ourselves."""
    listed = _pip(environment, "freeze").splitlines()
    return [line for line in listed if not line.startswith("pytest-netns")]

"""What an installed copy holds, and what it costs those who do not use it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import pytest_netns

DISTRIBUTION = metadata.distribution("pytest-netns")


def python(*arguments: str) -> str:
    """Run a fresh interpreter and return what it printed."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", pytest_netns.__all__)
def test_exports_resolve(name: str) -> None:
    """Every name that the package offers can be had, and listed."""
    assert getattr(pytest_netns, name).__name__ == name
    assert name in dir(pytest_netns)


def test_unknown_names_are_attribute_errors() -> None:
    """A name that the package does not offer is refused as any module would refuse it."""
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = pytest_netns.nonsense


def test_import_is_light() -> None:
    """Importing the package and the plugin loads neither pyroute2 nor the handles."""
    loaded = python("-c", "import sys, pytest_netns, pytest_netns.plugin; print(*sys.modules, sep='\\n')").splitlines()
    assert "pyroute2" not in loaded
    assert not {"pytest_netns.namespace", "pytest_netns.gateway.client"} & set(loaded)


def test_handles_need_no_pyroute2() -> None:
    """A test process that uses every exported type still does without pyroute2, which is slow to import."""
    loaded = python("-c", "import sys; from pytest_netns import *; print(*sys.modules, sep='\\n')").splitlines()
    assert "pytest_netns.namespace" in loaded
    assert "pyroute2" not in loaded


def test_entry_points() -> None:
    """Pytest finds the plugin, and the shell the command, through the distribution's metadata."""
    entry_points = {(point.group, point.name): point.value for point in DISTRIBUTION.entry_points}
    assert entry_points == {
        ("pytest11", "netns"): "pytest_netns.plugin",
        ("console_scripts", "pytest-netns"): "pytest_netns.__main__:main",
    }


def test_typed() -> None:
    """Type checkers read the package's own annotations."""
    assert Path(pytest_netns.__file__).with_name("py.typed").exists()


def test_licence_travels_along() -> None:
    """The licence's text is part of what is installed."""
    if (DISTRIBUTION.read_text("direct_url.json") or "").find('"editable": true') != -1:
        pytest.skip("an editable install takes its files from the work tree")
    assert any(file.name == "LICENSE" for file in DISTRIBUTION.files or ())

"""Imports point down only, so that each layer can be read, and used, without those above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import pytest

LAYERS = (
    {"addressing", "causes", "errors", "hostnames", "pcapng", "policy", "rules", "values"},
    {"kernel", "subprocesses"},
    {"gateway"},
    {"capture", "checkup", "doctor", "egress", "namespace", "sandbox", "service", "sysctl", "visit"},
    {
        "aftermath",
        "closing",
        "crash",
        "detours",
        "early",
        "fakes",
        "hints",
        "hold",
        "isolation",
        "keeping",
        "leases",
        "markers",
        "options",
        "outputs",
        "page",
        "pools",
        "recovery",
        "report",
        "scene",
        "scoping",
        "session",
        "settings",
        "stay",
        "strict",
        "tally",
        "telling",
        "traits",
        "verbose",
        "warning",
    },
    {"__main__", "cli", "fixtures", "plugin"},
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}
PURE = LAYERS[0]
NEAR_PYTEST = LAYERS[4] | LAYERS[5]
NEAR_KERNEL = LAYERS[1] | LAYERS[2] | {"checkup"}

_SPEC = util.find_spec("pytest_netns")
assert _SPEC is not None
assert _SPEC.origin is not None
ROOT = Path(_SPEC.origin).parent
FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def part_of(path: Path) -> str:
    """Name the part that a file belongs to: its folder below the package, or the module itself."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Yield the dotted name of everything that a file imports, functions and type checking included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import hides its layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestImports:
    """What one file of the package may import."""

    def test_points_down(self, path: Path) -> None:
        """A file imports from its own layer or from one below."""
        for name in imported(path):
            package, part, *_ = [*name.split("."), ""]
            if package == "pytest_netns":
                assert part in HEIGHT, f"{name}: a part's own module is imported, not the package's shop window"
                assert HEIGHT[part] <= HEIGHT[part_of(path)], f"{path} imports {name}, which lies above it"

    def test_stays_in_its_field(self, path: Path) -> None:
        """The pure layer does no I/O, pyroute2 stays below the handles, and pytest above them."""
        tops = {name.split(".")[0] for name in imported(path)}
        part = part_of(path)
        if part in PURE:
            assert not tops & {"os", "pyroute2", "pytest", "socket", "subprocess"}
        if part not in NEAR_KERNEL:
            assert "pyroute2" not in tops
        if part not in NEAR_PYTEST:
            assert not tops & {"_pytest", "pytest"}

"""What importing the package does, and what it declares that it needs."""

from __future__ import annotations

import ast
import configparser
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import pytest_netns

PACKAGE = Path(pytest_netns.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
TOX = Path(__file__).parents[1] / "tox.ini"

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
GUARDS = ("TYPE_CHECKING", "__name__ == '__main__'")

#: What reaches outside of the process when it is called; a value at the top of a module is made without any of these.
REACHING = {
    *("Path", "fcntl", "input", "mmap", "open", "os", "print", "resource", "select", "shutil", "signal", "socket"),
    *("subprocess", "sys", "syscalls", "tempfile", "threading", "time", "warnings"),
}
CONSTANTS = {"os.sysconf", "socket.CMSG_SPACE"}  # constants of the machine that the standard library has as functions

#: Imports each module, and prints what the interpreter reports of it that is none of the import system's own business.
WATCH = """
import importlib, sys
package, *modules = sys.argv[1:]
HARMLESS = {"import", "compile", "exec", "ctypes.dlopen", "ctypes.dlsym", "object.__getattr__", "object.__setattr__"}
HARMLESS |= {"builtins.id", "sys._getframe"}

def watch(event, arguments):
    if event not in HARMLESS:
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
            if frame.f_code.co_filename.startswith(package):
                print(frame.f_globals["__name__"], event, arguments)
                break
            frame = frame.f_back

sys.addaudithook(watch)
for module in modules:
    importlib.import_module(module)
"""


def top_level_calls(node: ast.AST) -> Iterator[str]:
    """Yield what is called as the module is imported, by name: functions' bodies run later."""
    if isinstance(node, ast.Call):
        yield ast.unparse(node.func)
    for child in ast.iter_child_nodes(node):
        if isinstance(node, (*FUNCTIONS, ast.Lambda)) and child not in decorators(node):
            continue
        yield from top_level_calls(child)


def decorators(node: ast.AST) -> list[ast.expr]:
    """Return what a function is decorated with, which is evaluated where it is defined."""
    return list(getattr(node, "decorator_list", []))


def names() -> list[str]:
    """Return the modules as they are imported."""
    dotted = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in MODULES]
    return ["pytest_netns" if name == "__init__" else f"pytest_netns.{name}" for name in dotted]


@pytest.mark.parametrize("module", MODULES)
def test_modules_define_and_do_nothing(module: str) -> None:
    """A module consists of imports, definitions and values that are made without asking the machine."""
    body = ast.parse((PACKAGE / module).read_text(encoding="utf-8")).body
    for statement in body:
        documents = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        guarded = isinstance(statement, ast.If) and ast.unparse(statement.test) in GUARDS
        assert documents or guarded or isinstance(statement, DEFINITIONS), f"line {statement.lineno}"
        if not guarded:
            reaching = {name for name in top_level_calls(statement) if name.partition(".")[0] in REACHING}
            assert reaching <= CONSTANTS, f"line {statement.lineno}"


def test_import_reaches_for_nothing() -> None:
    """No module opens a file, makes a socket or starts a program as it is imported."""
    command = [sys.executable, "-c", WATCH, str(PACKAGE), *names()]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == ""


def test_watching_sees(tmp_path: Path) -> None:
    """What a module would do when imported is seen, by a function of the module or without."""
    tmp_path.joinpath("sly.py").write_text(
        "def look():\n    return open('/dev/null')\nlook().close()\n", encoding="utf-8"
    )
    command = [sys.executable, "-c", WATCH, str(tmp_path), "sly"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.startswith("sly open ('/dev/null'")


def bounds() -> dict[str, Version]:
    """Return the lowest version of each dependency that is allowed."""
    found = {}
    for line in metadata.requires("pytest-netns") or ():
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == ">=", line
        found[requirement.name] = Version(specifier.version)
    return found


@pytest.mark.skipif(not TOX.exists(), reason="tox.ini is not part of this copy")
def test_lowest_versions_are_those_that_are_tested() -> None:
    """The run with the oldest dependencies has the very versions that the bounds name, extras included."""
    parser = configparser.ConfigParser()
    parser.read(TOX, encoding="utf-8")
    pins = [Requirement(line) for line in parser["testenv:lowest"]["deps"].split()]
    assert {pin.name: Version(str(pin.specifier).removeprefix("==")) for pin in pins} == bounds()


@pytest.mark.skipif(os.environ.get("TOX_ENV_NAME") != "lowest", reason="for the run with the oldest dependencies")
def test_lowest_versions_are_installed() -> None:
    """That run has installed them."""
    assert {name: Version(metadata.version(name)) for name in bounds()} == bounds()

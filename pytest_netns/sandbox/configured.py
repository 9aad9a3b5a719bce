"""Options of boxes as they stand in a configuration file, each a text. Pure: nothing here looks at the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pytest_netns.errors import SandboxError
from pytest_netns.sandbox.options import LIMITS, PATHS, STRICT, Limits, hostname, paths, seconds, user

__all__ = ["read_options"]


def read_options(given: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return options as ``make`` takes them.

    Raises:
        SandboxError: there is no such option, or its value means nothing.
    """
    options: dict[str, Any] = {}
    for name, text in given:
        read = _READERS.get(name)
        if read is None:
            raise SandboxError(f"a box has no option {name!r}; known are {', '.join(sorted(_READERS))}")
        options[name] = read(text, name)
    return options


def _yes_or_no(text: str, option: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise SandboxError(f"{option}={text!r} is neither; write true or false")
    return text.lower() == "true"


def _word(text: str, option: str) -> str:
    del option
    return text


def _strictness(text: str, option: str) -> str:
    del option
    Limits.of({}, text)
    return text


def _limit(text: str, option: str) -> str | None:
    """Leave a limit as it is, which ``make`` reads; ``none`` takes it away, where it may be."""
    value = None if text.lower() == "none" and option != "disk" else text
    Limits.of({option: value}, STRICT)
    return value


def _listed(text: str, option: str) -> list[str]:
    """Leave paths as they are, which may begin in the directory that there is by then."""
    listed = text.split()
    paths(listed, option)
    return listed


_READERS: Final[Mapping[str, Callable[[str, str], Any]]] = {
    **dict.fromkeys(PATHS, _listed),
    **dict.fromkeys(LIMITS, _limit),
    **dict.fromkeys(("boot_offset", "monotonic_offset"), seconds),
    "hostname": hostname,
    "limits": _strictness,
    "overlay": _yes_or_no,
    "uid": user,
    "workdir": _word,
}

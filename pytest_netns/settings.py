"""What the user wants, as frozen values: command line, configuration file and markers made one.

Pure: it knows nothing of pytest. A wrong value raises ``SettingsError``, whose text names the value,
the place it stands in and the forms that are right.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from pytest_netns.errors import NetnsError

__all__ = ["ItemSettings", "Mark", "Mode", "Scope", "Settings", "SettingsError"]

DEFAULT_PORT: Final = 8080
MARKER: Final = "netns"
OPT_OUT: Final = "no_netns"
ISOLATING_FIXTURES: Final = frozenset({"netns", "netns_service"})

_MAX_PORT: Final = 65_535


class SettingsError(NetnsError, ValueError):
    """A setting has a value that means nothing; the text names value, place and the right forms."""


class Mode(enum.Enum):
    """Which tests run in a leaf."""

    ALL = "all"
    MARKED = "marked"
    OFF = "off"


class Scope(enum.IntEnum):
    """How long a leaf lives; the broader, the greater."""

    FUNCTION = 1
    CLASS = 2
    MODULE = 3
    PACKAGE = 4
    SESSION = 5

    @property
    def word(self) -> str:
        """The scope as pytest spells it."""
        return self.name.lower()


SCOPES: Final = tuple(scope.word for scope in Scope)
MODES: Final = tuple(mode.value for mode in Mode)
FORMS: Final = {
    "netns": f"one of {', '.join(MODES)}",
    "netns_scope": f"one of {', '.join(SCOPES)}",
    "netns_port": f"a whole number from 1 to {_MAX_PORT}",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """One ``netns`` or ``no_netns`` marker, as it was written, and the node that it was put on."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    place: str


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for the run as a whole.

    Attributes:
        mode: which tests are isolated.
        said: whether the mode was chosen, be it on the command line or in the configuration file.
        scope: how long a leaf lives.
        port: the service port.
        skip_unsupported: whether tests are skipped where isolation cannot work, instead of stopping.
    """

    mode: Mode = Mode.MARKED
    said: bool = False
    scope: Scope = Scope.FUNCTION
    port: int = DEFAULT_PORT
    skip_unsupported: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any], ini: Mapping[str, Any]) -> Settings:
        """Make one of the command line and the configuration file, where the command line wins.

        Args:
            options: ``mode``, ``scope``, ``port`` and ``unsupported``; None where not given.
            ini: ``netns``, ``netns_scope`` and ``netns_port``; None where not given.

        Raises:
            SettingsError: a value means nothing.
        """
        mode = _first(_mode, ("command line", options.get("mode")), ("ini option netns", ini.get("netns")))
        scope = _first(
            _scope, ("--netns-scope", options.get("scope")), ("ini option netns_scope", ini.get("netns_scope"))
        )
        port = _first(_port, ("--netns-port", options.get("port")), ("ini option netns_port", ini.get("netns_port")))
        return cls(
            mode=mode or Mode.MARKED,
            said=mode is not None,
            scope=scope or Scope.FUNCTION,
            port=port or DEFAULT_PORT,
            skip_unsupported=options.get("unsupported") == "skip",
        )

    def for_item(self, marks: Iterable[Mark], fixtures: Iterable[str] = ()) -> ItemSettings:
        """Return what holds for one test.

        Args:
            marks: its ``netns`` and ``no_netns`` markers, closest first.
            fixtures: the names of the fixtures that it uses, directly or not.

        Raises:
            SettingsError: a marker has an argument that means nothing.
        """
        keywords: dict[str, Any] = {}
        closest: Mark | None = None
        for mark in marks:
            values = _keywords(mark)
            if closest is None or (closest.place == mark.place and mark.name == OPT_OUT):
                closest = mark
            keywords = values | keywords
        opted_out = closest is not None and closest.name == OPT_OUT
        asks = closest is not None or not ISOLATING_FIXTURES.isdisjoint(fixtures)
        wanted = self.mode is Mode.ALL or (self.mode is Mode.MARKED and asks)
        return ItemSettings(
            isolated=wanted and not opted_out,
            scope=keywords.get("scope", self.scope),
            port=keywords.get("port", self.port),
            opted_out_by=closest.place if closest is not None and opted_out else None,
        )


@dataclass(frozen=True, slots=True)
class ItemSettings:
    """What holds for one test.

    Attributes:
        isolated: whether it runs in a leaf.
        scope: how long that leaf lives.
        port: the test's service port.
        opted_out_by: the node that carries the ``no_netns`` marker which decided, or None.
    """

    isolated: bool
    scope: Scope
    port: int
    opted_out_by: str | None = field(default=None)


_T = TypeVar("_T")


def _first(parse: Callable[[object, str], _T], *given: tuple[str, object]) -> _T | None:
    """Check every value that was given, each with its place, and return the first."""
    values = [parse(value, place) for place, value in given if value is not None]
    return values[0] if values else None


def _mode(value: object, place: str) -> Mode:
    if not isinstance(value, str) or value not in MODES:
        raise SettingsError(f"{place}: {value!r} is no mode; write {FORMS['netns']}")
    return Mode(value)


def _scope(value: object, place: str) -> Scope:
    if not isinstance(value, str) or value not in SCOPES:
        raise SettingsError(f"{place}: {value!r} is no scope; write {FORMS['netns_scope']}")
    return Scope[value.upper()]


def _port(value: object, place: str) -> int:
    number = -1
    if isinstance(value, str) and value.isascii() and value.isdigit():
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if not 1 <= number <= _MAX_PORT:
        raise SettingsError(f"{place}: {value!r} is no port; write {FORMS['netns_port']}")
    return number


_MARKER_KEYWORDS: Final = {"port": _port, "scope": _scope}


def _keywords(mark: Mark) -> dict[str, Any]:
    """Check one marker and return its keywords, in our own types."""
    place = f"marker {mark.name} on {mark.place or 'the session'}"
    if mark.name == OPT_OUT:
        if mark.args or mark.kwargs:
            given = _listed([*map(repr, mark.args), *mark.kwargs])
            raise SettingsError(f"{place}: unexpected {given}; write @pytest.mark.{OPT_OUT}, without arguments")
        return {}
    if mark.args:
        right = ", ".join(f"{name}=..." for name in _MARKER_KEYWORDS)
        given = _listed(map(repr, mark.args))
        raise SettingsError(f"{place}: unexpected positional {given}; write @pytest.mark.{MARKER}({right})")
    values = {}
    for name, value in mark.kwargs.items():
        if name not in _MARKER_KEYWORDS:
            raise SettingsError(f"{place}: unknown keyword {name!r}; known are {_listed(_MARKER_KEYWORDS)}")
        values[name] = _MARKER_KEYWORDS[name](value, f"{place}, {name}")
    return values


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words)

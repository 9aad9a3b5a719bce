"""How each setting is written: what takes a value as it was given, and its place, and makes it ours.

Pure: it knows nothing of pytest. A wrong value raises ``SettingsError``, whose text names the value,
the place it stands in and the forms that are right.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from pytest_netns.errors import NetnsError

__all__ = ["FORMS", "EgressMode", "Keep", "Mode", "Scope", "SettingsError"]

ANY_PORT: Final = "any"
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


class EgressMode(enum.Enum):
    """What becomes of an attempt to reach something that no rule allows."""

    BLOCK = "block"
    """It fails."""

    RECORD = "record"
    """It is let through, and the rule that it would have needed is told at the end of the run."""

    FAIL = "fail"
    """It fails, and so does the test, even one that swallows the error."""


class Keep(enum.Enum):
    """Of which tests something is kept; named as pytest-playwright names it."""

    OFF = "off"
    ON = "on"
    ON_FAILURE = "retain-on-failure"


SCOPES: Final = tuple(scope.word for scope in Scope)
MODES: Final = tuple(mode.value for mode in Mode)
KEEPS: Final = tuple(keep.value for keep in Keep)
EGRESS_MODES: Final = tuple(mode.value for mode in EgressMode)
FORMS: Final = {
    "netns": f"one of {', '.join(MODES)}",
    "netns_scope": f"one of {', '.join(SCOPES)}",
    "netns_port": f"a whole number from 1 to {_MAX_PORT}",
    "netns_allow": 'a list of rules, ["api.example.com:443", "*.example.org"] for example',
    "netns_egress": f"one of {', '.join(EGRESS_MODES)}",
    "netns_sandbox": 'a list of options, ["memory = 512M", "pids = 64"] for example',
}


def mode(value: object, place: str) -> Mode:
    """Check which tests are isolated."""
    if not isinstance(value, str) or value not in MODES:
        raise SettingsError(f"{place}: {value!r} is no mode; write {FORMS['netns']}")
    return Mode(value)


def scope(value: object, place: str) -> Scope:
    """Check how long a leaf lives."""
    if not isinstance(value, str) or value not in SCOPES:
        raise SettingsError(f"{place}: {value!r} is no scope; write {FORMS['netns_scope']}")
    return Scope[value.upper()]


def port(value: object, place: str) -> int:
    """Check a port, be it a number or the text of one."""
    number = -1
    if isinstance(value, str) and value.isascii() and value.isdigit():
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    if not 1 <= number <= _MAX_PORT:
        raise SettingsError(f"{place}: {value!r} is no port; write {FORMS['netns_port']}")
    return number


def egress(value: object, place: str) -> EgressMode:
    """Check what becomes of what no rule allows."""
    if not isinstance(value, str) or value not in EGRESS_MODES:
        raise SettingsError(f"{place}: {value!r} is no egress mode; write {FORMS['netns_egress']}")
    return EgressMode(value)


def publish(value: object, place: str) -> int | None:
    """Check the port at which browsers find leaves: None where it was not asked for, ANY_PORT for any."""
    if value is None or value == ANY_PORT:
        return None if value is None else 0
    try:
        return port(value, place)
    except SettingsError as error:
        hint = f"{place}=PORT, or {place} behind everything that is not an option"
        raise SettingsError(f"{str(error).partition(';')[0]}; write {hint}") from None


def flag(value: object, place: str) -> bool:
    """Check a choice between yes and no."""
    if not isinstance(value, bool):
        raise SettingsError(f"{place}: {value!r} is neither; write True or False")
    return value


def rules(value: object, place: str) -> tuple[str, ...]:
    """Check egress rules, one or a list of them, and return each in its canonical form, once."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise SettingsError(f"{place}: {value!r} is no list; write {FORMS['netns_allow']}")
    if not texts:
        return ()
    from pytest_netns.rules import EgressRule, RuleError  # noqa: PLC0415 - not needed where there are none

    try:
        return tuple(dict.fromkeys(str(EgressRule.parse(text)) for text in texts))
    except RuleError as error:
        raise SettingsError(f"{place}: {error}") from None


def rules_in_file(value: object, place: str) -> tuple[str, ...]:
    """Check the egress rules of a configuration file, where a line may be empty, or a comment."""
    if not isinstance(value, (list, tuple)):
        return rules(value, place)
    return rules([line for line in value if not _says_nothing(line)], place)


def _says_nothing(line: object) -> bool:
    return isinstance(line, str) and (not line.strip() or line.lstrip().startswith("#"))


def assignments(value: object, place: str) -> tuple[tuple[str, str], ...]:
    """Check a list of ``name = value``, in which a line may be empty, or a comment."""
    if not isinstance(value, (list, tuple)):
        raise SettingsError(f"{place}: {value!r} is no list; write {FORMS['netns_sandbox']}")
    found = {}
    for line in value:
        if _says_nothing(line):
            continue
        name, equals, said = line.partition("=") if isinstance(line, str) else ("", "", "")
        if not equals or not name.strip() or not said.strip():
            raise SettingsError(f"{place}: {line!r} sets nothing; write {FORMS['netns_sandbox']}")
        found[name.strip()] = said.strip()
    return tuple(found.items())


def listed(words: Iterable[str]) -> str:
    """Return words as a sentence lists them."""
    return ", ".join(words)

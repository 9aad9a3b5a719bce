"""What the user wants, as frozen values: command line, configuration file and markers made one.

Pure: it knows nothing of pytest. A wrong value raises ``SettingsError``, whose text names the value,
the place it stands in and the forms that are right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pytest_netns import values
from pytest_netns.errors import SandboxError
from pytest_netns.values import (
    ANY_PORT,
    EGRESS_MODES,
    FORMS,
    KEEPS,
    SCOPES,
    EgressMode,
    Keep,
    Mode,
    Scope,
    SettingsError,
    listed,
)

__all__ = [
    "ANY_PORT",
    "EGRESS_MODES",
    "FORMS",
    "KEEPS",
    "SCOPES",
    "EgressMode",
    "ItemSettings",
    "Keep",
    "Mark",
    "Mode",
    "Scope",
    "Settings",
    "SettingsError",
]

DEFAULT_PORT: Final = 8080
DEFAULT_OUTPUT: Final = "test-results"
MARKER: Final = "netns"
OPT_OUT: Final = "no_netns"
ISOLATING_FIXTURES: Final = frozenset({"netns", "netns_egress", "netns_factory", "netns_sandbox", "netns_service"})


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
        allow: the egress rules for every test, each in its canonical form.
        egress: what becomes of an attempt to reach something that no rule allows.
        log: the file that every attempt is written to, as it was given; None if none was.
        hold: whether a failed test waits in its leaf for somebody to look inside.
        publish: the host's port at which browsers find all leaves, 0 for any; None if they shall not.
        sandbox: what the boxes of ``netns_sandbox`` are like, each option with its value.
        pcap: of which tests the packets are kept.
        output: the directory that they are written to, as it was given.
        tls_keys: whether the keys of TLS connections are kept with them.
        report: the file that a report in HTML is written to, as it was given; None if none is.
    """

    mode: Mode = Mode.MARKED
    said: bool = False
    scope: Scope = Scope.FUNCTION
    port: int = DEFAULT_PORT
    skip_unsupported: bool = False
    allow: tuple[str, ...] = ()
    egress: EgressMode = EgressMode.BLOCK
    log: str | None = None
    hold: bool = False
    publish: int | None = None
    sandbox: tuple[tuple[str, str], ...] = ()
    pcap: Keep = Keep.OFF
    output: str = DEFAULT_OUTPUT
    tls_keys: bool = False
    report: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any], ini: Mapping[str, Any]) -> Settings:
        """Make one of the command line and the configuration file, where the command line wins, and rules add up.

        Args:
            options: ``mode``, ``scope``, ``port``, ``unsupported``, ``allow``, ``egress``, ``egress_log``, ``hold``,
                ``publish``, ``pcap``, ``output``, ``tls_keys`` and ``report``; None where not given.
            ini: ``netns``, ``netns_scope``, ``netns_port``, ``netns_allow``, ``netns_egress`` and ``netns_sandbox``;
                None where not given.

        Raises:
            SettingsError: a value means nothing.
        """
        mode = _first(values.mode, ("command line", options.get("mode")), ("ini option netns", ini.get("netns")))
        allow = (
            *values.rules_in_file(ini.get("netns_allow") or (), "ini option netns_allow"),
            *values.rules(options.get("allow") or (), "--netns-allow"),
        )
        return cls(
            mode=mode or Mode.MARKED,
            said=mode is not None,
            scope=_first(values.scope, *_given("scope", options, ini)) or Scope.FUNCTION,
            port=_first(values.port, *_given("port", options, ini)) or DEFAULT_PORT,
            skip_unsupported=options.get("unsupported") == "skip",
            allow=_once(allow),
            egress=_first(values.egress, *_given("egress", options, ini)) or EgressMode.BLOCK,
            log=options.get("egress_log"),
            hold=options.get("hold") == "failed",
            publish=values.publish(options.get("publish"), "--netns-publish"),
            sandbox=_boxes(ini.get("netns_sandbox") or (), "ini option netns_sandbox"),
            pcap=Keep(options.get("pcap") or Keep.OFF.value),
            output=options.get("output") or DEFAULT_OUTPUT,
            tls_keys=bool(options.get("tls_keys")),
            report=options.get("report"),
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
        allow: tuple[str, ...] = ()
        closest: Mark | None = None
        for mark in marks:
            found = _keywords(mark)
            if closest is None or (closest.place == mark.place and mark.name == OPT_OUT):
                closest = mark
            allow = (*found.pop("allow", ()), *allow)
            keywords = found | keywords
        opted_out = closest is not None and closest.name == OPT_OUT
        asks = closest is not None or not ISOLATING_FIXTURES.isdisjoint(fixtures)
        wanted = self.mode is Mode.ALL or (self.mode is Mode.MARKED and asks)
        return ItemSettings(
            isolated=wanted and not opted_out,
            scope=keywords.get("scope", self.scope),
            port=keywords.get("port", self.port),
            opted_out_by=closest.place if closest is not None and opted_out else None,
            allow=_once((*self.allow, *allow)),
            sni=keywords.get("sni", True),
        )


@dataclass(frozen=True, slots=True)
class ItemSettings:
    """What holds for one test.

    Attributes:
        isolated: whether it runs in a leaf.
        scope: how long that leaf lives.
        port: the test's service port.
        opted_out_by: the node that carries the ``no_netns`` marker which decided, or None.
        allow: its egress rules, the run's and those of broader markers first.
        sni: whether TLS clients that were let through by name have to ask the server for that name.
    """

    isolated: bool
    scope: Scope
    port: int
    opted_out_by: str | None = None
    allow: tuple[str, ...] = ()
    sni: bool = True


_T = TypeVar("_T")


def _first(parse: Callable[[object, str], _T], *given: tuple[str, object]) -> _T | None:
    """Check every value that was given, each with its place, and return the first."""
    found = [parse(value, place) for place, value in given if value is not None]
    return found[0] if found else None


def _given(name: str, options: Mapping[str, Any], ini: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return what was said of a setting, with each place, the one that wins first."""
    return [(f"--netns-{name}", options.get(name)), (f"ini option netns_{name}", ini.get(f"netns_{name}"))]


def _boxes(value: object, place: str) -> tuple[tuple[str, str], ...]:
    """Check what the boxes of ``netns_sandbox`` are like."""
    given = values.assignments(value, place)
    if given:
        from pytest_netns.sandbox.configured import read_options  # noqa: PLC0415 - not needed where nothing is said

        try:
            read_options(given)
        except SandboxError as error:
            raise SettingsError(f"{place}: {error}") from None
    return given


def _once(rules: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(rules))


_MARKER_KEYWORDS: Final[dict[str, Callable[[object, str], Any]]] = {
    "port": values.port,
    "scope": values.scope,
    "allow": values.rules,
    "sni": values.flag,
}


def _keywords(mark: Mark) -> dict[str, Any]:
    """Check one marker and return its keywords, in our own types."""
    place = f"marker {mark.name} on {mark.place or 'the session'}"
    if mark.name == OPT_OUT:
        if mark.args or mark.kwargs:
            given = listed([*map(repr, mark.args), *mark.kwargs])
            raise SettingsError(f"{place}: unexpected {given}; write @pytest.mark.{OPT_OUT}, without arguments")
        return {}
    if mark.args:
        right = ", ".join(f"{name}=..." for name in _MARKER_KEYWORDS)
        given = listed(map(repr, mark.args))
        raise SettingsError(f"{place}: unexpected positional {given}; write @pytest.mark.{MARKER}({right})")
    found = {}
    for name, value in mark.kwargs.items():
        if name not in _MARKER_KEYWORDS:
            raise SettingsError(f"{place}: unknown keyword {name!r}; known are {listed(_MARKER_KEYWORDS)}")
        found[name] = _MARKER_KEYWORDS[name](value, f"{place}, {name}")
    return found

"""Settings: what is said on the command line, in the configuration file and by markers, made one."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_netns.sandbox.configured import read_options
from pytest_netns.settings import EgressMode, ItemSettings, Mark, Mode, Scope, Settings, SettingsError


def mark(place: str = "test_a.py::test", /, *args: Any, name: str = "netns", **kwargs: Any) -> Mark:
    """Make a marker."""
    return Mark(name, args, kwargs, place)


def opt_out(place: str = "test_a.py::test") -> Mark:
    """Make a ``no_netns`` marker."""
    return mark(place, name="no_netns")


@pytest.mark.parametrize(
    ("options", "ini", "expected"),
    [
        ({}, {}, Settings(Mode.MARKED, False, Scope.FUNCTION, 8080, False)),
        ({"mode": "all"}, {}, Settings(Mode.ALL, said=True)),
        ({}, {"netns": "marked"}, Settings(Mode.MARKED, said=True)),
        ({"mode": "off"}, {"netns": "all"}, Settings(Mode.OFF, said=True)),
        ({"mode": None}, {"netns": "all"}, Settings(Mode.ALL, said=True)),
        ({"scope": "module"}, {"netns_scope": "session"}, Settings(scope=Scope.MODULE)),
        ({}, {"netns_scope": "package"}, Settings(scope=Scope.PACKAGE)),
        ({"port": "9000"}, {"netns_port": 9090}, Settings(port=9000)),
        ({}, {"netns_port": 1}, Settings(port=1)),
        ({}, {"netns_port": 65_535}, Settings(port=65_535)),
        ({"unsupported": "skip"}, {}, Settings(skip_unsupported=True)),
        ({"egress": "fail"}, {"netns_egress": "record"}, Settings(egress=EgressMode.FAIL)),
        ({}, {"netns_egress": "record"}, Settings(egress=EgressMode.RECORD)),
        ({"egress_log": "a.jsonl"}, {}, Settings(log="a.jsonl")),
    ],
)
def test_command_line_beats_configuration_file(
    options: dict[str, Any], ini: dict[str, Any], expected: Settings
) -> None:
    """What is given on the command line wins, what is given nowhere has its default."""
    assert Settings.of(options, ini) == expected


@pytest.mark.parametrize(
    ("options", "ini", "expected"),
    [
        (["a.example:443"], None, ("a.example:443",)),
        (None, ["a.example:443"], ("a.example:443",)),
        (["b.example", "a.example"], ["c.example"], ("c.example", "b.example", "a.example")),
        (["A.example.:443", "a.example:443"], ["a.example:443/tcp"], ("a.example:443",)),
        (None, ["", "# the stock exchange", "  # and more", " a.example:443 "], ("a.example:443",)),
        ([], [], ()),
    ],
)
def test_rules_add_up(options: list[str] | None, ini: list[str] | None, expected: tuple[str, ...]) -> None:
    """Rules of the file and of the command line hold together, each once, in its canonical form."""
    assert Settings.of({"allow": options}, {"netns_allow": ini}).allow == expected


@pytest.mark.parametrize(
    ("options", "ini", "words"),
    [
        ({}, {"netns": "sometimes"}, ("ini option netns", "'sometimes'", "all, marked, off")),
        ({}, {"netns": True}, ("ini option netns", "True", "all, marked, off")),
        ({"mode": "all"}, {"netns": "sometimes"}, ("ini option netns", "'sometimes'")),
        ({}, {"netns_scope": "file"}, ("ini option netns_scope", "'file'", "function, class, module")),
        ({"scope": "Module"}, {}, ("--netns-scope", "'Module'")),
        ({"port": "0"}, {}, ("--netns-port", "'0'", "1 to 65535")),
        ({"port": "65536"}, {}, ("--netns-port", "'65536'")),
        ({"port": "-1"}, {}, ("--netns-port", "'-1'")),
        ({"port": "http"}, {}, ("--netns-port", "'http'")),
        ({"port": "²"}, {}, ("--netns-port", "'²'")),
        ({}, {"netns_port": True}, ("ini option netns_port", "True")),
        ({}, {"netns_port": 8080.0}, ("ini option netns_port", "8080.0")),
        ({"egress": "warn"}, {}, ("--netns-egress", "'warn'", "block, record, fail")),
        ({}, {"netns_egress": True}, ("ini option netns_egress", "True", "block, record, fail")),
        ({"allow": ["a.example:https"]}, {}, ("--netns-allow: 'a.example:https'", "write a.example:443")),
        ({"allow": [""]}, {}, ("--netns-allow: ''", "no egress rule")),
        ({"allow": ["# a comment"]}, {}, ("--netns-allow: '# a comment'", "no egress rule")),
        ({}, {"netns_allow": ["https://a.example/"]}, ("ini option netns_allow: 'https://a", "write a.example:443")),
        ({}, {"netns_allow": [443]}, ("ini option netns_allow: 443", "int")),
        ({}, {"netns_sandbox": ["bogus"]}, ("ini option netns_sandbox: 'bogus' sets nothing", "memory = 512M")),
        ({}, {"netns_sandbox": ["colour = red"]}, ("ini option netns_sandbox: a box has no option 'colour'", "memory")),
        ({}, {"netns_sandbox": ["overlay=maybe"]}, ("netns_sandbox: overlay='maybe' is neither", "true or false")),
        ({}, {"netns_sandbox": ["memory=lots"]}, ("ini option netns_sandbox: memory='lots' is no size",)),
        ({}, {"netns_sandbox": ["disk=none"]}, ("ini option netns_sandbox: disk='none' is no size",)),
        ({}, {"netns_sandbox": ["limits=lax"]}, ("ini option netns_sandbox: limits='lax' is neither", "'strict'")),
        ({}, {"netns_sandbox": ["hide=/etc /"]}, ("ini option netns_sandbox: hide='/' is what every box",)),
        ({}, {"netns_sandbox": ["uid=root"]}, ("ini option netns_sandbox: uid='root' is no user",)),
        ({}, {"netns_allow": {"a.example": 443}}, ("ini option netns_allow: {'a.example': 443}", "a list of rules")),
    ],
)
def test_wrong_value_is_named(options: dict[str, Any], ini: dict[str, Any], words: tuple[str, ...]) -> None:
    """A value that means nothing is an error that names it, its place and the right forms."""
    with pytest.raises(SettingsError) as caught:
        Settings.of(options, ini)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_boxes_are_what_the_file_says() -> None:
    """Options of boxes are kept as they were written, for each box to be made of."""
    lines = [
        "overlay = False",
        "memory=64M",
        "pids = none",
        "tmpfs = cache ~/x",
        "limits = best-effort",
        "workdir=work",
    ]
    given = Settings.of({}, {"netns_sandbox": lines}).sandbox
    assert read_options(given) == {
        "overlay": False,
        "memory": "64M",
        "pids": None,
        "tmpfs": ["cache", "~/x"],
        "limits": "best-effort",
        "workdir": "work",
    }


@pytest.mark.parametrize(
    ("mode", "marks", "fixtures", "isolated"),
    [
        (Mode.ALL, [], [], True),
        (Mode.ALL, [opt_out()], [], False),
        (Mode.MARKED, [], ["tmp_path", "netns_port"], False),
        (Mode.MARKED, [mark()], [], True),
        (Mode.MARKED, [], ["netns"], True),
        (Mode.MARKED, [], ["netns_service"], True),
        (Mode.MARKED, [], ["netns_egress"], True),
        (Mode.MARKED, [], ["netns_factory"], True),
        (Mode.MARKED, [opt_out(), mark("test_a.py")], [], False),
        (Mode.MARKED, [mark(), opt_out("test_a.py")], [], True),
        (Mode.MARKED, [mark(), opt_out()], [], False),
        (Mode.MARKED, [opt_out()], ["netns"], False),
        (Mode.OFF, [mark()], ["netns"], False),
    ],
)
def test_who_is_isolated(mode: Mode, marks: list[Mark], fixtures: list[str], isolated: bool) -> None:
    """The mode decides, then the closest marker; on one and the same node, the opt-out."""
    assert Settings(mode, said=True).for_item(marks, fixtures).isolated is isolated


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([], (Scope.CLASS, 9000)),
        ([mark(port=80)], (Scope.CLASS, 80)),
        ([mark(scope="session")], (Scope.SESSION, 9000)),
        ([mark(port="80"), mark("test_a.py", port=81, scope="module")], (Scope.MODULE, 80)),
    ],
)
def test_closest_marker_wins_keyword_by_keyword(marks: list[Mark], expected: tuple[Scope, int]) -> None:
    """Each keyword is taken from the closest marker that has it, or else from the run's settings."""
    found = Settings(scope=Scope.CLASS, port=9000).for_item(marks)
    assert (found.scope, found.port) == expected


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([], (("run.example",), True)),
        ([mark(allow="a.example")], (("run.example", "a.example"), True)),
        ([mark(allow=["b.example", "a.example"])], (("run.example", "b.example", "a.example"), True)),
        (
            [mark(allow=("a.example",)), mark("test_a.py::Test", port=1), mark("test_a.py", allow=["m.example"])],
            (("run.example", "m.example", "a.example"), True),
        ),
        ([mark(allow=["run.example", "A.example"]), mark(allow=["a.example"])], (("run.example", "a.example"), True)),
        ([mark(allow=[])], (("run.example",), True)),
        ([mark(sni=False)], (("run.example",), False)),
        ([mark(sni=True), mark("test_a.py", sni=False)], (("run.example",), True)),
    ],
)
def test_rules_of_markers_add_up(marks: list[Mark], expected: tuple[tuple[str, ...], bool]) -> None:
    """A test may reach what all of its markers allow, broader ones first, and ``sni`` is the closest one's."""
    found = Settings(allow=("run.example",)).for_item(marks)
    assert (found.allow, found.sni) == expected


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (mark("a.py::t", 8080), ("a.py::t", "positional 8080", "port=...")),
        (mark("a.py::t", prot=8080), ("a.py::t", "'prot'", "port, scope, allow, sni")),
        (mark("a.py::t", port=0), ("a.py::t", "port: 0", "1 to 65535")),
        (mark("a.py::t", port=True), ("a.py::t", "port: True")),
        (mark("a.py::t", port=None), ("a.py::t", "port: None")),
        (mark("a.py::t", scope="file"), ("a.py::t", "'file'", "function, class")),
        (mark("a.py::t", allow="a.example:port"), ("a.py::t, allow: 'a.example:port' is no egress rule",)),
        (mark("a.py::t", allow=["a.example", 443]), ("a.py::t, allow: 443", "int")),
        (mark("a.py::t", allow=None), ("a.py::t, allow: None is no list",)),
        (mark("a.py::t", allow={"a.example"}), ("a.py::t, allow: {'a.example'} is no list",)),
        (mark("a.py::t", allow=[""]), ("a.py::t, allow: ''",)),
        (mark("a.py::t", sni=0), ("a.py::t, sni: 0", "True or False")),
        (mark("", scope="file"), ("on the session", "'file'")),
        (mark("a.py::t", "reason", name="no_netns"), ("a.py::t", "'reason'", "@pytest.mark.no_netns")),
        (mark("a.py::t", name="no_netns", port=1), ("a.py::t", "port", "@pytest.mark.no_netns")),
    ],
)
def test_wrong_marker_is_named(wrong: Mark, words: tuple[str, ...]) -> None:
    """A marker that means nothing is an error, even if a closer one is right."""
    with pytest.raises(SettingsError) as caught:
        Settings().for_item([mark(port=80, scope="class"), wrong])
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_opt_out_is_traced() -> None:
    """The node that carries the deciding opt-out is known, for messages."""
    assert Settings(Mode.ALL).for_item([opt_out("a.py")]) == ItemSettings(
        isolated=False, scope=Scope.FUNCTION, port=8080, opted_out_by="a.py"
    )

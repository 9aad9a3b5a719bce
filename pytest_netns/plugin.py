"""The pytest plugin: options, markers and start-up. What it takes to isolate is imported when it is needed."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.fixtures import netns, netns_egress, netns_factory, netns_port, netns_sandbox, netns_service
from pytest_netns.options import LOOKS, add_options
from pytest_netns.settings import FORMS, EgressMode, Mode, Settings, SettingsError

__all__ = ["netns", "netns_egress", "netns_factory", "netns_port", "netns_sandbox", "netns_service"]

_FAILURE = pytest.StashKey[str]()
_SETTINGS = pytest.StashKey[Settings]()
_INI = ("netns", "netns_scope", "netns_port", "netns_allow", "netns_egress", "netns_sandbox")
_MARKERS = (
    "netns(port=8080, scope='function', allow=[], sni=True): run the test in a network and mount namespace of its own",
    "no_netns: run the test where pytest was started, or in the worker's network, even under --netns",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare what can be set."""
    add_options(parser)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, object, object]:
    """Settle what is wanted while the process has no threads: only then may it enter a user namespace."""
    if not (early_config.known_args_namespace.help or early_config.known_args_namespace.version):
        _settle(early_config, early_config.known_args_namespace)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers; settle what is wanted, if pytest learned of this plugin late."""
    for marker in _MARKERS:
        config.addinivalue_line("markers", marker)
    if _SETTINGS not in config.stash and not config.option.help:
        _settle(config, config.option)


def _settle(config: pytest.Config, options: Any) -> None:
    from pytest_netns import early  # noqa: PLC0415

    names = ("mode", "scope", "port", "unsupported", "allow", "egress", "egress_log", "hold", "publish", *LOOKS)
    try:
        settings = Settings.of(
            {name: getattr(options, f"netns_{name}") for name in names}, {name: _ini(config, name) for name in _INI}
        )
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[_SETTINGS] = settings
    try:
        early.enter(settings)
        early.start(config, settings)
    except (NetnsError, OSError) as error:
        config.stash[_FAILURE] = _unsupported(settings, error)


def _ini(config: pytest.Config, name: str) -> Any:
    """Return what the configuration file says; pytest's own complaint of a wrong type does not tell what is right."""
    try:
        return config.getini(name)
    except (TypeError, ValueError, pytest.UsageError) as error:
        _, from_int, given = str(error).partition("invalid literal for int() with base 10: ")
        wrong = f"{given} is no number" if from_int else error
        raise SettingsError(f"ini option {name}: {wrong}; write {FORMS[name]}") from None


def _unsupported(settings: Settings, error: Exception) -> str:
    """Stop the run, with all that there is to say, or return it where tests shall be skipped."""
    from pytest_netns.session import explained  # noqa: PLC0415

    text = explained(error)
    if not settings.skip_unsupported:
        raise pytest.UsageError(f"netns: {text}") from None  # from where, a worker of pytest-xdist would tell at length
    return text


def pytest_report_header(config: pytest.Config) -> str:
    """Say what is isolated, and with whose rights."""
    from pytest_netns.report import header  # noqa: PLC0415
    from pytest_netns.session import SESSION  # noqa: PLC0415

    session = config.stash.get(SESSION, None)
    return header(config.stash[_SETTINGS], session.page if session is not None else None)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Start the gateway and enter the worker leaf, as far as this process has a part in it."""
    from pytest_netns.aftermath import Aftermath  # noqa: PLC0415
    from pytest_netns.isolation import ISOLATION, Isolation  # noqa: PLC0415
    from pytest_netns.session import SESSION, Role, Session  # noqa: PLC0415

    config = session.config
    if config.option.netns_verbose:
        from pytest_netns.verbose import be_verbose  # noqa: PLC0415

        be_verbose(config)
    ours = config.stash[SESSION] = Session(config, config.stash[_SETTINGS])
    ours.failure = config.stash.get(_FAILURE, ours.failure)
    try:
        if ours.role is not Role.WORKER:
            ours.outputs.begin(ours.settings)
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    try:
        ours.start()
    except SettingsError as error:
        raise pytest.UsageError(str(error)) from None
    except (NetnsError, OSError) as error:
        ours.failure = _unsupported(ours.settings, error)
    if ours.outputs.report is not None and ours.role is not Role.WORKER:
        from pytest_netns.page.collector import COLLECTOR, Collector  # noqa: PLC0415

        config.stash[COLLECTOR] = Collector(ours)
        config.pluginmanager.register(config.stash[COLLECTOR], "netns-page")
    if ours.role is not Role.CONTROLLER:
        if ours.settings.egress is EgressMode.FAIL:
            from pytest_netns.strict import Strict  # noqa: PLC0415

            config.pluginmanager.register(Strict(ours), "netns-strict")
        config.stash[ISOLATION] = Isolation(ours)
        config.pluginmanager.register(config.stash[ISOLATION], "netns-isolation")
        config.pluginmanager.register(config.stash[ISOLATION].telling, "netns-telling")
        config.pluginmanager.register(Aftermath(config.stash[ISOLATION]), "netns-aftermath")
    if ours.settings.hold and ours.settings.mode is not Mode.OFF:
        from pytest_netns.hold import attend  # noqa: PLC0415

        attend(ours)


def pytest_enter_pdb(config: pytest.Config) -> None:
    """Say, at a debugger's prompt, how to look inside from another terminal."""
    from pytest_netns.hold import hint  # noqa: PLC0415

    hint(config)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Make a collection error of a marker that means nothing."""
    from pytest_netns.markers import marks_of  # noqa: PLC0415

    report = yield
    settings = collector.config.stash[_SETTINGS]
    problems: dict[str, None] = {}
    for node in report.result or ():
        if isinstance(node, (pytest.Item, pytest.Class)):
            getattr(node, "obj", None)  # a class knows its markers from then on
            try:
                settings.for_item(marks_of(node))
            except SettingsError as error:
                problems[str(error)] = None
    if problems:
        report.outcome, report.longrepr, report.result = "failed", "\n".join(problems), []
    return report


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let a marker's port reach the fixtures, session-scoped ones included, without a trace in the test's id."""
    from pytest_netns.markers import marks_of, parametrizes  # noqa: PLC0415

    if "netns_port" not in metafunc.fixturenames or parametrizes(metafunc.definition, "netns_port"):
        return
    settings = metafunc.config.stash[_SETTINGS]
    try:
        port = settings.for_item(marks_of(metafunc.definition)).port
    except SettingsError:
        return
    if port != settings.port:
        metafunc.parametrize("netns_port", [port], indirect=True, ids=[pytest.HIDDEN_PARAM], scope="module")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell an xdist worker which run it belongs to, where to log, and what has failed already."""
    from pytest_netns.session import FAILURE, OUTPUTS, RUN_ID, SESSION  # noqa: PLC0415

    session = node.config.stash[SESSION]
    node.workerinput.update({RUN_ID: session.run_id, OUTPUTS: session.outputs.tell(), FAILURE: session.failure})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take in what an xdist worker knows of attempts, where the controller has no gateway to ask."""
    from pytest_netns.session import SESSION, TALLY  # noqa: PLC0415

    told = (getattr(node, "workeroutput", None) or {}).get(TALLY)
    if told is not None:
        node.config.stash[SESSION].told.append(told)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(report: pytest.TestReport) -> None:
    """Tell, in place of an xdist worker that has died, what there was in the network of the test that it ran."""
    from pytest_netns.crash import add_section  # noqa: PLC0415

    add_section(report)


@pytest.hookimpl(optionalhook=True)
def pytest_html_results_summary(prefix: list[str], session: pytest.Session) -> None:
    """Say in the report of pytest-html what the summary of the run says."""
    from pytest_netns.page.pytest_html import section  # noqa: PLC0415
    from pytest_netns.session import SESSION  # noqa: PLC0415

    text = section(session.config.stash[SESSION], session.config.option.htmlpath)
    if text:
        prefix.append(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """List what was blocked over the run, or needed, and what tests left running."""
    from pytest_netns.session import SESSION  # noqa: PLC0415

    if not config.stash[SESSION].has_isolated:
        return
    from pytest_netns.closing import closing  # noqa: PLC0415

    reports = (report for reports in terminalreporter.stats.values() for report in reports)
    for title, lines in closing(config.stash[SESSION], reports):
        terminalreporter.section(f"netns: {title}")
        for line in lines:
            terminalreporter.write_line(line)
    if config.stash[SESSION].outputs.report is not None:
        from pytest_netns.page.collector import COLLECTOR  # noqa: PLC0415

        terminalreporter.write_sep("-", f"netns: {config.stash[COLLECTOR].told}")

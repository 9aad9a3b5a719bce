"""``--netns-hold=failed``: a failed test waits in its leaf until somebody has looked inside.

Who runs the test waits, before it is torn down: pytest itself, at its terminal, or a worker of pytest-xdist, which has
none. There the controller tells of it at its own terminal, and the other workers go on.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.kernel.readiness import is_readable
from pytest_netns.session import SESSION, Role, Session

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.runs import Run
    from pytest_netns.namespace import Namespace

__all__ = ["Attendant", "Hold", "attend", "hint"]

_POLL: Final = 0.2  # seconds
_LONGEST_REASON: Final = 300
_LIMIT: Final = 3600.0  # seconds without anybody at a terminal or inside


def attend(session: Session) -> None:
    """Do this process's part: hold, or tell of it."""
    plugins = session.config.pluginmanager
    if session.role is not Role.CONTROLLER:
        plugins.register(Hold(session), "netns-hold")
    elif _terminal(session.config) is not None:
        plugins.register(Attendant(session), "netns-hold")


def hint(config: pytest.Config) -> None:
    """Write which leaf the process is in, and how to look into it from another terminal."""
    session, terminal = config.stash.get(SESSION, None), _terminal(config)
    stay = session.stay if session is not None else None
    if session is None or stay is None or terminal is None:
        return
    place = stay.traveller.place  # a fixture that outlives the test is debugged in the worker's network
    if place is not stay.host and place.name is not None:
        words = _command("shell", session.run_id, place.name)
        terminal.write_line(f"netns: in {place.name}; from another terminal: {words}")


def _namespace(config: pytest.Config) -> Namespace | None:
    """Return the current test's leaf, after its tear-down too if that has failed."""
    from pytest_netns.isolation import ISOLATION  # noqa: PLC0415

    isolation = config.stash.get(ISOLATION, None)
    leaf = isolation and (isolation.kept or isolation.leaf)
    return leaf.namespace if leaf else None


class Hold:
    """A plugin of every process that runs tests."""

    def __init__(self, session: Session) -> None:
        """Hold nothing before a test fails."""
        self._session = session
        self._seen: pytest.Item | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_exception_interact(self, node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any]) -> None:
        """Wait, once for each failed test, where other plugins have a debugger; they have stopped their clocks."""
        namespace, client, excinfo = _namespace(node.config), self._session.client, call.excinfo
        if namespace is None or client is None or excinfo is None or not isinstance(node, pytest.Item):
            return
        if node is self._seen or node.config.option.usepdb:
            return
        self._seen, leaf = node, namespace.name
        capture = node.config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend(in_=True)
        try:
            client.hold(leaf, _reason(excinfo))
            with _Keyboard() as keyboard:
                self._tell(node, namespace, excinfo, enter=keyboard.is_there)
                self._wait(client, leaf, keyboard)
            client.hold(leaf, None)
        except NetnsError as error:
            _write(node.config, [f"netns: {leaf} is held no more: {error}"])
        finally:
            if capture is not None:
                capture.resume()

    def _wait(self, client: GatewayClient, leaf: str, keyboard: _Keyboard) -> None:
        """Wait until somebody lets the test go on, or nobody is there who could."""
        reads = self._session.role is Role.ALONE  # what is typed at a controller's terminal is the controller's
        while (idle := client.held(leaf)) is not None:
            if not keyboard.is_there and idle > _LIMIT:
                _write(self._session.config, [f"netns: {leaf} is held no more: nobody has come for {_minutes()}"])
                return
            if not reads:
                time.sleep(_POLL)
            elif keyboard.pressed(_POLL):
                return

    def _tell(
        self, item: pytest.Item, leaf: Namespace, excinfo: pytest.ExceptionInfo[BaseException], *, enter: bool
    ) -> None:
        terminal = _terminal(item.config)
        if terminal is None or self._session.role is Role.WORKER:
            return  # a worker has no terminal; its controller tells
        terminal.ensure_newline()
        item.repr_failure(excinfo).toterminal(terminal._tw)  # type: ignore[union-attr]  # noqa: SLF001
        where = f"{item.nodeid} failed and waits in {leaf.name}, {leaf.ipv4}"
        _write(item.config, _lines(self._session, where, leaf.name, "press Enter here, or: " if enter else ""))


class Attendant:
    """A plugin of a controller that has a terminal: it tells of tests that workers hold, and lets them go on.

    A thread of its own does so, with a connection of its own, since the controller waits for its workers meanwhile.
    """

    def __init__(self, session: Session) -> None:
        """Begin to watch."""
        self._session = session
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="netns-hold", daemon=True)
        self._thread.start()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Stop watching."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        with _Keyboard() as keyboard:
            self._watch_with(keyboard)

    def _watch_with(self, keyboard: _Keyboard) -> None:
        from pytest_netns.gateway.runs import connect  # noqa: PLC0415

        run: Run | None = None
        told: set[str] = set()
        while not self._over.is_set():
            try:
                run = run or connect(self._session.run_id)
                held = {row.name: row for row in run.leaves() if row.held is not None} if run is not None else {}
            except NetnsError:  # it has ended, and another may take its place
                run, held = None, {}
            for row in (held[name] for name in held.keys() - told):
                where = f"{row.test} failed and waits in {row.name}, {row.ipv4}: {row.held}"
                enter = "press Enter here for all that wait, or: " if keyboard.is_there else ""
                _write(self._session.config, ["", *_lines(self._session, where, row.name, enter)])
            told = set(held)
            if not held:
                self._over.wait(_POLL)
            elif keyboard.pressed(_POLL):
                _resume(run, held)
        if run is not None:
            run.close()


def _resume(run: Run | None, leaves: Iterable[str]) -> None:
    for leaf in leaves:
        try:
            if run is not None:
                run.resume(leaf)
        except NetnsError:  # somebody else was faster
            continue


def _reason(excinfo: pytest.ExceptionInfo[BaseException]) -> str:
    return excinfo.exconly(tryshort=True).partition("\n")[0][:_LONGEST_REASON]


def _lines(session: Session, where: str, leaf: str, enter: str) -> list[str]:
    run_id = session.run_id
    page = [f"browser:     {session.page.replace('//', f'//{leaf}.')}"] if session.page is not None else []
    limit = [] if enter else [f"time limit:  {_minutes()} from the last command that went inside"]
    return [
        f"netns: {where}",
        f"look inside: {_command('shell', run_id, leaf)}",
        *page,
        *limit,
        f"go on:       {enter}{_command('resume', run_id, leaf)}",
    ]


def _minutes() -> str:
    return f"{_LIMIT / 60:.0f} minutes"


def _command(action: str, run_id: str, leaf: str) -> str:
    from pytest_netns.gateway.runs import command  # noqa: PLC0415

    return shlex.join(command(action, run_id, leaf))


def _terminal(config: pytest.Config) -> Any:
    return config.pluginmanager.getplugin("terminalreporter")


def _write(config: pytest.Config, lines: Iterable[str]) -> None:
    terminal = _terminal(config)
    if terminal is None:
        return
    terminal.ensure_newline()
    for line in lines:
        terminal.write_line(line)
    terminal.flush()


class _Keyboard:
    """The terminal that this process was started at, if any: pytest has put something else in place of its input."""

    def __init__(self) -> None:
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)

    def __enter__(self) -> _Keyboard:  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    @property
    def is_there(self) -> bool:
        """Whether somebody can type something; a program in the background would be stopped by reading that."""
        try:
            return os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:
            return False

    def pressed(self, seconds: float) -> bool:
        """Wait for a line, but not longer than this."""
        if not self.is_there:
            time.sleep(seconds)
            return False
        if not is_readable(self._fd, seconds):
            return False
        try:
            os.read(self._fd, 1024)  # a line, or nothing for Ctrl-D
        except OSError:  # somebody else has read it
            return False
        return True

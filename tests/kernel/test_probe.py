"""A probing process reports what it tried, and whatever becomes of it is a report too."""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

import pytest
from unshared import unshared

from pytest_netns.kernel import nft, nft_table, privilege, probe
from pytest_netns.kernel.blame import CulpritError, load
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pytest_netns.kernel.probe import FAIL, OK, PLATFORM, PROBE, SKIPPED, WARN, Outcome


class Runner(Protocol):
    """Runs trials written as source and returns their outcomes but for the platform's."""

    def __call__(self, body: str, timeout: float = 10) -> list[Outcome]:
        """Give up after ``timeout`` seconds."""


HEAD = """
import os, signal, sys, time
from pytest_netns.kernel.probe import NotNeededError, RefusedError, Remark, Trial, perform

def fine(): return "seen"
def refuse(): raise PermissionError(1, "Operation not permitted")
def refuse_part(): raise RefusedError("part", PermissionError(1, "Operation not permitted"))
def need_not(): raise NotNeededError("not here")
def remark(): raise Remark("works, but")
def crash(): os.kill(os.getpid(), signal.SIGKILL)
def hang(): time.sleep(60)
"""


@pytest.fixture
def outcomes_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Return a function that runs trials written as source and returns their outcomes but for the platform's."""
    monkeypatch.syspath_prepend(tmp_path)

    def run(body: str, timeout: float = 10) -> list[Outcome]:
        (tmp_path / "some_trials.py").write_text(HEAD + body, encoding="utf-8")
        platform, *outcomes = probe.run("some_trials", timeout)
        assert platform[:2] == (PLATFORM, OK)
        return outcomes

    return run


class TestRun:
    """What ``run`` makes of a probing process."""

    def test_reports_each_trial_in_order(self, outcomes_of: Runner) -> None:
        """Successes, remarks, refusals with their number and part, and what does not apply are told apart."""
        body = """
def main():
    perform([Trial("a", fine), Trial("b", refuse), Trial("c", refuse_part), Trial("d", need_not), Trial("e", remark)])
"""
        assert outcomes_of(body) == [
            Outcome("a", OK, "seen"),
            Outcome("b", FAIL, "Operation not permitted", errno.EPERM),
            Outcome("c", FAIL, "part: Operation not permitted", errno.EPERM, "part"),
            Outcome("d", SKIPPED, "not here"),
            Outcome("e", WARN, "works, but"),
        ]

    def test_does_not_try_what_cannot_work(self, outcomes_of: Runner) -> None:
        """A trial is skipped where one that it needs has failed, and made where that one does not apply."""
        body = """
def main():
    perform([Trial("a", refuse), Trial("b", fine, ("a",)), Trial("c", need_not), Trial("d", fine, ("c",))])
"""
        assert [outcome.status for outcome in outcomes_of(body)] == [FAIL, SKIPPED, SKIPPED, OK]

    @pytest.mark.parametrize(("action", "told"), [("hang", "no answer within 2 s"), ("crash", "signal 9")])
    def test_names_the_trial_that_never_ended(self, outcomes_of: Runner, action: str, told: str) -> None:
        """A trial that hangs or kills the process is a failure, what was made before it counts, and time is bounded."""
        body = f"""
def main():
    perform([Trial("a", fine), Trial("b", {action}), Trial("c", fine)])
"""
        started = time.monotonic()
        first, second = outcomes_of(body, timeout=2 if action == "hang" else 10)
        assert time.monotonic() - started < 10
        assert first == Outcome("a", OK, "seen")
        assert second[:2] == ("b", FAIL)
        assert told in second.seen
        assert second.errno == (errno.ETIMEDOUT if action == "hang" else 0)

    def test_survives_a_broken_trial_module(self, outcomes_of: Runner) -> None:
        """A module that can't be imported, or prints, gives an outcome rather than an exception."""
        (outcome,) = outcomes_of("import no_such_module\n")
        assert outcome[:2] == (PROBE, FAIL)
        assert "no_such_module" in outcome.seen
        printing = "def main():\n    print('[1, 2'); print('{}')\n    perform([Trial('a', fine)])\n"
        assert outcomes_of(printing) == [Outcome("a", OK, "seen")]

    def test_survives_a_missing_interpreter(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """An interpreter that can't be started is an outcome."""
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        assert probe.run("some_trials")[1][:2] == (PROBE, FAIL)

    def test_ignores_the_working_directory(
        self, outcomes_of: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file in the current directory with the name of a module of the standard library is not picked up."""
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "json.py").write_text("raise SystemExit(3)", encoding="utf-8")
        monkeypatch.chdir(elsewhere)
        assert outcomes_of("def main():\n    perform([Trial('a', fine)])\n") == [Outcome("a", OK, "seen")]

    @pytest.mark.parametrize("system", ["darwin", "win32"])
    def test_tries_nothing_elsewhere(self, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """On another operating system there is one outcome, and no process."""
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(subprocess, "Popen", None)
        (outcome,) = probe.run("some_trials")
        assert outcome[:2] == (PLATFORM, FAIL)
        assert system in outcome.seen

    def test_leaves_the_caller_where_it_was(self) -> None:
        """The real trials enter namespaces; the calling process stays in its own."""
        before = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("user", "net", "mnt")}
        interfaces = os.listdir("/sys/class/net")
        assert len(probe.run("pytest_netns.checkup.trials", 30)) > 10
        assert {name: os.readlink(f"/proc/self/ns/{name}") for name in before} == before
        assert os.listdir("/sys/class/net") == interfaces


class TestBlame:
    """Who is to blame for a ruleset that the kernel refuses."""

    @staticmethod
    def _load(*chains: nft_table.Chain) -> None:
        ruleset = nft_table.transaction(nft_table.Table("t", nft.NFPROTO_INET, list(chains)).encode())
        with privilege.raised(), contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as channel:
            load(channel, ruleset)

    @unshared
    def test_names_the_expression(self) -> None:
        """Of many rules, the expression that the kernel does not know is named, in whatever company."""
        unknown = nft.verdict(0).replace(b"immediate\0", b"immodest!\0")
        rules = [[*nft.dport(53), nft.ACCEPT], [*nft.mark(1), *nft.ct_state(2), unknown], [nft.DROP]]
        with pytest.raises(CulpritError) as caught:
            self._load(nft_table.Chain("c", nft.INPUT, 0, rules))
        assert caught.value.part == "ct + immodest!"
        assert caught.value.errno == errno.ENOENT

    @unshared
    def test_names_the_chain(self) -> None:
        """A chain of a type that the kernel does not know is named."""
        with pytest.raises(CulpritError) as caught:
            self._load(nft_table.Chain("c", nft.INPUT, 0, []), nft_table.Chain("d", nft.INPUT, 0, [], kind="strange"))
        assert caught.value.part == "strange chain"

    @unshared
    def test_loads_what_is_right(self) -> None:
        """Nothing is raised where the kernel takes the ruleset."""
        self._load(nft_table.Chain("c", nft.INPUT, 0, [[nft.DROP]]))

    def test_is_carried_between_processes(self) -> None:
        """The error stays whole when pickled."""
        error = pickle.loads(pickle.dumps(CulpritError(errno.ENOENT, "load tproxy", "tproxy")))
        assert (error.errno, error.strerror, error.part) == (errno.ENOENT, "load tproxy", "tproxy")

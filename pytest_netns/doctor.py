"""Tell whether tests can be isolated on this machine, and if not, what to do about it.

``examine`` makes every check in a process of its own, ``explain`` turns a failed start into advice.
Nothing here needs Linux, or raises.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from dataclasses import dataclass
from typing import Final

from pytest_netns.causes import advice
from pytest_netns.checkup import names
from pytest_netns.checkup.machine import Machine, read
from pytest_netns.checkup.remedies import Remedy, find
from pytest_netns.kernel import probe
from pytest_netns.kernel.probe import FAIL, WARN

__all__ = ["Check", "Report", "examine", "explain"]

COMMAND: Final = "python -m pytest_netns doctor"
_TRIALS: Final = "pytest_netns.checkup.trials"
_BOXES: Final = "pytest_netns.checkup.boxes"
_PATIENCE: Final = 60.0  # seconds for all checks; they take half of one, and longer where modules are loaded first
_EXPLAIN_PATIENCE: Final = 20.0  # seconds; whoever waits for the reason of a failure is told it on a busy machine, too


@dataclass(frozen=True, slots=True)
class Check:
    """One row of the table."""

    name: str
    status: str
    seen: str
    why: str
    """What isolation needs it for."""
    cause: str = ""
    """Why it probably failed."""
    fix: str = ""
    """The command that makes it work."""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks, and the machine that they were made on."""

    machine: Machine
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Tell whether tests can be isolated here."""
        return all(check.status != FAIL for check in self.checks)

    @property
    def failed(self) -> list[Check]:
        """Return the checks that failed, without those that could not be made because of them."""
        return [check for check in self.checks if check.status == FAIL]

    def as_dict(self) -> dict[str, object]:
        """Return the report as JSON takes it."""
        return {
            "ok": self.ok,
            "machine": dataclasses.asdict(self.machine),
            "checks": [dataclasses.asdict(check) for check in self.checks],
        }


def examine(timeout: float = _PATIENCE, *, boxes: bool = True) -> Report:
    """Make all checks, those that isolation needs for at most ``timeout`` seconds together.

    ``boxes`` is whether to try out a box, too, which isolation does without.
    """
    machine = read()
    outcomes = probe.run(_TRIALS, timeout)
    if boxes:
        outcomes += [_no_obstacle(one) for one in probe.run(_BOXES, timeout) if one.name == names.BOXES]
    return Report(machine, tuple(_check(outcome, machine) for outcome in outcomes))


def _no_obstacle(outcome: probe.Outcome) -> probe.Outcome:
    """Return what came of a check that isolation does not depend on."""
    return outcome if outcome.status != FAIL else outcome._replace(status=WARN)


def _check(outcome: probe.Outcome, machine: Machine) -> Check:
    remedy = find(outcome, machine) if outcome.status in {FAIL, WARN} else Remedy("", "")
    why = names.REASONS.get(outcome.name, "")
    return Check(outcome.name, outcome.status, outcome.seen, why, remedy.cause, remedy.fix)


def explain(error: BaseException) -> str:
    """Return what to tell a user whose run could not start: what is missing, why, and the remedy."""
    original = f"{type(error).__name__}: {error}"
    try:
        lines = _explanation(error, examine(_EXPLAIN_PATIENCE, boxes=False))
    except Exception as trouble:  # noqa: BLE001 - the original error matters more than whatever this is
        lines = [f"(looking for the cause failed too: {type(trouble).__name__}: {trouble})"]
    return "\n".join([original, *lines, f"all checks: {COMMAND}"])


def _explanation(error: BaseException, report: Report) -> list[str]:
    if _threads_in_the_way(error):
        return _about_threads()
    if report.ok:
        return [advice(error) or "every check of this machine passes, so it is nothing that this machine lacks"]
    first, *others = report.failed
    lines = [f"missing: {first.name} ({first.seen}); {first.why}", f"why: {first.cause}", f"fix: {first.fix}"]
    lines += [f"also: {check.name} ({check.seen}); fix: {check.fix}" for check in others if check.fix != first.fix]
    return lines


def _about_threads() -> list[str]:
    """Say who keeps the process from entering a user namespace, which only one without threads can."""
    started = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    if started:
        fix = "python -m pytest --netns, in a process of its own, with -p no:<the plugin> if a plugin starts them"
    else:
        fix = "OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python -m pytest --netns"
    return [
        "missing: a process without threads to enter a user namespace with",
        f"why: threads run already: {', '.join(started) or 'those of a library such as numpy'}",
        f"fix: {fix}",
    ]


def _threads_in_the_way(error: BaseException) -> bool:
    if not isinstance(error, OSError) or error.errno != errno.EINVAL or "unshare" not in str(error):
        return False
    return len(os.listdir("/proc/self/task")) > 1

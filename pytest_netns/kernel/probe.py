"""Find out what this machine lets us do, by doing it in a throw-away process.

``run`` starts that process, bounds its time and reads what it reports; ``perform`` is the other end,
inside it. What is tried is the caller's: a module with a function ``main() -> None`` that hands its
trials to ``perform``. Nothing here needs Linux until a trial runs.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from pytest_netns.kernel.imports import import_path

OK: Final = "ok"
FAIL: Final = "fail"
WARN: Final = "warn"
SKIPPED: Final = "skipped"
_BEGUN: Final = "begun"  # only between the two processes: a trial that has not said yet how it went

PLATFORM: Final = "platform"
PROBE: Final = "probe"

#: The child gets our import path, pytest's additions last, and nothing else of environment and current directory.
_PROGRAM: Final = (
    "import importlib, json, sys; sys.path[:] = json.loads(sys.argv[2]); importlib.import_module(sys.argv[1]).main()"
)


class Outcome(NamedTuple):
    """How one trial went."""

    name: str
    status: str
    seen: str
    """What was observed, in the words of the kernel where it refused."""
    errno: int = 0
    subject: str = ""
    """What exactly was refused, where a trial has several parts: a sysctl, an nftables expression."""


class Trial(NamedTuple):
    """Something to try, and the trials that must have gone well before."""

    name: str
    action: Callable[[], str]
    needs: tuple[str, ...] = ()


class NotNeededError(Exception):
    """The trial does not apply here; those that need it may go on."""


class Remark(Exception):  # noqa: N818 - it is no error
    """The trial went well, and there is something that its user should know."""

    def __init__(self, text: str, subject: str = "") -> None:
        """Say it, and name the part that it is about, if there are several."""
        super().__init__(text)
        self.subject = subject


class RefusedError(Exception):
    """One part of a trial was refused; tells which."""

    def __init__(self, subject: str, error: OSError) -> None:
        """Keep the error and name the part."""
        super().__init__(subject, error)
        self.subject = subject
        self.error = error


def run(module: str, timeout: float = 2.5) -> list[Outcome]:
    """Let the trials of ``module`` be made in a child process and return their outcomes in order.

    Never raises: whatever keeps the child from answering is an outcome itself.
    """
    if sys.platform != "linux":
        return [Outcome(PLATFORM, FAIL, f"sys.platform is {sys.platform!r}")]
    system = os.uname()
    outcomes = [Outcome(PLATFORM, OK, f"{system.sysname} {system.release} {system.machine}")]
    command = [sys.executable, "-I", "-c", _PROGRAM, module, json.dumps(import_path())]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        return [*outcomes, Outcome(PROBE, FAIL, f"could not start {sys.executable!r}: {error}", error.errno or 0)]
    with process:
        try:
            output, errors = process.communicate(timeout=timeout)
            ending, number = _ending(process.returncode, errors), 0
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
            ending, number = f"no answer within {timeout:g} s", errno.ETIMEDOUT
    return [*outcomes, *_read(output, ending, number)]


def _ending(returncode: int, errors: bytes) -> str:
    if returncode == 0:
        return ""
    how = f"signal {-returncode}" if returncode < 0 else f"exit status {returncode}"
    last = errors.decode(errors="replace").strip().splitlines()[-1:]
    return f"the probing process ended with {how}" + "".join(f": {line}" for line in last)


def _read(output: bytes, ending: str, number: int) -> Iterator[Outcome]:
    """Decode the child's lines; a trial that was begun and has no end is one that hung or died."""
    outcomes: dict[str, Outcome] = {}
    for line in output.decode(errors="replace").splitlines():
        try:
            outcome = Outcome(*json.loads(line))
        except (ValueError, TypeError):  # something else wrote to standard output
            continue
        outcomes[outcome.name] = outcome
    unfinished = False
    for outcome in outcomes.values():
        if outcome.status == _BEGUN:
            unfinished = True
            outcome = outcome._replace(status=FAIL, seen=ending or "never finished", errno=number)  # noqa: PLW2901
        yield outcome
    if not outcomes or (ending and not unfinished):
        yield Outcome(PROBE, FAIL, ending or "the probing process said nothing", number)


def perform(trials: Iterable[Trial]) -> None:
    """Make the trials one after the other and report on standard output, one line of JSON for each."""
    achieved: set[str] = set()
    for trial in trials:
        outcome = Outcome(trial.name, _BEGUN, "")
        _report(outcome)
        missing = [name for name in trial.needs if name not in achieved]
        if missing:
            outcome = outcome._replace(status=SKIPPED, seen=f"needs: {missing[0]}", subject=missing[0])
        else:
            outcome = _make(trial)
            if outcome.status != FAIL:
                achieved.add(trial.name)
        _report(outcome)


def _make(trial: Trial) -> Outcome:
    try:
        return Outcome(trial.name, OK, trial.action())
    except NotNeededError as reason:
        return Outcome(trial.name, SKIPPED, str(reason))
    except Remark as remark:
        return Outcome(trial.name, WARN, str(remark), subject=remark.subject)
    except RefusedError as refusal:
        seen = f"{refusal.subject}: {_words(refusal.error)}"
        return Outcome(trial.name, FAIL, seen, refusal.error.errno or 0, refusal.subject)
    except OSError as error:
        return Outcome(trial.name, FAIL, _words(error), error.errno or 0)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs in the table
        return Outcome(trial.name, FAIL, f"{type(error).__name__}: {error}")


def _words(error: OSError) -> str:
    return error.strerror or str(error)  # Python's own, such as a timeout of a socket, have no number


def _report(outcome: Outcome) -> None:
    sys.stdout.write(json.dumps(outcome) + "\n")
    sys.stdout.flush()

"""Suites that others wrote, plain and under ``--netns``, as root and as an ordinary user.

    python benchmarks/compat/run.py [--only httpx,uvicorn] [--users root,tester] [--configurations plain,netns]
    python benchmarks/compat/run.py --ci

Started as root. Fetches each project's source distribution from the registry, makes an environment for it, runs its
suite in every configuration, each time in a network without an outside, and says which tests pass plain and fail under
isolation. ``--write`` puts the table into docs/compatibility.md and the details into results.json beside this file.
The exit status is 1 where a test was lost that suites.py gives no cause for, or where a run hung.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from pathlib import Path

from environments import build_wheel, prepare
from report import Report
from suites import SUITES, Suite
from worlds import CONFIGURATIONS, run

_WORK = "/var/tmp/pytest-netns-compat"
_CI = {0: ("plain", "netns"), 1: ("plain", "netns-n2")}  # for the first user and for the second


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="suites, separated by commas")
    parser.add_argument("--users", default="root,tester", help="who runs them (root,tester)")
    parser.add_argument("--configurations", default=",".join(CONFIGURATIONS), help=",".join(CONFIGURATIONS))
    parser.add_argument("--ci", action="store_true", help="the quick suites, in the configurations that matter most")
    parser.add_argument("--work", type=Path, default=Path(_WORK), help=f"where to keep environments ({_WORK})")
    parser.add_argument("--python", default="/usr/bin/python3", help="which Python; every user must be able to read it")
    parser.add_argument("--wheel", type=Path, help="what to test (a wheel built of this tree)")
    parser.add_argument("--keep", action="store_true", help="don't repeat what has been run before")
    parser.add_argument("--write", action="store_true", help="update docs/compatibility.md and results.json")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("start it as root, which can run the suites as itself and as another user")
    return arguments


def _measure(report: Report, suite: Suite, arguments: argparse.Namespace) -> None:
    """Run a suite as each user in each configuration; one that has lost tests is run once more."""
    once = functools.partial(run, suite, work=arguments.work, keep=arguments.keep)
    for number, user in enumerate(arguments.users.split(",")):
        chosen = _CI.get(number, ()) if arguments.ci else arguments.configurations.split(",")
        for configuration in chosen if user in suite.users else ():
            print(report.add(suite, user, configuration, once(user, configuration)), flush=True)
            if report.is_puzzling(suite, user, configuration):
                repeated = once(user, configuration, again=True)
                print(report.repeat(suite, user, configuration, repeated), flush=True)
            if arguments.write:
                report.write()
        if report.is_puzzled(suite, user) and "again" not in chosen:  # it may be the test that is unsteady
            print(report.add(suite, user, "again", once(user, "again")), flush=True)


def main() -> int:
    """Run what was asked for, and return the exit status."""
    arguments = _arguments()
    only = arguments.only.split(",") if arguments.only else None
    suites = [suite for suite in SUITES if (suite.name in only if only else suite.ci or not arguments.ci)]
    arguments.work.mkdir(parents=True, exist_ok=True)
    wheel = arguments.wheel or build_wheel(arguments.work, arguments.python)
    report = Report()
    for suite in suites:
        report.begin(suite, prepare(suite, arguments.work, arguments.python, wheel))
        _measure(report, suite, arguments)
        if arguments.write:
            report.write()
    print(report.text())
    return 1 if report.unexplained else 0


if __name__ == "__main__":
    sys.exit(main())

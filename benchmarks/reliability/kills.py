"""Ends each process of a run at each of its steps, in each way, and tells what came of it.

    python benchmarks/reliability/kills.py [--users root,tester] [--only TEXT] [--seconds N] [--signals KILL+INT]
                                             [--seed N] [--share 1/4] [--skip N] [--again FILE] [--verbose]

For each case, a run of pytest --netns is stopped at a step by tests/steps/sitecustomize.py; then one of its processes
gets a signal, and the others go on. The table says, for each phase and process, how many cases there were, how many
runs hung, in how many something was left behind or otherwise wrong, and how long it took at the longest until nothing
was left: processes, files, mounts, interfaces, control groups. Users other than root need that root may become them.
The cases come in an order that the seed decides; several shares of them may run side by side, and each may leave out
the first cases, those that it has gone through before. With --again it goes through those alone that a file names,
which has what was printed before: without --verbose, that is of those that went wrong, or took more than 2 s.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from kills import SIGNALS, Case, Outcome, carry_out, cases
from runs import adopt_orphans


def _as_user(user: str, options: argparse.Namespace) -> int:
    """Have another user run the same."""
    arguments = [f"--{name}={value}" for name, value in vars(options).items() if name not in ("users", "verbose")]
    arguments += ["--users=own", *(["--verbose"] if options.verbose else [])]
    command = ["runuser", "-u", user, "--", sys.executable, os.path.abspath(__file__), *arguments]
    return subprocess.run(command, cwd="/", check=False).returncode


def _run(options: argparse.Namespace) -> bool:
    adopt_orphans(wanted=True)
    wanted = [case for case in cases(root=os.geteuid() == 0) if options.only in case.name]
    wanted = [case for case in wanted if case.signals in options.signals.split("+")]
    if options.again:
        named = {line.rpartition(": ")[0] for line in Path(options.again).read_text(encoding="utf-8").splitlines()}
        wanted = [case for case in wanted if case.name in named]
    random.Random(options.seed).shuffle(wanted)
    share, shares = map(int, options.share.split("/"))
    wanted = wanted[share - 1 :: shares][options.skip :]
    done: list[tuple[Case, Outcome]] = []
    deadline = time.monotonic() + options.seconds
    for case in wanted:
        if time.monotonic() > deadline:
            break
        outcome = carry_out(case)
        done.append((case, outcome))
        if outcome.problems or outcome.seconds > 2 or options.verbose:
            print(f"{case.name}: {outcome.seconds:.2f} s{' absent' if outcome.absent else ''}", flush=True)
            for problem in outcome.problems:
                print(f"    {problem}", flush=True)
    print(f"\n{len(done)} of {len(wanted)} cases as {'root' if os.geteuid() == 0 else 'ordinary user'}")
    _table(done)
    return not any(outcome.problems for _, outcome in done)


def _table(done: list[tuple[Case, Outcome]]) -> None:
    print("phase      process     cases  hung  left  wrong  not there  longest s  over 2 s")
    keys = list(dict.fromkeys((case.step.phase, case.target) for case, _ in done))
    for phase, target in [*sorted(keys), ("all", "")]:
        some = [one for case, one in done if phase == "all" or (case.step.phase, case.target) == (phase, target)]
        count = Counter(
            "hung" if "hung" in " ".join(one.problems) else "left" if "left:" in " ".join(one.problems) else "wrong"
            for one in some
            if one.problems
        )
        there = [one for one in some if not one.absent]
        longest, slow = max((one.seconds for one in there), default=0.0), sum(one.seconds > 2 for one in there)
        print(
            f"{phase:11}{target:11}{len(there):6}{count['hung']:6}{count['left']:6}{count['wrong']:7}"
            f"{len(some) - len(there):11}{longest:11.2f}{slow:10}"
        )


def main() -> None:
    """Do what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="root,tester")
    parser.add_argument("--only", default="")
    parser.add_argument("--signals", default="+".join(SIGNALS))
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--share", default="1/1")
    parser.add_argument("--skip", type=int, default=0)
    parser.add_argument("--again", default="", metavar="FILE")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    options.again = options.again and os.path.abspath(options.again)  # another user goes to another directory
    users = options.users.split(",")
    own = {"own", "root"} if os.geteuid() == 0 else {"own"}
    good = [_run(options) if user in own else not _as_user(user, options) for user in users]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()

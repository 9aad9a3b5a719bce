"""Have each call that we make of the kernel fail, once with each error that its page of the manual lists.

    python benchmarks/reliability/faults.py [--suite NAME] [--more] [--places TEXT] [--options ...]
                                            [--first N] [--times N] [--sample N [--seed N]]
    python benchmarks/reliability/faults.py --outside

Needs pytest, pytest-netns, and ``strace`` for ``--outside``. For each place in the package that makes a system call, or
waits for an answer of netlink's, and each error, a small suite is run in which that call fails: by default the first
time that it is made, with ``--times 2`` the first two times, and so on. What the user sees is held against what is
promised: the run goes on as if nothing were, or says which call failed and why; no traceback from inside, no wait
without end, nothing left behind, and the next test is sound. ``--outside`` has the kernel itself refuse: strace makes
the first, third and eighth call of each thread fail. A line for each fault; at the end the sums, and status 1 if any
is bad.

The suites are in ``tests/faulted.py``: four plain tests; a test for each of what fixtures have to give; tests that kill
the gateway, so that its understudy starts another; and boxes. ``--more`` leaves out where the plain ones come by, too,
and ``--sample`` draws so many of the faults at random.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tests"))

from faulted import SUITES
from injection import ERRNOS, Fault, Finding, faults_of, places_of, run
from runs import adopt_orphans

_PASSAGES = (1, 3, 8)
#: What strace is to make fail, by what it calls it; the rest of the table is made by Python for its own ends, too.
_OUTSIDE = {
    "unshare": "libc.unshare",
    "setns": "libc.setns",
    "mount": "libc.mount",
    "umount2": "libc.umount2",
    "capset": "libc.capset",
    "prctl": "libc.prctl",
    "pidfd_open": "os.pidfd_open",
    "socket": "socket.socket",
    "bind": "socket.bind",
    "listen": "socket.listen",
    "connect": "socket.connect",
    "accept4": "socket.accept",
    "sendto": "socket.send",
    "sendmsg": "socket.sendmsg",
    "recvfrom": "socket.recv",
    "recvmsg": "socket.recvmsg",
    "setsockopt": "socket.setsockopt",
    "getsockopt": "socket.getsockopt",
    "mkdir": "os.mkdir",
    "pipe2": "os.pipe",
    "epoll_ctl": "epoll_ctl",
}
_PLAIN = SUITES["plain"]
_MORE = {"epoll_ctl": "ENOMEM ENOSPC"}


def _from_outside() -> Iterator[Fault]:
    for call, known in _OUTSIDE.items():
        for what in (ERRNOS | _MORE)[known].split():
            for first in _PASSAGES:
                yield Fault(f"strace:{call}", what, first)


def _line(finding: Finding) -> str:
    fault = finding.fault
    assert fault is not None
    return f"{finding.outcome:<14}{finding.seconds:5.1f} s  {fault.what:<18}{fault.first:>2}  {fault.place}"


def _places(wanted: argparse.Namespace, options: tuple[str, ...]) -> list[str]:
    places = places_of(options, SUITES[wanted.suite])
    known = set(places_of((*_PLAIN.options.split(), "-q"), _PLAIN)) if wanted.more else set()
    return [place for place in places if place not in known]


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", default="", help="only places that have this in their name")
    parser.add_argument("--suite", default="plain", choices=SUITES, help="default: %(default)s")
    parser.add_argument("--options", default="-q -rfE", help="pytest's, beside the suite's; default: %(default)s")
    parser.add_argument("--more", action="store_true", help="only places that the plain suite does not come by")
    parser.add_argument("--first", type=int, default=1, help="which passage of a call fails first")
    parser.add_argument("--times", type=int, default=1, help="how often the call fails, one after the other")
    parser.add_argument("--sample", type=int, help="how many of the faults, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=1, help="which draw; default: %(default)s")
    parser.add_argument("--outside", action="store_true", help="have strace make calls fail")
    parser.add_argument("--list", action="store_true", help="only list the faults")
    wanted = parser.parse_args()
    adopt_orphans(wanted=True)
    suite = SUITES[wanted.suite]
    options = tuple(f"{suite.options} {wanted.options}".split())
    known = _from_outside() if wanted.outside else faults_of(_places(wanted, options), wanted.first, wanted.times)
    faults = [fault for fault in known if wanted.places in fault.place]
    if wanted.sample is not None and wanted.sample < len(faults):
        faults = random.Random(wanted.seed).sample(faults, wanted.sample)
    print(f"{len(faults)} faults at {len({fault.place for fault in faults})} places", flush=True)
    sums: collections.Counter[str] = collections.Counter()
    begin = time.monotonic()
    for fault in faults:
        if wanted.list:
            print(fault.what, fault.place)
            continue
        finding = run(fault, options, suite)
        sums["bad" if finding.is_bad else finding.outcome] += 1
        print(_line(finding), flush=True)
        if finding.is_bad:
            print("    " + finding.output.strip().replace("\n", "\n    "), flush=True)
    summary = ", ".join(f"{name} {count}" for name, count in sorted(sums.items()))
    print(f"{summary}; {time.monotonic() - begin:.0f} s")
    sys.exit(bool(sums["bad"]))


if __name__ == "__main__":
    _main()

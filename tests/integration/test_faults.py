"""Calls that we make of the kernel and that fail: a part of what `benchmarks/reliability/faults.py` goes through."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faulted import SUITES
from injection import Fault, run
from runs import ROOT, adopt_orphans

ANSWER = "gateway|kernel.netlink:_receive:socket.recv"
OPTIONS = ("--netns", "-q", "-rfE")
FAULTS = [
    Fault("gateway|kernel.syscalls:unshare:libc.unshare", "ENOSPC", first=6),
    Fault("gateway|kernel.syscalls:mount:libc.mount", "ENOMEM", first=20),
    Fault(ANSWER, "ENOBUFS", first=14),
    Fault(ANSWER, "REORDERED", first=2),
    Fault("gateway|gateway.paths:hold:os.open", "EMFILE"),
    Fault("gateway|gateway.__main__:main:socket.socket", "ENOBUFS"),
    Fault("gateway|gateway.__main__:_listener:socket.bind", "EROFS"),
    Fault("gateway|gateway.paths:_check_private:os.stat", "ENOMEM"),
    Fault("pytest|gateway.paths:_check_private:os.stat", "ENOMEM"),
    Fault("pytest|gateway.launch:begin:subprocess._fork_exec", "EAGAIN"),
    Fault("pytest|kernel.position:_in_one_go:libc.setns", "ENOMEM", first=7),
]


@pytest.fixture
def _orphans(capable: None) -> Iterator[None]:
    adopt_orphans(wanted=True)
    yield
    adopt_orphans(wanted=False)


@pytest.mark.usefixtures("_orphans")
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.place.rpartition(':')[2]}-{fault.what}")
def test_is_told_or_overcome(fault: Fault) -> None:
    """The run goes on, or says what failed, once; nothing is left, no inside is shown, and the next test is sound."""
    finding = run(fault, OPTIONS)
    assert not finding.is_bad, f"{finding.outcome}\n{finding.output}"
    assert finding.fired == 1


@pytest.mark.usefixtures("_orphans")
def test_no_gateway_follows() -> None:
    """Where what follows a killed gateway can't begin, root's run starts another, and a user's tells each test so."""
    fault = Fault("successor|gateway.__main__:_listener:socket.bind", "EROFS")
    finding = run(fault, OPTIONS, SUITES["lost"])
    assert finding.outcome == ("unharmed" if ROOT else "told"), finding.output

"""Ends processes of a run at steps of it: `benchmarks/reliability/kills.py` goes through all steps, these are a few."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kills import Case, Step, carry_out
from runs import adopt_orphans, requires

_OURS = "pytest_netns."
_STARTS = Step("start-up", f"{_OURS}gateway.factory:Factory.start")
_BEGINS = Step("start-up", f"{_OURS}gateway.launch:begin")
_HAS_DIRECTORY = Step("start-up", f"{_OURS}gateway.paths:make", "after")
_MAKES = Step("set-up", f"{_OURS}gateway.factory:Factory.make", "before", 3)
_CALL = Step("call", "test:call", "before", 2)
_LEAVES = Step("tear-down", f"{_OURS}kernel.processes:end_members")
_ENDS = Step("shut-down", f"{_OURS}leases:Leases.release_all")
_BURIES = Step("shut-down", f"{_OURS}gateway.server:Gateway._bury")
_BOX = Step("box", f"{_OURS}sandbox.stage:Stage.set_up", "after")

CASES = (
    Case(_STARTS, "gateway", "KILL", workers=False),
    Case(_BEGINS, "pytest", "KILL", workers=False),
    Case(_HAS_DIRECTORY, "pytest", "KILL", workers=False),
    Case(_MAKES, "pytest", "STOP, KILL", workers=False),
    Case(_LEAVES, "pytest", "KILL", workers=False),
    Case(_BURIES, "gateway", "KILL", workers=False),
    Case(_BEGINS, "pytest", "INT", workers=False),
    Case(_LEAVES, "pytest", "INT", workers=False),
    Case(_ENDS, "pytest", "INT", workers=False),
)


@pytest.fixture
def orphans(capable: None) -> Iterator[None]:
    """Let what runs leave become children of this process."""
    adopt_orphans(wanted=True)
    yield
    adopt_orphans(wanted=False)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_alone(orphans: None, case: Case) -> None:
    """Nothing is left, and what can go on goes on."""
    outcome = carry_out(case)
    assert not outcome.absent
    assert not outcome.problems


@requires("pytest-xdist")
@pytest.mark.parametrize("step", [_BEGINS, _CALL], ids=lambda step: step.text)
def test_with_workers(orphans: None, step: Step) -> None:
    """Also where several processes share a gateway."""
    outcome = carry_out(Case(step, "controller", "KILL", workers=True))
    assert not outcome.absent
    assert not outcome.problems


@requires(program="bwrap")
def test_boxes(orphans: None) -> None:
    """Control groups are removed, and the next test has a box again, though who makes boxes has been killed."""
    outcome = carry_out(Case(_BOX, "warden", "KILL", workers=False))
    assert not outcome.absent
    assert not outcome.problems

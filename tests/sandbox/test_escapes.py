"""What boxes are attacked with, and what the machine looks like afterwards.

The attacks are in ``inside``. Each is asserted on from outside of the box; here, from outside of that run, too.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from battles import INSIDE, Battle, listed
from boxes import members

from pytest_netns.sandbox import cgroups

ATTACKS = list(listed("attack_*.py"))


@pytest.mark.parametrize(("file", "name"), ATTACKS)
def test_attack(battle: Battle, file: str, name: str) -> None:
    """An attack fails, as its own assertions have it."""
    for outcome, text in battle.outcomes(file).get(name, [("error", "it did not run")]):
        if outcome == "skipped":
            pytest.skip(text)
        assert outcome == "passed", text


def test_there_are_enough() -> None:
    """At least forty ways out that are publicly known have been tried, each with where it is known from."""
    texts = [Path(INSIDE, file).read_text(encoding="utf-8") for file in sorted({file for file, _ in ATTACKS})]
    assert sum(text.count("\n    Known from: ") for text in texts) >= 40


def test_nothing_is_left(battle: Battle) -> None:
    """After all attacks the secrets lie where they lay, bystanders live, and nothing of the boxes is left."""
    for file, _ in ATTACKS:
        battle.outcomes(file)
    assert battle.digest() == battle.before
    assert battle.bystander.poll() is None
    with pytest.raises(BlockingIOError):
        battle.outside.accept()
    assert not members(f"boxmark-{battle.name}")
    assert not [pid for pid in members("pytest_netns.sandbox") if str(INSIDE.parent.parent).encode() in _command(pid)]
    for group in cgroups.find().values():
        left = [name.split("-")[2] for name in os.listdir(group.path) if name.startswith("pytest-netns-")]
        assert all(os.path.exists(f"/proc/{pid}") for pid in left), left


def _command(pid: int) -> bytes:
    try:
        return Path("/proc", str(pid), "cmdline").read_bytes()
    except OSError:
        return b""

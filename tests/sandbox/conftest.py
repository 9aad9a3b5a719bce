"""Lets the tests of this folder import what stands beside it, and gives them a machine to make boxes on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from battles import Battle

from pytest_netns import doctor

collect_ignore = ["inside"]


@pytest.fixture(scope="session")
def battle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Battle]:
    """Return the machine that is attacked; skip where none can be."""
    report = doctor.examine()
    if not report.ok:
        reason = "; ".join(f"{check.name}: {check.seen}" for check in report.failed)
        if "CI" in os.environ:
            pytest.fail(f"this machine cannot isolate tests: {reason}", pytrace=False)
        pytest.skip(reason)
    fought = Battle(tmp_path_factory.mktemp("battle"))
    yield fought
    fought.close()

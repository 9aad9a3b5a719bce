"""Lets the tests of this folder import what stands beside it, and gives them a machine to make boxes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from battles import Battle

collect_ignore = ["inside"]


@pytest.fixture(scope="session")
def battle(tmp_path_factory: pytest.TempPathFactory, capable: None) -> Iterator[Battle]:
    """Return the machine that is attacked."""
    fought = Battle(tmp_path_factory.mktemp("battle"))
    yield fought
    fought.close()

"""Lets the tests of this folder import what stands beside it, and gives them worlds."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))

from worlds import World, new_world


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """Return the world that a module's tests share."""
    with new_world() as made:
        yield made


@pytest.fixture
def own_world() -> Iterator[World]:
    """Return a world of the test's own, in which no gateway runs yet."""
    with new_world(gateway=False) as made:
        yield made

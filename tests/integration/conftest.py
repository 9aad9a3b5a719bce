"""Runs pytest with other plugins, and ends it in many ways, as a user would."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from runs import Suite, adopt_orphans


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capable: None) -> Iterator[Suite]:
    """Return a test suite to write and run; nothing of its runs may be left."""
    for name in list(os.environ):
        if name.startswith(("PYTEST_", "COV_CORE_", "COVERAGE_")):
            monkeypatch.delenv(name)
    adopt_orphans(wanted=True)
    suite = Suite(pytester)
    monkeypatch.setenv("TMPDIR", str(suite.temporary))
    try:
        yield suite
        suite.assert_nothing_left()
    finally:
        suite.end()
        adopt_orphans(wanted=False)
        shutil.rmtree(suite.temporary)

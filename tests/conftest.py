"""What stands beside this file can be imported by tests in the folders below."""

from __future__ import annotations

import os

import pytest

from pytest_netns import doctor

pytest_plugins = ["pytester"]


@pytest.fixture(scope="session")
def capable() -> None:
    """Skip where tests cannot be isolated; in CI that is a failure."""
    report = doctor.examine()
    if not report.ok:
        reason = "; ".join(f"{check.name}: {check.seen}" for check in report.failed)
        if "CI" in os.environ:
            pytest.fail(f"this machine cannot isolate tests: {reason}", pytrace=False)
        pytest.skip(reason)

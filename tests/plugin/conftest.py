"""Runs pytest on small test suites, each run in a process of its own."""

from __future__ import annotations

import os

import pytest
from places import NOTES, Places, Run, read

from pytest_netns import doctor


@pytest.fixture(scope="session")
def capable() -> None:
    """Skip where tests cannot be isolated; in CI that is a failure."""
    report = doctor.examine()
    if not report.ok:
        reason = "; ".join(f"{check.name}: {check.seen}" for check in report.failed)
        if "CI" in os.environ:
            pytest.fail(f"this machine cannot isolate tests: {reason}", pytrace=False)
        pytest.skip(reason)


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capable: None) -> Run:
    """Return what runs pytest with these arguments, and with our plugin alone, or with xdist for ``-n``."""
    monkeypatch.setenv("NOTES", str(pytester.path / "notes"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)
    pytester.makepyfile(notes=NOTES)

    def running(*arguments: str) -> pytest.RunResult:
        xdist = ("-p", "xdist") if any(argument.startswith("-n") for argument in arguments) else ()
        plugins = ("-p", "pytest_netns.plugin", "-p", "no:cacheprovider", *xdist)
        return pytester.runpytest_subprocess(*plugins, *arguments)

    return running


@pytest.fixture
def places(pytester: pytest.Pytester) -> Places:
    """Return what reads where the code of the last run ran."""
    return lambda: read(pytester.path / "notes")

"""``--netns-verbose``: what is logged under the name ``pytest_netns`` is shown as it happens."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Final

import pytest

__all__ = ["be_verbose"]

NAME: Final = "pytest_netns"
_FORMAT: Final = "netns: %(message)s"


class _Aloud(logging.Handler):
    """Writes to the terminal, past what captures a test's output."""

    def __init__(self, config: pytest.Config) -> None:
        super().__init__()
        self._config = config
        self.setFormatter(logging.Formatter(_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        manager = self._config.pluginmanager
        capture = manager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext():
            reporter: pytest.TerminalReporter | None = manager.getplugin("terminalreporter")
            if reporter is not None and not hasattr(self._config, "workerinput"):
                reporter.ensure_newline()
                reporter.write_line(self.format(record))
            else:  # a worker of pytest-xdist, whose reporter writes nowhere
                sys.stderr.write(f"{self.format(record)}\n")
                sys.stderr.flush()


def be_verbose(config: pytest.Config) -> None:
    """Show what is logged until the end of the run."""
    logger, handler = logging.getLogger(NAME), _Aloud(config)
    level = logger.level
    logger.setLevel(logging.DEBUG)
    logger.addHandler(handler)

    def end() -> None:
        logger.removeHandler(handler)
        logger.setLevel(level)

    config.add_cleanup(end)

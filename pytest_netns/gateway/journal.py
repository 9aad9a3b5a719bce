"""The files that a run's flows and tests are written to, as lines of JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any, TextIO


class Journal:
    """Any number of files that say the same."""

    def __init__(self) -> None:
        """Write nowhere yet."""
        self._files: dict[str, TextIO] = {}

    def __bool__(self) -> bool:
        return bool(self._files)

    def open(self, path: str) -> None:
        """Append to this file, too, from now on; OSError as open(2) has it."""
        file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - it stays open
        self._close(path)
        self._files[path] = file

    def write(self, kind: str, record: dict[str, Any]) -> None:
        """Append one line to each file."""
        line = json.dumps({"kind": kind, **record}) + "\n"
        for path, file in list(self._files.items()):
            try:
                file.write(line)
                file.flush()
            except OSError as error:  # a full disk must not keep leaves from what they may reach
                sys.stderr.write(f"no more flows are written to {path}: {error}\n")
                self._close(path)

    def _close(self, path: str) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            with contextlib.suppress(OSError):  # what it could not take before
                file.close()

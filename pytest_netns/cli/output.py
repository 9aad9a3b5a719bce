"""How the commands write to the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TextIO

__all__ = ["columns", "complain", "wants_colour", "write"]


def write(text: str) -> None:
    """Write to standard output; a reader that has seen enough, as head(1) has, is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:  # a path may have bytes that are no text, and a terminal lacks signs that a test's name has
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit


def complain(text: object) -> None:
    """Write to standard error what went wrong."""
    sys.stderr.write(f"pytest-netns: {text}\n")


def wants_colour(stream: TextIO) -> bool:
    """Tell whether a stream leads to a terminal that shows colours, and its user has nothing against them."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows as lines, with each column as wide as its widest cell."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]

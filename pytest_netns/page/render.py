"""Put a report in HTML together: one file that needs no other."""

from __future__ import annotations

import html
import json
import re
from importlib import resources
from typing import Any

__all__ = ["render"]


def render(model: dict[str, Any]) -> str:
    """Return the page that shows these values."""
    # In a script element nothing but its end tag has a meaning; "<" as an escape of JSON's cannot begin one.
    parts = {
        "title": html.escape(model["title"]),
        "style": _part("page.css"),
        "script": _part("page.js"),
        "data": json.dumps(model, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{(title|style|script|data)\}", lambda found: parts[found[1]], _part("page.html"))


def _part(name: str) -> str:
    return (resources.files("pytest_netns.page") / name).read_text(encoding="utf-8")

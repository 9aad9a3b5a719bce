"""A section in the report of pytest-html, where that plugin is installed."""

from __future__ import annotations

import html
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import quote

from pytest_netns.closing import closing

if TYPE_CHECKING:
    from pytest_netns.session import Session

__all__ = ["section"]


def section(session: Session, page: str | None) -> str:
    """Return what stands above pytest-html's results: what the end of the run says, as HTML.

    Args:
        session: the run.
        page: the file that pytest-html writes; our own page, if there is one, is linked from there.
    """
    return "".join(_lines(session, page))


def _lines(session: Session, page: str | None) -> Iterator[str]:
    for title, lines in closing(session, ()):
        text = html.escape("\n".join(lines))
        yield f"<details open><summary>netns: {html.escape(title)}</summary><pre>{text}</pre></details>"
    own = session.outputs.report
    if own is not None:
        link = os.path.relpath(own, os.path.dirname(os.path.abspath(page))) if page else own
        yield f'<p>netns: <a href="{html.escape(quote(link))}">tests, networks and flows</a></p>'

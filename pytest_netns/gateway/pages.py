"""What the gateway itself says to a browser: the index of live leaves, and why a leaf does not answer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from html import escape, unescape
from http import HTTPStatus
from typing import Final

from pytest_netns.gateway.heads import Head
from pytest_netns.gateway.worker import LiveLeaf

_REFRESH: Final = 2  # seconds
_STYLE: Final = (
    ":root{color-scheme:light dark}"
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.35rem .7rem;vertical-align:top}"
    "tr+tr{border-top:1px solid #8884}code{font-family:ui-monospace,monospace}td:nth-child(2){overflow-wrap:anywhere}"
)
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'"


def index(leaves: Iterable[LiveLeaf], port: int) -> str:
    """Return the page that lists the live leaves, which renews itself; ``port`` is the one that it is served at."""
    rows = "".join(_row(live, port) for live in leaves)
    if not rows:
        return "<h1>No leaf is alive</h1><p>This page shows each as soon as there is one.</p>"
    head = "<tr><th>leaf</th><th>test</th><th>service</th><th>for</th></tr>"
    return f"<h1>Live leaves</h1><table>{head}{rows}</table>"


def _row(live: LiveLeaf, port: int) -> str:
    url = url_of(live.name, port)
    held = " (held)" if live.held is not None else ""
    cells = (
        f'<a href="{url}"><code>{escape(live.name)}</code></a>{held}',
        escape(live.test),
        f"port {live.port}",
        f"{time.time() - live.since:.0f} s",
    )
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def url_of(leaf: str, port: int) -> str:
    """Return where a leaf's service is found."""
    return f"http://{escape(leaf.lower())}.localhost:{port}/"


def unknown(name: str, fate: str | None, live: Iterable[LiveLeaf], port: int) -> str:
    """Return the page for a leaf that is not alive; ``fate`` is the test that it served, if it has ended."""
    told = f"It has ended, with {escape(fate)}." if fate else "There was none of that name."
    links = ", ".join(f'<a href="{url_of(one.name, port)}">{escape(one.name)}</a>' for one in live) or "none"
    return (
        f"<h1>No live leaf is called <code>{escape(name)}</code></h1><p>{told} To keep the leaf of a failed test, run "
        f"pytest with <code>--netns-hold=failed</code>.</p><p>Live: {links}; "
        f'<a href="http://localhost:{port}/">all</a></p>'
    )


def silent(live: LiveLeaf, wanted: int, reason: str, listening: Iterable[str], port: int) -> str:
    """Return the page for a leaf in which nobody listens on the wanted port."""
    seen = ", ".join(f"<code>{escape(one)}</code>" for one in listening) or "nothing"
    return (
        f"<h1>Nobody answers at port {wanted} in <code>{escape(live.name)}</code></h1><p>{escape(reason)}. "
        f"What listens there: {seen}. The test: {escape(live.test)}. For another port, put its number before the name: "
        f"<code>http://3000.{escape(live.name)}.localhost:{port}/</code></p>"
    )


def plain(title: str, text: str) -> str:
    """Return a page with a heading and a sentence."""
    return f"<h1>{escape(title)}</h1><p>{escape(text)}</p>"


def response(status: HTTPStatus, body: str, *, head: Head | None = None, renews: bool = False) -> bytes:
    """Return the answer to a request, ``head``, with one of the pages above; the connection ends with it.

    What does not ask for HTML, such as curl, gets text.
    """
    html = head is not None and "text/html" in head.value("accept")
    content = (_html(body, renews=renews) if html else _text(body)).encode()
    fields = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: text/{'html' if html else 'plain'}; charset=utf-8",
        f"Content-Length: {len(content)}",
        f"Content-Security-Policy: {_POLICY}",
        "X-Content-Type-Options: nosniff",
        "Cache-Control: no-store",
        "Connection: close",
    )
    start = "\r\n".join(fields).encode() + b"\r\n\r\n"
    return start if head is not None and head.method == "HEAD" else start + content


def _html(body: str, *, renews: bool) -> str:
    refresh = f'<meta http-equiv="refresh" content="{_REFRESH}">' if renews else ""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{refresh}<title>pytest-netns</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style><body>{body}</body></html>\n'
    )


def _text(body: str) -> str:
    """Return a page without its markup: a line for each block and each row."""
    lines = re.sub(r"</(?:h1|p|tr)>", "\n", body)
    return unescape(re.sub(r"<[^>]*>", "", re.sub(r"</t[dh]>", "  ", lines)))

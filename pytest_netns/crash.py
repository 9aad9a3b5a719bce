"""The section of a test that ended its worker: the controller tells it, from what the gateway knows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pytest_netns.errors import NetnsError
from pytest_netns.gateway.client import GatewayClient
from pytest_netns.gateway.flows import ALLOWED, Flow
from pytest_netns.gateway.questions import Question
from pytest_netns.report import TITLE, blocked_lines, leaf_line, shortened
from pytest_netns.scene import allowed_lines, asked_lines
from pytest_netns.session import SESSION, Session
from pytest_netns.settings import Keep, Mode

if TYPE_CHECKING:
    import pytest

__all__ = ["add_section"]


def add_section(report: pytest.TestReport) -> None:
    """Add it to the report that xdist has made of the test; nothing where the test had no network of ours."""
    node: Any = report.node
    session = node.config.stash[SESSION]
    if session.settings.mode is Mode.OFF:
        return
    try:
        facts = _ask(session, node.gateway.id, report.nodeid)
    except (NetnsError, OSError) as error:
        report.sections.append((TITLE, f"the gateway does not tell what there was: {error}"))
        return
    if facts is not None:
        report.sections.append((TITLE, "\n".join(_lines(session, facts))))


def _ask(session: Session, worker: str, test: str) -> dict[str, Any] | None:
    directory = "" if session.settings.pcap is Keep.OFF else session.outputs.captures
    if session.client is not None:
        return session.client.obituary(worker, test, directory)
    client = GatewayClient.found(session.run_id)
    if client is None:
        return None
    with contextlib.closing(client):
        return client.obituary(worker, test, directory)


def _lines(session: Session, facts: dict[str, Any]) -> Iterator[str]:
    leaf, flows = facts["leaf"], [Flow(**fields) for fields in facts["flows"]]
    yield leaf_line(leaf, facts["ipv4"], facts["ipv6"])
    yield from shortened([f"listening: {_endpoint(where)}" for where in facts["listening"]])
    yield from blocked_lines((flow for flow in flows if flow.verdict != ALLOWED), lambda flow: flow.leaf == leaf)
    yield from allowed_lines(flow for flow in flows if flow.verdict == ALLOWED)
    yield from asked_lines(Question(*row) for row in facts["asked"])
    yield from shortened([f"running: pid {pid}: {command}" for pid, command in facts["running"]])
    if facts["capture"] is not None:
        from pytest_netns.keeping import capture_line  # noqa: PLC0415

        yield capture_line(session, **facts["capture"])


def _endpoint(where: str) -> str:
    address, _, protocol = where.partition("/")
    return f"{protocol or 'tcp'} {address}"

"""What a failed test's report says of its network, gathered while that is there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from pytest_netns.causes import in_full
from pytest_netns.errors import NetnsError
from pytest_netns.gateway.flows import ALLOWED
from pytest_netns.hints import hints
from pytest_netns.kernel.sockets import Listener, holders, listeners
from pytest_netns.leases import threads_in
from pytest_netns.report import BLOCKED, leaf_line, shortened

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.flows import Flow
    from pytest_netns.gateway.questions import Question
    from pytest_netns.kernel.processes import Process
    from pytest_netns.namespace import Namespace
    from pytest_netns.report import Record

__all__ = ["Scene", "allowed_lines", "asked_lines", "gather"]

_HERE = "the test's own process"


@dataclass(frozen=True)
class Scene:
    """What there was when a test failed.

    Attributes:
        lines: what is told of it.
        takers: who listened by TCP, in the test's network or in its worker's.
    """

    lines: list[str]
    takers: Sequence[Listener] = ()

    def told(self, *, blocked: bool) -> list[str]:
        """Return the lines, those of blocked attempts only if wanted."""
        return [line for line in self.lines if blocked or not line.startswith(BLOCKED)]

    def hints(self, client: GatewayClient | None, text: str, traceback: TracebackType | None) -> list[str]:
        """Return what the failure smells of; ``text`` is what is told of it, ``traceback`` where it was raised."""
        if client is None:
            return []
        try:
            return [f"hint: {hint}" for hint in hints(text, traceback, self.takers, client.listening)]
        except NetnsError:  # it is gone, as the other lines say
            return []


def gather(record: Record, client: GatewayClient | None) -> Scene:
    """Look at a test's network, and ask the gateway what was tried there."""
    here = _inhabitants(record.namespace)
    above = _inhabitants(record.namespace.worker)
    lines = [
        _leaf_line(record.namespace),
        *dict.fromkeys([*here.remarks, *above.remarks]),
        *shortened([f"listening: {line}" for line in here.listening]),
        *shortened([f"listening in the worker's network: {line}" for line in above.listening]),
        *_beside(record),
        *_attempts(record, client),
        *shortened([f"running: {line}" for line in here.others]),
    ]
    return Scene(lines, [*here.takers, *above.takers])


def _leaf_line(namespace: Namespace) -> str:
    return leaf_line(namespace.name, namespace.ipv4, namespace.ipv6)


def _beside(record: Record) -> Iterator[str]:
    """Yield what there is in the leaves that a test has made beside its own."""
    for namespace in record.further:
        yield _leaf_line(namespace)
        found = _inhabitants(namespace)
        lines = [*(f"listening: {line}" for line in found.listening), *(f"running: {line}" for line in found.others)]
        yield from found.remarks
        yield from shortened([f"in {namespace.name}: {line}" for line in lines])


class _Inhabitants(NamedTuple):
    listening: Sequence[str] = ()
    others: Sequence[str] = ()
    takers: Sequence[Listener] = ()
    remarks: Sequence[str] = ()


def _inhabitants(namespace: Namespace | None) -> _Inhabitants:
    """Look who is in a namespace: those that listen, and the other processes and threads."""
    if namespace is None or namespace.closed:
        return _Inhabitants()
    try:
        return _looked(namespace)
    except (NetnsError, OSError) as error:  # the test may have used up what it takes to look, as descriptors
        return _Inhabitants(remarks=[f"nobody can tell who listens and runs there: {in_full(error)}"])


def _looked(namespace: Namespace) -> _Inhabitants:
    inside = namespace.processes()
    with namespace:
        found = listeners()
    pids = [os.getpid(), *(process.pid for process in inside)]
    held = holders([one.inode for one in found], pids)
    lines = [_listening(one, held.get(one.inode, []), inside) for one in found]
    serving = {pid for pids in held.values() for pid in pids}
    others = [_named(process) for process in inside if process.pid not in serving]
    threads = threads_in(os.fstat(namespace.fileno()).st_ino)
    others += [f"thread {thread.name}" for thread in threads]
    takers = [one for one in found if one.protocol == "tcp"]
    return _Inhabitants(list(dict.fromkeys(lines)), others, takers)


def _listening(listener: Listener, pids: Iterable[int], inside: Iterable[Process]) -> str:
    known = {process.pid: _named(process) for process in inside} | {os.getpid(): _HERE}
    names = ", ".join(known[pid] for pid in pids if pid in known)
    return f"{listener.endpoint}{', ' if names else ''}{names}"


def _named(process: Process) -> str:
    return f"pid {process.pid}: {process.command}"


def _attempts(record: Record, client: GatewayClient | None) -> Iterator[str]:
    if client is None:
        return
    try:
        flows = record.flows(client)
        asked = client.asked(record.namespace.name, after=record.since)
    except NetnsError as error:
        yield f"the gateway does not tell what was blocked: {error}"
        return
    yield from record.tell(flow for flow in flows if flow.verdict != ALLOWED)
    yield from allowed_lines(flow for flow in flows if flow.verdict == ALLOWED)
    yield from asked_lines(question for question in asked if question.test == record.test)


def asked_lines(questions: Iterable[Question]) -> list[str]:
    """Return a line for each question for a name that was not refused; the refused ones are among what was blocked."""
    return shortened([f"asked: {one.name}: {one.outcome}" for one in questions if not one.refused])


def allowed_lines(flows: Iterable[Flow]) -> list[str]:
    """Return a line for each endpoint that was let through: how often, by which rule, and what came of it."""
    kinds: dict[tuple[str, str | None, str | None], Counter[str]] = {}
    for flow in flows:
        sums = kinds.setdefault((flow.endpoint, flow.rule, flow.reason), Counter())
        sums.update(times=1, out=flow.sent, into=flow.received)
    lines = []
    for (endpoint, rule, reason), sums in kinds.items():
        times = f" ({sums['times']} times)" if sums["times"] > 1 else ""
        why = f' by "{rule}"' if rule else " without a rule"
        came = f": {reason}" if reason else f": {sums['out']} B sent, {sums['into']} B received"
        lines.append(f"allowed: {endpoint}{times}{why}{came}")
    return shortened(lines)

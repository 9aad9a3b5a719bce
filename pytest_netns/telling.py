"""What is told of a test when it is over: its report's sections, its packets, its counts."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_netns.causes import in_full
from pytest_netns.errors import NetnsError
from pytest_netns.report import RECORD, TEARDOWN, TITLE, Record
from pytest_netns.settings import Keep

if TYPE_CHECKING:
    from pytest_netns.namespace import Namespace
    from pytest_netns.scene import Scene
    from pytest_netns.session import Session

__all__ = ["Telling"]

_OURS: Final = "netns_"
_REFUSED: Final = (ImportError, NetnsError, OSError)


class Telling:
    """A plugin of every process that runs tests; what it takes to tell of a failure is loaded when there is one."""

    def __init__(self, session: Session) -> None:
        """Tell nothing before a test is over."""
        self._session = session
        self._counted = bool(getattr(session.config.option, "xmlpath", None) or session.settings.report)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[Any]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Tell what there was in a failed test's network, and what any test left running, or changed."""
        result = yield
        record = item.stash.get(RECORD, None)
        if record is not None:
            lines = self._told(record, result, call) if result.failed else []
            record.told = ""
            title = TITLE
            if result.when == "teardown":
                title = TEARDOWN  # pytest shows it with a failure of the test, too
                lines += record.endings() + record.strays() + record.amends()
                del item.stash[RECORD]
            if lines:
                result.sections.append((title, "\n".join(lines)))
        return result

    def begin(self, item: pytest.Item, namespace: Namespace, *, own: bool = True) -> Record:
        """Begin the record of a test that runs in a leaf; ``own`` is whether that is the test's."""
        record = item.stash[RECORD] = Record(item.nodeid, namespace, own)
        keys = self._session.keys
        if keys is not None:
            from pytest_netns.keeping import size_of  # noqa: PLC0415

            record.keys_from = size_of(keys)
        return record

    def end(self, item: pytest.Item, *, failed: bool) -> None:
        """Gather what is to be told of a test, before its leaf is given back; ``failed`` is of its tear-down."""
        record = item.stash.get(RECORD, None)
        if record is None:
            return
        if failed:
            with contextlib.suppress(*_REFUSED):
                record.scene = self._gather(record)
        self._keep(record, failed=failed)
        if self._counted:  # a test that is run again has counts already
            others = [one for one in item.user_properties if not one[0].startswith(_OURS)]
            item.user_properties[:] = others + record.properties(self._session.client)

    def _gather(self, record: Record) -> Scene:
        from pytest_netns.scene import gather  # noqa: PLC0415

        return gather(record, self._session.client)

    def _told(self, record: Record, result: pytest.TestReport, call: pytest.CallInfo[Any]) -> list[str]:
        try:
            return self._failure(record, result, call)
        except _REFUSED as error:  # the test may have used up what it takes to look, as descriptors
            return [f"nobody can tell what there is in this test's network: {in_full(error)}"]

    def _failure(self, record: Record, result: pytest.TestReport, call: pytest.CallInfo[Any]) -> list[str]:
        """Return what is told of a phase that failed."""
        scene = record.scene or self._gather(record)
        text = "\n".join([result.longreprtext, *(content for _, content in result.sections)])
        lines = scene.told(blocked=not (record.told and record.told in result.longreprtext))
        if result.when != "teardown":  # by then it is kept already
            self._keep(record, failed=True)
        lines += scene.hints(self._session.client, text, call.excinfo.tb if call.excinfo is not None else None)
        return lines + ([record.kept] if record.kept else [])

    def _keep(self, record: Record, *, failed: bool) -> None:
        """Keep the test's packets by now, if they are wanted."""
        record.failed = record.failed or failed
        wanted = self._session.settings.pcap
        if wanted is Keep.ON or (wanted is Keep.ON_FAILURE and record.failed):
            from pytest_netns.keeping import keep  # noqa: PLC0415

            record.kept = keep(self._session, record)

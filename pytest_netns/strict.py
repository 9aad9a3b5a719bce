"""``--netns-egress=fail``: a blocked attempt fails the test, even one that swallowed the error."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import TYPE_CHECKING, Final

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.report import RECORD

if TYPE_CHECKING:
    from pytest_netns.session import Session

__all__ = ["Strict"]

_DELIBERATE: Final = frozenset({"tcp", "udp", "dns"})  # the kernel itself sends ICMP and IGMP
_WHY: Final = "(with --netns-egress=fail, a test may not even try to reach what is not allowed)"


class Strict:
    """A plugin of every process that runs tests; each phase of a test answers for what was tried in it.

    It fails as any phase may, so that xfail, reruns, ``-x`` and ``--pdb`` take it as they do.
    """

    def __init__(self, session: Session) -> None:
        """Fail nothing before a test tries."""
        self._session = session

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail a set-up that passed otherwise."""
        __tracebackhide__ = True
        return (yield from self._watch(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail a test that passed otherwise."""
        __tracebackhide__ = True
        return (yield from self._watch(item))

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> Generator[None, object, object]:
        """Fail a tear-down that passed otherwise."""
        __tracebackhide__ = True
        return (yield from self._watch(item))

    def _watch(self, item: pytest.Item) -> Generator[None, object, object]:
        try:
            result = yield
        except (Exception, pytest.fail.Exception, pytest.skip.Exception):
            with contextlib.suppress(NetnsError):
                self._fresh(item)  # the phase has answered for them
            raise
        lines = self._fresh(item)
        if lines:
            text = item.stash[RECORD].told = "\n".join([*lines, _WHY])
            pytest.fail(text, pytrace=False)
        return result

    def _fresh(self, item: pytest.Item) -> list[str]:
        """Return a line for each blocked attempt that no phase of the test has answered for yet."""
        record, client = item.stash.get(RECORD, None), self._session.client
        if record is None or client is None:
            return []
        return record.tell(flow for flow in record.fresh(client) if flow.protocol in _DELIBERATE)

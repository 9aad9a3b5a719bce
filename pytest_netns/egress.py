"""What may leave a leaf, and what tried to: the handle that tests are given."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pytest_netns.errors import NamespaceClosedError
from pytest_netns.gateway.flows import BLOCKED
from pytest_netns.rules import EgressRule

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.flows import Flow
    from pytest_netns.namespace import Namespace

__all__ = ["Egress"]

_log = logging.getLogger(__name__)


class Egress:
    """The way out of a leaf: which rules hold, what was tried, and what is allowed from now on."""

    def __init__(
        self, namespace: Namespace, client: GatewayClient, *, rules: Iterable[str] = (), test: str | None = None
    ) -> None:
        """Describe the way out of a leaf.

        Args:
            namespace: the leaf.
            client: the gateway that it was granted by.
            rules: what holds already.
            test: the node id of the test whose attempts are shown; None shows those of whatever runs in the leaf.
        """
        self._namespace = namespace
        self._client = client
        self._rules = dict.fromkeys(rules)
        self._test = test
        self._closed = False

    def __repr__(self) -> str:
        """Name the leaf and the rules that hold."""
        over = " closed" if self._closed or self._namespace.closed else ""
        return f"<Egress of {self._namespace.name}: {', '.join(self._rules) or 'nothing'} allowed{over}>"

    @property
    def rules(self) -> list[str]:
        """The rules that hold now, each in its canonical form, those for every test first."""
        self._leaf()
        return list(self._rules)

    @property
    def flows(self) -> list[Flow]:
        """What the test has tried to reach so far, allowed or not, oldest first."""
        flows = self._client.flows(self._leaf())
        return flows if self._test is None else [flow for flow in flows if flow.test == self._test]

    @property
    def blocked(self) -> list[Flow]:
        """What the test has tried in vain so far, oldest first."""
        return [flow for flow in self.flows if flow.verdict == BLOCKED]

    def allow(self, *rules: str) -> None:
        """Allow more to this test, from its next connection on: ``"host:port"``, as ``--netns-allow`` takes it.

        Raises:
            RuleError: one of them is no rule; then none of them holds.
        """
        texts = [str(EgressRule.parse(rule)) for rule in rules]
        self._client.allow(self._leaf(), texts)
        self._rules |= dict.fromkeys(texts)
        for text in texts:
            _log.info("leaf %s may reach %s from now on", self._namespace.name, text)

    def close(self) -> None:
        """Be of no use from now on; doing so twice is harmless. The leaf keeps its rules for as long as it lives."""
        self._closed = True

    def _leaf(self) -> str:
        if self._closed or self._namespace.closed:
            raise NamespaceClosedError(
                f"the way out of {self._namespace.name} is closed: the test that it belonged to has ended. "
                "Ask for a new one with the netns_egress fixture"
            )
        return self._namespace.name

"""What leaves may reach: by their rules, and by the loopback that they share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace

from pytest_netns.gateway import hub_ruleset
from pytest_netns.gateway.conversation import Reply
from pytest_netns.gateway.hub import Hub
from pytest_netns.gateway.recipes import Template, values_of
from pytest_netns.gateway.relay import Relay
from pytest_netns.gateway.worker import LiveLeaf, Worker
from pytest_netns.hostnames import LOCALHOST
from pytest_netns.policy import Policy
from pytest_netns.rules import EgressRule


class Reach:
    """Who sees to that, in the hub and among the connections that there are."""

    def __init__(self, hub: Hub, relay: Relay) -> None:
        """Change nothing yet."""
        self._hub = hub
        self._relay = relay
        self.operations: dict[str, Callable[..., Reply]] = {"activate": self.activate, "allow": self._allow}

    def connect(self, worker: Worker) -> None:
        """Let a worker's own leaf reach those of its tests, and be reached by them."""
        self._hub.filter.request(hub_ruleset.peers(worker.number), "let a worker reach its tests")

    def activate(self, worker: Worker, leaf: str) -> Reply:
        """Make a leaf the one that the worker leaf's loopback is continued in."""
        worker.current = worker.tests[leaf]
        self.route_loopback(worker.current, worker.test_routes)
        return {}, ()

    def route_loopback(self, live: LiveLeaf, routes: Template) -> None:
        """Continue a loopback in a leaf, by the messages that ``routes`` stands for."""
        self._hub.switch.request(routes.filled(values_of(live.leaf.addresses)), "route a shared loopback")

    def apply(self, live: LiveLeaf, policy: Policy) -> None:
        """Go by a policy from now on; connections that it does not allow are cut."""
        live.policy, before = policy, live.policy
        if not set(before.rules) <= set(policy.rules):
            self._relay.cut(live.address, policy)
        asks = live.owner.own is not None and (
            policy.everything or any(rule.host == LOCALHOST for rule in policy.rules)
        )
        if asks is not live.asks:
            self.ask_of(live, asks=asks)

    def ask_of(self, live: LiveLeaf, *, asks: bool) -> None:
        """Have the gateway asked of what a leaf sends to other leaves from now on, or not any more."""
        change = hub_ruleset.asking(live.leaf.addresses.hub_ifindex, asks=asks)
        self._hub.filter.request(change, "have the gateway asked of a leaf's loopback")
        live.asks = asks

    def _allow(self, worker: Worker, leaf: str, rules: list[str]) -> Reply:
        live = worker.named(leaf)
        more = tuple(rule for rule in parsed(tuple(rules)) if rule not in live.policy.rules)
        self.apply(live, replace(live.policy, rules=live.policy.rules + more))
        return {}, ()


@functools.cache
def parsed(rules: tuple[str, ...]) -> tuple[EgressRule, ...]:
    """Return rules, each from its text; RuleError where one is none."""
    return tuple(EgressRule.parse(rule) for rule in rules)

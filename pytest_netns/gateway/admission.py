"""Decide what becomes of a new flow, put it on record, and make the connection that it is let through to."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Final

from pytest_netns import addressing, policy
from pytest_netns.gateway import boxes, listeners, packet, sni
from pytest_netns.gateway.dials import CUT_SHORT, Rules, Target
from pytest_netns.gateway.flows import ALLOWED, BLOCKED, Entry, Flow, FlowLog
from pytest_netns.gateway.hub_ruleset import MARK_BLOCKED, MARK_PASS, MARK_RELAY, MARK_RESET
from pytest_netns.gateway.names import Names
from pytest_netns.gateway.packet import Endpoints
from pytest_netns.gateway.relay import Relay, goes_on, key_of, mark_for
from pytest_netns.gateway.resolver import Found, LookupFailedError, Resolver
from pytest_netns.gateway.upstreams import Passage
from pytest_netns.gateway.worker import LiveLeaf
from pytest_netns.policy import Verdict
from pytest_netns.rules import EgressRule

_HOST_LOOPBACK: Final = frozenset({addressing.HOST_LOOPBACK, addressing.HOST_LOOPBACK6})


class Admission:
    """Who decides on the flows of one hub, by the policies of its leaves."""

    def __init__(
        self,
        relay: Relay,
        log: FlowLog,
        *,
        names: Names,
        resolver: Resolver,
        leaf_of: Callable[[int | str], LiveLeaf | None],
    ) -> None:
        """Decide on nothing yet; ``leaf_of`` finds a leaf by its address."""
        self._relay = relay
        self._log = log
        self._names = names
        self._resolver = resolver
        self._leaf_of = leaf_of

    def refuses_foreign(self, leaf: LiveLeaf, flow: Endpoints) -> bool:
        """Refuse a flow from an address that is not its leaf's, as it could not be cut off; tell whether it was."""
        if str(flow.source) in leaf.addresses:
            return False
        foreign = f"it came from {flow.source}, which is not the test's address"
        why = policy.why_never(flow.protocol_name, flow.destination)  # multicast comes from link-local addresses
        self._record(leaf, flow, None, BLOCKED, reason=why or foreign)
        return True

    def decide(self, leaf: LiveLeaf, flow: Endpoints, *, forwarded: bool) -> int | Coroutine[None, None, int | None]:
        """Return the mark for a flow's first packet, or what finds it out."""
        destination = flow.destination
        if not forwarded and (destination in _HOST_LOOPBACK or destination in leaf.peer_aliases):
            return self._to_loopback(leaf, flow)
        if leaf.asks and not forwarded and destination != addressing.BROADCAST and addressing.is_leaf(destination):
            return MARK_PASS
        name = self._names.name_of(destination)
        decision = policy.decide(leaf.policy, flow.protocol_name, destination, flow.destination_port, name)
        if decision.verdict is Verdict.BLOCK:
            why = policy.why_never(flow.protocol_name, destination)
            self._record(leaf, flow, name, BLOCKED, reason=why)
            return MARK_BLOCKED
        return self._let_through(leaf, flow, name, decision.rule)

    async def _let_through(
        self, leaf: LiveLeaf, flow: Endpoints, name: str | None, rule: EgressRule | None
    ) -> int | None:
        """Make the connection that a rule allows, or that is recorded, and return the mark for its first packet."""
        targets: list[tuple[Target, Rules]] = [(Target(str(flow.destination), flow.destination_port), ())]
        reason = None
        if name is not None:
            try:
                targets, reason = await self._targets(leaf, flow, name)
            except LookupFailedError as error:
                self._log.end(self._record(leaf, flow, name, ALLOWED, rule=rule), str(error))
                return mark_for(error, flow)
        if reason is not None:
            self._record(leaf, flow, name, BLOCKED, reason=reason)
            return MARK_BLOCKED
        entry = self._record(leaf, flow, name, ALLOWED, rule=rule)
        inspect = None
        if name is not None and rule is not None and leaf.policy.sni and flow.protocol == packet.TCP:
            inspect = sni.inspector(rule, lambda why: self._refuse_tls(leaf, flow, name, why))
        return await self._told(
            leaf,
            flow,
            targets,
            Passage(leaf.address, entry, () if rule is None else (rule,), inspect, flow.protocol == packet.UDP),
        )

    async def _targets(
        self, leaf: LiveLeaf, flow: Endpoints, name: str
    ) -> tuple[list[tuple[Target, Rules]], str | None]:
        """Return where a name's connections go in the family that was dialled, or why they go nowhere."""
        found = await self._resolver.look_up(name, leaf)
        family = [one for one in found if one.address.version == flow.destination.version]
        permitted = self._permitted(leaf.policy, flow, family)
        if leaf.owner.record and not self._permitted(replace(leaf.policy, everything=False), flow, family):
            for target, _ in permitted:
                self._log.need(_flow(leaf, flow, ALLOWED, address=target.host), leaf.owner.name)
        refused = family and not permitted
        reason = f"{name} is {family[0].address} now, which takes a rule of its own" if refused else None
        return permitted, reason

    @staticmethod
    def _permitted(going_by: policy.Policy, flow: Endpoints, found: list[Found]) -> list[tuple[Target, Rules]]:
        """Return which of a name's addresses it may lead to, and by which rules besides its own."""
        port = flow.destination_port
        ways = [
            (address, policy.rules_to_stand_for(going_by, address, flow.protocol_name, port, own=own))
            for address, own in found
        ]
        return [(Target(str(address), port), rules) for address, rules in ways if rules is not None]

    async def _told(
        self, leaf: LiveLeaf, flow: Endpoints, targets: list[tuple[Target, Rules]], passage: Passage
    ) -> int | None:
        """Relay to one of the targets, or return the mark that tells the client why not."""
        try:
            return await self._relay_to(leaf, flow, targets, passage)
        except OSError as error:
            self._relay.end(passage, _named(error))
            return mark_for(error, flow)
        except BaseException:
            self._relay.end(passage, "the gateway has ended")
            raise

    async def _relay_to(
        self, leaf: LiveLeaf, flow: Endpoints, targets: list[tuple[Target, Rules]], passage: Passage
    ) -> int:
        """Connect to the first target that can be, as a client with all these addresses would."""
        refusal = OSError(errno.EHOSTUNREACH, "the name has no address of the family that was dialled")
        for target, rules in targets:
            if passage.entry is not None:
                passage.entry.reached(target.host)
            resting = replace(passage, rules=passage.rules + rules) if rules else passage
            if not self._goes_on(leaf, resting.rules):  # it ended while the name was looked up
                raise PermissionError(errno.EPERM, CUT_SHORT)
            try:
                admit = self._relay.admit_tcp if flow.protocol == packet.TCP else self._relay.admit_udp
                return await admit(flow, target, resting)
            except OSError as error:
                refusal = error
        raise refusal

    async def _to_loopback(self, leaf: LiveLeaf, flow: Endpoints) -> int | None:
        """Continue a leaf's loopback in its peer's, and in the host's where it may reach that."""
        port, version = flow.destination_port, flow.destination.version
        peer, at_host = leaf.peer, flow.destination in _HOST_LOOPBACK
        decision = policy.decide(leaf.policy, flow.protocol_name, flow.destination, port, loopback=True)
        owned = (
            at_host and leaf.owner.own is None and listeners.owned(leaf.owner.pid, flow.protocol_name, port, version)
        )
        if decision.verdict is Verdict.BLOCK and not owned:
            # Nobody listens there as far as this leaf can know: what loopback itself, or its peer, would say.
            return MARK_RESET if at_host else MARK_PASS
        udp = flow.protocol != packet.TCP
        rules = () if decision.rule is None else (decision.rule,)
        if udp and decision.rule is None and not at_host:
            return MARK_PASS  # it reaches the peer, who takes it or does not
        if peer is not None and (not udp or await self._relay.takes_datagrams(peer.leaf, port, version)):
            with contextlib.suppress(OSError):
                near = Target(peer.addresses[version == 6], port, in_hub=True)
                return await self._relay_to(leaf, flow, [(near, ())], Passage(leaf.address, rules=rules))
        host = Target("127.0.0.1" if version == 4 else "::1", port)
        record = _flow(leaf, flow, ALLOWED, address=host.host, rule=decision.rule)
        entry = self._log.add(record, leaf.owner.name, needed=False)
        mark = await self._told(leaf, flow, [(host, ())], Passage(leaf.address, entry, rules, datagrams=udp))
        if mark == MARK_RELAY and leaf.owner.record and not owned:
            self._log.need(record, leaf.owner.name)
        return mark

    def _goes_on(self, leaf: LiveLeaf, rules: Rules) -> bool:
        """Tell whether what was allowed when it was asked for still is."""
        return self._leaf_of(leaf.address) is leaf and goes_on(leaf.policy, rules)

    def _record(
        self,
        leaf: LiveLeaf,
        flow: Endpoints,
        name: str | None,
        verdict: str,
        *,
        rule: EgressRule | None = None,
        reason: str | None = None,
    ) -> Entry:
        needed = leaf is not leaf.owner.own or not leaf.owner.opened
        record = _flow(leaf, flow, verdict, name=name, rule=rule, reason=reason)
        return self._log.add(record, leaf.owner.name, needed=needed, key=key_of(flow))

    def _refuse_tls(self, leaf: LiveLeaf, flow: Endpoints, name: str, why: str) -> None:
        self._record(leaf, flow, name, BLOCKED, reason=why)


def _named(error: OSError) -> str:
    return error.strerror or str(error)


def _flow(
    leaf: LiveLeaf,
    flow: Endpoints,
    verdict: str,
    *,
    name: str | None = None,
    address: str | None = None,
    rule: EgressRule | None = None,
    reason: str | None = None,
) -> Flow:
    if address is None and name is None:
        address = str(flow.destination)
    return Flow(
        time.time(),
        leaf.name,
        leaf.test,
        flow.protocol_name,
        name,
        address,
        flow.destination_port or None,
        verdict,
        None if rule is None else str(rule),
        reason,
        sandbox=boxes.box_of(leaf, flow.protocol_name, flow.source_port),
    )

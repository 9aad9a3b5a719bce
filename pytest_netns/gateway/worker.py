"""What the gateway knows of one pytest process: its leaves, and how they are wired to each other."""

from __future__ import annotations

import functools
import os
import socket
import time
from dataclasses import dataclass, field

from pytest_netns import addressing
from pytest_netns.addressing import Loopback
from pytest_netns.gateway.captures import Capture
from pytest_netns.gateway.factory import Leaf
from pytest_netns.gateway.recipes import Address, Template, Wiring, loopback_routes
from pytest_netns.policy import CLOSED, Policy

_HOST = (addressing.HOST_LOOPBACK, addressing.HOST_LOOPBACK6)


@dataclass(eq=False)
class LiveLeaf:
    """A leaf in use.

    Attributes:
        name: what it is called.
        leaf: the namespaces.
        owner: whose it is.
        policy: what it may reach.
        test: the test that its flows are booked on.
        asks: whether the gateway is asked of what it sends to other leaves.
        port: the port of the service under test.
        since: when it began to serve the test, in seconds since the epoch.
        held: why its test, which has failed, waits for somebody to look inside; None where it does not.
        visited: when somebody came in last, or the wait began, by the monotonic clock.
        boxes: by name, the process that each box in it descends from.
        capture: what is kept of its packets; None where nobody wants them.
    """

    name: str
    leaf: Leaf
    owner: Worker
    policy: Policy
    test: str = ""
    asks: bool = False
    port: int = 8080
    since: float = field(default_factory=time.time)
    held: str | None = None
    visited: float = 0.0
    boxes: dict[str, int] = field(default_factory=dict)
    capture: Capture | None = None

    @functools.cached_property
    def address(self) -> str:
        """The IPv4 address, which its questions to the name server come from."""
        return str(self.leaf.addresses.ipv4)

    @functools.cached_property
    def addresses(self) -> tuple[str, str]:
        """Both addresses, by which the relay knows its connections."""
        return self.address, socket.inet_ntop(socket.AF_INET6, self.leaf.addresses.ipv6.packed)  # str() takes longer

    @property
    def peer(self) -> LiveLeaf | None:
        """The leaf that its loopback is continued in; None where that is the host's alone."""
        return self.owner.current if self is self.owner.own else self.owner.own

    @property
    def peer_aliases(self) -> tuple[Address, Address]:
        """The addresses by which it reaches its peer's loopback."""
        return self.owner.test_alias if self is self.owner.own else self.owner.worker_alias

    @property
    def net_inode(self) -> int:
        """The number that /proc/<pid>/ns/net shows for a process inside."""
        return os.fstat(self.leaf.net_fd).st_ino


@dataclass(eq=False)
class Worker:
    """A connected pytest process.

    Attributes:
        number: its serial number.
        pid: the process.
        connection: what it talks by.
        name: what its leaves are called after.
        policy: what its own leaf may reach while that serves no test.
        record: whether what its leaves have no rule for is let through.
        tapped: whether its leaves' packets are kept.
        opened: whether its own leaf stands in for the host's network, and has the host's resolver.
        brought: the descriptors that came with its request, as long as nobody has taken them over.
        heard: whether it is listened to; not while an answer to it takes time, and not once it has gone.
    """

    number: int
    pid: int
    connection: socket.socket
    heard: bool = False
    name: str = ""
    policy: Policy = CLOSED
    record: bool = False
    tapped: bool = False
    opened: bool = False
    own: LiveLeaf | None = None
    tests: dict[str, LiveLeaf] = field(default_factory=dict)
    current: LiveLeaf | None = None
    made: int = 0
    brought: list[int] = field(default_factory=list)

    @functools.cached_property
    def loopback(self) -> Loopback:
        """The aliases of this worker's shared loopback."""
        return addressing.loopback(self.number)

    def taken_over(self) -> list[int]:
        """Return the descriptors that came with a request; they are the caller's to close from now on."""
        taken, self.brought = self.brought, []
        return taken

    @property
    def leaves(self) -> list[LiveLeaf]:
        """Every leaf that is alive."""
        return [*self.tests.values(), *([self.own] if self.own else [])]

    def named(self, leaf: str) -> LiveLeaf:
        """Return a leaf that is alive by its name; KeyError where this worker has none of that name."""
        return {live.name: live for live in self.leaves}[leaf]

    def own_wiring(self) -> Wiring:
        """Return how the worker's own leaf is wired: its loopback is continued in the current test's."""
        group, _ = addressing.groups(self.number)
        peer = _HOST if self.opened else self.test_alias
        return Wiring(group, peer=peer, alias=self.worker_alias, host_resolver=self.opened, tapped=self.tapped)

    def test_wiring(self) -> Wiring:
        """Return how a test's leaf is wired: its loopback is continued in the worker's, or in the host's."""
        _, group = addressing.groups(self.number)
        peer = self.worker_alias if self.own else _HOST
        return Wiring(group, peer=peer, alias=self.test_alias, tapped=self.tapped)

    @functools.cached_property
    def test_routes(self) -> Template:
        """The messages that continue the worker leaf's loopback in a test's leaf."""
        return loopback_routes(self.test_alias)

    @functools.cached_property
    def worker_alias(self) -> tuple[Address, Address]:
        """The addresses by which tests reach the worker leaf's loopback."""
        return (self.loopback.worker, self.loopback.worker6)

    @functools.cached_property
    def test_alias(self) -> tuple[Address, Address]:
        """The addresses by which the worker leaf reaches the current test's loopback."""
        return (self.loopback.test, self.loopback.test6)

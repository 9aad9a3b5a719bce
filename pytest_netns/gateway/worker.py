"""What the gateway knows of one pytest process: its leaves, and how they are wired to each other."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import dataclass, field

from pytest_netns import addressing
from pytest_netns.addressing import Loopback
from pytest_netns.gateway.factory import Leaf
from pytest_netns.gateway.recipes import Address, Wiring
from pytest_netns.policy import Egress

_HOST = (addressing.HOST_LOOPBACK, addressing.HOST_LOOPBACK6)


@dataclass(eq=False)
class LiveLeaf:
    """A leaf in use: whose it is, what it may reach, and on which test its flows are booked."""

    name: str
    leaf: Leaf
    owner: Worker
    egress: Egress
    test: str

    @property
    def address(self) -> str:
        """The IPv4 address, which its questions to the name server come from."""
        return str(self.leaf.addresses.ipv4)

    @property
    def addresses(self) -> tuple[str, str]:
        """Both addresses, by which the relay knows its connections."""
        return self.address, str(self.leaf.addresses.ipv6)

    @property
    def net_inode(self) -> int:
        """The number that /proc/<pid>/ns/net shows for a process inside."""
        return os.fstat(self.leaf.net_fd).st_ino


@dataclass(eq=False)
class Worker:
    """A connected pytest process.

    Attributes:
        heard: whether it is listened to; not while an answer to it takes time, and not once it has gone.
    """

    number: int
    pid: int
    connection: socket.socket
    heard: bool = False
    name: str = ""
    egress: Egress = Egress.CLOSED
    own: LiveLeaf | None = None
    tests: dict[str, LiveLeaf] = field(default_factory=dict)
    current: LiveLeaf | None = None
    made: int = 0

    @functools.cached_property
    def loopback(self) -> Loopback:
        """The aliases of this worker's shared loopback."""
        return addressing.loopback(self.number)

    @property
    def leaves(self) -> list[LiveLeaf]:
        """Every leaf that is alive."""
        return [*self.tests.values(), *([self.own] if self.own else [])]

    def own_wiring(self) -> Wiring:
        """Return how the worker's own leaf is wired: its loopback is continued in the current test's."""
        group, _ = addressing.groups(self.number)
        opened = self.egress is Egress.OPEN
        return Wiring(group, peer=_HOST if opened else self.test_alias, alias=self.worker_alias, host_resolver=opened)

    def test_wiring(self) -> Wiring:
        """Return how a test's leaf is wired: its loopback is continued in the worker's, or in the host's."""
        _, group = addressing.groups(self.number)
        return Wiring(group, peer=self.worker_alias if self.own else _HOST, alias=self.test_alias)

    @functools.cached_property
    def worker_alias(self) -> tuple[Address, Address]:
        """The addresses by which tests reach the worker leaf's loopback."""
        return (self.loopback.worker, self.loopback.worker6)

    @functools.cached_property
    def test_alias(self) -> tuple[Address, Address]:
        """The addresses by which the worker leaf reaches the current test's loopback."""
        return (self.loopback.test, self.loopback.test6)

"""The pytest process's side of the gateway: blocking, without threads, and never without a time limit."""

from __future__ import annotations

import _socket
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from pytest_netns.errors import GatewayError
from pytest_netns.gateway.inquiries import Inquiries
from pytest_netns.gateway.launch import Begun, dial, find, find_or_start, start
from pytest_netns.gateway.line import Received
from pytest_netns.gateway.paths import directory_of, run_directory

__all__ = ["GatewayClient", "LeafGrant", "run_directory"]


_NO_OTHER: Final = (
    "the gateway and its understudy have ended, and an ordinary user's process, which has left the host's "
    "network, cannot start another one; run the tests again"
)


class LeafGrant(NamedTuple):
    """A leaf as the gateway hands it out; the descriptors are the receiver's to close."""

    name: str
    ipv4: str
    ipv6: str
    gateway_ipv4: str
    gateway_ipv6: str
    service_port: int
    net_fd: int
    mnt_fd: int


class Companion(Protocol):
    """Something that handles have started for this process, and that ends with the connection to the gateway."""

    def close(self) -> None:
        """End it."""


class GatewayClient(Inquiries):
    """A connection to the gateway; closing it gives up every leaf that it was granted.

    Attributes:
        companions: what has been started for this process, by name.
    """

    def __init__(self, connection: _socket.socket) -> None:
        """Take over a connected socket; ``connect`` is how one gets here."""
        super().__init__(connection)
        self.companions: dict[str, Companion] = {}
        self._ruled: set[str] = set()

    @classmethod
    def connect(cls, run_dir: Path, begun: Begun | None = None, *, may_start: bool = True) -> GatewayClient:
        """Connect to the gateway of a run, starting it where none answers.

        Args:
            run_dir: the run's directory, which may not exist yet.
            begun: the run's gateway, where the caller has started it, and nobody else looks for it yet.
            may_start: whether the caller is where a gateway belongs, in the host's network.

        Raises:
            KernelError: the kernel refused to make the hub.
            UnsupportedError: this machine lacks something that the hub needs.
            GatewayError: the gateway did not start, or does not answer.
        """
        if begun is not None:
            return cls(start(run_dir, begun))
        connection = find_or_start(run_dir) if may_start else find(run_dir)
        if connection is None:
            raise GatewayError(_NO_OTHER)
        return cls(connection)

    @classmethod
    def found(cls, run_id: str) -> GatewayClient | None:
        """Connect to the gateway of a run, if it has one; GatewayError where that does not answer."""
        connection = dial(directory_of(run_id))
        return None if connection is None else cls(connection)

    def reconnect(self, run_dir: Path, *, may_start: bool = True) -> None:
        """Connect to another gateway, in place of one that was lost; see ``connect``.

        What other gateway's leaves there are, is for ``join`` and ``lease_again`` to tell.
        """
        self._let_go()
        self._ruled.clear()
        self._begin(GatewayClient.connect(run_dir, may_start=may_start)._connection)  # noqa: SLF001 - one of us

    def join(
        self,
        worker: str,
        *,
        open_egress: bool = False,
        service_port: int = 8080,
        rules: Sequence[str] = (),
        record: bool = False,
        tapped: bool = False,
        leaf: tuple[int, int] | None = None,
    ) -> LeafGrant:
        """Become a worker with a leaf of its own.

        Args:
            worker: the name that its leaves are called after.
            open_egress: whether the worker's leaf reaches what the host does, which its tests' leaves never do.
            service_port: the port of the service under test.
            rules: what the worker's leaf may reach, as ``EgressRule.parse`` takes it.
            record: whether whatever no rule allows is let through, and recorded, for the tests' leaves too.
            tapped: whether the packets of this leaf and of the tests' leaves are kept, for ``save``.
            leaf: the descriptors of the one that a gateway which was lost had made; None for a new one.
        """
        request = {
            "worker_name": worker,
            "open_egress": open_egress,
            "rules": list(rules),
            "record": record,
            "port": service_port,
            "tapped": tapped,
        }
        number = self._send(leaf or (), op="join", own_leaf=True, **request)
        return _granted(self._answer("join", number), service_port)

    def attach(self, worker: str, *, record: bool = False, tapped: bool = False) -> None:
        """Become a worker that stays in the host's namespace and has tests in leaves; see ``join``."""
        request = {"open_egress": False, "own_leaf": False, "rules": [], "record": record, "port": 0, "tapped": tapped}
        self._ask(op="join", worker_name=worker, **request)

    def order(
        self,
        test: str = "",
        *,
        service_port: int = 8080,
        rules: Sequence[str] = (),
        sni: bool = True,
        instead_of: str | None = None,
    ) -> int:
        """Have the next test's leaf delivered without waiting for it; ``lease`` then finds it here.

        Args:
            test: the test that it is to serve, as far as is known, and the rest as for ``label``.
            service_port: see there.
            rules: see there.
            sni: see there.
            instead_of: a leaf to give up with the same message; a ``release`` of it has nothing left to do.
        """
        if self._ordered is None:
            given_up = {} if instead_of is None else {"instead_of": instead_of}
            self._ordered = self._send(op="lease", test=test, port=service_port, rules=list(rules), sni=sni, **given_up)
            self._ordered_for = (test, tuple(rules), sni, service_port)
            self._given_up = instead_of or ""
        return self._ordered

    def lease(self, test: str, *, service_port: int = 8080, rules: Sequence[str] = (), sni: bool = True) -> LeafGrant:
        """Get a fresh leaf for a test; it becomes the one that the worker's loopback is continued in.

        ``rules`` and ``sni`` are as for ``label``.
        """
        number, foreseen = self.order(test, service_port=service_port, rules=rules, sni=sni), self._ordered_for
        try:
            grant = _granted(self._answer("lease", number), service_port)
        finally:
            self._ordered = self._ordered_for = self._delivered = None
        if foreseen is not None and foreseen[1]:
            self._ruled.add(grant.name)
        if foreseen != (test, tuple(rules), sni, service_port):
            self.label(grant.name, test, service_port=service_port, rules=rules, sni=sni)
        return grant

    def lease_further(self, test: str, *, service_port: int, rules: Sequence[str], sni: bool) -> LeafGrant:
        """Get one more leaf for a test, beside its own, which the worker's loopback goes on being continued in."""
        number = self._send(op="lease", test=test, port=service_port, rules=list(rules), sni=sni, further=True)
        grant = _granted(self._answer("lease", number), service_port)
        if rules:
            self._ruled.add(grant.name)
        return grant

    def lease_again(self, leaf: tuple[int, int], test: str) -> LeafGrant:
        """Have a leaf of a gateway that was lost served by this one; it has no rules before it is labelled."""
        number = self._send(leaf, op="lease", test=test, further=True)
        return _granted(self._answer("lease", number), 0)

    def activate(self, name: str) -> None:
        """Continue the worker leaf's loopback in this leaf from now on."""
        self._ask(op="activate", leaf=name)

    def label(
        self, name: str, test: str, *, service_port: int | None = None, rules: Sequence[str] = (), sni: bool = True
    ) -> None:
        """Let a leaf serve this test from now on: book on it what the leaf tries, and go by its rules.

        Connections that these do not allow are cut. Does not wait where there are, and were, none, unless for what was
        ordered; what comes from the leaf later does.

        Args:
            name: the leaf.
            test: the test's node id.
            service_port: the port of the service under test; None where it stays what it was.
            rules: what the test may reach, as ``EgressRule.parse`` takes it.
            sni: whether TLS clients have to name the server that they were let through to.
        """
        # The hub has to know of rules, and of their end, before the next packet; behind an order it is told late.
        wait = bool(rules) or name in self._ruled or self._ordered is not None
        (self._ruled.add if rules else self._ruled.discard)(name)
        served = {"leaf": name, "test": test, "port": service_port}
        number = self._send(op="label", **served, rules=list(rules), sni=sni, wait=wait)
        if wait:
            self._answer("label", number)

    def allow(self, name: str, rules: Sequence[str]) -> None:
        """Add to what a leaf may reach, from its next connection on."""
        self._ruled.add(name)
        self._ask(op="allow", leaf=name, rules=list(rules))

    def release(self, name: str) -> None:
        """Give a leaf up: its connections are cut, its published ports closed. Does not wait for that."""
        self._ruled.discard(name)
        if name == self._given_up:
            self._given_up = ""
            return
        self._send(op="release", leaf=name)

    def box(self, name: str, box: str, pid: int | None) -> None:
        """Book what a leaf's flows have their sockets in a process or its descendants as a box's; None ends that."""
        self._ask(op="box", leaf=name, box=box, pid=pid)

    def publish(self, name: str, port: int) -> int:
        """Forward a port of the host's 127.0.0.1 to the leaf's ``port``; return the host's."""
        return int(self._ask(op="publish", leaf=name, port=port)["port"])

    def unpublish(self, host_port: int) -> None:
        """Stop forwarding a published port."""
        self._ask(op="unpublish", port=host_port)

    def browse(self, port: int = 0) -> int:
        """Serve all leaves to browsers at a port of the host's 127.0.0.1; return it.

        Args:
            port: the port; 0 for the usual one, or a free one where that is taken.

        Raises:
            KernelError: the port is taken, or not for this user.
        """
        return int(self._ask(op="browse", port=port)["port"])

    def hold(self, name: str, why: str | None) -> None:
        """Have a leaf listed as one that waits for somebody to look inside, for a reason; or, without one, no more."""
        self._ask(op="hold", leaf=name, why=why)

    def held(self, name: str) -> float | None:
        """Return for how many seconds nobody has come into a held leaf; None once its test shall go on."""
        idle: float | None = self._ask(op="held", leaf=name)["idle"]
        return idle

    def close(self) -> None:
        """Give up all leaves; the gateway ends with its last client. Harmless when done twice."""
        while self.companions:
            self.companions.popitem()[1].close()
        self._lost = self.lost
        self._let_go()


def _granted(received: Received, service_port: int) -> LeafGrant:
    answer, descriptors = received
    if len(descriptors) != 2:
        for descriptor in descriptors:
            os.close(descriptor)
        msg = f"the gateway sent {len(descriptors)} descriptors with a leaf, not 2; are descriptors used up?"
        raise GatewayError(msg)
    return LeafGrant(**answer, service_port=service_port, net_fd=descriptors[0], mnt_fd=descriptors[1])

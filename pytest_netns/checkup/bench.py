"""A hub and a leaf on trial: what of the kernel's network code isolation is made of."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pytest_netns import addressing
from pytest_netns.gateway import hub_ruleset, loopback
from pytest_netns.gateway.factory import Factory
from pytest_netns.gateway.recipes import Wiring
from pytest_netns.kernel import blame, links, nft_table, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from pytest_netns.kernel.probe import RefusedError
from pytest_netns.kernel.queue import PacketQueue

_LEAF: Final = addressing.leaf(0)
_MTU: Final = 65535
_TABLE: Final = 100
_RELAY_PORT: Final = 1  # any will do: nothing listens
_FOREIGN: Final = {socket.AF_INET: "203.0.113.1", socket.AF_INET6: "2001:db8::1"}  # documentation addresses
_IP_TRANSPARENT: Final = {socket.AF_INET: (socket.SOL_IP, 19), socket.AF_INET6: (socket.IPPROTO_IPV6, 75)}
_ECHO_REQUEST: Final = 8


@contextlib.contextmanager
def naming(subject: str) -> Iterator[None]:
    """Say of an ``OSError`` which part of a trial it came from."""
    try:
        yield
    except OSError as error:
        raise RefusedError(subject, error) from error


@contextlib.contextmanager
def _blaming() -> Iterator[None]:
    """Say of a refused ruleset which part of it is to blame."""
    try:
        yield
    except blame.CulpritError as culprit:
        raise RefusedError(culprit.part, culprit) from culprit


class Bench:
    """The two namespaces, and one method for each trial; they build on each other in this order."""

    def __init__(self) -> None:
        """Own nothing yet."""
        self._hub = self._leaf = -1

    def network(self) -> str:
        """Make two network namespaces and hop back into the first."""
        self._hub = self._unshare()
        self._leaf = self._unshare()
        with naming("setns"):
            self._enter(self._hub)
        return "made two, hopped from one to the other"

    def loopback(self) -> str:
        """Raise ``lo`` in both."""
        for fd in (self._hub, self._leaf):
            self._route(fd, links.set_up(addressing.LO_INDEX, _MTU), "raise lo")
        return "raised"

    def veth(self) -> str:
        """Join the two namespaces."""
        name, index = _LEAF.hub_ifname, _LEAF.hub_ifindex
        pair = links.add_veth(
            name, index, _MTU, peer_name="eth0", peer_index=addressing.ETH0_INDEX, peer_netns=self._leaf, peer_group=0
        )
        self._route(self._hub, pair, "make a veth pair")
        self._route(self._hub, links.set_up(index), f"raise {name}")
        self._route(self._leaf, links.set_up(addressing.ETH0_INDEX), "raise eth0")
        return f"{name} here, eth0 there"

    def addresses(self) -> str:
        """Give the leaf's end its addresses."""
        for address, prefix in ((_LEAF.ipv4, addressing.PREFIX_LENGTH), (_LEAF.ipv6, addressing.PREFIX6_LENGTH)):
            with naming(f"IPv{address.version}"):
                self._route(self._leaf, links.add_address(addressing.ETH0_INDEX, address, prefix), f"add {address}")
        return f"{_LEAF.ipv4} and {_LEAF.ipv6}"

    def routing(self) -> str:
        """Send marked packets to a routing table of their own."""
        for family, everywhere in ((socket.AF_INET, "0.0.0.0/0"), (socket.AF_INET6, "::/0")):
            network = ipaddress.ip_network(everywhere)
            messages = links.add_mark_rule(family, hub_ruleset.MARK_RELAY, _TABLE)
            messages += links.add_local_route(addressing.LO_INDEX, network, _TABLE)
            with naming(f"IPv{network.version}"):
                self._route(self._hub, messages, "route marked packets")
        return f"packets with mark {hub_ruleset.MARK_RELAY} go to table {_TABLE}"

    def leaf_rules(self) -> str:
        """Load the ruleset of a leaf."""
        aliases = addressing.loopback(0)
        pairs = (aliases.worker, aliases.worker6), (aliases.test, aliases.test6)
        with _blaming():
            tracked = loopback.load(lambda way: self._load(self._leaf, loopback.ruleset(_LEAF, *pairs, tracked=way)))
        why = ", with address translation, as this kernel lets nobody but root rewrite packets"
        return f"loaded{why if tracked else ''}"

    def hub_rules(self) -> str:
        """Load the ruleset of the hub, with whichever of the two queue expressions the kernel has."""
        refusal = self._hub_rules(native_queue=True)
        if refusal is None:
            return "loaded, with the native queue expression"
        if self._hub_rules(native_queue=False) is None:
            return "loaded, with xtables' NFQUEUE target"
        raise refusal

    def queue(self) -> str:
        """Become the reader of the packets that the hub asks about."""
        self._enter(self._hub)
        with privilege.raised():
            PacketQueue(hub_ruleset.QUEUE).close()
        return f"bound to queue {hub_ruleset.QUEUE}"

    def transparent(self) -> str:
        """Answer for addresses that are not ours."""
        self._enter(self._hub)
        for family, (level, option) in _IP_TRANSPARENT.items():
            with naming(_FOREIGN[family]), socket.socket(family) as listener, privilege.raised():
                listener.setsockopt(level, option, 1)
                listener.bind((_FOREIGN[family], 80))
        return f"bound to {' and '.join(_FOREIGN.values())}"

    def sysctls(self) -> str:
        """Write settings of the leaf."""
        self._enter(self._leaf)
        gid = os.getegid()  # an ordinary user's namespace knows no other group
        values = {"ip_unprivileged_port_start": "0", "ping_group_range": f"{gid} {gid}"}
        for name, value in values.items():
            with naming(f"net.ipv4.{name}"), privilege.raised():
                Path("/proc/sys/net/ipv4", name).write_text(value, encoding="ascii")
        return " and ".join(f"net.ipv4.{name}" for name in values)

    def port(self) -> str:
        """Bind a port below 1024 with the rights that a test has."""
        self._enter(self._leaf)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 80))
        return f"bound as uid {os.geteuid()}"

    def ping(self) -> str:
        """Send an ICMP echo request with the rights that a test has."""
        self._enter(self._leaf)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as prober:
            prober.settimeout(0.5)
            prober.connect(("127.0.0.1", 0))
            prober.send(struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, 0, 1))
            prober.recv(100)
        return f"answered, as uid {os.geteuid()}"

    def whole(self) -> str:
        """Let the gateway's factory make a hub and a leaf, as it does in a test run."""
        aliases = addressing.loopback(0)
        wiring = Wiring(0, (aliases.worker, aliases.worker6), (aliases.test, aliases.test6))
        factory = Factory()
        with privilege.raised():  # the factory's thread starts with the rights of this one
            factory.submit(factory.start, f"nameserver {addressing.GATEWAY}\n").result()
            started = time.perf_counter()
            factory.submit(factory.make, 0, wiring).result()
        return f"made in {(time.perf_counter() - started) * 1000:.1f} ms"

    def _unshare(self) -> int:
        with privilege.raised():
            syscalls.unshare(syscalls.CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _enter(self, fd: int) -> None:
        with privilege.raised():
            syscalls.setns(fd, syscalls.CLONE_NEWNET)

    def _route(self, fd: int, messages: bytes, what: str) -> None:
        self._enter(fd)
        with privilege.raised(), contextlib.closing(NetlinkSocket(NETLINK_ROUTE)) as channel:
            channel.request(messages, what)

    def _hub_rules(self, *, native_queue: bool) -> RefusedError | None:
        """Return the refusal where it is for want of this kind of queue."""
        try:
            with _blaming():
                table = hub_ruleset.table(_RELAY_PORT, native_queue=native_queue)
                self._load(self._hub, nft_table.transaction(table.encode()))
        except RefusedError as refusal:
            if {"queue", "target"}.isdisjoint(refusal.subject.split(" + ")):
                raise
            return refusal
        return None

    def _load(self, fd: int, ruleset: bytes) -> None:
        self._enter(fd)
        with privilege.raised(), contextlib.closing(NetlinkSocket(NETLINK_NETFILTER)) as channel:
            blame.load(channel, ruleset)

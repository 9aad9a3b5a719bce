"""The messages that furnish a leaf, encoded once for each kind of leaf.

Leaves differ in their addresses and in the hub's interface alone. So the messages are encoded with
sentinels in these places, which then take the leaf's own values: encoding anew for each leaf would
cost several times what the kernel does.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from pytest_netns import addressing
from pytest_netns.addressing import ETH0_INDEX, LO_INDEX, Addresses
from pytest_netns.gateway import hub_ruleset, loopback
from pytest_netns.kernel import links, nft, nft_table
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, Batch, batch

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

# The largest that a veth takes. Loopback gets the same, so that a segment fits both when loopback is shared.
_MTU: Final = 65535
_LINK_LOCAL: Final = ipaddress.ip_network(f"{addressing.GATEWAY6}/{addressing.PREFIX6_LENGTH}", strict=False)
_LAST_GROUP: Final = 2**31 - 1
_SENTINEL: Final = Addresses(
    ipv4=ipaddress.IPv4Address("203.0.113.171"),
    ipv6=ipaddress.IPv6Address("2001:db8:a5a5:5a5a:c3c3:3c3c:9696:6969"),
    hub_ifindex=0x5AA5_C33C,
    hub_ifname="leaf#####",
)
_SENTINEL_INDEX: Final = struct.pack("=I", _SENTINEL.hub_ifindex)
_SENTINEL_NAME: Final = _SENTINEL.hub_ifname.encode()
_PLACES: Final = re.compile(
    b"(%b)" % b"|".join(map(re.escape, (_SENTINEL.ipv4.packed, _SENTINEL.ipv6.packed, _SENTINEL_INDEX, _SENTINEL_NAME)))
)

# What lets loopback addresses cross the veth; see the ruleset.
_ETH0: Final = {
    links.IPV4_DEVCONF_ROUTE_LOCALNET: 1,
    links.IPV4_DEVCONF_ACCEPT_LOCAL: 1,
    links.IPV4_DEVCONF_RP_FILTER: 0,
}


def _ping_group_range() -> str:
    """Return the widest range of groups with our own in it that this user namespace maps; they may ping."""
    own = os.getegid()
    for line in Path("/proc/self/gid_map").read_text(encoding="ascii").splitlines():
        first, _, count = map(int, line.split())
        if first <= own < first + count:
            return f"{first} {min(first + count - 1, _LAST_GROUP)}"
    return f"{own} {own}"


@functools.cache
def sysctls() -> dict[str, str]:
    """Return a leaf's own sysctls, by path, to be set before its links are made: they take theirs from "default"."""
    ipv4 = {
        # An ordinary user may serve on port 80 or 53, as root could.
        "net/ipv4/ip_unprivileged_port_start": "0",
        "net/ipv4/ping_group_range": _ping_group_range(),
        # Loopback does not ration ICMP, so neither does loopback that is shared; see the hub's.
        "net/ipv4/icmp_ratemask": "0",
        "net/ipv4/conf/all/rp_filter": "0",  # the greater of it and the interface's holds
    }
    ipv6 = {
        "net/ipv6/conf/default/accept_ra": "0",
        "net/ipv6/conf/default/accept_dad": "0",
        "net/ipv6/icmp/ratemask": "255",
    }
    return ipv4 | ipv6 if Path("/proc/sys/net/ipv6").exists() else ipv4


@dataclass(frozen=True)
class Wiring:
    """What one leaf is to be connected to: its interface group and the aliases of shared loopback.

    ``tapped`` is whether its packets are kept.
    """

    group: int
    peer: tuple[Address, Address]
    alias: tuple[Address, Address]
    host_resolver: bool = False
    tapped: bool = False


@dataclass(frozen=True)
class Recipe:
    """The messages that furnish a leaf, in the order of their use."""

    veth: Template
    hub_side: Template
    leaf_side: Template
    hub_settled: Template
    ruleset: Template


class Template:
    """Messages with a leaf's own values left open."""

    def __init__(self, messages: bytes) -> None:
        ready = batch(messages)
        self._parts = _PLACES.split(ready.messages)
        self._last = ready.last

    def filled(self, own: dict[bytes, bytes]) -> Batch:
        """Return the messages with these values in the sentinels' places."""
        return Batch(b"".join(map(own.get, self._parts, self._parts)), self._last)


def values_of(own: Addresses) -> dict[bytes, bytes]:
    """Return what stands for each sentinel in a leaf's own messages."""
    return {
        _SENTINEL.ipv4.packed: own.ipv4.packed,
        _SENTINEL.ipv6.packed: own.ipv6.packed,
        _SENTINEL_INDEX: struct.pack("=I", own.hub_ifindex),
        _SENTINEL_NAME: own.hub_ifname.encode(),
    }


def unwired() -> list[tuple[int, bytes]]:
    """Return what takes a leaf's wiring away, each with the netlink protocol; what is gone already is refused."""
    families = (nft.NFPROTO_IPV4, nft.NFPROTO_IPV6)
    tables = [nft_table.transaction(nft_table.remove(hub_ruleset.NAME, family)) for family in families]
    return [(NETLINK_ROUTE, links.remove(ETH0_INDEX)), *((NETLINK_NETFILTER, table) for table in tables)]


def loopback_routes(alias: tuple[Address, Address]) -> Template:
    """Return the messages that lead a shared loopback's aliases to one leaf, in place of any other."""
    index = _SENTINEL.hub_ifindex
    return Template(
        links.add_route(index, alias[0], _SENTINEL.ipv4, replace=True)
        + links.add_route(index, alias[1], _SENTINEL.ipv6, replace=True)
    )


def encode(wiring: Wiring, hub_netns: int, *, tracked: bool) -> Recipe:
    """Encode the messages for leaves with this wiring; ``hub_netns`` is a descriptor of the hub.

    ``tracked`` is what it is to the ruleset.
    """
    return Recipe(
        veth=Template(
            links.add_veth(
                "eth0",
                ETH0_INDEX,
                _MTU,
                peer_name=_SENTINEL.hub_ifname,
                peer_index=_SENTINEL.hub_ifindex,
                peer_netns=hub_netns,
                peer_group=wiring.group,
                macs=(addressing.mac(_SENTINEL.ipv4), addressing.mac(addressing.GATEWAY)),
            )
        ),
        hub_side=Template(_hub_side(_SENTINEL)),
        leaf_side=Template(_leaf_side(_SENTINEL)),
        hub_settled=Template(links.settle(_SENTINEL.hub_ifindex)),
        ruleset=Template(loopback.ruleset(_SENTINEL, wiring.peer, wiring.alias, tracked=tracked)),
    )


def _hub_side(addresses: Addresses) -> bytes:
    # Neighbours are told, not asked for: on a busy machine the kernel is late to join the group that IPv6 asks by.
    # The prefix is a route of its own, as the kernel would add one for its anycast address to it, too; it goes through
    # those to one destination, of all leaves, for each that is added.
    index, mac = addresses.hub_ifindex, addressing.mac(addresses.ipv4)
    return b"".join(
        (
            links.set_up(index),
            links.add_neighbour(index, addresses.ipv4, mac),
            links.add_neighbour(index, addresses.ipv6, mac),
            links.add_address(index, addressing.GATEWAY6, 128, prefix_route=False),
            links.add_route(index, addresses.ipv4),
            links.add_route(index, addresses.ipv6),
            links.add_route(index, _LINK_LOCAL, append=True),
        )
    )


def _leaf_side(addresses: Addresses) -> bytes:
    hub_mac = addressing.mac(addressing.GATEWAY)
    # No prefix route: another leaf is reached by way of the hub or not at all. So the default route has to name the
    # source; scapy, for one, asks no other.
    return b"".join(
        (
            links.set_up(LO_INDEX, _MTU),
            links.configure(ETH0_INDEX, _ETH0),
            links.set_up(ETH0_INDEX),
            links.add_address(
                ETH0_INDEX, addresses.ipv4, addressing.PREFIX_LENGTH, addressing.BROADCAST, prefix_route=False
            ),
            links.add_address(ETH0_INDEX, addresses.ipv6, addressing.PREFIX6_LENGTH, prefix_route=False),
            links.add_neighbour(ETH0_INDEX, addressing.GATEWAY, hub_mac),
            links.add_neighbour(ETH0_INDEX, addressing.GATEWAY6, hub_mac),
            links.add_route(ETH0_INDEX, None, addressing.GATEWAY, source=addresses.ipv4),
            links.add_route(ETH0_INDEX, None, addressing.GATEWAY6),
            # What is sent to a new IPv6 address the kernel takes in some time later; a route has it do so now.
            links.add_local_route(ETH0_INDEX, ipaddress.ip_network(addresses.ipv6)),
            # IPv6 takes ::1 from a link only where a route names that link; see the ruleset.
            links.add_local_route(ETH0_INDEX, ipaddress.ip_network("::1/128")),
        )
    )

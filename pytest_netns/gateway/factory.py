"""Make leaves and drop them, in a thread of its own that lives in the hub."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from pytest_netns import addressing
from pytest_netns.addressing import Addresses
from pytest_netns.gateway import hub, rulesets
from pytest_netns.gateway.rulesets import ETH0_INDEX, LO_INDEX
from pytest_netns.kernel import links, mounts, syscalls
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
P = ParamSpec("P")
T = TypeVar("T")

# The largest that a veth takes. Loopback gets the same, so that a segment fits both when loopback is shared.
_MTU: Final = 65535
_BROADCAST: Final = ipaddress.IPv4Address("198.18.255.255")


@dataclass(frozen=True)
class Wiring:
    """What one leaf is to be connected to: its interface group and the aliases of shared loopback."""

    group: int
    peer: tuple[Address, Address]
    alias: tuple[Address, Address]
    host_resolver: bool = False


@dataclass(frozen=True)
class Leaf:
    """A furnished pair of namespaces, held by its descriptors."""

    addresses: Addresses
    net_fd: int
    mnt_fd: int

    def close(self) -> None:
        """Drop both references; the kernel frees the namespaces with their last user."""
        os.close(self.net_fd)
        os.close(self.mnt_fd)


class Factory:
    """Runs in the hub what must run there: one job at a time, in order of request."""

    def __init__(self) -> None:
        """Prepare the thread; it starts with the first job."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="factory")
        self._hub: hub.Hub
        self._templates: dict[bool, int] = {}

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``job`` in the hub's namespace soon."""
        return self._executor.submit(job, *args, **kwargs)

    def start(self, resolv_conf: str) -> hub.Hub:
        """Make the hub, and the mount namespaces that each leaf's is copied from; called once, in the thread."""
        syscalls.unshare(syscalls.CLONE_FS)
        self._make_templates(resolv_conf)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        self._hub = hub.build()
        return self._hub

    def make(self, number: int, wiring: Wiring) -> Leaf:
        """Make one leaf, ready for use; called in the thread."""
        addresses = addressing.leaf(number)
        syscalls.unshare(syscalls.CLONE_NEWNET)
        net_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._furnish(addresses, wiring)
            mnt_fd = self._copy_mounts(host_resolver=wiring.host_resolver)
        except BaseException:
            os.close(net_fd)
            raise
        finally:
            syscalls.setns(self._hub.netns, syscalls.CLONE_NEWNET)
        return Leaf(addresses, net_fd, mnt_fd)

    def stop(self) -> None:
        """End the thread after the jobs that were asked for."""
        self._executor.shutdown(wait=True)

    def _make_templates(self, resolv_conf: str) -> None:
        syscalls.unshare(syscalls.CLONE_NEWNS)  # the host's own could not be entered again by an ordinary user
        before = _open_mount_namespace()
        for host_resolver in (False, True):
            syscalls.setns(before, syscalls.CLONE_NEWNS)
            syscalls.unshare(syscalls.CLONE_NEWNS)
            mounts.prepare_template(None if host_resolver else resolv_conf, hide_resolvers=not host_resolver)
            self._templates[host_resolver] = _open_mount_namespace()
        os.close(before)

    def _furnish(self, addresses: Addresses, wiring: Wiring) -> None:
        ipv6 = hub.has_ipv6()
        route = NetlinkSocket(NETLINK_ROUTE)
        packet_filter = NetlinkSocket(NETLINK_NETFILTER)
        try:
            hub.write_sysctls(_before_links(ipv6=ipv6))
            route.request(self._veth(addresses, wiring.group), "make a veth pair to the hub")
            hub.write_sysctls(_SYSCTLS)
            self._hub.route.request(_hub_side(addresses), "set up the hub's end of a veth pair")
            route.request(_leaf_side(addresses), "set up a leaf's links, addresses and routes")
            packet_filter.request(rulesets.leaf(addresses, wiring.peer, wiring.alias), "load a leaf's nftables ruleset")
        finally:
            route.close()
            packet_filter.close()

    def _veth(self, addresses: Addresses, group: int) -> bytes:
        return links.add_veth(
            "eth0",
            ETH0_INDEX,
            _MTU,
            peer_name=addresses.hub_ifname,
            peer_index=addresses.hub_ifindex,
            peer_netns=self._hub.netns,
            peer_group=group,
        )

    def _copy_mounts(self, *, host_resolver: bool) -> int:
        syscalls.setns(self._templates[host_resolver], syscalls.CLONE_NEWNS)
        syscalls.unshare(syscalls.CLONE_NEWNS)
        mounts.fresh_sysfs()
        mnt_fd = _open_mount_namespace()
        syscalls.setns(self._templates[host_resolver], syscalls.CLONE_NEWNS)
        return mnt_fd


_SYSCTLS: Final = {
    # What lets loopback addresses cross the veth; see the ruleset.
    "net/ipv4/conf/eth0/route_localnet": "1",
    "net/ipv4/conf/eth0/accept_local": "1",
    "net/ipv4/conf/eth0/rp_filter": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    # An ordinary user may serve on port 80 or 53 and ping, as root could.
    "net/ipv4/ip_unprivileged_port_start": "0",
}


def _before_links(*, ipv6: bool) -> dict[str, str]:
    values = {"net/ipv4/ping_group_range": _ping_group_range()}
    if ipv6:
        values |= {"net/ipv6/conf/default/accept_ra": "0", "net/ipv6/conf/default/accept_dad": "0"}
    return values


def _ping_group_range() -> str:
    """Return the groups that may ping: all of them, or the one that a user namespace maps."""
    everyone = "0 2147483647"
    return everyone if os.geteuid() == 0 else f"{os.getegid()} {os.getegid()}"


def _hub_side(addresses: Addresses) -> bytes:
    index = addresses.hub_ifindex
    return b"".join(
        (
            links.set_up(index),
            links.add_address(index, addressing.GATEWAY6, addressing.PREFIX6_LENGTH),
            links.add_route(index, addresses.ipv4),
            links.add_route(index, addresses.ipv6),
        )
    )


def _leaf_side(addresses: Addresses) -> bytes:
    # No prefix route: another leaf is reached by way of the hub or not at all.
    return b"".join(
        (
            links.set_up(LO_INDEX, _MTU),
            links.set_up(ETH0_INDEX),
            links.add_address(ETH0_INDEX, addresses.ipv4, addressing.PREFIX_LENGTH, _BROADCAST, prefix_route=False),
            links.add_address(ETH0_INDEX, addresses.ipv6, addressing.PREFIX6_LENGTH, prefix_route=False),
            links.add_route(ETH0_INDEX, None, addressing.GATEWAY),
            links.add_route(ETH0_INDEX, None, addressing.GATEWAY6),
            # IPv6 takes ::1 from a link only where a route names that link; see the ruleset.
            links.add_local_route(ETH0_INDEX, ipaddress.ip_network("::1/128")),
        )
    )


def loopback_routes(leaf: Addresses, alias: tuple[Address, Address]) -> bytes:
    """Return the messages that lead a shared loopback's aliases to one leaf, in place of any other."""
    index = leaf.hub_ifindex
    return links.add_route(index, alias[0], leaf.ipv4, replace=True) + links.add_route(
        index, alias[1], leaf.ipv6, replace=True
    )


def _open_mount_namespace() -> int:
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

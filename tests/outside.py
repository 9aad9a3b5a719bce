"""More of a world than it comes with: further addresses of the internet's host, and ones that nobody has."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
from collections.abc import Sequence

from traffic import STREAM
from worlds import IN_INDEX, INTERNET, INTERNET6, OUT_INDEX, Place, Visit, World, at

from pytest_netns.errors import KernelError
from pytest_netns.gateway.client import LeafGrant
from pytest_netns.gateway.hub import write_sysctls
from pytest_netns.kernel import links, privilege
from pytest_netns.kernel.netlink import NETLINK_ROUTE, NetlinkSocket

LOOPBACK = 1
AT_ONCE = 0.5  # seconds, on a machine under load; one that waits would take a second or more
NEIGHBOURS = {str(INTERNET): "203.0.113.6", str(INTERNET6): "2001:db8::6"}
NOBODY = {4: "203.0.113.77", 6: "2001:db8::77"}
METADATA = "169.254.169.254"


def add_address(place: Place, address: str, index: int = IN_INDEX) -> None:
    """Give an interface one more address; the whole machine's, where it has that already."""
    one = ipaddress.ip_address(address)
    with at(place), privilege.raised():
        try:
            NetlinkSocket(NETLINK_ROUTE).request(links.add_address(index, one, one.max_prefixlen), f"add {address}")
        except KernelError as error:
            assert error.errno == 17, error  # EEXIST: an earlier test of this world did so


def add_link_local(world: World) -> None:
    """Let a metadata service's address be the internet host's, as it would be in a cloud."""
    add_address(world.internet, METADATA)
    with at(world.outer), privilege.raised():
        route = links.add_route(OUT_INDEX, ipaddress.ip_address(METADATA), INTERNET, replace=True)
        NetlinkSocket(NETLINK_ROUTE).request(route, "route to the metadata service")


def find_neighbours_fast(world: World) -> None:
    """Have the outer network take 0.3 s, not three, to find that nobody has an address; older kernels ask for root."""
    with at(world.outer), privilege.raised(), contextlib.suppress(KernelError):
        write_sysctls({f"net/ipv{version}/neigh/out0/retrans_time_ms": "100" for version in (4, 6)})


def own(name: str) -> str:
    """Turn a name below "example" into one of this test's own: the gateway remembers for a second what one is."""
    return name.replace("example", f"example{os.getpid()}").replace("EXAMPLE", f"EXAMPLE{os.getpid()}")


def new_name(number: int = 0) -> str:
    """Return a name that no other test uses."""
    return own(f"n{number}.example.com")


def rule_for(host: str, ports: object, kind: int = STREAM) -> str:
    """Return the rule that lists ports of a name, an address or a block of them."""
    address, slash, length = host.partition("/")
    place = f"[{address}]{slash}{length}" if ":" in host else host
    return f"{place}:{ports}" + ("" if kind == STREAM else "/udp")


def address_of(leaf: LeafGrant, name: str) -> str:
    """Return what a name, or a literal, is taken for in a leaf."""
    with at(leaf):
        return str(socket.getaddrinfo(name, 1, type=STREAM)[0][4][0])


def sockets_in(leaf: LeafGrant, family: int, count: int, kind: int = STREAM) -> list[socket.socket]:
    """Open sockets in a leaf, to be used from anywhere."""
    with at(leaf):
        opened = [socket.socket(family, kind) for _ in range(count)]
    for one in opened:
        one.settimeout(5)
    return opened


def lease(visit: Visit, rules: Sequence[str] = ()) -> LeafGrant:
    """Return one more test leaf of the same worker."""
    return visit.client.lease("test_other", rules=rules)

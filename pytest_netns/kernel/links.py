"""Encode the rtnetlink messages that wire namespaces together: links, addresses, routes, rules.

See rtnetlink(7). Each function returns bytes for ``NetlinkSocket.request``; they can be joined.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping
from typing import Any, Final

from pyroute2.netlink.rtnl import (
    RTM_DELLINK,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTM_NEWRULE,
)
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pytest_netns.kernel.netlink import NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, encode

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_IFF_UP: Final = 1
_NUD_PERMANENT: Final = 0x80
_IFA_F_NODAD: Final = 0x02
_IFA_F_NOPREFIXROUTE: Final = 0x200
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_RT_SCOPE_LINK: Final = 253
_RT_SCOPE_HOST: Final = 254
_RTPROT_STATIC: Final = 4
_RTNH_F_ONLINK: Final = 4
_FR_ACT_TO_TBL: Final = 1
_IFLA_AF_SPEC: Final = 26
_IFLA_INET_CONF: Final = 1

# The kernel's numbers, from <linux/ip.h>.
IPV4_DEVCONF_RP_FILTER: Final = 8
IPV4_DEVCONF_ACCEPT_LOCAL: Final = 23
IPV4_DEVCONF_ROUTE_LOCALNET: Final = 26


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def add_veth(
    name: str,
    index: int,
    mtu: int,
    *,
    peer_name: str,
    peer_index: int,
    peer_netns: int,
    peer_group: int,
    macs: tuple[str, str] | None = None,
) -> bytes:
    """Create a veth pair: one end here, its peer in the namespace of the descriptor ``peer_netns``.

    ``macs`` are the link-layer addresses of this end and of the peer; random where not given.
    """
    own_mac, peer_mac = ([("IFLA_ADDRESS", mac)] for mac in macs) if macs else ([], [])
    queues = [("IFLA_NUM_TX_QUEUES", 1), ("IFLA_NUM_RX_QUEUES", 1)]  # else one for each processor, which takes time
    peer: dict[str, Any] = {
        "index": peer_index,
        "attrs": [
            ("IFLA_IFNAME", peer_name),
            ("IFLA_MTU", mtu),
            ("IFLA_GROUP", peer_group),
            ("IFLA_NET_NS_FD", peer_netns),
            *queues,
            *peer_mac,
        ],
    }
    info = {"attrs": [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]}
    attributes = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_LINKINFO", info), *queues, *own_mac]
    return encode(ifinfmsg(), RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, {"index": index}, attributes)


def set_up(index: int, mtu: int | None = None) -> bytes:
    """Raise an interface, and set its MTU where one is given."""
    attributes = [] if mtu is None else [("IFLA_MTU", mtu)]
    return encode(ifinfmsg(), RTM_NEWLINK, 0, {"index": index, "flags": _IFF_UP, "change": _IFF_UP}, attributes)


def configure(index: int, settings: Mapping[int, int]) -> bytes:
    """Change IPv4 settings of an interface, those in ``/proc/sys/net/ipv4/conf/*``, by their IPV4_DEVCONF_* numbers."""
    values = b"".join(_attribute(number, struct.pack("=I", value)) for number, value in settings.items())
    per_family = _attribute(socket.AF_INET, _attribute(_IFLA_INET_CONF, values))
    message = bytearray(encode(ifinfmsg(), RTM_NEWLINK, 0, {"index": index}, []))
    message += _attribute(_IFLA_AF_SPEC, per_family)  # pyroute2 knows its form in answers only, which is another
    struct.pack_into("=I", message, 0, len(message))
    return bytes(message)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def settle(index: int) -> bytes:
    """Have an interface that was raised before its peer was take packets now; else it does so some time later.

    The kernel notices in the background that the link has come up and drops what is sent until then. Whoever asks for
    the link's state makes it notice (Linux 6.8).
    """
    return encode(ifinfmsg(), RTM_GETLINK, 0, {"index": index}, [])


def remove(index: int) -> bytes:
    """Remove an interface; the kernel refuses it for one that is not there."""
    return encode(ifinfmsg(), RTM_DELLINK, 0, {"index": index}, [])


def add_neighbour(index: int, address: Address, mac: str) -> bytes:
    """Tell an interface the link-layer address of a neighbour for good, so that it never has to ask."""
    attributes = [("NDA_DST", str(address)), ("NDA_LLADDR", mac)]
    fields = {"family": _family(address), "ifindex": index, "state": _NUD_PERMANENT}
    return encode(ndmsg(), RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_REPLACE, fields, attributes)


def add_address(
    index: int,
    address: Address,
    prefix: int,
    broadcast: ipaddress.IPv4Address | None = None,
    *,
    prefix_route: bool = True,
) -> bytes:
    """Give an interface an address, without duplicate address detection."""
    flags = _IFA_F_NODAD if address.version == 6 else 0
    if not prefix_route:
        flags |= _IFA_F_NOPREFIXROUTE
    attributes: list[tuple[str, Any]] = [
        ("IFA_ADDRESS", str(address)),
        ("IFA_LOCAL", str(address)),
        ("IFA_FLAGS", flags),
    ]
    if broadcast is not None:
        attributes.append(("IFA_BROADCAST", str(broadcast)))
    fields = {"index": index, "family": _family(address), "prefixlen": prefix}
    return encode(ifaddrmsg(), RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, fields, attributes)


def add_route(
    index: int,
    destination: Address | ipaddress.IPv4Network | ipaddress.IPv6Network | None,
    gateway: Address | None = None,
    *,
    source: Address | None = None,
    family: int = 0,
    replace: bool = False,
    append: bool = False,
) -> bytes:
    """Route one address, a network, or everything where ``destination`` is None, out of an interface.

    ``source`` is the address that packets come from unless their sender chose another. It may ``replace`` another route
    to the same, or be one more by ``append``; else that is an error.
    """
    flag = NLM_F_REPLACE if replace else NLM_F_APPEND if append else NLM_F_EXCL
    length: int = 0 if destination is None else destination.max_prefixlen
    if isinstance(destination, (ipaddress.IPv4Network, ipaddress.IPv6Network)):
        length, destination = destination.prefixlen, destination.network_address
    known = destination or gateway
    attributes: list[tuple[str, Any]] = [("RTA_OIF", index)]
    if destination is not None:
        attributes.append(("RTA_DST", str(destination)))
    if gateway is not None:
        attributes.append(("RTA_GATEWAY", str(gateway)))
    if source is not None:
        attributes.append(("RTA_PREFSRC", str(source)))
    fields = {
        "family": _family(known) if known else family,
        "dst_len": length,
        "table": _RT_TABLE_MAIN,
        "proto": _RTPROT_STATIC,
        "scope": 0 if gateway else _RT_SCOPE_LINK,
        "type": _RTN_UNICAST,
        "flags": _RTNH_F_ONLINK if gateway else 0,
    }
    return encode(rtmsg(), RTM_NEWROUTE, NLM_F_CREATE | flag, fields, attributes)


def add_local_route(
    index: int, network: ipaddress.IPv4Network | ipaddress.IPv6Network, table: int | None = None
) -> bytes:
    """Deliver what is sent to a network to this machine itself; in the local table unless told otherwise."""
    number = _RT_TABLE_LOCAL if table is None else table
    attributes: list[tuple[str, Any]] = [("RTA_OIF", index), ("RTA_TABLE", number)]
    if network.prefixlen:
        attributes.append(("RTA_DST", str(network.network_address)))
    fields = {
        "family": _family(network.network_address),
        "dst_len": network.prefixlen,
        "table": number,
        "proto": _RTPROT_STATIC,
        "scope": _RT_SCOPE_HOST,
        "type": _RTN_LOCAL,
    }
    return encode(rtmsg(), RTM_NEWROUTE, NLM_F_CREATE, fields, attributes)


def add_mark_rule(family: int, mark: int, table: int) -> bytes:
    """Look up packets that carry a mark in a routing table of their own."""
    attributes = [("FRA_FWMARK", mark), ("FRA_TABLE", table), ("FRA_PRIORITY", table)]
    fields = {"family": family, "table": table, "action": _FR_ACT_TO_TBL}
    return encode(fibmsg(), RTM_NEWRULE, NLM_F_CREATE | NLM_F_EXCL, fields, attributes)

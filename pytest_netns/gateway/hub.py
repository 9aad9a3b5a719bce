"""The hub: a network namespace that routes between leaves and holds every socket that serves them.

All of this runs once, in the factory's thread, which lives in the hub.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pytest_netns import addressing
from pytest_netns.errors import KernelError
from pytest_netns.gateway import hub_ruleset
from pytest_netns.kernel import links, nft_table
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from pytest_netns.kernel.queue import PacketQueue

_LOOPBACK_MTU: Final = 65536
_MAIN_TABLE: Final = 254
_RELAY_TABLE: Final = 100
_IP_TRANSPARENT: Final = 19
_IPV6_TRANSPARENT: Final = 75
_ROOM: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33
_BACKLOG: Final = 65535

# The hub's own namespace only; nothing here reaches the host.
_SYSCTLS: Final = {
    "net/ipv4/ip_forward": "1",
    "net/ipv4/conf/all/rp_filter": "0",  # the ruleset checks sources, for both families alike
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/default/accept_redirects": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    # No type of message is limited in rate, not by the machine-wide limit either: a refusal comes at once.
    "net/ipv4/icmp_ratemask": "0",
    "net/ipv6/icmp/ratemask": "255",
    # Connections that one leaf begins and does not finish keep none of another's out. A cookie would stand for the
    # socket by which an answer is told from a stray packet.
    "net/core/somaxconn": str(_BACKLOG),
    "net/ipv4/tcp_max_syn_backlog": str(4 * _BACKLOG),
    "net/ipv4/tcp_syncookies": "0",
    "net/ipv4/tcp_synack_retries": "2",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",
}
_NOT_EVERYWHERE: Final = ("net/core/", "net/ipv6/", "net/ipv4/tcp_syncookies")


@dataclass
class Hub:
    """The hub's descriptors, usable from any namespace: ``route`` is the factory's, the rest the main thread's.

    ``icmp`` and ``icmp6`` send whole packets, in whosever name.
    """

    netns: int
    route: NetlinkSocket
    switch: NetlinkSocket
    filter: NetlinkSocket
    queue: PacketQueue
    dns_udp: socket.socket
    dns_tcp: socket.socket
    relay_listeners: list[socket.socket]
    icmp: socket.socket
    icmp6: socket.socket | None

    def close(self) -> None:
        """Give up the hub: the kernel takes it down, and every leaf's way out with it."""
        parts: list[NetlinkSocket | PacketQueue | socket.socket] = [
            self.route,
            self.switch,
            self.filter,
            self.queue,
            self.dns_udp,
            self.dns_tcp,
            *self.relay_listeners,
            self.icmp,
            *([self.icmp6] if self.icmp6 else []),
        ]
        for part in parts:
            part.close()
        os.close(self.netns)


def write_sysctls(values: dict[str, str]) -> None:
    """Set kernel parameters of the calling thread's network namespace, by their paths below /proc/sys."""
    directories: dict[str, int] = {}
    try:
        for key, value in values.items():
            parent, name = divided(key)
            try:
                if parent not in directories:
                    directories[parent] = os.open(f"/proc/sys/{parent}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                descriptor = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directories[parent])
                try:
                    os.write(descriptor, value.encode())  # a file object costs four times as much
                finally:
                    os.close(descriptor)
            except OSError as error:
                path = f"/proc/sys/{key}"
                raise KernelError(error.errno or errno.EIO, f"set {path} to {value!r}: {error.strerror}") from error
    finally:
        for directory in directories.values():
            os.close(directory)


def divided(key: str) -> tuple[str, str]:
    """Return where a kernel parameter is looked up, and under which name.

    In /proc/sys/net the kernel keeps the directories of all network namespaces in one list, by name, which it goes
    through each time that a path leads there.
    """
    net, family, name = key.split("/", 2)
    return f"{net}/{family}", name


def build() -> Hub:
    """Furnish the network namespace that the calling thread has just made as the hub."""
    write_sysctls({key: value for key, value in _SYSCTLS.items() if _is_there(key)})
    route = NetlinkSocket(NETLINK_ROUTE)
    route.request(_links(), "set up the hub's routing")
    listeners, port = _relay_listeners()
    packet_filter = NetlinkSocket(NETLINK_NETFILTER)
    load_hub_ruleset(packet_filter, port)
    return Hub(
        netns=os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC),
        route=route,
        switch=NetlinkSocket(NETLINK_ROUTE),
        filter=packet_filter,
        queue=PacketQueue(hub_ruleset.QUEUE),
        dns_udp=_bound(socket.SOCK_DGRAM, 53),
        dns_tcp=_bound(socket.SOCK_STREAM, 53),
        relay_listeners=listeners,
        icmp=_raw(socket.AF_INET),
        icmp6=_raw(socket.AF_INET6) if has_ipv6() else None,
    )


def _is_there(key: str) -> bool:
    """Tell whether a setting exists.

    Kernels before 6.9 show net/core to no ordinary user, and some are built without IPv6 or without cookies.
    """
    return not key.startswith(_NOT_EVERYWHERE) or os.path.exists(f"/proc/sys/{key}")


def has_ipv6() -> bool:
    """Tell whether this kernel has IPv6 and it was not switched off at boot."""
    return Path("/proc/sys/net/ipv6").exists()


def load_hub_ruleset(packet_filter: NetlinkSocket, port: int) -> None:
    """Load the hub's ruleset, with the older packet queue where the kernel lacks the newer."""
    for native in (True, False):
        try:
            packet_filter.request(
                nft_table.transaction(hub_ruleset.table(port, native_queue=native).encode()),
                "load the hub's nftables ruleset",
            )
        except KernelError as error:
            if not native or error.errno != errno.ENOENT:
                raise
        else:
            return


def _links() -> bytes:
    everywhere = (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))
    messages = [
        links.set_up(addressing.LO_INDEX, _LOOPBACK_MTU),
        links.add_address(addressing.LO_INDEX, addressing.GATEWAY, 32),
    ]
    for family, network in zip((socket.AF_INET, socket.AF_INET6), everywhere, strict=True):
        messages += [
            links.add_mark_rule(family, hub_ruleset.MARK_RELAY, _RELAY_TABLE),
            links.add_local_route(addressing.LO_INDEX, network, _RELAY_TABLE),
        ]
    # An alias that leads to no leaf leads back here, and is refused: nobody listens there, also without a test.
    messages += [
        links.add_route(addressing.LO_INDEX, addressing.ALIASES),
        links.add_local_route(addressing.LO_INDEX, addressing.TEST_ALIASES6, _MAIN_TABLE),
    ]
    return b"".join(messages)


def _bound(kind: int, port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((str(addressing.GATEWAY), port))
    if kind == socket.SOCK_STREAM:
        opened.listen(_BACKLOG)
    else:  # a question that is dropped is asked again after five seconds
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
        with contextlib.suppress(PermissionError):  # as root, beyond what net.core.rmem_max lets anybody have
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _ROOM)
    opened.setblocking(False)
    return opened


def _raw(family: int) -> socket.socket:
    """Open a socket that takes packets with their IP header; see raw(7)."""
    opened = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    opened.setblocking(False)
    return opened


def _relay_listeners() -> tuple[list[socket.socket], int]:
    """Open the transparent sockets that relayed connections arrive at, on one port in both families."""
    port = 0
    listeners = []
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        listener = transparent(family, socket.SOCK_STREAM, (host, port))
        listener.listen(_BACKLOG)
        port = listener.getsockname()[1]
        listeners.append(listener)
    return listeners, port


def transparent(family: int, kind: int, address: tuple[str, int]) -> socket.socket:
    """Open a socket that may use addresses that are not the machine's own; see IP_TRANSPARENT in ip(7)."""
    opened = socket.socket(family, kind)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET:
        opened.setsockopt(socket.SOL_IP, _IP_TRANSPARENT, 1)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)
    opened.bind(address)
    opened.setblocking(False)
    return opened

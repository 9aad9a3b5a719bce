"""Batches of netlink messages, against the kernel."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from unshared import fresh, unshared

from pytest_netns.errors import KernelError
from pytest_netns.kernel import links, nft, nft_table, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket

HERE, THERE = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
HERE6, THERE6 = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:db8::2")


def opened(protocol: int = NETLINK_ROUTE) -> NetlinkSocket:
    """Open a socket of the namespace that we are in."""
    with privilege.raised():
        return NetlinkSocket(protocol)


def request(channel: NetlinkSocket, *messages: bytes) -> None:
    """Send one batch."""
    with privilege.raised():
        channel.request(b"".join(messages), "the batch")


def interfaces() -> Iterator[str]:
    """Yield the names of the namespace's interfaces."""
    return (name for _, name in socket.if_nameindex())


@unshared
def test_one_batch_connects_two_namespaces() -> None:
    """A veth pair, addresses and routes of both families work after three requests."""
    near = opened()
    near_net = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    fresh()
    far = opened()
    veth = links.add_veth("far0", 107, 65535, peer_name="near0", peer_index=300, peer_netns=near_net, peer_group=9)
    request(far, veth, links.set_up(107), links.add_address(107, THERE, 32), links.add_address(107, THERE6, 128))
    request(far, links.add_route(107, HERE), links.add_route(107, HERE6), links.add_route(107, None, HERE))
    assert socket.if_nametoindex("far0") == 107
    server = socket.create_server(("0.0.0.0", 5000))
    server6 = socket.create_server(("::", 5001), family=socket.AF_INET6)
    with privilege.raised():
        syscalls.setns(near_net, syscalls.CLONE_NEWNET)
    near_side = [links.set_up(300, 9000), links.add_address(300, HERE, 32), links.add_address(300, HERE6, 128)]
    request(near, *near_side, links.add_route(300, THERE), links.add_route(300, THERE6))
    assert {"lo", "near0"} <= set(interfaces())
    for listener, address in ((server, (str(THERE), 5000)), (server6, (str(THERE6), 5001))):
        with socket.create_connection(address, timeout=5):
            peer = listener.accept()[1][0]
        assert peer in {str(HERE), str(HERE6)}


@unshared
def test_configures_an_interface_as_its_files_would() -> None:
    """IPv4 settings that are sent as messages are what the interface's files in /proc show."""
    names = {
        "rp_filter": links.IPV4_DEVCONF_RP_FILTER,
        "accept_local": links.IPV4_DEVCONF_ACCEPT_LOCAL,
        "route_localnet": links.IPV4_DEVCONF_ROUTE_LOCALNET,
    }
    folder = Path("/proc/sys/net/ipv4/conf/lo")
    for value in (1, 0):
        request(opened(), links.configure(1, dict.fromkeys(names.values(), value)))
        assert {name: (folder / name).read_text() for name in names} == dict.fromkeys(names, f"{value}\n")


@unshared
def test_refused_message_is_told_and_the_socket_stays_usable() -> None:
    """One bad message among good ones is an error with its number and our words; the next batch has its own answer."""
    channel = opened()
    duplicate = links.add_address(1, HERE, 32)
    for _ in range(3):
        with pytest.raises(KernelError, match=r"the batch: No such device") as caught:
            request(channel, links.set_up(1), links.set_up(4711), links.set_up(1), links.set_up(4712))
        assert caught.value.errno == errno.ENODEV
    request(channel, duplicate)
    with pytest.raises(KernelError, match="File exists"):
        request(channel, duplicate)
    with pytest.raises(KernelError, match="File exists"):
        request(channel, links.set_up(1), duplicate)
    request(channel, links.set_up(1))


@unshared
def test_transaction_is_all_or_nothing() -> None:
    """Where one rule of a ruleset is refused, nothing of it is there, and the next transaction has its own answer."""
    channel = opened(NETLINK_NETFILTER)
    good = nft_table.Table("good", nft.NFPROTO_INET, [nft_table.Chain("c", nft.PREROUTING, 0, [[nft.ACCEPT]])])
    bad = nft_table.Table(
        "bad", nft.NFPROTO_INET, [nft_table.Chain("c", nft.PREROUTING, 0, [nft.groups_in_set("missing")])]
    )
    for _ in range(3):
        with pytest.raises(KernelError, match="the batch"):
            request(channel, nft_table.transaction(good.encode() + bad.encode()))
        with pytest.raises(KernelError, match="No such file"):
            request(
                channel, nft_table.transaction(nft_table.add_element("good", nft.NFPROTO_INET, "missing", bytes(8)))
            )
    request(channel, nft_table.transaction(good.encode()))


@unshared
def test_without_the_right_it_is_an_error() -> None:
    """A program without capabilities is refused, and told so."""
    if not privilege.is_root():
        with pytest.raises(KernelError, match="not permitted"):
            opened().request(links.set_up(1), "raise lo")


@unshared
def test_socket_stays_with_its_namespace() -> None:
    """What is sent from elsewhere is carried out where the socket was made; closing twice is harmless."""
    channel = opened()
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    fresh()
    request(channel, links.add_address(1, HERE, 32))
    assert not can_bind(str(HERE))
    with privilege.raised():
        syscalls.setns(home, syscalls.CLONE_NEWNET)
    assert can_bind(str(HERE))
    channel.close()
    channel.close()


def can_bind(host: str) -> bool:
    """Tell whether the address is one of ours."""
    with socket.socket(type=socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True

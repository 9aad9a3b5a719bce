"""Rulesets, loaded by the kernel that is here: each kind of expression, and what those do that we lean on."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Callable

import pytest
from unshared import kernel_version, unshared

from pytest_netns import addressing
from pytest_netns.errors import KernelError
from pytest_netns.gateway import loopback
from pytest_netns.kernel import nft, nft_table, nft_wire, privilege
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pytest_netns.kernel.nft import Rule
from pytest_netns.kernel.nft_table import Chain, Table

V4, V6 = ipaddress.ip_address("127.0.0.1").packed, ipaddress.ip_address("::1").packed

RULES: dict[str, Rule] = {
    "drop": [nft.DROP],
    "accept": [nft.ACCEPT],
    "mark": nft.mark(1),
    "set_mark": nft.set_mark(1),
    "iif": nft.iif(1),
    "iif_not": nft.iif(1, equal=False),
    "l4proto": nft.l4proto(6),
    "dport": [*nft.l4proto(6), *nft.dport(53)],
    "transport_bytes": nft.transport_bytes(13, b"\x12", b"\x02", equal=False),
    "has_socket": nft.has_socket(),
    "transparent_socket": nft.transparent_socket(),
    "socket_mark": nft.socket_mark(16),
    **{f"fib_{kind}": nft.fib_local(kind) for kind in nft.ADDRTYPE},
    "fib_spoofed": nft.fib_spoofed(),
    "ct_state": nft.ct_state(6),
    "reject_port": nft.reject_port_unreachable(),
    "reject_host": nft.reject_host_unreachable(),
    "reject_admin": nft.reject_admin_prohibited(),
    "reject_reset": [*nft.l4proto(6), *nft.reject_tcp_reset()],
    "groups": nft.groups_in_set("pairs"),
    "iif_in_set": nft.iif_in_set("indexes"),
    "iif_not_in_set": nft.iif_in_set("indexes", inverted=True),
}
BY_FAMILY: dict[str, Callable[[bytes], Rule]] = {
    "fragment": lambda own: nft.fragment6() if len(own) == 16 else [],
    "address": lambda own: nft.address(own, destination=True),
    "network": lambda own: nft.address(own, destination=False, prefix=12),
    "rewrite": lambda own: nft.rewrite_address(own, destination=True),
    "rewrite_source": lambda own: nft.rewrite_address(own, destination=False),
    "rewrite_inner": lambda own: nft.rewrite_icmp_inner(own, own),
    "ct_original": nft.ct_original_destination,
    "dup": lambda own: nft.dup_to(own, 1),
    "tproxy": lambda own: [*nft.l4proto(6), *nft.tproxy(own, 1000)],
}


def load(table: Table) -> None:
    """Load a table in the namespace that we are in."""
    with privilege.raised():
        NetlinkSocket(NETLINK_NETFILTER).request(nft_table.transaction(table.encode()), "load")


def written() -> contextlib.AbstractContextManager[object]:
    """Expect what Linux 7.3 and later say to all but the machine's root of rules that write to packets."""
    refused = kernel_version() >= (7, 3) and not privilege.is_root()
    return pytest.raises(KernelError, match="Operation not permitted") if refused else contextlib.nullcontext()


def table_of(family: int, rule: Rule, *, hook: int = nft.PREROUTING, kind: str = "filter") -> Table:
    """Return a table with one rule."""
    priority = -150 if kind == "filter" else -100
    return Table("t", family, [Chain("c", hook, priority, [rule], kind)], sets={"pairs": 8, "indexes": 4})


@unshared
@pytest.mark.parametrize("name", RULES)
def test_kernel_takes_the_expression(name: str) -> None:
    """Every expression is understood, in a table of both address families."""
    load(table_of(nft.NFPROTO_INET, RULES[name]))


@unshared
@pytest.mark.parametrize("name", BY_FAMILY)
def test_kernel_takes_the_expression_of_each_family(name: str) -> None:
    """Expressions that hold an address are understood with one of either family."""
    for family, own in ((nft.NFPROTO_IPV4, V4), (nft.NFPROTO_IPV6, V6)):
        with written() if name.startswith("rewrite") else contextlib.nullcontext():
            load(table_of(family, BY_FAMILY[name](own)))


@unshared
def test_kernel_takes_nat() -> None:
    """Destinations are translated on the way in, sources before delivery."""
    for family, own in ((nft.NFPROTO_IPV4, V4), (nft.NFPROTO_IPV6, V6)):
        load(table_of(family, nft.nat(own, destination=True), kind="nat"))
        input_chain = Chain("s", nft.INPUT, 100, [nft.nat(own, destination=False)], "nat")
        load(Table("s", family, [input_chain]))


@unshared
def test_kernel_has_one_of_the_queues() -> None:
    """The native packet queue or the older target is there."""
    refused = 0
    for rule in (nft.queue(0), nft.queue_xtables(0)):
        try:
            load(table_of(nft.NFPROTO_INET, rule))
        except KernelError:
            refused += 1
    assert refused < 2


@unshared
def test_a_wrong_expression_is_refused() -> None:
    """The kernel does look: an expression that it does not know is an error."""
    with pytest.raises(KernelError, match="load: "):
        load(table_of(nft.NFPROTO_INET, [nft_wire.expression("target", name=b"NONSENSE\0", rev=1, info=bytes(4))]))


@unshared
@pytest.mark.parametrize("tracked", [False, True])
def test_every_leafs_ruleset_loads(*, tracked: bool) -> None:
    """The ruleset of a leaf is taken whatever its addresses; twice the same is the same."""
    for number in (0, 1, 64_999):
        own, alias = addressing.leaf(number), addressing.loopback(number)
        peer = (addressing.HOST_LOOPBACK, addressing.HOST_LOOPBACK6)
        with privilege.raised(), contextlib.nullcontext() if tracked else written():
            ruleset = loopback.ruleset(own, peer, (alias.worker, alias.worker6), tracked=tracked)
            NetlinkSocket(NETLINK_NETFILTER).request(ruleset, "load")


def answers(port: int) -> bool:
    """Tell whether a UDP datagram over loopback arrives."""
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", port))
        server.settimeout(0.05)
        client.sendto(b"x", ("127.0.0.1", port))
        try:
            return server.recv(1) == b"x"
        except TimeoutError:
            return False


@unshared
@pytest.mark.parametrize(
    ("match", "dropped"),
    [
        (nft.iif(1), True),
        (nft.iif(1, equal=False), False),
        (nft.iif(2), False),
        ([*nft.l4proto(17), *nft.dport(5000)], True),
        ([*nft.l4proto(17), *nft.dport(5001)], False),
        ([*nft.l4proto(6), *nft.dport(5000)], False),
        (nft.address(V4, destination=True), True),
        (nft.address(bytes([127, 0, 0, 2]), destination=True), False),
        (nft.address(bytes([127, 64, 0, 0]), destination=False, prefix=8), False),
        (nft.address(bytes([127, 0, 0, 0]), destination=False, prefix=8), True),
        (nft.has_socket(), True),
        (nft.transparent_socket(), False),
        (nft.socket_mark(0), True),
        (nft.socket_mark(16), False),
        (nft.fib_local("local"), True),
        (nft.fib_local("broadcast"), False),
        (nft.mark(1), False),
        (nft.ct_state(8), True),
        (nft.ct_state(6), False),
        (nft.transport_bytes(2, b"\xff\xff", struct.pack("!H", 5000)), True),
        (nft.transport_bytes(2, b"\xff\xff", struct.pack("!H", 5000), equal=False), False),
        (nft.groups_in_set("pairs"), False),
        (nft.iif_in_set("indexes"), False),
        (nft.iif_in_set("indexes", inverted=True), True),
    ],
)
def test_matches(match: Rule, dropped: bool) -> None:
    """A rule that ends in a drop takes what it should match, and nothing else."""
    load(table_of(nft.NFPROTO_IPV4, [*match, nft.DROP], hook=nft.INPUT))
    assert answers(5000) is not dropped

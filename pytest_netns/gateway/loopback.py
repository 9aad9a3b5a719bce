"""A leaf's nftables ruleset, which shares its loopback with its peer's; it comes in two ways.

Nothing in it protects anybody: a test that is root there may flush it. What may leave a leaf is decided in the
hub alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from socket import IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP
from typing import Final

from pytest_netns import addressing
from pytest_netns.addressing import ETH0_INDEX, LO_INDEX, Addresses
from pytest_netns.errors import KernelError
from pytest_netns.gateway.hub_ruleset import NAME, Address
from pytest_netns.kernel import nft, nft_table
from pytest_netns.kernel.nft import ACCEPT, DROP, Rule
from pytest_netns.kernel.nft_table import Chain, Table

_UNTRACKED: Final = 64
_PEER_ZONE, _OWN_ZONE = 1, 2
_SENT_AGAIN: Final = 0x6E74  # what is not readdressed comes back, a lone reset say: it must not go round for ever
_PRIORITY_RAW: Final = -300
_PRIORITY_DSTNAT: Final = -100
_PRIORITY_SRCNAT: Final = 100


def ruleset(
    own: Addresses, peer: tuple[Address, Address], alias: tuple[Address, Address], *, tracked: bool = False
) -> bytes:
    """Return the messages that set up a leaf's ruleset.

    Args:
        own: the leaf's addresses.
        peer: the aliases, IPv4 and IPv6, of the loopback that answers what finds no listener here.
        alias: the aliases, IPv4 and IPv6, that this leaf's own loopback is known by to its peer.
        tracked: whether to do without rules that write to packets, which Linux 7.3 allows to the machine's root alone.
    """
    table = _tracked_table if tracked else _loopback_table
    tables = (table(own.ipv4, peer[0], alias[0]), table(own.ipv6, peer[1], alias[1]))
    return nft_table.transaction(b"".join(one.encode() for one in tables))


def load(send: Callable[[bool], object], *, tracked: bool = False) -> bool:
    """Load a leaf's ruleset in the way that this kernel takes; return whether that is the ``tracked`` one.

    Args:
        send: loads it, in that way if it is given True.
        tracked: whether it is known already that the other way is refused.

    Raises:
        KernelError: the kernel refuses both, or one for another reason than that it may not be.
    """
    try:
        send(tracked)
    except KernelError as error:
        if tracked or error.errno != errno.EPERM:
            raise
        send(True)
        return True
    return tracked


def _loopback_table(own: Address, peer: Address, alias: Address) -> Table:
    """Share loopback with the peer, for one address family.

    A packet by TCP or UDP to 127.0.0.1 or ::1 that no socket in this namespace would take is readdressed, without
    connection tracking, and sent to the hub (``dup`` and drop, since a packet on ``lo`` is past
    routing); the answer is put back on the same way. A listener in the leaf is therefore always
    served first, unless the client's mark says that it is not meant, and where the peer has none
    either its refusal comes back.
    """
    loopback, gateway, icmp = _family_of(own)
    inside, outside = nft.iif(LO_INDEX), nft.iif(ETH0_INDEX)
    here = [*inside, *_source(loopback), *_destination(loopback)]
    own_tcp = [*inside, *nft.l4proto(IPPROTO_TCP), *_destination(own)]
    away = [*nft.rewrite_address(own.packed, destination=False), *nft.rewrite_address(peer.packed, destination=True)]
    back = [*outside, *_source(peer), *_destination(own)]
    home = [
        *nft.rewrite_address(loopback.packed, destination=False),
        *nft.rewrite_address(loopback.packed, destination=True),
    ]
    inner_home = nft.rewrite_icmp_inner(loopback.packed, loopback.packed)
    share: list[Rule] = [
        _its_own(inside),
        # A service that is bound to loopback alone answers at the leaf's address too: from inside, by TCP, here.
        [*own_tcp, *nft.has_socket(), ACCEPT],
        [*own_tcp, *_source(own), *nft.rewrite_address(loopback.packed, destination=True), ACCEPT],
        [*own_tcp, *_source(loopback), *nft.rewrite_address(own.packed, destination=False), ACCEPT],
        *_never_shared(here, own),
        [*here, *nft.mark(addressing.PEER_MARK, equal=False), *nft.has_socket(), ACCEPT],
        [*here, *away, *nft.dup_to(gateway.packed, ETH0_INDEX), DROP],
        [*back, *icmp, *inner_home],
        [*back, *home, ACCEPT],
        # The hub refuses in its own name; the packet that it quotes tells that it was for loopback.
        [*outside, *_source(gateway), *_destination(own), *icmp, *_dialled(peer), *inner_home, *home, ACCEPT],
    ]
    chains = [Chain("share", nft.PREROUTING, _PRIORITY_RAW, share), *_arriving(own, alias, loopback)]
    return Table(NAME, nft.nfproto(own.packed), chains)


def _tracked_table(own: Address, peer: Address, alias: Address) -> Table:
    """Share loopback with the peer, for one address family, by the kernel's address translation.

    The copy that ``dup`` sends counts as untracked, which leaves its connection to be found in a zone of its own; there
    it is readdressed on its way out, and its answers when they come in.
    """
    loopback, gateway, icmp = _family_of(own)
    inside, outside = nft.iif(LO_INDEX), nft.iif(ETH0_INDEX)
    within, leaving = [*nft.oif(LO_INDEX), *nft.l4proto(IPPROTO_TCP)], nft.oif(ETH0_INDEX)
    both = [*_source(loopback), *_destination(loopback)]
    itself = [*_source(own), *_destination(own)]
    in_peers, in_own = ([*nft.set_ct_zone(zone), ACCEPT] for zone in (_PEER_ZONE, _OWN_ZONE))
    share: list[Rule] = [
        _its_own(inside),
        [*inside, *nft.l4proto(IPPROTO_TCP), *itself, *nft.has_socket(), ACCEPT],
        [*inside, *nft.l4proto(IPPROTO_TCP), *itself, *nft.mark(_SENT_AGAIN), ACCEPT],
        [
            *[*inside, *nft.l4proto(IPPROTO_TCP), *itself, *nft.set_mark(_SENT_AGAIN)],
            *[*nft.dup_to(loopback.packed, LO_INDEX), DROP],
        ],
        *_never_shared([*inside, *both], own),
        [*inside, *both, *nft.mark(addressing.PEER_MARK, equal=False), *nft.has_socket(), ACCEPT],
        [*inside, *both, *nft.dup_to(gateway.packed, ETH0_INDEX), DROP],
        [*outside, *_source(peer), *_destination(own), *in_peers],
        [*outside, *_source(gateway), *_destination(own), *icmp, *_dialled(peer), *in_peers],
    ]
    sort: list[Rule] = [
        [*leaving, *both, *in_peers],
        [*within, *itself, *nft.ct_state(_UNTRACKED), *in_own],
        [*within, *_source(loopback), *_destination(own), *in_own],
    ]
    readdress: list[Rule] = [
        [*leaving, *both, *nft.nat(peer.packed, destination=True)],
        [*within, *itself, *nft.ct_zone(_OWN_ZONE), *nft.nat(loopback.packed, destination=True)],
    ]
    sign: list[Rule] = [[*leaving, *_source(loopback), *_destination(peer), *nft.nat(own.packed, destination=False)]]
    chains = [
        Chain("share", nft.PREROUTING, _PRIORITY_RAW, share),
        Chain("sort", nft.OUTPUT, _PRIORITY_RAW, sort),
        Chain("readdress", nft.OUTPUT, _PRIORITY_DSTNAT, readdress, kind="nat"),
        Chain("sign", nft.POSTROUTING, _PRIORITY_SRCNAT, sign, kind="nat"),
        *_arriving(own, alias, loopback),
    ]
    return Table(NAME, nft.nfproto(own.packed), chains)


def _arriving(own: Address, alias: Address, loopback: Address) -> list[Chain]:
    """Lead what comes from outside to services that are bound to loopback alone."""
    outside, to_loopback = nft.iif(ETH0_INDEX), nft.nat(loopback.packed, destination=True)
    redirect: list[Rule] = [
        [*outside, *_destination(alias), *to_loopback],
        # And from outside, by UDP too.
        [*outside, *_destination(own), *nft.has_socket(), ACCEPT],
        [*outside, *_destination(own), *to_loopback],
    ]
    disguise: list[Rule] = [
        [*outside, *nft.ct_original_destination(alias.packed), *nft.nat(loopback.packed, destination=False)]
    ]
    return [
        Chain("redirect", nft.PREROUTING, _PRIORITY_DSTNAT, redirect, kind="nat"),
        Chain("disguise", nft.INPUT, _PRIORITY_SRCNAT, disguise, kind="nat"),
    ]


def _its_own(inside: Rule) -> Rule:
    """Leave what is neither TCP nor UDP in the leaf: nobody can tell whether a socket, a raw one say, would take it."""
    return [*inside, *nft.l4proto(IPPROTO_TCP, equal=False), *nft.l4proto(IPPROTO_UDP, equal=False), ACCEPT]


def _never_shared(here: Rule, own: Address) -> list[Rule]:
    """Keep fragments of IPv6 in the leaf: all but the first lack the ports by which a socket is found.

    IPv4's are whole again by then; IPv6 leaves those on loopback as they are, which tracking has seen once already.
    """
    return [[*here, *nft.fragment6(), ACCEPT]] if own.version == 6 else []


def _family_of(own: Address) -> tuple[Address, Address, Rule]:
    """Return loopback's address and the gateway's in this family, and what matches its ICMP."""
    if own.version == 4:
        return addressing.LOOPBACK, addressing.GATEWAY, nft.l4proto(IPPROTO_ICMP)
    return addressing.LOOPBACK6, addressing.GATEWAY6, nft.l4proto(IPPROTO_ICMPV6)


def _dialled(peer: Address) -> Rule:
    """Match the destination of the packet that an ICMP error quotes."""
    return nft.transport_bytes(24 if peer.version == 4 else 32, b"\xff" * len(peer.packed), peer.packed)


def _source(address: Address) -> Rule:
    return nft.address(address.packed, destination=False)


def _destination(address: Address) -> Rule:
    return nft.address(address.packed, destination=True)

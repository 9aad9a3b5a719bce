"""The hub's nftables ruleset, which enforces what may leave a leaf."""

from __future__ import annotations

import ipaddress
import struct
from typing import Final, TypeAlias

from pytest_netns import addressing
from pytest_netns.addressing import LO_INDEX
from pytest_netns.kernel import nft, nft_table
from pytest_netns.kernel.nft import ACCEPT, DROP, Rule
from pytest_netns.kernel.nft_table import Chain, Table

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

NAME: Final = "pytest_netns"
PEERS: Final = "peers"
ASKING: Final = "asking"
QUEUE: Final = 0

# What the gateway says of a queued packet, as the mark that it is sent round again with.
MARK_RELAY: Final = 1
MARK_RESET: Final = 2
MARK_BLOCKED: Final = 3
MARK_UNREACHABLE: Final = 4
MARK_PASS: Final = 5

# What a socket of the relay carries as SO_MARK once it belongs to one flow alone.
MARK_CLAIMED: Final = 16

_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_ESTABLISHED: Final = 2
_ESTABLISHED_OR_RELATED: Final = 2 | 4
_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT, _MULTICAST_LISTENER_REPORT = 135, 136, 143
_SYN, _SYN_ACK = b"\x02", b"\x12"
_DNS: Final = 53
_PRIORITY_MANGLE: Final = -150


def table(relay_port: int, *, native_queue: bool) -> Table:
    """Return the ruleset; ``relay_port`` is where the relay's transparent sockets listen."""
    queue = nft.queue(QUEUE) if native_queue else nft.queue_xtables(QUEUE)
    prerouting = [
        # Each leaf sends some as it is made. What follows would look up the one route that all leaves' links have,
        # which takes the kernel the longer the more leaves there are.
        [*_icmpv6(_MULTICAST_LISTENER_REPORT), DROP],
        *_neighbour_discovery(),
        [*nft.fib_spoofed(), DROP],
        *_between_leaves(),
        *_verdicts(),
        *_relay(relay_port),
        *_to_the_hub(),
        *[[*nft.fib_local(kind), *nft.l4proto(_UDP), *queue] for kind in ("broadcast", "multicast")],
        *[[*nft.fib_local(kind), DROP] for kind in ("broadcast", "multicast", "anycast")],
        *_passed(queue),
        *_never_again(),
        [*nft.l4proto(_TCP), *nft.transport_bytes(13, _SYN_ACK, _SYN, equal=False), *nft.reject_tcp_reset()],
        queue,
    ]
    forward = [
        [*nft.groups_in_set(PEERS), ACCEPT],
        # An alias that leads to no leaf: nobody listens there.
        [*nft.oif(LO_INDEX), *nft.l4proto(_TCP), *nft.reject_tcp_reset()],
        [*nft.oif(LO_INDEX), *nft.reject_port_unreachable()],
        *_verdicts(),
        *_never_again(),
        queue,
    ]
    chains = [
        Chain("prerouting", nft.PREROUTING, _PRIORITY_MANGLE, prerouting),
        Chain("forward", nft.FORWARD, 0, forward, policy=0),
    ]
    return Table(NAME, nft.NFPROTO_INET, chains, sets={PEERS: 8, ASKING: 4})


def peers(worker: int) -> bytes:
    """Return the messages that let a worker's leaf and its tests' leaves reach each other."""
    own, tests = addressing.groups(worker)
    keys = (struct.pack("=II", own, tests), struct.pack("=II", tests, own))
    return nft_table.transaction(b"".join(nft_table.add_element(NAME, nft.NFPROTO_INET, PEERS, key) for key in keys))


def asking(ifindex: int, *, asks: bool) -> bytes:
    """Return the messages that have the gateway asked, or not any more, of what a leaf sends to other leaves.

    It is asked where a leaf's loopback is continued in more than its peer: in the host's loopback too.
    """
    change = nft_table.add_element if asks else nft_table.remove_element
    return nft_table.transaction(change(NAME, nft.NFPROTO_INET, ASKING, struct.pack("=I", ifindex)))


def _passed(queue: Rule) -> list[Rule]:
    """Leave what the gateway was asked of, and the flows that began so, to the forward chain."""
    to_others = [_within(addressing.LEAVES), _within(addressing.LEAVES6)]
    udp = [*nft.l4proto(_UDP), *nft.transparent_socket()]
    return [
        [*nft.l4proto(_TCP), *nft.transparent_socket(), *nft.set_mark(MARK_RELAY), ACCEPT],
        # A UDP socket is bound before it is connected; until then it would take what other clients send there.
        [*udp, *nft.socket_mark(MARK_CLAIMED), *nft.set_mark(MARK_RELAY), ACCEPT],
        *[[*others, *nft.mark(MARK_PASS), *nft.set_mark(0), ACCEPT] for others in to_others],
        # Until it is claimed, the gateway is asked of each packet: an answered one would go on to the peer below.
        [*nft.mark(0), *udp, *queue],
        *[[*others, *nft.ct_state(_ESTABLISHED_OR_RELATED), ACCEPT] for others in to_others],
    ]


def _between_leaves() -> list[Rule]:
    """Leave what is for another leaf to the forward chain; it comes first, since shared loopback is busy."""
    others = (addressing.GATEWAY, addressing.HOST_LOOPBACK, addressing.BROADCAST)
    to_a_leaf = [*_within(addressing.LEAVES), *(part for other in others for part in _not_to(other))]
    to_a_leaf6 = [*_within(addressing.LEAVES6), *_not_to(addressing.HOST_LOOPBACK6)]
    unasked = nft.iif_in_set(ASKING, inverted=True)
    return [[*to_a_leaf, *unasked, ACCEPT], [*to_a_leaf6, *unasked, ACCEPT]]


def _verdicts() -> list[Rule]:
    return [
        *_blocked(),
        [*nft.mark(MARK_RESET), *nft.l4proto(_TCP), *nft.reject_tcp_reset()],
        [*nft.mark(MARK_RESET), *nft.reject_port_unreachable()],
        [*nft.mark(MARK_UNREACHABLE), *nft.reject_host_unreachable()],
    ]


def _never_again() -> list[Rule]:
    """Drop what has its verdict and none of the rules for it: asked again, the gateway would say the same for ever."""
    return [[*nft.mark(0, equal=False), DROP]]


def _blocked() -> list[Rule]:
    # "Administratively prohibited" is EHOSTUNREACH in IPv4 but EACCES in IPv6, where "address unreachable" is
    # EHOSTUNREACH; that is a passing fault to a UDP socket, which would not be told of it.
    over_ipv6 = [*nft.family(nft.NFPROTO_IPV6), *nft.l4proto(_TCP)]
    return [
        [*nft.mark(MARK_BLOCKED), *over_ipv6, *nft.reject_host_unreachable()],
        [*nft.mark(MARK_BLOCKED), *nft.reject_admin_prohibited()],
    ]


def _relay(port: int) -> list[Rule]:
    rules = [
        [*nft.mark(MARK_RELAY), *_family(address), *nft.l4proto(protocol), *nft.tproxy(address.packed, port), ACCEPT]
        for address in (addressing.LOOPBACK, addressing.LOOPBACK6)
        for protocol in (_TCP, _UDP)
    ]
    return [*rules, [*nft.mark(MARK_RELAY), DROP]]  # its socket has been closed meanwhile


def _to_the_hub() -> list[Rule]:
    """Let the name server and ping answer, what the hub itself dialled in a leaf, and nothing else."""
    own = _to(addressing.GATEWAY)
    aliases = addressing.TEST_ALIASES6
    no_alias = nft.address(aliases.network_address.packed, destination=True, prefix=aliases.prefixlen, equal=False)
    return [
        *[
            [*_to(address), *nft.l4proto(protocol), *nft.ct_state(_ESTABLISHED), ACCEPT]
            for address in (addressing.GATEWAY, addressing.GATEWAY6)
            for protocol in (_TCP, _UDP)
        ],
        *[[*own, *nft.l4proto(protocol), *nft.dport(_DNS), ACCEPT] for protocol in (_UDP, _TCP)],
        [*own, *nft.l4proto(_ICMP), ACCEPT],
        [*nft.fib_local("local"), *nft.l4proto(_ICMPV6), ACCEPT],
        [*nft.family(nft.NFPROTO_IPV4), *nft.fib_local("local"), *nft.reject_admin_prohibited()],
        # An alias leads here for want of a test; the gateway may have to be asked of it first.
        [*nft.family(nft.NFPROTO_IPV6), *no_alias, *nft.fib_local("local"), *nft.reject_admin_prohibited()],
    ]


def _neighbour_discovery() -> list[Rule]:
    return [
        [*_icmpv6(kind), *nft.fib_local(scope), ACCEPT]
        for kind in (_NEIGHBOUR_SOLICITATION, _NEIGHBOUR_ADVERTISEMENT)
        for scope in ("local", "multicast")
    ]


def _icmpv6(kind: int) -> Rule:
    return [*nft.l4proto(_ICMPV6), *nft.transport_bytes(0, b"\xff", bytes([kind]))]


def _family(address: Address) -> Rule:
    return nft.family(nft.nfproto(address.packed))


def _to(address: Address) -> Rule:
    return [*_family(address), *nft.address(address.packed, destination=True)]


def _not_to(address: Address) -> Rule:
    return nft.address(address.packed, destination=True, equal=False)


def _within(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Rule:
    address = network.network_address
    return [*_family(address), *nft.address(address.packed, destination=True, prefix=network.prefixlen)]

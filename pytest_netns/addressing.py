"""Which addresses, names and interface numbers leaves get: arithmetic alone.

Leaves take 198.18.0.0/16, half of the block that RFC 2544 sets aside for measuring network devices,
so that no real host is shadowed, and a unique local IPv6 prefix (RFC 4193). 198.19.0.0/16 holds
aliases that name one end of the shared loopback, never an interface.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

PREFIX_LENGTH: Final = 16
PREFIX6_LENGTH: Final = 64
GATEWAY: Final = ipaddress.IPv4Address("198.18.0.1")
BROADCAST: Final = ipaddress.IPv4Address("198.18.255.255")
GATEWAY6: Final = ipaddress.IPv6Address("fe80::1")
LEAVES: Final = ipaddress.IPv4Network("198.18.0.0/15")
LEAVES6: Final = ipaddress.IPv6Network("fd6e:6574:6e73::/48")
HOST_LOOPBACK: Final = ipaddress.IPv4Address("198.19.255.254")
HOST_LOOPBACK6: Final = ipaddress.IPv6Address("fd6e:6574:6e73:4::1")

# The mark of a socket whose packets to loopback pass by the leaf's own listeners, and go to its peer's.
PEER_MARK: Final = 0x6E73

ALIASES: Final = ipaddress.IPv4Network("198.19.0.0/19")
TEST_ALIASES6: Final = ipaddress.IPv6Network("fd6e:6574:6e73:3::/64")

LOOPBACK: Final = ipaddress.IPv4Address("127.0.0.1")
LOOPBACK6: Final = ipaddress.IPv6Address("::1")

# Those below are left to the kernel, which may put tunnels of its own into each network: sit0, tunl0 and others.
_FIRST_INDEX: Final = 100
LO_INDEX: Final = 1
ETH0_INDEX: Final = _FIRST_INDEX

LEAF_LIMIT: Final = 65_000
WORKER_LIMIT: Final = 4_000

_ZERO: Final = int(LEAVES.network_address)
_ZERO6: Final = int(LEAVES6.network_address) + (1 << 64)
_FIRST_LEAF: Final = 16  # .0 to .15 of the block are the hub's own
_WORKER_GROUP: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Addresses:
    """What one leaf is called on the wire."""

    ipv4: ipaddress.IPv4Address
    ipv6: ipaddress.IPv6Address
    hub_ifindex: int
    hub_ifname: str


def leaf(number: int) -> Addresses:
    """Return the addresses of the leaf with this serial number; they recur after LEAF_LIMIT leaves."""
    slot = number % LEAF_LIMIT + _FIRST_LEAF
    return Addresses(
        ipv4=ipaddress.IPv4Address(_ZERO + slot),
        ipv6=ipaddress.IPv6Address(_ZERO6 + slot),
        hub_ifindex=_ifindex(number),
        hub_ifname=f"leaf{slot:05}",
    )


def _ifindex(number: int) -> int:
    return number % LEAF_LIMIT + _FIRST_LEAF + _FIRST_INDEX


class Numbers:
    """Serial numbers for leaves, without those whose addresses a leaf has that is still alive."""

    def __init__(self) -> None:
        self._last = 0
        self._taken: set[int] = set()

    def take(self) -> int:
        """Return the next number, from 1; its addresses are taken until they are given back.

        Where all are taken, it is one that the kernel will refuse to use.
        """
        for _ in range(LEAF_LIMIT):
            self._last += 1
            index = _ifindex(self._last)
            if index not in self._taken:
                self._taken.add(index)
                break
        return self._last

    def give_back(self, addresses: Addresses) -> None:
        """Let the addresses be used again, after all the others; doing so twice is harmless."""
        self._taken.discard(addresses.hub_ifindex)


def is_leaf(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether an address is a leaf's, or an alias of shared loopback."""
    return address in LEAVES or address in LEAVES6


def mac(address: ipaddress.IPv4Address) -> str:
    """Return the link-layer address of whoever has an IPv4 address: locally administered, with the address in it."""
    return ":".join(f"{byte:02x}" for byte in b"\x02\x42" + address.packed)


@dataclass(frozen=True, slots=True)
class Loopback:
    """The aliases by which the worker leaf and the test leaf of one worker reach each other's loopback."""

    worker: ipaddress.IPv4Address
    worker6: ipaddress.IPv6Address
    test: ipaddress.IPv4Address
    test6: ipaddress.IPv6Address


def loopback(worker: int) -> Loopback:
    """Return the loopback aliases of the worker with this serial number."""
    slot = worker % WORKER_LIMIT + 1
    return Loopback(
        worker=LEAVES[(1 << 16) + 2 * slot],
        worker6=LEAVES6[(2 << 64) + slot],
        test=LEAVES[(1 << 16) + 2 * slot + 1],
        test6=LEAVES6[(3 << 64) + slot],
    )


def groups(worker: int) -> tuple[int, int]:
    """Return the interface groups of a worker's own leaf and of its tests' leaves."""
    slot = worker % WORKER_LIMIT + 1
    return slot | _WORKER_GROUP, slot

"""Which addresses leaves get."""

from __future__ import annotations

import ipaddress

from hypothesis import given
from hypothesis import strategies as st

from pytest_netns import addressing

NUMBERS = st.integers(min_value=0, max_value=10**9)


def test_leaves_of_one_cycle_share_nothing() -> None:
    """Until the numbers recur, no two leaves have an address, an interface number or a name in common."""
    leaves = [addressing.leaf(number) for number in range(addressing.LEAF_LIMIT)]
    for values in (
        {one.ipv4 for one in leaves},
        {one.ipv6 for one in leaves},
        {one.hub_ifindex for one in leaves},
        {one.hub_ifname for one in leaves},
    ):
        assert len(values) == addressing.LEAF_LIMIT
    assert addressing.leaf(addressing.LEAF_LIMIT) == leaves[0]


def test_numbers_of_living_leaves_do_not_recur() -> None:
    """A run that goes on for longer than there are addresses skips those that a leaf still has, and no others."""
    numbers = addressing.Numbers()
    kept, _ = addressing.leaf(numbers.take()), numbers.take()
    for _ in range(2, addressing.LEAF_LIMIT):
        numbers.give_back(addressing.leaf(numbers.take()))
    numbers.give_back(addressing.leaf(0))
    again = [addressing.leaf(numbers.take()) for _ in range(2)]
    assert [one.hub_ifindex - kept.hub_ifindex for one in again] == [2, 3]


def test_workers_of_one_cycle_share_nothing() -> None:
    """Until the numbers recur, no two workers have a loopback alias or an interface group in common."""
    workers = range(addressing.WORKER_LIMIT)
    aliases = [addressing.loopback(worker) for worker in workers]
    both = [alias for one in aliases for alias in (one.worker, one.test, one.worker6, one.test6)]
    groups = [group for worker in workers for group in addressing.groups(worker)]
    assert len(set(both)) == 4 * addressing.WORKER_LIMIT
    assert len(set(groups)) == 2 * addressing.WORKER_LIMIT
    assert 0 not in groups  # the group of every interface that nobody put into one


@given(NUMBERS, NUMBERS)
def test_no_leaf_has_an_address_with_another_meaning(leaf: int, worker: int) -> None:
    """Whatever its number, a leaf's address is no alias, not the gateway's, not the host's loopback, no broadcast."""
    own, alias = addressing.leaf(leaf), addressing.loopback(worker)
    lower = ipaddress.ip_network("198.18.0.0/16")
    special = {addressing.GATEWAY, addressing.HOST_LOOPBACK, alias.worker, alias.test, lower.broadcast_address}
    special |= {lower.network_address}
    assert own.ipv4 not in special
    assert own.ipv6 not in {addressing.HOST_LOOPBACK6, alias.worker6, alias.test6}
    assert addressing.HOST_LOOPBACK not in {alias.worker, alias.test}


@given(NUMBERS, NUMBERS)
def test_all_is_inside_the_networks_that_are_ours(leaf: int, worker: int) -> None:
    """Leaves are in 198.18.0.0/16, aliases in 198.19.0.0/16, and all of IPv6 in one private block."""
    own, alias = addressing.leaf(leaf), addressing.loopback(worker)
    assert own.ipv4 in ipaddress.ip_network("198.18.0.0/16")
    assert all(one in ipaddress.ip_network("198.19.0.0/16") for one in (alias.worker, alias.test))
    assert all(one in addressing.LEAVES6 for one in (own.ipv6, alias.worker6, alias.test6))
    assert addressing.LEAVES6.is_private
    assert addressing.HOST_LOOPBACK in addressing.LEAVES
    assert addressing.HOST_LOOPBACK6 in addressing.LEAVES6


@given(NUMBERS)
def test_names_and_numbers_fit_the_kernel(leaf: int) -> None:
    """An interface's name has at most 15 characters, its number fits 31 bits and leaves the low ones alone."""
    own = addressing.leaf(leaf)
    assert len(own.hub_ifname) <= 15
    assert 100 <= own.hub_ifindex < 2**31

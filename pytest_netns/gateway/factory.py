"""Make leaves and drop them, in a thread of its own that lives in the hub."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from pytest_netns import addressing
from pytest_netns.addressing import Addresses
from pytest_netns.errors import KernelError
from pytest_netns.gateway import hub, loopback, recipes
from pytest_netns.gateway.recipes import Recipe, Wiring
from pytest_netns.kernel import mounts, patience, syscalls
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NETLINK_ROUTE, NetlinkSocket
from pytest_netns.kernel.tap import FEWER_BLOCKS, Tap

P = ParamSpec("P")
T = TypeVar("T")

_TOGETHER = 8
_TAPPERS = 32


@dataclass(frozen=True)
class Leaf:
    """A furnished pair of namespaces, held by its descriptors."""

    addresses: Addresses
    net_fd: int
    mnt_fd: int
    tap: Tap | None = None

    def close(self) -> None:
        """Drop all references; the kernel frees the namespaces with their last user."""
        os.close(self.net_fd)
        os.close(self.mnt_fd)
        if self.tap is not None:
            self.tap.close()


class Factory:
    """Runs in the hub what must run there: one job at a time, in order of request."""

    def __init__(self) -> None:
        """Prepare the thread; it starts with the first job."""
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="factory")
        # Dropping the last reference to a mount namespace waits for the kernel for up to some milliseconds.
        self._undertaker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="undertaker")
        # Starting and ending a tap waits for the kernel, too, and many may wait together.
        self._tappers = ThreadPoolExecutor(max_workers=_TAPPERS, thread_name_prefix="tapper")
        self._numbers = addressing.Numbers()
        self._dropped: list[Leaf] = []
        self._hub: hub.Hub
        self._sysfs: mounts.Sysfs | None = None
        self._templates: dict[bool, int] = {}
        self._recipes: dict[Wiring, Recipe] = {}
        self._tracked = False  # whether this kernel wants the other ruleset for leaves

    def submit(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run ``job`` in the hub's namespace soon."""
        return self._executor.submit(job, *args, **kwargs)

    def begin(self, wiring: Wiring, *brought: int) -> Future[Leaf]:
        """Begin a leaf, or wire the one that was ``brought`` anew, by its descriptors, which stay the caller's."""
        number = self._numbers.take()
        if len(brought) == 2:
            return self.submit(self.adopt, number, wiring, *brought)
        return self.submit(self.make, number, wiring)

    def start(self, resolv_conf: str) -> hub.Hub:
        """Make the hub, and the mount namespaces that each leaf's is copied from; called once, in the thread."""
        syscalls.unshare(syscalls.CLONE_FS)
        self._make_templates(resolv_conf)
        patience.unshare(syscalls.CLONE_NEWNET)
        self._hub = hub.build()
        return self._hub

    def tap(self, leaf: Leaf) -> Future[Leaf] | None:
        """Have a leaf's packets seen soon, off everybody's path; None where they are not to be seen."""
        return None if leaf.tap is None else self._tappers.submit(_tapped, leaf)

    def make(self, number: int, wiring: Wiring) -> Leaf:
        """Make one leaf, ready for use but for its tap; called in the thread."""
        addresses = addressing.leaf(number)
        patience.unshare(syscalls.CLONE_NEWNET)
        try:
            net_fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            tap = None
            try:
                self._furnish(addresses, wiring)
                tap = Tap(FEWER_BLOCKS) if wiring.tapped else None
                mnt_fd = self._copy_mounts(host_resolver=wiring.host_resolver)
            except BaseException:
                os.close(net_fd)
                if tap is not None:
                    tap.close()
                raise
        finally:  # also where there was no descriptor left: what comes next must not run in a nameless namespace
            syscalls.setns(self._hub.netns, syscalls.CLONE_NEWNET)
        return Leaf(addresses, net_fd, mnt_fd, tap)

    def adopt(self, number: int, wiring: Wiring, net_fd: int, mnt_fd: int) -> Leaf:
        """Wire a leaf whose gateway has ended to this hub; called in the thread."""
        addresses = addressing.leaf(number)
        tap = None
        syscalls.setns(net_fd, syscalls.CLONE_NEWNET)
        try:
            _unwire()
            self._furnish(addresses, wiring)
            tap = Tap(FEWER_BLOCKS) if wiring.tapped else None
        finally:
            syscalls.setns(self._hub.netns, syscalls.CLONE_NEWNET)
        return Leaf(addresses, os.dup(net_fd), os.dup(mnt_fd), tap)

    def drop(self, leaf: Leaf) -> None:
        """Give a leaf up, off everybody's path; several at once, which the kernel clears at the cost of one."""
        self._numbers.give_back(leaf.addresses)
        if leaf.tap is not None:
            self._tappers.submit(leaf.close)
            return
        self._dropped.append(leaf)
        if len(self._dropped) == _TOGETHER:
            self.bury()

    def bury(self) -> None:
        """Let go of the leaves that were given up, without waiting until there are several."""
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            self._undertaker.submit(_close, dropped)

    def stop(self) -> None:
        """End the threads after the jobs that were asked for."""
        self.bury()
        self._executor.shutdown(wait=True)
        self._undertaker.shutdown(wait=True)
        self._tappers.shutdown(wait=True)

    def _make_templates(self, resolv_conf: str) -> None:
        patience.unshare(syscalls.CLONE_NEWNS)  # the host's own could not be entered again by an ordinary user
        before = _open_mount_namespace()
        for host_resolver in (False, True):
            syscalls.setns(before, syscalls.CLONE_NEWNS)
            patience.unshare(syscalls.CLONE_NEWNS)
            mounts.prepare_template(None if host_resolver else resolv_conf, hide_resolvers=not host_resolver)
            self._templates[host_resolver] = _open_mount_namespace()
        self._sysfs = mounts.sysfs()
        os.close(before)

    def _furnish(self, addresses: Addresses, wiring: Wiring) -> None:
        recipe, own = self._recipe(wiring), recipes.values_of(addresses)
        route = NetlinkSocket(NETLINK_ROUTE)
        packet_filter = NetlinkSocket(NETLINK_NETFILTER)
        try:
            hub.write_sysctls(recipes.sysctls())
            route.request(recipe.veth.filled(own), "make a veth pair to the hub")
            self._hub.route.request(recipe.hub_side.filled(own), "set up the hub's end of a veth pair")
            route.request(recipe.leaf_side.filled(own), "set up a leaf's links, addresses and routes")
            self._hub.route.request(recipe.hub_settled.filled(own), "see the hub's end of a veth pair connected")
            self._load_ruleset(packet_filter, wiring, own)
        finally:
            route.close()
            packet_filter.close()

    def _load_ruleset(self, packet_filter: NetlinkSocket, wiring: Wiring, own: dict[bytes, bytes]) -> None:
        def send(tracked: bool) -> None:
            if tracked is not self._tracked:
                self._tracked = tracked
                self._recipes.clear()
            packet_filter.request(self._recipe(wiring).ruleset.filled(own), "load a leaf's nftables ruleset")

        loopback.load(send, tracked=self._tracked)

    def _recipe(self, wiring: Wiring) -> Recipe:
        recipe = self._recipes.get(wiring)
        if recipe is None:
            recipe = self._recipes[wiring] = recipes.encode(wiring, self._hub.netns, tracked=self._tracked)
        return recipe

    def _copy_mounts(self, *, host_resolver: bool) -> int:
        syscalls.setns(self._templates[host_resolver], syscalls.CLONE_NEWNS)
        patience.unshare(syscalls.CLONE_NEWNS)
        mounts.fresh_sysfs(self._sysfs)
        mnt_fd = _open_mount_namespace()
        syscalls.setns(self._templates[host_resolver], syscalls.CLONE_NEWNS)
        return mnt_fd


def _unwire() -> None:
    """Take away what joined the thread's namespace to a hub, as far as the kernel has not done so with that."""
    for protocol, messages in recipes.unwired():
        connection = NetlinkSocket(protocol)
        try:
            connection.request(messages, "take a leaf's old wiring away")
        except KernelError as error:
            if error.errno not in (errno.ENODEV, errno.ENOENT):
                raise
        finally:
            connection.close()


def _tapped(leaf: Leaf) -> Leaf:
    if leaf.tap is not None:
        leaf.tap.start()
    return leaf


def _close(leaves: list[Leaf]) -> None:
    for leaf in leaves:
        leaf.close()


def _open_mount_namespace() -> int:
    return os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)

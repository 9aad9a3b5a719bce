"""The test leaves of one pytest process: leased when a test first needs one, released when it is left."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.fakes import spare_us
from pytest_netns.kernel import clock, processes
from pytest_netns.namespace import Namespace
from pytest_netns.scoping import Leaf, Place, leaf_node
from pytest_netns.settings import ItemSettings, Scope
from pytest_netns.tally import OUTSIDE
from pytest_netns.traits import put_back
from pytest_netns.visit import is_guest

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.kernel.processes import Process
    from pytest_netns.pools import Pools

__all__ = ["Leases", "Leftovers", "threads_in"]

_log = logging.getLogger(__name__)

_Key = tuple[Scope, "pytest.Item | pytest.Collector"]

_PATIENCE: Final = 0.25  # seconds for a thread that is about to end anyway


class Leftovers(NamedTuple):
    """What was still running in a leaf when it was released, or still changed in the process.

    Attributes:
        leaf: the leaf's name.
        threads: those that go on.
        processes: those that were ended, each with the signal that did it.
        starters: the tests that started them, by process id and by thread, as far as several shared the leaf.
        changes: what was put back that tests had changed in the process, each with the test.
    """

    leaf: str
    threads: list[threading.Thread]
    processes: list[tuple[Process, str]]
    starters: Mapping[int | threading.Thread, pytest.Item]
    changes: list[tuple[str, pytest.Item]]


class Leases:
    """The leaves that are alive, by scope and by what they live for."""

    def __init__(
        self,
        client: GatewayClient,
        worker: Namespace | None,
        base: Place,
        pools: Pools,
        *,
        shared: bool,
        rules: Sequence[str] = (),
    ) -> None:
        """Begin with the worker leaf alone, if there is one.

        Args:
            client: the gateway.
            worker: the worker leaf.
            base: where the process lives between tests.
            pools: what makes threads that outlive a test follow the next.
            shared: whether the worker leaf serves the scope ``session``.
            rules: the egress rules for the run.
        """
        self._client = client
        self._worker = worker
        self._base = base
        self._pools = pools
        self._shared = shared
        self._rules = rules
        self._alive: dict[_Key, Leaf] = {}
        self._further: list[Leaf] = []
        self._own: Leaf | None = None
        self._modules = 0  # that there were when a test was last given a leaf

    def take(self, item: pytest.Item, settings: ItemSettings) -> Leaf:
        """Return the leaf that this test runs in, a new one unless its scope has one already."""
        self._modules = spare_us(self._modules)
        if settings.scope is Scope.SESSION and self._shared and self._worker is not None:
            self._own = self._own or Leaf(
                self._base, self._worker, Scope.SESSION, item.session, since=processes.last_pid()
            )
            _tell(self._worker.name, settings)
            self._label(self._worker, item, settings)
            return self._own
        key = (settings.scope, leaf_node(item, settings.scope))
        leaf = self._alive.get(key)
        if leaf is None:
            leaf = self._alive[key] = self._lease(key, item.nodeid, settings)
        else:
            _log.info("leaf %s goes on, for %s", leaf.namespace.name, item.nodeid)
            _tell(leaf.namespace.name, settings)
            self._client.activate(leaf.namespace.name)
            self._label(leaf.namespace, item, settings)
        return leaf

    def arrived(self) -> None:
        """Prepare pools for the test, once the process is in its leaf."""
        self._pools.arrive()

    def _label(self, namespace: Namespace, item: pytest.Item, settings: ItemSettings) -> None:
        self._client.label(
            namespace.name, item.nodeid, service_port=settings.port, rules=settings.allow, sni=settings.sni
        )

    def rest(self) -> None:
        """Let the worker leaf serve no test, if it served one, so that no test's rules hold there."""
        if self._own is not None:
            self._client.label(self._own.namespace.name, OUTSIDE, rules=self._rules)

    def take_further(self, item: pytest.Item, settings: ItemSettings) -> Leaf:
        """Return one more leaf for the test that is running, until its end."""
        leaf = self._lease((Scope.FUNCTION, item), item.nodeid, settings, further=True)
        self._further.append(leaf)
        return leaf

    def _lease(self, key: _Key, test: str, settings: ItemSettings, *, further: bool = False) -> Leaf:
        since, begin = processes.last_pid(), clock.monotonic()
        lease = self._client.lease_further if further else self._client.lease
        grant = lease(test, service_port=settings.port, rules=settings.allow, sni=settings.sni)
        took = (clock.monotonic() - begin) * 1000
        _log.info("leaf %s, %s, for %s: port %d, %.1f ms", grant.name, grant.ipv4, test, settings.port, took)
        _tell(grant.name, settings)
        namespace = Namespace(grant, self._client, worker=self._worker)
        return Leaf(Place.of(grant), namespace, *key, since=since)

    def note(self, leaf: Leaf, item: pytest.Item) -> None:
        """Remember, at the end of a test, that it started what is new in a leaf which others follow in."""
        if leaf.scope is Scope.FUNCTION:
            return
        inode = os.fstat(leaf.place.net_fd).st_ino
        since, leaf.seen = leaf.since if leaf.seen is None else leaf.seen, processes.last_pid()
        started: list[int | threading.Thread] = [process.pid for process in processes.members(inode, since)]
        for one in (*started, *threads_in(inode)):
            leaf.starters.setdefault(one, item)

    def left(self, nextitem: pytest.Item | None) -> Iterator[Leaf]:
        """Yield the leaves that nothing needs any more when ``nextitem`` comes next."""
        yield from self._further[:]
        needed = nextitem.listchain() if nextitem is not None else []
        for (scope, node), leaf in list(self._alive.items()):
            if scope is Scope.FUNCTION or (node not in needed and not leaf.tenants):
                yield leaf
        if self._own is not None and nextitem is None:
            yield self._own

    def release(self, leaf: Leaf, following: tuple[str, ItemSettings] | None = None) -> Leftovers:
        """Give the leaf back, end the processes that are left in it, and put back what its tests left changed.

        The worker leaf is kept until the very end. Signals are as before only once no process of the leaf is left to
        send any.

        Args:
            leaf: the leaf.
            following: the test that needs the next one, and its settings; that is brought meanwhile.

        An interrupt on the way, by Ctrl-C say, leaves it alive: for the end of the run, or for the gateway.

        Raises:
            NetnsError: some could not be ended.
        """
        try:
            self._pools.depart()
            threads = [] if leaf is self._own else self._left_threads(leaf)
            ended = _end_left(leaf.namespace, leaf.since)
        except Exception:
            put_back(leaf.changes)
            self._give_back(leaf, following)
            raise
        changes = put_back(leaf.changes)
        self._give_back(leaf, following)
        return Leftovers(leaf.namespace.name, threads, ended, leaf.starters, changes)

    def _give_back(self, leaf: Leaf, following: tuple[str, ItemSettings] | None) -> None:
        if leaf is self._own:
            return
        if leaf in self._further:
            self._further.remove(leaf)
        else:
            self._alive.pop((leaf.scope, leaf.node), None)
        name = leaf.namespace.name
        try:
            if following is not None:
                test, settings = following
                port, rules, sni = settings.port, settings.allow, settings.sni
                self._client.order(test, service_port=port, rules=rules, sni=sni, instead_of=name)
        finally:
            leaf.namespace.close()
            _log.info("leaf %s is given back", leaf.namespace.name)

    def release_all(self) -> None:
        """Give back whatever is alive, and end what was left in the worker leaf, at the end of the run."""
        for leaf in [*self._further, *self._alive.values()]:
            with contextlib.suppress(NetnsError, OSError):
                self.release(leaf)
        if self._worker is not None:
            with contextlib.suppress(NetnsError, OSError):
                _end_left(self._worker, since=None)

    def renew(self) -> None:
        """Have the leaves that are alive served by another gateway, in place of the one that was lost."""
        for leaf in self._alive.values():
            namespace = leaf.namespace
            namespace.rewire(self._client.lease_again(namespace.descriptors(), OUTSIDE))
            leaf.place.name = namespace.name

    def _left_threads(self, leaf: Leaf) -> list[threading.Thread]:
        """Return the threads that were started in the leaf, and therefore live in it, and go on working."""
        inside = threads_in(os.fstat(leaf.place.net_fd).st_ino)
        left = [thread for thread in inside if not self._pools.is_resting(thread)]
        deadline = clock.monotonic() + _PATIENCE
        for thread in left:
            thread.join(max(0.0, deadline - clock.monotonic()))
        return sorted((thread for thread in left if thread.is_alive()), key=lambda thread: thread.name)


def _tell(leaf: str, settings: ItemSettings) -> None:
    for rule in settings.allow:
        _log.info("leaf %s may reach %s", leaf, rule)


def _end_left(namespace: Namespace, since: int | None) -> list[tuple[Process, str]]:
    """End the processes that were started in the leaf and are still there."""
    namespace.close_boxes()
    inode = os.fstat(namespace.fileno()).st_ino
    ended = processes.end_members(inode, since, spared=lambda: {_resource_tracker()}, unnamed=is_guest)
    silent = _fork_server()
    return [(process, how) for process, how in ended if process.pid != silent]


def _resource_tracker() -> int:
    """Return the id of multiprocessing's resource tracker, or 0.

    It belongs to no test, is never started anew without a warning and opens no connection, so it may stay.
    """
    tracker = getattr(sys.modules.get("multiprocessing.resource_tracker"), "_resource_tracker", None)
    return getattr(tracker, "_pid", None) or 0


def _fork_server() -> int:
    """Return the id of multiprocessing's fork server, or 0.

    It belongs to no test either, but has to end: its children would come up in a dead leaf.
    """
    server = getattr(sys.modules.get("multiprocessing.forkserver"), "_forkserver", None)
    return getattr(server, "_forkserver_pid", None) or 0


def threads_in(net_inode: int) -> list[threading.Thread]:
    """Return the threads, but for the calling one, that live in the network namespace with this inode number."""
    return [thread for thread in threading.enumerate() if _net_inode(thread) == net_inode]


def _net_inode(thread: threading.Thread) -> int | None:
    """Return which network namespace a thread is in; None for the caller's own, and for what Python did not start."""
    if thread is threading.current_thread() or isinstance(thread, threading._DummyThread):  # noqa: SLF001
        return None
    try:
        return os.stat(f"/proc/self/task/{thread.native_id}/ns/net").st_ino
    except OSError:  # gone meanwhile, or not quite started yet
        return None

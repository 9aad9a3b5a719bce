"""The pytest process's side of the conversation."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import subprocess
import sys

import pytest
from traffic import attempt
from worlds import World, at, inside, wait_until

from pytest_netns.errors import GatewayError
from pytest_netns.gateway import protocol


@inside
def test_outlives_an_answer_that_nobody_read(world: World) -> None:
    """After a Ctrl-C in the middle of a request, each later one still gets its own answer, and no leaf is lost."""
    client = world.connect()
    client.join("interrupted")
    protocol.send(client._connection, {"op": "lease", "number": -1})
    leaf = client.lease("test_next")
    assert leaf.name == "interrupted-t2"
    assert client.flows(leaf.name) == []
    with pytest.raises(GatewayError, match="interrupted-t1"):  # the leaf that nobody heard of was given back
        client.flows("interrupted-t1")
    client.close()


@inside
def test_ordered_leaf_is_the_next(world: World) -> None:
    """A leaf that was ordered ahead is what the next test gets, whatever else is asked meanwhile."""
    client = world.connect()
    client.join("orders")
    client.lease("test_first")
    client.order()
    client.order()
    assert client.flows("orders-t1") == []
    leaf = client.lease("test_second")
    assert leaf.name == "orders-t2"
    with at(leaf):
        assert attempt("203.0.113.5", 1).error == "EHOSTUNREACH"
    (flow,) = client.flows(leaf.name)
    assert flow.test == "test_second"
    client.order()
    wait_until(lambda: bool(select.select([client._connection], [], [], 0)[0]), 5)
    before = len(os.listdir("/proc/self/fd"))
    assert client.flows("orders-t1") == []  # brings the ordered leaf along
    client.close()
    assert len(os.listdir("/proc/self/fd")) == before - 1


def test_gateway_does_not_load_all_of_pyroute2() -> None:
    """The gateway's start imports what it encodes with; a release that no longer lets it costs a tenth of a second."""
    code = """
import sys
from pytest_netns.gateway.__main__ import _spare_pyroute2
_spare_pyroute2()
import pytest_netns.gateway.server
assert "pyroute2.netlink.rtnl.ifinfmsg" in sys.modules
assert "pyroute2.ndb" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@inside
def test_starts_a_gateway_however_much_is_open(own_world: World) -> None:
    """A process that has more than 1024 files open can start the gateway, too."""
    with contextlib.ExitStack() as stack:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, hard), hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        while stack.enter_context(open(os.devnull, "rb")).fileno() < 1024:
            pass
        client = own_world.connect()
        client.join("busy")
        client.close()

"""The pytest process's side of the conversation."""

from __future__ import annotations

import pytest
from worlds import World, inside

from pytest_netns.errors import GatewayError
from pytest_netns.gateway import protocol


@inside
def test_outlives_an_answer_that_nobody_read(world: World) -> None:
    """After a Ctrl-C in the middle of a request, each later one still gets its own answer, and no leaf is lost."""
    client = world.connect()
    client.join("interrupted")
    protocol.send(client._connection, {"op": "lease", "test": "interrupted", "number": -1})
    leaf = client.lease("test_next")
    assert leaf.name == "interrupted-t2"
    assert client.flows(leaf.name) == []
    with pytest.raises(GatewayError, match="interrupted-t1"):  # the leaf that nobody heard of was given back
        client.flows("interrupted-t1")
    client.close()

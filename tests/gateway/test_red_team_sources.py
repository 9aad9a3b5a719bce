"""What a test begins from addresses that lead back to its leaf, but are not its own, in order to keep it."""

from __future__ import annotations

import contextlib
import socket

import pytest
from attacks import HERE, HERE6, Siege, alias_of, take_address
from packets import MARKER, datagram, segment, send
from traffic import DATAGRAM, STREAM, attempt, opened, port_of
from worlds import World, at, inside

KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
ENDINGS = pytest.mark.parametrize("ending", ["label", "release"])


def _rule(kind: int, host: str = HERE) -> str:
    return (f"[{host}]" if ":" in host else host) + ":{port}" + ("" if kind == STREAM else "/udp")


def _bound_dial(source: str, siege: Siege, port: int = 0) -> socket.socket:
    one = opened(siege.host, siege.kind)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.bind((source, port, 0, 2) if source.startswith("fe80") else (source, port))
    one.settimeout(0.3)
    one.connect(siege.allowed)
    return one


@inside
@KINDS
@ENDINGS
def test_by_another_source(world: World, kind: int, ending: str) -> None:
    """What was begun from an address that leads back to the leaf, but is not its own, does not outlive the test."""
    siege = Siege(world, _rule(kind))
    alias = alias_of(siege.visit, siege.leaf)
    with at(siege.leaf):
        take_address(alias)
        send(*(datagram((alias, HERE), siege.port), segment((alias, HERE), siege.port)))
        one: socket.socket | None = None
        with contextlib.suppress(OSError):
            one = _bound_dial(alias, siege)
    siege.end(ending)
    if one is not None:
        siege.is_over(one)


@inside
def test_alias_of_the_test_before(world: World) -> None:
    """The next test, which has the alias now, cannot go on with what the test before has begun from there."""
    siege = Siege(world, _rule(DATAGRAM))
    alias = alias_of(siege.visit, siege.leaf)
    port = 0
    with at(siege.leaf):
        take_address(alias)
        with contextlib.suppress(OSError), _bound_dial(alias, siege) as one:
            one.send(b"begin")
            port = port_of(one)
    after = siege.client.lease("test_next")
    siege.end("release")
    with at(after):
        take_address(alias)
        assert attempt(*siege.allowed, DATAGRAM, 0.5).error is not None
        for source in (alias, after.ipv4):
            with contextlib.suppress(OSError), _bound_dial(source, siege, port) as one:
                siege.is_over(one)
    assert siege.seen == []


@inside
@KINDS
def test_link_local_source(world: World, kind: int) -> None:
    """A link-local address, which every leaf may have, is no source for what is allowed."""
    siege = Siege(world, _rule(kind, HERE6))
    others = [siege.leaf, siege.neighbour.leaf]
    with siege.attack():
        for leaf in others:
            with at(leaf):
                take_address("fe80::bad", 64)
                send(*(datagram(("fe80::bad", HERE6), siege.port), segment(("fe80::bad", HERE6), siege.port)))
        with contextlib.suppress(OSError), _bound_dial("fe80::bad", siege) as one:
            one.settimeout(0.2)
            one.send(MARKER)
            assert not one.recv(100)
    assert not [packet for packet in siege.seen if MARKER in packet]
    siege.still_served()

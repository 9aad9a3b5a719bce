"""What a client is told at connect is what its server said, whether it dialled an address or a name."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time

import pytest
from outside import (
    AT_ONCE,
    NEIGHBOURS,
    NOBODY,
    add_address,
    address_of,
    find_neighbours_fast,
    new_name,
    rule_for,
)
from traffic import DATAGRAM, STREAM, attempt, echo, listen, opened, port_of, served
from worlds import HOSTS, UNREACHABLE, Visit, World, at, inside, nothing_arrived
from zone import Zone

from pytest_netns.gateway.hub import write_sysctls
from pytest_netns.kernel import privilege

TO_HOSTS = pytest.mark.parametrize("host", HOSTS)
BY_BOTH = pytest.mark.parametrize("by_name", [False, True], ids=["address", "name"])
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])


def called(world: World, host: str, *, by_name: bool) -> str:
    """Return what a test calls a host by: its address, or a name that the internet's name server knows."""
    if by_name:
        Zone(world, {new_name(): [host]})
    return new_name() if by_name else host


@inside
@TO_HOSTS
@BY_BOTH
@KINDS
def test_refused_until_it_is_up(world: World, host: str, by_name: bool, kind: int) -> None:
    """A closed port refuses a hundred times, at once, and then there is a server."""
    name = called(world, host, by_name=by_name)
    with at(world.internet):
        probe = listen(host, kind=kind)
    port = port_of(probe)
    probe.close()
    visit = Visit(world, rules=[rule_for(name, port, kind)])
    address = address_of(visit.leaf, name)
    tries = 100 if kind == STREAM else 1  # the server's host limits how often it says so of datagrams
    with at(visit.leaf):
        told = [attempt(address, port, kind, 2) for _ in range(tries)]
    assert [one.error for one in told] == ["ECONNREFUSED"] * tries
    assert sorted(one.seconds for one in told)[tries // 2] < AT_ONCE / 5
    with at(world.internet):
        served(host, port, kind)
    with at(visit.leaf):
        assert attempt(address, port, kind).error is None
    flows = visit.flows(visit.leaf, tries + 1)
    assert {flow.verdict for flow in flows} == {"allowed"}
    if kind == STREAM:
        assert {flow.reason for flow in flows[:-1]} == {"Connection refused"}
        assert flows[-1].reason is None


@inside
@pytest.mark.parametrize("nowhere", NOBODY.values())
@BY_BOTH
def test_nobody_has_the_address(world: World, nowhere: str, by_name: bool) -> None:
    """Where nobody answers for the address on its own network, the client is told that it is unreachable."""
    name = called(world, nowhere, by_name=by_name)
    find_neighbours_fast(world)
    visit = Visit(world, rules=[name])
    address = address_of(visit.leaf, name)
    with at(world.outer):
        as_the_host_sees_it = attempt(nowhere, 443)
    with at(visit.leaf):
        told = attempt(address, 443)
    assert as_the_host_sees_it.error == told.error == "EHOSTUNREACH"
    (flow,) = visit.flows(visit.leaf)
    assert (flow.verdict, flow.address, flow.reason) == ("allowed", nowhere, "No route to host")


@inside
@pytest.mark.parametrize("nowhere", UNREACHABLE)
@BY_BOTH
def test_host_has_no_way_there(world: World, nowhere: str, by_name: bool) -> None:
    """Where the host has no route, the client is told that there is none, at once."""
    name = called(world, nowhere, by_name=by_name)
    visit = Visit(world, rules=[name])
    address = address_of(visit.leaf, name)
    with at(visit.leaf):
        told = attempt(address, 443)
    assert told.error in {"EHOSTUNREACH", "ENETUNREACH"}
    assert told.seconds < AT_ONCE


class Deaf:
    """A server that answers no connection any more: its queue of those to be accepted is full."""

    def __init__(self, world: World, host: str) -> None:
        """Listen on the internet, and fill the queue from the outer network."""
        with at(world.internet):
            self.listener = opened(host)
            self.listener.bind((host, 0))
            self.listener.listen(1)
        self.port = port_of(self.listener)
        self._world, self._host, self._fillers = world, host, [socket.socket()]
        with at(world.outer), contextlib.suppress(TimeoutError):
            while True:
                self._fillers.append(opened(host))
                self._fillers[-1].settimeout(0.1)
                self._fillers[-1].connect((host, self.port))
        self._fillers.pop().close()

    def make_room(self) -> None:
        """Accept what fills the queue, so that it may fill again."""
        for _ in self._fillers[1:]:
            self.listener.accept()[0].close()

    def hear(self) -> None:
        """Answer at last."""
        echo(self.listener)


@inside
@pytest.mark.parametrize(("host", "by_name"), [(HOSTS[0], True), (HOSTS[1], False)], ids=["name", "address"])
def test_silence(world: World, host: str, by_name: bool) -> None:
    """A server that does not answer is waited for: no success is reported, nor an error, until it does answer."""
    name = called(world, host, by_name=by_name)
    deaf = Deaf(world, host)
    visit = Visit(world, rules=[rule_for(name, deaf.port)])
    address = address_of(visit.leaf, name)
    with at(visit.leaf):
        told = attempt(address, deaf.port, timeout=0.3)
        patient = opened(address)
        patient.setblocking(False)
        assert patient.connect_ex((address, deaf.port)) == errno.EINPROGRESS
    assert told.error == "TIMEOUT"
    assert not select.select([], [patient], [], 0.3)[1]
    deaf.hear()
    assert select.select([], [patient], [], 5)[1]
    patient.settimeout(5)
    patient.sendall(b"x")
    assert patient.recv(1) == b"x"


@inside
def test_host_gives_up(world: World) -> None:
    """When the host has waited long enough for a server, its client, who is more patient, is told nothing yet."""
    deaf = Deaf(world, HOSTS[0])
    visit = Visit(world, rules=[HOSTS[0]])
    set_patience(world, 1)
    try:
        with at(visit.leaf):
            told = attempt(HOSTS[0], deaf.port, timeout=3.6)
    finally:
        set_patience(world, 6)
    assert told.error == "TIMEOUT"
    flow = visit.flows(visit.leaf)[0]  # when the client asks once more, that is a new one
    assert (flow.verdict, flow.reason) == ("allowed", "Connection timed out")
    assert 2.5 < (flow.duration or 0) < 3.6


def set_patience(world: World, tries: int) -> None:
    """Have the host ask a server so many times more before it gives up; after the first, that is in three seconds."""
    with at(world.outer), privilege.raised():
        write_sysctls({"net/ipv4/tcp_syn_retries": str(tries)})


@inside
@pytest.mark.parametrize(("host", "ending"), [(HOSTS[0], "release"), (HOSTS[1], "label")])
def test_end_of_a_test_that_waits(world: World, host: str, ending: str) -> None:
    """A connection that is still being made when its test ends is given up: its server hears nothing of it later."""
    deaf = Deaf(world, host)
    visit = Visit(world, rules=[rule_for(host, deaf.port)])
    with at(visit.leaf):
        client = opened(host)
        client.setblocking(False)
        client.connect_ex((host, deaf.port))
    time.sleep(0.1)
    if ending == "release":
        visit.client.release(visit.leaf.name)
    else:
        visit.client.label(visit.leaf.name, "test_next")
    visit.client.blocked()  # an answer: the request before it has been carried out
    deaf.make_room()
    time.sleep(1.2)  # the first time that its host would ask again is after a second
    assert nothing_arrived(deaf.listener)
    if ending == "label":
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
        assert "ended" in (visit.flows(visit.leaf)[0].reason or "")


@inside
@pytest.mark.parametrize("version", [4, 6])
def test_first_address_fails(world: World, version: int) -> None:
    """Where one of a name's addresses fails, the next is tried; where all do, the client is told of it."""
    find_neighbours_fast(world)
    good, bad, refusing = HOSTS[version == 6], NOBODY[version], NEIGHBOURS[HOSTS[version == 6]]
    add_address(world.internet, refusing)
    found = [[bad, good], [good, bad], [refusing, good], [good, refusing], [refusing]]
    names = {new_name(number): hosts for number, hosts in enumerate(found)}
    Zone(world, names)
    with at(world.internet):
        port = served(good)
    visit = Visit(world, rules=list(names))
    told = []
    for name in names:
        address = address_of(visit.leaf, name)
        with at(visit.leaf):
            told.append(attempt(address, port).error)
    assert told == [None] * 4 + ["ECONNREFUSED"]
    assert {flow.address for flow in visit.flows(visit.leaf, 5)[:4]} == {good}

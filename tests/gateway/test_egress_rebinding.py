"""A name's owner says what it is, and may say otherwise a moment later: no name opens what is private to the host."""

from __future__ import annotations

import errno
import socket
import time

import pytest
from outside import METADATA, add_link_local, address_of, own, rule_for, sockets_in
from traffic import DATAGRAM, STREAM, attempt, family_of, listen, refusals, served
from worlds import HOSTS, OUTER, OUTER6, Visit, Witness, World, at, inside, nothing_arrived
from zone import Zone

# The host's own and its link's, plainly and inside IPv6 addresses; groups, and the leaves' own range.
PRIVATE4 = ["127.0.0.1", "127.8.9.1", "0.0.0.0", METADATA, "169.254.1.1", "224.0.0.251", "255.255.255.255", str(OUTER)]
PRIVATE6 = [
    *("::1", "::", "fe80::1", "ff02::1", "fd6e:6574:6e73:1::10"),
    str(OUTER6),
    *("::ffff:7f00:1", "::ffff:a9fe:a9fe", "::ffff:0:0", "::7f00:1"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe", "2002:7f00:1::1", "2002:a9fe:a9fe::1"),
]
PRIVATE = [*PRIVATE4, "198.18.0.16", "198.19.255.254", *PRIVATE6]
KINDS = pytest.mark.parametrize("kind", [STREAM, DATAGRAM], ids=["tcp", "udp"])
PORT = 20_300


def traps(world: World) -> list[socket.socket]:
    """Listen wherever such a name might lead: on the host, and where the metadata service would be."""
    add_link_local(world)
    found = []
    for place in (world.outer, world.internet):
        with at(place):
            for kind in (STREAM, DATAGRAM):
                found.append(listen("0.0.0.0", PORT, kind))
                six = socket.socket(socket.AF_INET6, kind)
                six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                six.bind(("::", PORT))
                if kind == STREAM:
                    six.listen()
                found.append(six)
    return found


def names_of(addresses: list[str]) -> dict[str, list[str]]:
    """Return a name for each address."""
    return {own(f"n{number}.example.com"): [address] for number, address in enumerate(addresses)}


@inside
def test_traps_can_be_reached(world: World) -> None:
    """What the other tests forbid would work for the host itself."""
    listeners = traps(world)
    with at(world.outer):
        for host in ("127.0.0.1", "::1", METADATA, "0.0.0.0", "::ffff:127.0.0.1", str(OUTER)):
            assert attempt(host, PORT).error is None
    assert not nothing_arrived(*listeners)


@inside
def test_private_from_the_start(world: World) -> None:
    """A name that is private to the host does not exist for a test, and the record says why."""
    listeners, witness = traps(world), Witness(world)
    names = names_of(PRIVATE)
    Zone(world, names)
    visit = Visit(world, rules=list(names))
    for name in names:
        with at(visit.leaf), pytest.raises(socket.gaierror):
            socket.getaddrinfo(name, PORT)
    flows = visit.flows(visit.leaf, len(PRIVATE))
    for flow, address in zip(flows, PRIVATE, strict=True):
        assert (flow.verdict, flow.allow) == ("blocked", None)
        assert "which takes a rule of its own" in (flow.reason or "")
        assert address in (flow.reason or "") or ":" in address
    assert all(packet[9] == 17 for packet in witness.seen() if packet[0] >> 4 == 4)
    assert nothing_arrived(*listeners)


@inside
def test_private_a_moment_later(world: World) -> None:
    """A name that was harmless when it was asked for, and is not when it is dialled, is refused then."""
    listeners = traps(world)
    names = names_of(PRIVATE)
    zone = Zone(
        world, {name: [HOSTS[":" in address] if ":" in address else HOSTS[0]] for name, (address,) in names.items()}
    )
    visit = Visit(world, rules=[f"{name}:{PORT}{suffix}" for name in names for suffix in ("", "/udp")])
    dialled = {name: address_of(visit.leaf, name) for name in names}
    time.sleep(1.02)  # for as long a look-up serves
    for name, (address,) in names.items():
        zone.names[name] = [address]
    for kind in (STREAM, DATAGRAM):
        for name, (address,) in names.items():
            with at(visit.leaf):
                told = attempt(dialled[name], PORT, kind)
            assert told.error in refusals(dialled[name], kind), address
    assert nothing_arrived(*listeners)
    flows = visit.flows(visit.leaf, 2 * len(PRIVATE))
    assert len(flows) == 2 * len(PRIVATE)
    assert {flow.verdict for flow in flows} == {"blocked"}
    assert all("which takes a rule of its own" in (flow.reason or "") for flow in flows)


@inside
def test_private_among_others(world: World) -> None:
    """Of several addresses of a name only those are dialled that any name may be."""
    listeners = traps(world)
    mixed = {own(f"m{number}.example.com"): [address, HOSTS[0]] for number, address in enumerate(PRIVATE4)}
    mixed |= {own(f"m{number}.example.org"): [address, HOSTS[1]] for number, address in enumerate(PRIVATE6)}
    Zone(world, mixed)
    with at(world.internet):
        for host in HOSTS:
            served(host, PORT + 1)
    visit = Visit(world, rules=list(mixed))
    for name in mixed:
        address = address_of(visit.leaf, name)
        with at(visit.leaf):
            assert attempt(address, PORT + 1).error is None
    assert {flow.address for flow in visit.flows(visit.leaf, len(mixed))} == set(HOSTS)
    assert nothing_arrived(*listeners)


@inside
@KINDS
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", METADATA, str(OUTER), str(OUTER6)])
def test_private_with_a_rule(world: World, address: str, kind: int) -> None:
    """A name may lead to what is private to the host where a rule lists that, for this port and protocol."""
    add_link_local(world)
    name = own("private.example.com")
    Zone(world, {name: [address]})
    with at(world.internet if address == METADATA else world.outer):
        port = served(address, kind=kind)
        other = served(address, kind=kind)
    listed = rule_for("localhost" if address in ("127.0.0.1", "::1") else address, port, kind)
    visit = Visit(world, rules=[rule_for(name, "1-65535", kind), listed])
    dialled = address_of(visit.leaf, name)
    with at(visit.leaf):
        assert attempt(dialled, port, kind).error is None
        assert attempt(dialled, other, kind).error in refusals(dialled, kind)
    visit.client.label(visit.leaf.name, "test_next", rules=[rule_for(name, "1-65535", kind)])
    with at(visit.leaf):
        assert attempt(dialled, port, kind).error in refusals(dialled, kind)


@inside
def test_test_ends_while_names_are_looked_up(world: World) -> None:
    """Connections and datagrams that wait for their name are given up when their test ends."""
    names = names_of(list(HOSTS))
    zone = Zone(world, names)
    with at(world.internet):
        listeners = [listen(host, PORT + 2, kind) for host in HOSTS for kind in (STREAM, DATAGRAM)]
    visit = Visit(world, rules=[f"{name}{suffix}" for name in names for suffix in ("", "/udp")])
    dialled = [address_of(visit.leaf, name) for name in names]
    time.sleep(1.02)  # for as long a look-up serves
    zone.silent = True
    clients, talkers = [], []
    for address in dialled:
        clients += sockets_in(visit.leaf, family_of(address), 1)
        clients[-1].setblocking(False)
        assert clients[-1].connect_ex((address, PORT + 2)) == errno.EINPROGRESS
        talkers += sockets_in(visit.leaf, family_of(address), 1, DATAGRAM)
        talkers[-1].connect((address, PORT + 2))
        talkers[-1].send(b"late")
    time.sleep(0.1)
    visit.client.label(visit.leaf.name, "test_next")
    zone.silent = False
    time.sleep(1.1)  # the host asks again after a second
    assert nothing_arrived(*listeners)
    for client, talker in zip(clients, talkers, strict=True):
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EHOSTUNREACH
        with pytest.raises(OSError, match=r"No route to host|Permission denied"):
            talker.recv(100)

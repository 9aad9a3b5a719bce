"""What a test that may reach one name tries in order to reach, or to tell something to, any other."""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import socket
import time

from attacks import HERE, HERE6, OUTSIDE, THERE, Siege, poke
from packets import datagram, send
from questions import NamedSiege, taken_for
from traffic import DATAGRAM, STREAM, attempt, dial, listen
from worlds import World, at, inside
from zone import Zone

from pytest_netns import addressing

# What a name's owner might have it lead to: this machine, its link, a leaf, and IPv4 addresses in IPv6 dress.
TRAPS = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "169.254.169.254",
    "198.18.0.1",
    "198.19.255.254",
    "224.0.0.251",
    "255.255.255.255",
    "::1",
    "::",
    "::7f00:1",
    "::ffff:7f00:1",
    "64:ff9b::7f00:1",
    "64:ff9b:1::7f00:1",
    "2002:7f00:1::1",
    "2001:0:1::80ff:fffe",
    "fe80::1",
    "ff02::1",
    "fd6e:6574:6e73:4::1",
]


@inside
def test_realaddresses_in(world: World) -> None:
    """The addresses that the allowed name leads to are not reached by themselves, in either family."""
    siege = NamedSiege(world)
    with at(world.internet), contextlib.suppress(OSError):
        listen(HERE6, siege.port)
    with siege.attack():
        for host in (HERE, HERE6, "::ffff:203.0.113.5", "64:ff9b::cb00:7105", "2002:cb00:7105::1"):
            for kind in (STREAM, DATAGRAM):
                assert attempt(host, siege.port, kind, 0.5).error is not None
    assert siege.seen == []
    siege.still_served()


@inside
def test_other_ports_of_thestand_in(world: World) -> None:
    """The address that stands for the name leads to the one port, over TCP; and its neighbours lead nowhere."""
    siege = NamedSiege(world)
    with siege.attack():
        for family in (socket.AF_INET, socket.AF_INET6):
            stand_in = ipaddress.ip_address(taken_for(family=family))
            for port in (siege.wanted, 53, 443):
                assert attempt(str(stand_in), port).error == "EHOSTUNREACH"
                poke(str(stand_in), port, DATAGRAM)
            poke(str(stand_in), siege.port, DATAGRAM)
            for step in (-1, 1, 2, 256, 65_536):
                poke(str(stand_in + step), siege.port)
    siege.still_served()


@inside
def test_stand_ins_of_others(world: World) -> None:
    """The addresses that stand for names which only a neighbour may reach are guessed in vain."""
    siege = NamedSiege(world)
    siege.neighbour.client.allow(
        siege.neighbour.leaf.name, [f"secret.example.com:{siege.port}", "secret.example.com/udp"]
    )
    with at(siege.neighbour.leaf):
        stand_in = ipaddress.ip_address(taken_for("secret.example.com"))
    guesses = [str(stand_in + step) for step in range(-3, 4)] + [
        f"2d6e:6574:6e73::{number:x}" for number in range(1, 20)
    ]
    with siege.attack():
        for guess in guesses:
            for port in (siege.port, siege.wanted):
                poke(guess, port, DATAGRAM)
                if guess != taken_for() and port == siege.port and "." in guess:
                    assert attempt(guess, port).error == "EHOSTUNREACH"
        send(*(datagram((source, str(stand_in)), 9) for source in (siege.leaf.ipv4, siege.neighbour.leaf.ipv4)))
    siege.still_served()


FORMS = ["::ffff:{}", "64:ff9b::{}", "64:ff9b:1::{}", "::{}", "2002:{}::1", "2001:0:1::{}", "::ffff:0:{}"]


@inside
def test_stand_in_in_disguise(world: World) -> None:
    """Neither the stand-in nor a real address is reached in IPv6 dress: mapped, translated, 6to4 or Teredo."""
    siege = NamedSiege(world)
    with siege.attack():
        addresses = (taken_for(), HERE, THERE, "127.0.0.1", str(addressing.HOST_LOOPBACK))
        for form, address in itertools.product(FORMS, addresses):
            number = int(ipaddress.IPv4Address(address)) ^ (0xFFFFFFFF if "2001" in form else 0)
            host = form.format(f"{number >> 16:x}:{number & 0xFFFF:x}")
            send(datagram((siege.leaf.ipv6, host), siege.port))
            if not host.startswith("::ffff:") or ":0:" in host[6:]:  # else the kernel takes it for IPv4 here already
                poke(host, siege.port)
    siege.still_served()


@inside
def test_rebinding(world: World) -> None:
    """A name that leads outside when it is looked up, and to this machine when it is dialled, leads nowhere."""
    zone = Zone(world, {f"n{number}.example.com": [HERE, HERE6] for number in range(len(TRAPS))})
    siege = Siege(world, "*.example.com:{port}", zone)
    with siege.attack():
        names = {f"n{number}.example.com": trap for number, trap in enumerate(TRAPS)}
        stand_ins = {name: taken_for(name, socket.AF_INET6 if ":" in names[name] else socket.AF_INET) for name in names}
        zone.names.update({name: [trap] for name, trap in names.items()})
        time.sleep(1.02)  # the gateway remembers for a second
        for name, stand_in in stand_ins.items():
            assert attempt(stand_in, siege.port).error == "EHOSTUNREACH", names[name]
        assert attempt(stand_ins["n0.example.com"], siege.port).error == "EHOSTUNREACH"
    reasons = [flow.reason for flow in siege.client.flows(siege.leaf.name) if flow.port == siege.port]
    assert len(reasons) > len(TRAPS)
    assert None not in reasons


@inside
def test_leaves_in_disguise(world: World) -> None:
    """A name that leads to a leaf's address, or a group's, as an IPv6 address with that inside leads nowhere."""
    zone = Zone(world, {"leaf.example.com": ["::ffff:c613:fffe"], "group.example.com": ["::ffff:e000:fb"]})
    zone.names["other.example.com"] = ["64:ff9b::c612:1"]
    siege = Siege(world, "*.example.com:{port}", zone)
    siege.client.allow(siege.leaf.name, ["*.example.com/udp"])
    with siege.attack():
        attempt(HERE, siege.wanted)
        for name in zone.names:
            with contextlib.suppress(OSError):
                stand_in = taken_for(name, socket.AF_INET6)
                poke(stand_in, siege.port)
                poke(stand_in, siege.port, DATAGRAM)


@inside
def test_names_for_this_machine(world: World) -> None:
    """An allowed name that leads to this machine from the start is not told, and mixed answers lose that part."""
    zone = Zone(world, {f"t{number}.example.com": [trap] for number, trap in enumerate(TRAPS)})
    zone.names["mixed.example.com"] = ["127.0.0.1", HERE, "0.0.0.0", "::1"]
    siege = Siege(world, "*.example.com:{port}", zone)
    with siege.attack():
        for name in list(zone.names):
            with contextlib.suppress(OSError):
                socket.create_connection((name, siege.port), 1).close()
                assert name == "mixed.example.com"
        with dial(taken_for("mixed.example.com"), siege.port) as one:
            one.sendall(b"x")
            assert one.recv(10) == b"x"


@inside
def test_names_for_the_host_itself(world: World) -> None:
    """A name that leads to this machine by an address that is not loopback leads to none of its services."""
    siege = NamedSiege(world, "*.example.com:{port}", own_example_com=list(OUTSIDE))
    siege.client.allow(siege.leaf.name, ["*.example.com/udp"])
    with siege.attack():
        attempt(HERE, siege.wanted)
        for family in (socket.AF_INET, socket.AF_INET6):
            with contextlib.suppress(OSError):
                for kind in (STREAM, DATAGRAM):
                    poke(taken_for("own.example.com", family), siege.port, kind)

"""What is on record of a leaf's attempts: in answers, in a file, and as the rules that would have been needed."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import dns.message
import pytest
from outside import address_of, own, sockets_in
from traffic import DATAGRAM, STREAM, attempt, dial, listen, opened, port_of, served
from worlds import HOSTS, OUTER, OUTER6, Visit, World, at, inside, peer_pid, wait_until
from zone import Zone

from pytest_netns.errors import NetnsError

KEYS = [
    "kind",
    "time",
    "leaf",
    "test",
    "protocol",
    "name",
    "address",
    "port",
    "verdict",
    "rule",
    "reason",
    "sent",
    "received",
]
KEYS += ["duration", "sandbox"]


def named(number: int = 0) -> str:
    """Return a name for a worker of this test alone: summaries are by worker."""
    return f"w{number}p{os.getpid()}"


def lines(path: Path) -> list[dict[str, Any]]:
    """Return what a log file says of flows."""
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [record for record in map(json.loads, text.splitlines()) if record["kind"] == "flow"]


@inside
def test_recording(world: World) -> None:
    """While recording everything goes through, and the rules that it would have needed let just that through."""
    names = own("api.example.com"), own("other.example.com")
    Zone(world, {names[0]: [HOSTS[0]], names[1]: [HOSTS[1]]})
    with at(world.internet):
        ports = [served(host) for host in HOSTS]
        datagrams = served(HOSTS[0], kind=DATAGRAM)
    with at(world.outer):
        loopback = served("127.0.0.1")
    recording = Visit(world, named(), record=True, rules=[f"{HOSTS[0]}:1"])

    def everything(visit: Visit) -> list[str | None]:
        told = []
        for name, port in zip(names, ports, strict=True):
            with at(visit.leaf):
                told.append(attempt(address_of(visit.leaf, name), port).error)
        endpoints = [*zip(HOSTS, ports, [STREAM] * 2, strict=True), (HOSTS[0], datagrams, DATAGRAM)]
        with at(visit.leaf):
            told += [attempt(*endpoint).error for endpoint in endpoints]
            told += [attempt(host, loopback).error for host in ("127.0.0.1", "::1")]
            told.append(attempt("127.0.0.1", 4).error)
        return told

    told = everything(recording)
    assert told == [None] * 6 + ["ECONNREFUSED"] * 2
    needed = recording.client.needed(own=True)
    rules = [
        *(f"{name}:{port}" for name, port in zip(names, ports, strict=True)),
        *(f"{HOSTS[0]}:{ports[0]}", f"[{HOSTS[1]}]:{ports[1]}", f"{HOSTS[0]}:{datagrams}/udp", f"localhost:{loopback}"),
    ]
    assert sorted(needed) == sorted(("test_it", rule) for rule in rules)
    assert recording.client.blocked(own=True) == []
    assert {flow.verdict for flow in recording.client.flows(recording.leaf.name)} == {"allowed"}
    assert everything(Visit(world, named(1), rules=[rule for _, rule in needed])) == told


@inside
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", str(OUTER), str(OUTER6)])
def test_recording_names_of_the_host(world: World, address: str) -> None:
    """Of a name that leads to the host itself both rules are told that it takes: the name's and the address's."""
    name = own("host.example.com")
    Zone(world, {name: [address]})
    with at(world.outer):
        port = served(address)
    recording = Visit(world, named(), record=True)

    def told(visit: Visit) -> str | None:
        address = address_of(visit.leaf, name)
        with at(visit.leaf):
            return attempt(address, port).error

    assert told(recording) is None
    rules = [rule for _, rule in recording.client.needed(own=True)]
    assert len(rules) == 2
    assert told(Visit(world, named(1), rules=rules)) is None


@inside
def test_recording_is_by_test(world: World) -> None:
    """Each rule is told once for each test that needed it, none for what a rule allowed, and all over all workers."""
    with at(world.internet):
        first, second = served(HOSTS[0]), served(HOSTS[0])
    visit = Visit(world, named(), record=True)
    other = Visit(world, named(1), record=True, rules=[f"{HOSTS[0]}:{first}"])
    for test in ("test_one", "test_two"):
        visit.client.label(visit.leaf.name, test)
        with at(visit.leaf):
            assert [attempt(HOSTS[0], first).error for _ in range(3)] == [None] * 3
    with at(other.leaf):
        assert [attempt(HOSTS[0], port).error for port in (first, second)] == [None] * 2
    own_needs = [("test_one", f"{HOSTS[0]}:{first}"), ("test_two", f"{HOSTS[0]}:{first}")]
    assert visit.client.needed(own=True) == own_needs
    assert other.client.needed(own=True) == [("test_it", f"{HOSTS[0]}:{second}")]
    assert set(visit.client.needed()) >= {*own_needs, ("test_it", f"{HOSTS[0]}:{second}")}


@inside
def test_recording_cuts_nothing(world: World) -> None:
    """A connection goes on when the next test has fewer rules, since that would get through as well."""
    with at(world.internet):
        listener = listen(HOSTS[0])
    visit = Visit(world, record=True, rules=[HOSTS[0]])
    with at(visit.leaf):
        client = dial(HOSTS[0], port_of(listener))
    server = listener.accept()[0]
    visit.client.label(visit.leaf.name, "test_next", rules=["203.0.113.99"])
    server.sendall(b"still here")
    assert client.recv(100) == b"still here"


@inside
def test_flows(world: World) -> None:
    """A flow tells when, where to, by which rule, how much and for how long; as long as it lasts, how much so far."""
    name = own("api.example.com")
    Zone(world, {name: [HOSTS[0]]})
    with at(world.internet):
        port, datagrams = served(HOSTS[0]), served(HOSTS[1], kind=DATAGRAM)
    visit = Visit(world, rules=[own("*.example.com"), f"{HOSTS[1]}/udp"])
    begin = time.time()
    with at(visit.leaf):
        client, talker = dial(address_of(visit.leaf, name), port), dial(HOSTS[1], datagrams, DATAGRAM)
        for one, data in ((client, b"12345"), (talker, b"123")):
            one.sendall(data)
            assert one.recv(100) == data
        attempt(HOSTS[0], 1)
    going, talk, blocked = visit.flows(visit.leaf, 3)
    assert abs(going.time - begin) < 1
    assert (going.leaf, going.test) == (visit.leaf.name, "test_it")
    assert (going.protocol, going.name, going.address, going.port) == ("tcp", name, HOSTS[0], port)
    assert (going.verdict, going.rule, going.reason) == ("allowed", own("*.example.com"), None)
    assert (going.sent, going.received, going.duration) == (5, 5, None)
    assert (talk.protocol, talk.name, talk.address, talk.port) == ("udp", None, HOSTS[1], datagrams)
    assert (talk.sent, talk.received, talk.duration, talk.rule) == (3, 3, None, f"{HOSTS[1]}/udp")
    assert (blocked.verdict, blocked.rule, blocked.reason, blocked.address) == ("blocked", None, None, HOSTS[0])
    assert blocked.duration is not None
    time.sleep(0.1)
    client.close()
    wait_until(lambda: visit.flows(visit.leaf)[0].duration is not None, 2)
    ended = visit.flows(visit.leaf)[0]
    assert (ended.sent, ended.received, ended.reason) == (5, 5, None)
    assert 0.1 <= (ended.duration or 0) < 2


@inside
def test_blocked_by_worker(world: World) -> None:
    """A summary is of one worker's leaves or of all workers', most frequent first, with the rule that would do."""
    visits = [Visit(world, named(number)) for number in (0, 1)]
    for visit, port, tries in zip(visits, (20_401, 20_402), (2, 3), strict=True):
        with at(visit.leaf):
            for _ in range(tries):
                attempt(HOSTS[0], port)
            attempt(HOSTS[1], 20_403)
    for visit, port, tries in zip(visits, (20_401, 20_402), (2, 3), strict=True):
        found = [(one.endpoint, one.count, one.first_test, one.allow) for one in visit.client.blocked(own=True)]
        assert found == [
            (f"tcp {HOSTS[0]}:{port}", tries, "test_it", f"{HOSTS[0]}:{port}"),
            (f"tcp [{HOSTS[1]}]:20403", 1, "test_it", f"[{HOSTS[1]}]:20403"),
        ]
        every = {one.endpoint: one.count for one in visit.client.blocked()}
        assert [every[f"tcp {HOSTS[0]}:{port}"] for port in (20_401, 20_402)] == [2, 3]
        assert every[f"tcp [{HOSTS[1]}]:20403"] == 2


@inside
def test_thousands_of_flows(world: World) -> None:
    """However many there are, an answer has them all, in their order."""
    visit = Visit(world, named())
    clients = sockets_in(visit.leaf, socket.AF_INET, 1, DATAGRAM)
    for number in range(3000):
        clients[0].sendto(b"x", (HOSTS[0], 1000 + number))
    flows = visit.flows(visit.leaf, 3000)
    assert [flow.port for flow in flows] == list(range(1000, 4000))
    assert sum(one.count for one in visit.client.blocked(own=True)) == 3000
    assert len(visit.client.blocked(own=True)) == 3000


@inside
def test_log(world: World, tmp_path: Path) -> None:
    """Each flow becomes one line of JSON as it ends, by itself or with its leaf, with the same keys always."""
    path = tmp_path / "flows.jsonl"
    path.write_text("", encoding="utf-8")
    with at(world.internet):
        listener = listen(HOSTS[0])
        talker = served(HOSTS[0], kind=DATAGRAM)
    visit = Visit(world, rules=[HOSTS[0], f"{HOSTS[0]}/udp"])
    visit.client.log_to(str(path))
    with at(visit.leaf):
        attempt(HOSTS[1], 1)
        clients = [dial(HOSTS[0], port_of(listener)) for _ in range(2)]
        attempt(HOSTS[0], 1)
        assert attempt(HOSTS[0], talker, DATAGRAM).error is None
    for _ in clients:
        listener.accept()[0].sendall(b"12")
    wait_until(lambda: len(lines(path)) == 2, 2)
    clients[0].recv(2)
    clients[0].close()
    wait_until(lambda: len(lines(path)) == 3, 2)
    visit.client.release(visit.leaf.name)
    wait_until(lambda: len(lines(path)) == 5, 2)
    time.sleep(0.1)
    found = lines(path)
    assert [list(line) for line in found] == [KEYS] * 5
    assert [line["verdict"] for line in found] == ["blocked"] + ["allowed"] * 4
    assert found[1]["reason"] == "Connection refused"
    assert (found[2]["received"], found[2]["reason"]) == (2, None)
    assert {line["protocol"]: line["sent"] for line in found[3:]} == {"tcp": 0, "udp": 7}
    assert all("ended" in line["reason"] for line in found[3:] if line["protocol"] == "tcp")
    assert all(line["duration"] is not None and line["leaf"] == visit.leaf.name for line in found)


@inside
def test_log_when_the_gateway_ends(own_world: World, tmp_path: Path) -> None:
    """What still goes on when the last client leaves is in the file as well, be it made only half."""
    path, name = tmp_path / "flows.jsonl", own("slow.example.com")
    zone = Zone(own_world, {})
    zone.silent = True
    with at(own_world.internet):
        listener = listen(HOSTS[0])
    visit = Visit(own_world, rules=[HOSTS[0], name, "203.0.113.77"])
    visit.client.log_to(str(path))
    with at(visit.leaf):
        client = dial(HOSTS[0], port_of(listener))
        waiting = opened(HOSTS[0])
        waiting.setblocking(False)
        waiting.connect_ex(("203.0.113.77", 443))  # nobody's: it takes the host three seconds to know
        with socket.socket(type=DATAGRAM) as asking:
            asking.sendto(dns.message.make_query(name, "A").to_wire(), (visit.leaf.gateway_ipv4, 53))
    time.sleep(0.2)
    gateway = peer_pid(visit.client)
    visit.client.close()
    wait_until(lambda: not Path(f"/proc/{gateway}").exists(), 10)
    assert client.fileno() >= 0
    assert sorted(line["address"] for line in lines(path)) == [HOSTS[0], "203.0.113.77"]
    assert all("ended" in line["reason"] for line in lines(path))


@inside
def test_log_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    """A file that cannot be opened is an error; one that cannot be written to keeps nobody from the network."""
    with at(world.internet):
        port = served(HOSTS[0])
    visit = Visit(world, rules=[HOSTS[0]])
    with pytest.raises((NetnsError, OSError), match="No such file"):
        visit.client.log_to(str(tmp_path / "none" / "flows.jsonl"))
    visit.client.log_to("/dev/full")
    for _ in range(3):
        with at(visit.leaf):
            assert attempt(HOSTS[0], port).error is None
            assert attempt(HOSTS[1], port).error == "EHOSTUNREACH"
    assert len(visit.flows(visit.leaf, 6)) == 6
    visit.client.log_to(os.devnull)


@inside
def test_many_blocked_names(world: World) -> None:
    """However many names nobody allowed, the gateway does not grow beyond what ten thousand take."""
    visit = Visit(world, named())
    status = Path(f"/proc/{peer_pid(visit.client)}/status")
    (asking,) = sockets_in(visit.leaf, socket.AF_INET, 1, DATAGRAM)
    asking.connect((visit.leaf.gateway_ipv4, 53))
    query = bytearray(dns.message.make_query("000000.example.com", "A").to_wire())
    sizes = []
    for first in range(0, 16_000, 20):
        for number in range(first, first + 20):
            query[13:19] = b"%06d" % number
            asking.send(query)
        for _ in range(20):
            asking.recv(1000)
        if first in {11_000, 15_980}:
            (line,) = [one for one in status.read_text(encoding="ascii").splitlines() if one.startswith("VmRSS")]
            sizes.append(int(line.split()[1]))
    assert sizes[1] - sizes[0] < 1 << 10
    assert sum(one.count for one in visit.client.blocked(own=True)) == 16_000

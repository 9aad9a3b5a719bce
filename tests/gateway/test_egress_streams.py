"""A connection to what is listed is as a direct one: closed half by half, reset, slow, large, and one of many."""

from __future__ import annotations

import errno
import gc
import os
import resource
import select
import socket
import time
from functools import partial
from pathlib import Path

import pytest
from outside import address_of, new_name, rule_for, sockets_in
from traffic import dial, echo, exchange, family_of, listen, port_of, reset, served, start, was_reset
from worlds import HOSTS, Visit, World, at, inside, peer_pid, wait_until
from zone import Zone

BY_BOTH = pytest.mark.parametrize(("host", "by_name"), [(HOSTS[0], True), (HOSTS[1], False)], ids=["name4", "address6"])
MEGABYTE = 1 << 20


def connected(world: World, host: str, *, by_name: bool = False) -> tuple[Visit, socket.socket, socket.socket]:
    """Return a visit, with a client in its leaf and the server's side of the client's connection."""
    with at(world.internet):
        listener = listen(host)
    name = new_name() if by_name else host
    if by_name:
        Zone(world, {name: [host]})
    visit = Visit(world, rules=[rule_for(name, port_of(listener))])
    address = address_of(visit.leaf, name)
    with at(visit.leaf):
        client = dial(address, port_of(listener))
    server = listener.accept()[0]
    server.settimeout(5)
    return visit, client, server


@inside
@BY_BOTH
def test_server_speaks_first(world: World, host: str, by_name: bool) -> None:
    """What a server says before its client says anything arrives."""
    _, client, server = connected(world, host, by_name=by_name)
    server.sendall(b"220 ready")
    assert client.recv(100) == b"220 ready"
    exchange(client, server)


@inside
@BY_BOTH
@pytest.mark.parametrize("first", ["client", "server"])
def test_half_close(world: World, host: str, by_name: bool, first: str) -> None:
    """What a side says after the other has said its last still arrives."""
    visit, client, server = connected(world, host, by_name=by_name)
    done, speaking = (client, server) if first == "client" else (server, client)
    done.sendall(b"last words")
    done.shutdown(socket.SHUT_WR)
    assert speaking.recv(100) == b"last words"
    assert speaking.recv(1) == b""
    for _ in range(3):
        speaking.sendall(b"more")
        assert done.recv(100) == b"more"
    speaking.close()
    assert done.recv(1) == b""
    (flow,) = [flow for flow in visit.flows(visit.leaf) if flow.protocol == "tcp"]
    wait_until(lambda: visit.flows(visit.leaf)[-1].duration is not None, 2)
    assert flow.reason is None


@inside
@BY_BOTH
@pytest.mark.parametrize("resetter", ["client", "server"])
def test_reset(world: World, host: str, by_name: bool, resetter: str) -> None:
    """A reset on one side is a reset on the other."""
    _, client, server = connected(world, host, by_name=by_name)
    exchange(client, server)
    first, second = (client, server) if resetter == "client" else (server, client)
    reset(first)
    assert was_reset(second)


@inside
@pytest.mark.parametrize("host", HOSTS)
def test_server_hangs_up_at_once(world: World, host: str) -> None:
    """A server that accepts and closes, or resets, without a word is seen to do so, a hundred times."""
    with at(world.internet):
        listener = listen(host)
    visit = Visit(world, rules=[host])
    for number in range(100):
        with at(visit.leaf):
            client = dial(host, port_of(listener))
        server = listener.accept()[0]
        if number % 2:
            server.close()
            assert client.recv(1) == b""
        else:
            reset(server)
            assert was_reset(client)
        client.close()


def _connects(client: socket.socket, address: tuple[str, int]) -> bool:
    """Connect, unless this side's last connection has yet to hear that its end was heard of."""
    error = client.connect_ex(address)
    assert error in {0, errno.EADDRNOTAVAIL}
    return not error


@inside
@pytest.mark.parametrize("host", HOSTS)
def test_same_port_again(world: World, host: str) -> None:
    """A client may use its port for one connection after the other, whichever side closed the last."""
    with at(world.internet):
        listener = listen(host)
    visit = Visit(world, rules=[host])
    begin = time.monotonic()
    for number in range(6):
        (client,) = sockets_in(visit.leaf, family_of(host), 1)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind(("", 33_000))
        wait_until(partial(_connects, client, (host, port_of(listener))), 3)
        server = listener.accept()[0]
        exchange(client, server)
        first, second = [(server, client), (client, server)][number % 2]
        if first is client:
            reset(first)
        else:
            first.close()
            assert second.recv(1) == b""
        second.close()
    assert time.monotonic() - begin < 3


@inside
@BY_BOTH
def test_slow_reader(world: World, host: str, by_name: bool) -> None:
    """A sender is held up by a reader that does not read, and then everything arrives."""
    _, client, server = connected(world, host, by_name=by_name)
    for sender, reader in ((client, server), (server, client)):
        sender.setblocking(False)
        sent, block = 0, bytes(MEGABYTE)
        while select.select([], [sender], [], 0.3)[1]:
            sent += sender.send(block)
            assert sent < 64 * MEGABYTE
        received = 0
        while received < sent:
            received += len(reader.recv(MEGABYTE))
        sender.settimeout(5)


@inside
def test_gigabyte(world: World) -> None:
    """A gigabyte goes out, and the gateway does not grow; much comes in at the same time."""
    visit, client, server = connected(world, HOSTS[0])
    status = Path(f"/proc/{peer_pid(visit.client)}/status")
    buffers = {one: bytearray(MEGABYTE) for one in (client, server)}

    def read(one: socket.socket) -> None:
        while one.recv_into(buffers[one]):
            pass

    def write(one: socket.socket, megabytes: int) -> None:
        block = os.urandom(MEGABYTE)
        for _ in range(megabytes):
            one.sendall(block)
        one.shutdown(socket.SHUT_WR)

    for one in (client, server):
        one.settimeout(20)
    before = memory(status, "VmRSS")
    threads = [start(read, server), start(read, client), start(write, server, 64)]
    write(client, 1024)
    peak = memory(status, "VmHWM")
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    wait_until(lambda: visit.flows(visit.leaf)[0].duration is not None, 2)
    flow = visit.flows(visit.leaf)[0]
    assert (flow.sent, flow.received, flow.reason) == (1024 * MEGABYTE, 64 * MEGABYTE, None)
    assert peak - before < 8 * MEGABYTE


def memory(status: Path, which: str) -> int:
    """Return how many bytes of memory a process takes, or took at most."""
    (line,) = [line for line in status.read_text(encoding="ascii").splitlines() if line.startswith(which)]
    return int(line.split()[1]) << 10


@inside
@pytest.mark.parametrize("host", HOSTS)
def test_five_hundred_at_once(world: World, host: str) -> None:
    """Five hundred clients that connect at the same moment are all served, each with its own data."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))  # both ends are ours
    with at(world.internet):
        listener = listen(host)
        listener.listen(1000)
        echo(listener)
    visit = Visit(world, rules=[host])
    clients = sockets_in(visit.leaf, family_of(host), 500)
    for client in clients:
        client.setblocking(False)
        client.connect_ex((host, port_of(listener)))
    for number, client in enumerate(clients):
        assert select.select([], [client], [], 10)[1]
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        client.sendall(f"client {number}".encode())
    for number, client in enumerate(clients):
        client.settimeout(10)
        assert client.recv(100) == f"client {number}".encode()
    assert {flow.verdict for flow in visit.client.flows(visit.leaf.name)} == {"allowed"}
    assert len(visit.client.flows(visit.leaf.name)) == 500


@inside
def test_nothing_is_left_open(world: World) -> None:
    """The gateway has as many descriptors after three hundred connections as before."""
    with at(world.internet):
        port = served(HOSTS[0])
    visit = Visit(world, rules=[HOSTS[0]])
    descriptors = Path(f"/proc/{peer_pid(visit.client)}/fd")
    counts = []
    for _ in range(3):
        for number in range(100):
            with at(visit.leaf), dial(HOSTS[0], port) as client:
                client.sendall(b"x")
                if number % 3:
                    assert client.recv(1) == b"x"
        gc.collect()
        wait_until(lambda: all(flow.duration is not None for flow in visit.client.flows(visit.leaf.name)), 3)
        counts.append(len(os.listdir(descriptors)))
    assert counts[0] == counts[-1]

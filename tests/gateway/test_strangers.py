"""Who else talks to the gateway: another user, and whoever sends what makes no sense. Neither changes anything."""

from __future__ import annotations

import contextlib
import os
import socket
import time

import pytest
from nonsense import Peers
from traffic import attempt, listen
from worlds import INTERNET, OUTER, Visit, Witness, World, at, inside, nothing_arrived, peer_pid, wait_until

from pytest_netns.gateway import protocol
from pytest_netns.gateway.paths import OBSERVERS_NAME, SOCKET_NAME
from pytest_netns.kernel import privilege

MESSAGES = int(os.environ.get("NETNS_FUZZ_MESSAGES", "500"))
SEED = int(os.environ.get("NETNS_FUZZ_SEED", "1"))
ALLOWED, FORBIDDEN = 80, 81
TCP_CLOSE = 7  # of the states in <linux/tcp_states.h>


def open_files(pid: int) -> int:
    """Count what a process has open."""
    with privilege.raised():
        return len(os.listdir(f"/proc/{pid}/fd"))


def see_out(server: socket.socket) -> None:
    """Take the connection that a client has made and closed; return when its last packet has arrived."""
    with server.accept()[0] as connection:
        connection.settimeout(20)
        assert connection.recv(1) == b""
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == TCP_CLOSE, 20)


@inside
def test_nonsense_changes_nothing(own_world: World) -> None:
    """Whatever strange peers send, they cost nobody else anything, and make the gateway connect to nobody."""
    world = own_world
    keeper = world.connect()
    gateway = peer_pid(keeper)
    visit = Visit(world, rules=[f"{INTERNET}:{ALLOWED}"])
    with at(world.internet):
        servers = [listen(str(INTERNET), port) for port in (ALLOWED, FORBIDDEN)]
    servers += [listen("127.0.0.1", FORBIDDEN), listen(str(OUTER), FORBIDDEN)]
    with at(visit.leaf):
        assert attempt(str(INTERNET), ALLOWED).error is None
    see_out(servers[0])
    witness, before = Witness(world), open_files(gateway)
    witness.seen()
    peers = Peers(world.directory, SEED)
    for _ in range(10):
        peers.send(MESSAGES // 10)
        assert len(visit.client.flows(visit.leaf.name)) == 1  # who makes sense is answered all the while
    assert peers.hung_up > MESSAGES // 100
    assert nothing_arrived(*servers)
    assert witness.seen() == []
    peers.close()
    wait_until(lambda: open_files(gateway) <= before + 4, 20)  # a leaf more may be kept in stock
    with at(visit.leaf):
        assert attempt(str(INTERNET), FORBIDDEN).error == "EHOSTUNREACH"
        assert attempt(str(INTERNET), ALLOWED).error is None
    assert nothing_arrived(*servers[1:])
    assert visit.client.lease("test_next").name == "w0-t2"
    assert peer_pid(keeper) == gateway
    visit.client.close()
    keeper.close()


@inside
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("name", [SOCKET_NAME, OBSERVERS_NAME])
def test_another_user_is_refused(world: World, name: str) -> None:
    """Who is not the run's user is hung up on, even where permissions would let them in; all others are served on."""
    visit = Visit(world)
    path = world.directory / name
    path.chmod(0o777)
    door = os.open(path, os.O_PATH)  # the folder that it is in lets nobody else pass
    child = os.fork()
    if not child:
        status = 1
        with contextlib.suppress(BaseException):
            os.setresuid(65_534, 65_534, 65_534)
            status = _knocks(f"/proc/self/fd/{door}")
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert visit.client.flows(visit.leaf.name) == []
    path.chmod(0o755)


def _knocks(path: str) -> int:
    """Return 0 where somebody hangs up without an answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(path)
        with contextlib.suppress(BrokenPipeError):
            protocol.send(connection, {"op": "hello"})
        begin = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            if connection.recv(1000):
                return 2
        return 0 if time.monotonic() - begin < 5 else 3

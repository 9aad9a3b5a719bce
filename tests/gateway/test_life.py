"""How a gateway begins and ends, what it cleans up, and whom it listens to."""

from __future__ import annotations

import _socket
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from traffic import attempt, dial, echo, exchange, listen, port_of, transfer
from worlds import Visit, World, at, inside, peer_pid, wait_until

from pytest_netns.errors import GatewayError, NetnsError
from pytest_netns.gateway import launch, paths, protocol
from pytest_netns.gateway.client import GatewayClient
from pytest_netns.kernel import processes


def is_alive(pid: int) -> bool:
    """Tell whether a process runs."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def member(body: Callable[[], None]) -> int:
    """Start a process that waits for signals after its body."""
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(BaseException):
            body()
            status = 0
        os._exit(status)
    return pid


@inside
@pytest.mark.parametrize("end", ["close", "exit", "SIGKILL"])
def test_ends_with_its_last_client(own_world: World, end: str) -> None:
    """Whatever ends the last client, the gateway has ended within 2 s, and its directory is gone."""
    reader, writer = os.pipe()

    def use() -> None:
        visit = Visit(own_world)
        os.write(writer, str(peer_pid(visit.client)).encode())
        if end == "SIGKILL":
            signal.pause()
        if end == "close":
            visit.client.close()
            visit.client.close()
            time.sleep(60)

    client = member(use)
    gateway = int(os.read(reader, 20))
    if end == "SIGKILL":
        os.kill(client, signal.SIGKILL)
    wait_until(lambda: not is_alive(gateway), 2)
    assert not own_world.directory.exists()
    os.kill(client, signal.SIGKILL)
    os.waitpid(client, 0)


@inside
def test_second_client_shares_it(own_world: World) -> None:
    """All clients of a run have the same gateway, and it lives as long as one of them."""
    first, second = Visit(own_world, "w0"), Visit(own_world, "w1")
    gateway = peer_pid(first.client)
    assert peer_pid(second.client) == gateway
    assert len({one.ipv4 for visit in (first, second) for one in (visit.worker, visit.leaf)}) == 4
    first.client.close()
    time.sleep(0.2)
    assert is_alive(gateway)
    assert second.client.flows(second.leaf.name) == []
    second.client.close()
    wait_until(lambda: not is_alive(gateway), 2)


@inside
def test_eight_at_once_start_one(own_world: World) -> None:
    """Of processes that connect at the same time one starts the gateway, and all get it; they begin with nothing."""
    own_world.directory.rmdir()
    reader, writer = os.pipe()
    hold, release = os.pipe()

    def connect() -> None:
        os.close(release)
        client = own_world.connect()
        os.write(writer, f"{peer_pid(client)}\n".encode())
        os.read(hold, 1)

    members = [member(connect) for _ in range(8)]
    told = b""
    while told.count(b"\n") < 8:
        told += os.read(reader, 200)
    assert len(set(told.split())) == 1
    os.close(release)
    assert [os.waitpid(one, 0)[1] for one in members] == [0] * 8


@inside
def test_processes_of_a_killed_worker_are_ended(world: World) -> None:
    """What a killed worker left running in its leaves is ended, stubborn or not; nothing else is."""
    reader, writer = os.pipe()
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    other = Visit(world, "w1")
    with at(other.leaf):
        bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def use() -> None:
        visit = Visit(world)
        started = []
        for place in (visit.worker, visit.leaf):
            with at(place):
                one = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
                started.append(one.pid)
                assert one.stdout is not None
                one.stdout.readline()
        os.write(writer, repr(started).encode())
        signal.pause()

    worker = member(use)
    left = [int(pid) for pid in os.read(reader, 100).decode().strip("[]").split(",")]
    assert all(is_alive(pid) for pid in left)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    wait_until(lambda: not any(is_alive(pid) for pid in left), 6)
    assert bystander.poll() is None
    assert [one.pid for one in processes.members(os.fstat(other.leaf.net_fd).st_ino)] == [bystander.pid]
    bystander.kill()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_open_directory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int) -> None:
    """A run's directory that others may enter is an error that says what to do."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = paths.run_directory("run")
    assert directory.stat().st_mode & 0o777 == 0o700
    for path in (directory, directory.parent):
        path.chmod(mode)
        with pytest.raises(GatewayError, match=r"is not a directory of your own with mode 0700.*set TMPDIR"):
            paths.run_directory("run")
        path.chmod(0o700)
    assert paths.run_directory("run") == directory


@pytest.mark.parametrize("what", ["link", "file"])
def test_directory_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """A link to a directory, or a file, is none of our own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = paths.run_directory("run")
    directory.rmdir()
    if what == "link":
        private = tmp_path / "private"
        private.mkdir(mode=0o700)
        directory.symlink_to(private)
    else:
        directory.touch(mode=0o700)
    with pytest.raises(GatewayError, match="is not a directory of your own"):
        paths.run_directory("run")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_directory_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that somebody else made in advance is an error."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    os.chown(paths.run_directory("run").parent, 12345, 12345)
    with pytest.raises(GatewayError, match="is not a directory of your own"):
        paths.run_directory("run")


def test_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is one process's at a time, makes no directory, and tells when that is not the run's any more."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    directory = paths.directory_of("run")
    with paths.locked(directory, timeout=0) as is_in_place:
        assert not is_in_place()
    assert list(tmp_path.iterdir()) == []
    paths.make(directory)
    with paths.locked(directory, timeout=0) as is_in_place:
        assert is_in_place()
        with pytest.raises(GatewayError, match=f"another process held {directory}/lock for over 0 s"):
            paths.locked(directory, timeout=0).__enter__()
        paths.remove(directory)
        assert not is_in_place()
        paths.make(directory)
        with paths.locked(directory, timeout=0) as is_in_place_now:
            assert is_in_place_now()
            assert not is_in_place()

    opens, takes_back = paths._opened, paths._take_back

    def gone(path: Path, stack: contextlib.ExitStack) -> int:
        opened = opens(path, stack)
        paths.remove(directory)
        return opened

    def private(path: Path, opened: int) -> None:
        """Others look at what filelock has made before it is taken back: they would refuse what is open."""
        assert [one.stat().st_mode & 0o777 for one in (path.parent, path)] == [0o700, 0o700]
        takes_back(path, opened)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "_opened", gone)
        patch.setattr(paths, "_take_back", private)
        with paths.locked(directory, timeout=0) as is_in_place:
            assert list(tmp_path.iterdir()) == []
            assert not is_in_place()
    paths.make(directory)
    directory.chmod(0o755)
    with pytest.raises(GatewayError, match="is not a directory of your own"):
        paths.locked(directory, timeout=0).__enter__()


def test_sweeps_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory of a run that was killed with all that belongs to it goes; not one in use, nor other files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = ("dead", "held", "begun", "fresh", "foreign")
    dead, held, begun, fresh, foreign = (paths.run_directory(name) for name in names)
    (begun / paths.LOCK_NAME).touch()
    for directory in (dead, held, begun, fresh, foreign):
        (directory / paths.FLOWS_NAME).touch()
    (foreign / "notes").touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as killed:
        killed.bind(str(dead / paths.SOCKET_NAME))
    for directory in (dead, held, begun, foreign):
        os.utime(directory, (1, 1))
    descriptor = paths.hold(held)
    with paths.locked(begun, timeout=0):
        paths.sweep(dead.parent)
    assert sorted(path.name for path in dead.parent.iterdir()) == ["begun", "foreign", "fresh", "held"]
    assert (foreign / "notes").exists()
    assert (held / paths.FLOWS_NAME).exists()
    os.close(descriptor)
    paths.sweep(dead.parent)
    assert not held.exists()
    assert not begun.exists()


def test_a_strangers_directory_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that can't begin for it says so, and neither it nor who started it removes anything there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other, directory = paths.run_directory("other"), paths.directory_of("run")
    (other / paths.FLOWS_NAME).touch()
    os.utime(other, (1, 1))
    other.parent.chmod(0o755)
    with pytest.raises(GatewayError, match=r"^\S+ is not a directory of your own with mode 0700.*set TMPDIR"):
        launch.start(directory)
    launch.clear(directory)
    launch.clear(other)
    assert (other / paths.FLOWS_NAME).exists()
    assert not directory.exists()


@inside
def test_understudy(own_world: World) -> None:
    """Where a gateway is killed another serves its run, without anybody's doing; with the last client it ends, too."""
    client = own_world.connect()
    gateway = peer_pid(client)
    os.kill(gateway, signal.SIGTERM)
    wait_until(lambda: client.lost, 10)
    client.reconnect(own_world.directory, may_start=False)
    following = peer_pid(client)
    assert following != gateway
    assert not client.lost
    client.close()
    wait_until(lambda: not is_alive(following), 10)


def raw(world: World) -> _socket.socket:
    """Connect without the client's manners."""
    connection = world.connect()._connection
    connection.settimeout(5)
    return connection


def answer(connection: _socket.socket, data: bytes) -> protocol.Message | None:
    """Send a packet and return the answer; None where the gateway hung up."""
    try:
        connection.send(data)
        message, descriptors = protocol.receive(connection)
    except (BrokenPipeError, ConnectionResetError):
        return None
    assert descriptors == []
    return message


@inside
@pytest.mark.parametrize(
    "data",
    [
        b"nonsense",
        b"\0",
        b"[]",
        b"1",
        b'"op"',
        b"null",
        b"{" * 50_000,
        b"[" * 50_000,
        b"{}x",
        b"\xff\xfe",
        b"x" * 150_000,
        random.Random(1).randbytes(500),
    ],
    ids=lambda data: repr(data[:8]),
)
def test_nonsense_ends_its_sender_alone(world: World, data: bytes) -> None:
    """Whoever sends what is no message is hung up on; all others are served on."""
    visit = Visit(world)
    assert answer(raw(world), data) is None
    assert visit.client.flows(visit.leaf.name) == []


@inside
@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"op": 1}',
        b'{"op": null}',
        b'{"op": {"a": []}}',
        b'{"op": "shutdown"}',
        b'{"op": "__init__"}',
        b'{"op": "join"}',
        b'{"op": "join", "worker_name": "x"}',
        b'{"op": "join", "worker_name": "x", "open_egress": false, "own_leaf": true, "more": 1}',
        b'{"op": "lease"}',
        b'{"op": "activate", "leaf": "none"}',
        b'{"op": "activate", "leaf": ["w0-t1"]}',
        b'{"op": "label", "leaf": "none", "test": "x"}',
        b'{"op": "flows", "leaf": "w0"}',
        b'{"op": "flows", "leaf": null}',
        b'{"op": "publish", "leaf": "none", "port": 1}',
        b'{"op": "unpublish"}',
        b'{"op": "blocked", "worker": 1}',
    ],
    ids=lambda data: data.decode()[:40],
)
def test_wrong_request_gets_an_error(world: World, data: bytes) -> None:
    """A message that asks for nothing that exists is answered with an error, and the connection stays usable."""
    connection = raw(world)
    for _ in range(2):
        message = answer(connection, data)
        assert message is not None
        assert message["ok"] is False
        assert message["error"]
    message = answer(connection, b'{"op": "blocked", "since": 0, "own": false}')
    assert message is not None
    assert message["ok"] is True


@inside
def test_descriptors_that_nobody_asked_for_are_closed(world: World) -> None:
    """Descriptors that are sent along with requests do not pile up in the gateway."""
    client = world.connect()
    opened = Path(f"/proc/{peer_pid(client)}/fd")
    try:
        before = len(os.listdir(opened))
    except PermissionError:
        pytest.skip("the gateway's descriptors are not for this user to see")
    for _ in range(50):
        protocol.send(client._connection, {"op": "blocked"}, (0, 1))
        protocol.receive(client._connection)
    assert len(os.listdir(opened)) < before + 20


@inside
def test_errors_of_the_client(world: World) -> None:
    """Joining twice, leaves that are unknown, somebody else's or given up: each is an error that says so."""
    visit, other = Visit(world), Visit(world, "w1")
    with pytest.raises(NetnsError, match="could not join: ValueError: w0 has joined already"):
        visit.client.join("w0")
    for name in ("nothing", other.leaf.name, other.worker.name):
        for ask in (visit.client.activate, visit.client.flows, lambda leaf: visit.client.publish(leaf, 80)):
            with pytest.raises(NetnsError, match="could not"):
                ask(name)
    visit.client.release("nothing")
    visit.client.release(other.leaf.name)
    assert other.client.flows(other.leaf.name) == []
    visit.client.release(visit.leaf.name)
    with pytest.raises(NetnsError, match="could not flows"):
        visit.client.flows(visit.leaf.name)


@inside
def test_lost_gateway_is_an_error_at_once(own_world: World) -> None:
    """A client whose gateway was killed is told so, and does not wait."""
    visit = Visit(own_world)
    gateway = peer_pid(visit.client)
    os.kill(gateway, signal.SIGKILL)
    wait_until(lambda: not is_alive(gateway), 2)
    begin = time.monotonic()
    for _ in range(2):
        with pytest.raises(GatewayError, match=r"the gateway has ended|lost the gateway"):
            visit.client.lease("test_x")
    assert time.monotonic() - begin < 1
    again = GatewayClient.connect(own_world.directory)  # what it left behind does not stop the next
    again.join("w0")


@inside
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
def test_published_port(world: World, bound: str) -> None:
    """A port of the host's loopback leads to the leaf's service, both ways and to the end, until it is taken back."""
    visit = Visit(world)
    port = visit.client.publish(visit.leaf.name, 8080)
    with at(world.outer):
        with contextlib.suppress(ConnectionResetError), dial("127.0.0.1", port) as early:
            assert early.recv(1) == b""
        with at(visit.leaf):
            listener = listen(bound, 8080)
        client = dial("127.0.0.1", port)
        server, _ = listener.accept()
        exchange(client, server)
        echo(listener)
        with dial("127.0.0.1", port) as client:
            transfer(client, 8 << 20)
        visit.client.unpublish(port)
        visit.client.unpublish(port)
        assert attempt("127.0.0.1", port).error == "ECONNREFUSED"


@inside
def test_closed_leaf_closes_its_ports(world: World) -> None:
    """With its leaf a published port is gone, and its connections are reset."""
    visit = Visit(world)
    ports = [visit.client.publish(visit.leaf.name, 8080) for _ in range(2)]
    assert len(set(ports)) == 2
    with at(visit.leaf):
        listener = listen("127.0.0.1", 8080)
    with at(world.outer):
        client = dial("127.0.0.1", ports[0])
        server, _ = listener.accept()
        exchange(client, server)
        visit.client.release(visit.leaf.name)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert [attempt("127.0.0.1", port).error for port in ports] == ["ECONNREFUSED"] * 2
        other = listen("127.0.0.1")
        with at(visit.worker):
            assert attempt("127.0.0.1", port_of(other)).error == "ECONNREFUSED"

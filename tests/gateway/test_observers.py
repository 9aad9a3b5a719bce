"""Those who look inside a run: what they may ask, and that they count for nothing."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from traffic import attempt, dial, listen
from worlds import HOSTS, Visit, World, at, inside, peer_pid, wait_until

from pytest_netns.errors import GatewayError, NetnsError
from pytest_netns.gateway import protocol, runs
from pytest_netns.gateway.launch import dial as knock
from pytest_netns.gateway.paths import OBSERVERS_NAME
from pytest_netns.gateway.runs import LeafRow, Run, RunEndedError


@contextlib.contextmanager
def looking(world: World) -> Iterator[Run]:
    """Connect to a world's gateway as a command does."""
    connection = knock(world.directory, OBSERVERS_NAME)
    assert connection is not None
    run = Run(world.directory.name, connection)
    yield run
    run.close()


@inside
def test_lists_what_is_alive(world: World) -> None:
    """Each leaf is listed with its test, addresses, port, age, state, and what listens there."""
    visit = Visit(world)
    with at(visit.leaf):
        servers = [listen("127.0.0.1", 8080), listen("::1", 53, socket.SOCK_DGRAM)]
    visit.client.label(visit.leaf.name, "test_x[é]", service_port=99)
    with looking(world) as run:
        own, leaf = run.leaves()
        assert (own.name, own.worker, own.listening, own.port) == ("w0", True, [], 8080)
        assert (leaf.name, leaf.worker, leaf.test, leaf.port) == ("w0-t1", False, "test_x[é]", 99)
        assert (leaf.ipv4, leaf.ipv6) == (visit.leaf.ipv4, visit.leaf.ipv6)
        assert leaf.listening == ["127.0.0.1:8080", "[::1]:53/udp"]
        assert 0 <= leaf.age < 5
        assert run.pid not in {None, os.getpid(), peer_pid(visit.client)}  # who began the run is somebody else
        assert run.page_port is None
        assert leaf.held is None
        visit.client.hold(leaf.name, "assert 1 == 2")
        assert run.leaves()[1].held == "assert 1 == 2"
        visit.client.release(leaf.name)
        assert [row.name for row in run.leaves()] == ["w0"]
        assert run.fate(leaf.name) == "test_x[é]"
        assert run.fate("w0-t2") is None
    assert servers


@inside
def test_many_leaves_come_in_pages(world: World) -> None:
    """However many leaves there are, and however long the names of their tests, all are listed."""
    visit = Visit(world)
    leaves = [visit.leaf, *(visit.client.lease("test_" + "x" * 9000) for _ in range(20))]
    with looking(world) as run:
        assert [row.name for row in run.leaves()] == ["w0", *(leaf.name for leaf in leaves)]
    visit.client.close()


@inside
def test_way_in(world: World) -> None:
    """What is handed out to enter a leaf leads there, and to the user namespace that gives the right to."""
    visit = Visit(world)
    with looking(world) as run:
        entrance = run.enter(visit.leaf.name)
        assert os.fstat(entrance.net_fd).st_ino == os.fstat(visit.leaf.net_fd).st_ino
        assert os.fstat(entrance.mnt_fd).st_ino == os.fstat(visit.leaf.mnt_fd).st_ino
        assert os.fstat(entrance.user_fd).st_ino == os.stat("/proc/self/ns/user").st_ino
        assert not any(os.get_inheritable(descriptor) for descriptor in entrance)
        with pytest.raises(NetnsError, match="nothing has ended"):
            run.enter("nothing")


@inside
def test_forwarding_lasts_as_long_as_who_asked(world: World) -> None:
    """A forwarded port leads into the leaf until the command ends, in whatever way, and no longer."""
    visit = Visit(world)
    with at(visit.leaf):
        listener = listen("::1", 8080)
    with at(world.outer):
        with looking(world) as run:
            port = run.forward(visit.leaf.name, 8080)
            protocol.send(run._connection, {"op": "watch", "leaf": visit.leaf.name})
            with dial("127.0.0.1", port) as client:
                server, _ = listener.accept()
                client.sendall(b"x")
                assert server.recv(1) == b"x"
            with (
                looking(world) as other,
                pytest.raises(NetnsError, match=f"127.0.0.1:{port} on the host cannot be had"),
            ):
                other.forward(visit.leaf.name, 8080, port)
        wait_until(lambda: attempt("127.0.0.1", port).error == "ECONNREFUSED", 2)


@inside
def test_end_is_told(world: World) -> None:
    """Who waits for a leaf's end is told of it."""
    visit = Visit(world)
    with looking(world) as run:
        thread = threading.Thread(target=run.wait_for_end, args=(visit.leaf.name,))
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        visit.client.release(visit.leaf.name)
        thread.join(2)
        assert not thread.is_alive()
        with pytest.raises(NetnsError, match="w0-t1 has ended"):
            run.enter(visit.leaf.name)


@inside
def test_resuming(world: World) -> None:
    """A held test goes on when somebody says so; one that is not held is none to say that of."""
    visit = Visit(world)
    with looking(world) as run:
        with pytest.raises(NetnsError, match="w0-t1 is not held"):
            run.resume(visit.leaf.name)
        visit.client.hold(visit.leaf.name, "why")
        idle = visit.client.held(visit.leaf.name)
        assert idle is not None and 0 <= idle < 60
        run.resume(visit.leaf.name)
        assert visit.client.held(visit.leaf.name) is None


@inside
def test_cannot_change_what_a_leaf_may_reach(world: World) -> None:
    """None of what a worker may ask is an observer's to ask, and nothing has changed when it has tried."""
    visit = Visit(world)
    asked: list[protocol.Message] = [
        {"op": "join", "worker_name": "x", "open_egress": True, "own_leaf": True, "rules": [], "record": True},
        {"op": "lease"},
        {"op": "activate", "leaf": "w0-t1"},
        {"op": "label", "leaf": "w0-t1", "test": "x", "rules": ["0.0.0.0/0"], "sni": False, "wait": True},
        {"op": "allow", "leaf": "w0-t1", "rules": ["0.0.0.0/0"]},
        {"op": "release", "leaf": "w0-t1"},
        {"op": "hold", "leaf": "w0-t1", "why": "x"},
        {"op": "log_to", "path": "/dev/null"},
        {"op": "browse", "port": 0},
        {"op": "bury"},
        {},
    ]
    with looking(world) as run:
        for request in asked:
            protocol.send(run._connection, request)
            answer, descriptors = protocol.receive(run._connection)
            assert answer is not None
            assert (answer["ok"], descriptors) == (False, [])
        with at(visit.leaf):
            assert attempt(HOSTS[0], 80).error == "EHOSTUNREACH"
        senseless: list[protocol.Message] = [
            {"op": "list"},
            {"op": "enter", "leaf": 1},
            {"op": "forward", "leaf": "w0"},
        ]
        for request in senseless:
            protocol.send(run._connection, request)
            answer, _ = protocol.receive(run._connection)
            assert answer is not None
            assert answer["ok"] is False
        run._connection.send(b"nonsense")
        with pytest.raises(GatewayError, match="has ended"):
            run.leaves()
    assert visit.client.flows(visit.leaf.name)


@inside
def test_keeps_nothing_alive(own_world: World) -> None:
    """A gateway ends with its last worker, whoever looks, waits or forwards; and those are told."""
    visit = Visit(own_world)
    gateway = peer_pid(visit.client)
    with looking(own_world) as run, looking(own_world) as waiter:
        run.forward(visit.leaf.name, 8080)
        thread = threading.Thread(target=waiter.wait_for_end, args=(visit.leaf.name,))
        thread.start()
        visit.client.close()
        wait_until(lambda: not Path(f"/proc/{gateway}/cmdline").exists() or not _cmdline(gateway), 2)
        thread.join(2)
        assert not thread.is_alive()
        with pytest.raises(GatewayError, match="has ended"):
            run.leaves()
    assert not own_world.directory.exists()
    assert knock_in_vain(own_world)


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def knock_in_vain(world: World) -> bool:
    """Tell whether there is nobody to connect to."""
    try:
        return knock(world.directory, OBSERVERS_NAME) is None
    except FileNotFoundError:
        return True


@inside
def test_found_wherever_it_was_started(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A run is found though its files are somewhere else than ours would be."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found, _ = runs.live_runs()
    assert world.directory.name in [run.id for run in found]
    for run in found:
        run.close()


@inside
def test_stopped_gateway_is_a_trouble_in_time(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that does not answer is named, and does not keep a command waiting."""
    visit = Visit(own_world)
    monkeypatch.setattr(runs, "_TIMEOUT", 0.5)
    gateway = peer_pid(visit.client)
    os.kill(gateway, signal.SIGSTOP)
    try:
        began = time.monotonic()
        found, troubles = runs.live_runs()
        assert time.monotonic() - began < 5
    finally:
        os.kill(gateway, signal.SIGCONT)
    assert own_world.directory.name not in [run.id for run in found]
    name = runs.short_id(own_world.directory.name)
    assert any(line.startswith(f"run {name} did not answer within") for line in troubles)


class Listed(Run):
    """A run that is only a list."""

    def __init__(self, run_id: str, *names: str, ended: dict[str, str] | None = None) -> None:
        super().__init__(run_id, socket.socket())
        self.names, self.ended = names, ended or {}
        self.close()

    def leaves(self) -> list[LeafRow]:
        """List them; without any, the run has ended."""
        if not self.names:
            raise RunEndedError(self.id)
        return [LeafRow(name, f"test_{name}", False, "", "", 80, 1.0, None, []) for name in self.names]

    def fate(self, leaf: str) -> str | None:
        """Tell of those that have ended."""
        if not self.names:
            raise RunEndedError(self.id)
        return self.ended.get(leaf)


RUNS = [
    Listed("aaaa11112222", "main", "main-t1"),
    Listed("bbbb11112222", "main-t1", "gw0", ended={"gw0-t1": "test_q"}),
    Listed("cccc11112222"),
]


@pytest.mark.parametrize(
    ("spec", "run", "leaf"),
    [("main", 0, "main"), ("gw0", 1, "gw0"), ("a/main-t1", 0, "main-t1"), ("bbbb11/main-t1", 1, "main-t1")],
)
def test_leaf_that_is_meant(spec: str, run: int, leaf: str) -> None:
    """A name that only one run has is enough; else the beginning of the run's id stands before it."""
    found, row = runs.find(spec, RUNS)
    assert found is RUNS[run]
    assert row.name == leaf


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("main-t1", r"several .* say which: aaaa11/main-t1 \(test_main-t1\), bbbb11/main-t1 \(test_main-t1\)"),
        ("main-t2", r"no live leaf is called 'main-t2'; did you mean main-t1\? live are: main, main-t1, main-t1, gw0"),
        ("b/main", r"no live leaf is called 'b/main'; "),
        ("gw0-t1", r"gw0-t1 has ended with its test, test_q; .* --netns-hold=failed"),
        ("", r"no live leaf is called ''; live are"),
    ],
)
def test_leaf_that_is_not_there(spec: str, text: str) -> None:
    """The error names the nearest, or what became of it."""
    with pytest.raises(NetnsError, match=text):
        runs.find(spec, RUNS)


def test_no_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where nothing is alive, the error says so, whose runs there are, and how to keep a leaf."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(NetnsError, match=rf"no run of uid {os.geteuid()} has a live leaf. .*--netns-hold=failed"):
        runs.find("main", [])
    (tmp_path / "pytest-netns-12345").mkdir()
    with pytest.raises(NetnsError, match=r"other users have runs \(uid 12345\)"):
        runs.find("main", [])

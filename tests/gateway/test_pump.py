"""A connection that is carried behaves as the two ends had it with each other, and costs nothing when it is over."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import pytest
from traffic import dial, echo, exchange, listen, port_of, start, transfer

from pytest_netns.gateway.flows import Volume
from pytest_netns.gateway.pipes import Pipes
from pytest_netns.gateway.pump import CHUNK, Inspect, Judgement, carry, reset

T = TypeVar("T")
HOST = "127.0.0.1"
MUCH = 1 << 20  # more than what makes a direction go through a pipe
EITHER_WAY = pytest.mark.parametrize("swapped", [False, True], ids=["client", "upstream"])
BOTH_PATHS = pytest.mark.usefixtures("bulk")


def pair() -> tuple[socket.socket, socket.socket]:
    """Connect two TCP sockets with each other."""
    with listen(HOST) as listener:
        one = dial(HOST, port_of(listener))
        other, _ = listener.accept()
    other.settimeout(5)
    return one, other


def descriptors() -> int:
    """Count the process's open files."""
    return len(os.listdir("/proc/self/fd"))


class Carried(NamedTuple):
    """The ends that the outer sides have, and those that lie between."""

    client: socket.socket
    server: socket.socket
    inner: tuple[socket.socket, socket.socket]
    volume: Volume
    result: concurrent.futures.Future[bool]

    def ends(self, *, swapped: bool) -> tuple[socket.socket, socket.socket]:
        """Return client and server, or server and client."""
        return (self.server, self.client) if swapped else (self.client, self.server)

    def move(self, size: int) -> None:
        """Bring so much there and back."""
        for one, other in ((self.client, self.server), (self.server, self.client)):
            sender = start(one.sendall, bytes(size))
            assert sum(map(len, read(other, size))) == size
            sender.join()


def read(one: socket.socket, size: int) -> Iterator[bytes]:
    """Yield what comes until it is so much, or until the end."""
    while size and (data := one.recv(min(size, CHUNK))):
        size -= len(data)
        yield data


class Carrier:
    """A loop in a thread of its own, in which connections are carried."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = start(self._loop.run_forever)
        self.pipes = Pipes()
        self.opened = contextlib.ExitStack()

    def carry(self, inspect: Inspect | None = None, *, buffer: int = 0) -> Carried:
        """Make a connection and have it carried, with socket buffers of this size between."""
        client, inner = pair()
        outer, server = pair()
        for one in (inner, outer):
            one.setblocking(False)
            if buffer:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        self.opened.enter_context(client)
        self.opened.enter_context(server)
        volume = Volume()
        work = carry(inner, outer, volume, inspect, self.pipes)
        result = asyncio.run_coroutine_threadsafe(work, self._loop)
        return Carried(client, server, (inner, outer), volume, result)

    def call(self, function: Callable[[], T]) -> T:
        """Call in the loop's thread, after all that was begun there."""

        async def called() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result(5)

    def volume(self, carried: Carried) -> tuple[int, int]:
        """Return what was counted so far."""
        return self.call(lambda: (carried.volume.sent, carried.volume.received))

    def busy(self, seconds: float) -> float:
        """Return which part of the next seconds the loop works for."""
        before = self.call(time.thread_time)
        time.sleep(seconds)
        return (self.call(time.thread_time) - before) / seconds

    def watched(self) -> int:
        """Count what the loop waits for, but for its own wake-up."""
        selector = self._loop._selector  # type: ignore[attr-defined]
        return len(selector.get_map()) - 1

    def close(self) -> None:
        """End the loop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self.pipes.close()
        self.opened.close()


@pytest.fixture(params=[1 << 60, 1], ids=["process", "kernel"])
def bulk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a direction go through a pipe after so many bytes."""
    monkeypatch.setattr("pytest_netns.gateway.pump._BULK", request.param)


@pytest.fixture
def carrier() -> Iterator[Carrier]:
    """Carry connections, all of which are over at the end without a trace."""
    before = descriptors()
    carrier = Carrier()
    with contextlib.closing(carrier):
        yield carrier
        carrier.opened.close()
        deadline = time.monotonic() + 5
        while carrier.call(carrier.watched) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert carrier.call(carrier.watched) == 0
    assert descriptors() == before


def over(one: socket.socket) -> None:
    """Expect a reset, after what may have come before."""
    with pytest.raises(ConnectionResetError):
        list(read(one, 1 << 30))


class TestData:
    """What is said arrives."""

    def test_much(self, carrier: Carrier) -> None:
        """64 MB go out and come back unchanged, and are counted."""
        with listen(HOST) as listener:
            echo(listener)
            client, inner = pair()
            outer = dial(HOST, port_of(listener))
            for one in (inner, outer):
                one.setblocking(False)
            volume = Volume()
            result = asyncio.run_coroutine_threadsafe(carry(inner, outer, volume), carrier._loop)
            with client:
                transfer(client, 64 << 20)
            assert result.result(5)
            assert volume == Volume(64 << 20, 64 << 20)
            listener.shutdown(socket.SHUT_RDWR)

    @BOTH_PATHS
    def test_single_bytes(self, carrier: Carrier) -> None:
        """Single bytes go to and fro; the counts are those of the moment."""
        carried = carrier.carry()
        for number in range(500):
            carried.client.sendall(bytes([number % 256]))
            assert carried.server.recv(2) == bytes([number % 256])
            carried.server.sendall(b"y")
            assert carried.client.recv(2) == b"y"
        assert carrier.volume(carried) == (500, 500)

    def test_is_not_delayed(self, carrier: Carrier) -> None:
        """Both sides are told to wait for nothing before they send."""
        carried = carrier.carry()
        exchange(carried.client, carried.server)
        assert all(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in carried.inner)

    @BOTH_PATHS
    def test_crumbs(self, carrier: Carrier) -> None:
        """Many small pieces, which fill a pipe long before its size does, wait for their reader and arrive."""
        carried, other = carrier.carry(buffer=4096), carrier.carry()
        carried.client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before = 0
        while carrier.volume(carried)[0] == before:  # until the other end takes no more
            carried.client.sendall(bytes(16 * 1024))
            before += 16 * 1024
            time.sleep(0.002)
        for number in range(1000):
            carried.client.sendall(bytes([number % 256]))
            other.client.sendall(b"x")  # in between, so that the pieces do not lie side by side in memory
        assert carrier.busy(0.3) < 0.3
        arrived = b"".join(read(carried.server, before + 1000))
        assert arrived == bytes(before) + bytes(number % 256 for number in range(1000))

    @EITHER_WAY
    @BOTH_PATHS
    def test_urgent(self, carrier: Carrier, *, swapped: bool) -> None:
        """An urgent byte is one at the other end, where it stood in the stream, and what follows it arrives."""
        carried = carrier.carry()
        one, other = carried.ends(swapped=swapped)
        carried.move(MUCH)
        for number in range(5):
            one.sendall(b"before")
            one.send(bytes([number]), socket.MSG_OOB)
            assert b"".join(read(other, 6)) == b"before"
            assert select.select([], [], [other], 5)[2]
            other.setblocking(False)  # or it would be waited for what is not urgent
            assert other.recv(1, socket.MSG_OOB) == bytes([number])
            other.settimeout(5)
            one.sendall(b"after")
            assert b"".join(read(other, 5)) == b"after"
        carried.move(MUCH)

    @EITHER_WAY
    @BOTH_PATHS
    def test_urgent_in_much_data(self, carrier: Carrier, *, swapped: bool) -> None:
        """An urgent byte amid much data keeps none of it from arriving, and is not lost where it is read in line."""
        carried = carrier.carry()
        one, other = carried.ends(swapped=swapped)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)

        def send() -> None:
            for _ in range(50):
                one.sendall(bytes(30_000))
                one.send(b"!", socket.MSG_OOB)
            one.shutdown(socket.SHUT_WR)

        start(send)
        data = b"".join(read(other, 2 * MUCH))
        assert data == (bytes(30_000) + b"!") * 50

    def test_many_at_once(self, carrier: Carrier) -> None:
        """200 connections are carried at once, each with its own data, and when silent cost no pipe."""
        connections = [carrier.carry() for _ in range(200)]
        before = descriptors()
        for number, carried in enumerate(connections):
            carried.client.sendall(str(number).encode() * 20_000)
        for number, carried in enumerate(connections):
            expected = str(number).encode() * 20_000
            assert b"".join(read(carried.server, len(expected))) == expected
        for carried in connections[:20]:
            carried.move(MUCH)
        exchange(connections[0].client, connections[0].server)
        assert descriptors() - before <= 8
        assert carrier.volume(connections[199]) == (60_000, 0)

    def test_busy_neighbours(self, carrier: Carrier) -> None:
        """A connection beside others that move all they can has its turns."""
        quiet, *loud = [carrier.carry() for _ in range(4)]
        threads: list[threading.Thread] = []
        for carried in loud:
            threads += [start(_send_without_end, carried.client), start(_read_without_end, carried.server)]
        waits = []
        for _ in range(20):
            begin = time.monotonic()
            exchange(quiet.client, quiet.server)
            waits.append(time.monotonic() - begin)
        assert sorted(waits)[10] < 0.2
        assert min(carried.volume.sent for carried in loud) > 0
        for carried in loud:
            carried.result.cancel()
        for thread in threads:
            thread.join()


class TestEnd:
    """How one side ends is how the other sees it end."""

    @EITHER_WAY
    @BOTH_PATHS
    def test_half_close(self, carrier: Carrier, *, swapped: bool) -> None:
        """What a side says after the other has said its last still arrives."""
        carried = carrier.carry()
        first, second = carried.ends(swapped=swapped)
        first.sendall(b"last words")
        first.shutdown(socket.SHUT_WR)
        assert b"".join(read(second, 100)) == b"last words"
        assert carrier.busy(0.1) < 0.5
        sender = start(second.sendall, bytes(3 * MUCH))
        assert sum(map(len, read(first, 3 * MUCH))) == 3 * MUCH
        sender.join()
        assert not carried.result.done()
        second.close()
        assert first.recv(1) == b""
        assert carried.result.result(5)

    @EITHER_WAY
    @BOTH_PATHS
    def test_reset(self, carrier: Carrier, *, swapped: bool) -> None:
        """A connection that one side resets is reset for the other."""
        carried = carrier.carry()
        first, second = carried.ends(swapped=swapped)
        exchange(first, second)
        reset(first)
        over(second)
        assert carried.result.result(5)

    @EITHER_WAY
    def test_reset_by_who_does_not_read(self, carrier: Carrier, *, swapped: bool) -> None:
        """Who resets what it was sent too much of resets the sender."""
        carried = carrier.carry()
        first, second = carried.ends(swapped=swapped)
        _fill(second)
        reset(first)
        over(second)

    @BOTH_PATHS
    def test_cancelled(self, carrier: Carrier) -> None:
        """Being cancelled resets both sides, also when something is still held for one of them."""
        idle, waiting = carrier.carry(), carrier.carry()
        _fill(waiting.client)
        for carried in (idle, waiting):
            carried.result.cancel()
            over(carried.client)
            over(carried.server)
        another = carrier.carry()
        for _ in range(3):
            exchange(another.client, another.server)

    @BOTH_PATHS
    def test_end_with_much_held(self, carrier: Carrier) -> None:
        """Who sends much, says its last and is gone is heard to the end."""
        carried = carrier.carry()
        sent = _fill(carried.client)
        carried.client.shutdown(socket.SHUT_WR)
        assert sum(map(len, read(carried.server, 1 << 40))) == sent
        carried.server.close()
        assert carried.result.result(5)


class TestLimits:
    """What there is little of."""

    @BOTH_PATHS
    def test_slow_reader(self, carrier: Carrier) -> None:
        """Who sends to somebody that does not read has to wait; meanwhile the loop rests, and answers arrive."""
        carried = carrier.carry()
        sent = _fill(carried.client)
        assert sent < 40 << 20
        assert carrier.busy(0.3) < 0.3
        carried.server.sendall(b"wait")
        assert carried.client.recv(100) == b"wait"
        assert sum(map(len, read(carried.server, sent))) == sent
        exchange(carried.client, carried.server)

    def test_no_descriptors_for_pipes(self, carrier: Carrier) -> None:
        """Without descriptors for a pipe much data still arrives, and with them again, too."""
        carried = carrier.carry()
        exchange(carried.client, carried.server)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            carried.move(8 * MUCH)
            with pytest.raises(OSError, match="Too many open files"):
                os.pipe()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        carried.move(8 * MUCH)
        deadline = time.monotonic() + 5
        while not carrier.pipes._spare and time.monotonic() < deadline:  # the last to arrive is the first to be seen
            time.sleep(0.01)
        assert carrier.pipes._spare

    def test_small_pipes_only(self, carrier: Carrier, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where a user's pipes are full of pages already and new ones small, the process carries all."""
        monkeypatch.setattr("pytest_netns.gateway.pipes._SIZE", 4096)
        carried = carrier.carry()
        carried.move(MUCH)
        assert not carrier.pipes._spare


class Question:
    """An inspection that remembers what it was shown, and judges by how that ends; it holds what it does not know."""

    def __init__(self, answers: dict[bytes, Judgement | Exception] | None = None) -> None:
        self._answers = answers or {}
        self.shown: list[bytes] = []

    def __call__(self, data: bytes) -> Judgement:
        """Look for an answer."""
        self.shown.append(data)
        for end, answer in self._answers.items():
            if data.endswith(end):
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return Judgement.HOLD


class TestInspection:
    """What a client says first can be looked at before it is passed on."""

    def test_allowed(self, carrier: Carrier) -> None:
        """Nothing is passed on before it is allowed, then all of it; and nobody asks again."""
        asked = Question({b"cd": Judgement.DONE, b"f": Judgement.REFUSE})
        carried = carrier.carry(asked)
        carried.client.sendall(b"ab")
        assert not select.select([carried.server], [], [], 0.1)[0]
        assert carrier.volume(carried) == (0, 0)
        carried.client.sendall(b"cd")
        assert carried.server.recv(100) == b"abcd"
        carried.client.sendall(b"ef")
        assert carried.server.recv(100) == b"ef"
        carried.move(MUCH)
        assert asked.shown == [b"ab", b"cd"]
        assert carrier.volume(carried) == (6 + MUCH, MUCH)

    def test_passed_piece_by_piece(self, carrier: Carrier) -> None:
        """What is passed on is no licence for what follows: that is held, passed on or refused by itself."""
        asked = Question({b".": Judgement.PASS, b"no": Judgement.REFUSE})
        carried = carrier.carry(asked)
        carried.client.sendall(b"one.")
        assert carried.server.recv(100) == b"one."
        carried.client.sendall(b"two")
        assert not select.select([carried.server], [], [], 0.1)[0]
        carried.client.sendall(b", three.")
        assert carried.server.recv(100) == b"two, three."
        carried.client.sendall(b"no")
        over(carried.server)
        assert carried.result.result(5) is False
        assert asked.shown == [b"one.", b"two", b", three.", b"no"]

    def test_refused(self, carrier: Carrier) -> None:
        """Both sides are reset, and the server has heard nothing."""
        carried = carrier.carry(Question({b"no": Judgement.REFUSE}))
        carried.client.sendall(b"this is a ")
        time.sleep(0.02)
        carried.client.sendall(b"no")
        with pytest.raises(ConnectionResetError):
            carried.server.recv(100)
        over(carried.client)
        assert carried.result.result(5) is False
        assert carrier.volume(carried) == (0, 0)

    @pytest.mark.parametrize("said", [b"", b"something"], ids=["nothing", "something"])
    def test_end_before_an_answer(self, carrier: Carrier, said: bytes) -> None:
        """What a client that has said its last has said is passed on."""
        asked = Question()
        carried = carrier.carry(asked)
        carried.client.sendall(said)
        carried.client.shutdown(socket.SHUT_WR)
        assert b"".join(read(carried.server, 100)) == said
        assert set(asked.shown) == ({said} if said else set())
        carried.server.sendall(b"answer")
        assert carried.client.recv(100) == b"answer"
        carried.server.close()
        assert carried.result.result(5)

    def test_passed_and_watched(self, carrier: Carrier) -> None:
        """What was passed on may be followed by what is refused."""
        carried = carrier.carry(Question({b"yes": Judgement.PASS, b"no": Judgement.REFUSE}))
        carried.client.sendall(b"yes")
        assert carried.server.recv(100) == b"yes"
        carried.client.sendall(b"no")
        over(carried.client)
        assert carried.result.result(5) is False
        assert carrier.volume(carried) == (3, 0)

    def test_urgent(self, carrier: Carrier) -> None:
        """Urgent data amid what is watched is refused: who receives it may read it as part of the rest, or not."""
        asked = Question({b"question": Judgement.PASS})
        carried = carrier.carry(asked)
        exchange(carried.client, carried.server)
        carried.client.send(b"!", socket.MSG_OOB)
        assert carried.result.result(5) is False
        assert asked.shown == [b"question", b""]
        over(carried.server)

    def test_no_answer_to_much(self, carrier: Carrier) -> None:
        """An inspection may hold a limited amount back, and with no answer to that it is refused."""
        carried = carrier.carry(Question())
        carried.client.sendall(b"a" * CHUNK + b"b")
        over(carried.client)
        assert carried.result.result(5) is False
        assert carrier.volume(carried) == (0, 0)

    def test_server_speaks_first(self, carrier: Carrier) -> None:
        """A server's greeting passes while the client has said nothing yet, or not enough."""
        carried = carrier.carry(Question({b"!": Judgement.DONE}))
        carried.server.sendall(b"220 ready")
        assert carried.client.recv(100) == b"220 ready"
        carried.client.sendall(b"hello")
        carried.server.sendall(b"more")
        assert carried.client.recv(100) == b"more"
        carried.client.sendall(b"!")
        assert b"".join(read(carried.server, 6)) == b"hello!"

    @EITHER_WAY
    def test_reset_meanwhile(self, carrier: Carrier, *, swapped: bool) -> None:
        """A reset passes also while the inspection waits for more."""
        carried = carrier.carry(Question())
        carried.client.sendall(b"wait")
        first, second = carried.ends(swapped=swapped)
        time.sleep(0.02)
        reset(first)
        over(second)
        assert carried.result.result(5)

    def test_error(self, carrier: Carrier) -> None:
        """An inspection that fails refuses, and whoever carries is told why."""
        carried = carrier.carry(Question({b"x": ValueError("no such letter")}))
        carried.client.sendall(b"x")
        over(carried.server)
        over(carried.client)
        with pytest.raises(ValueError, match="no such letter"):
            carried.result.result(5)


def _fill(one: socket.socket) -> int:
    """Send until nothing more is taken; return how much was."""
    one.setblocking(False)
    sent = 0
    while select.select([], [one], [], 0.3)[1]:
        with contextlib.suppress(BlockingIOError):
            sent += one.send(bytes(1 << 18))
        assert sent < 100 << 20
    one.settimeout(5)
    return sent


def _send_without_end(one: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while True:
            one.sendall(bytes(1 << 18))


def _read_without_end(one: socket.socket) -> None:
    with contextlib.suppress(ConnectionError):
        while one.recv(1 << 18):
            pass


def test_reset_of_what_is_closed() -> None:
    """Resetting twice is harmless."""
    one, other = pair()
    with other:
        reset(one)
        reset(one)
        with pytest.raises(ConnectionResetError):
            other.recv(1)

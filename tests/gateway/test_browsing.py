"""The one port at which browsers find every leaf by its name."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from traffic import attempt, dial, listen
from worlds import Visit, World, at, inside

from pytest_netns.errors import KernelError

Serve = Callable[[socket.socket], None]


def read_head(connection: socket.socket) -> bytes:
    """Read until the end of a head, and what came with it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return data


def read_all(connection: socket.socket) -> bytes:
    """Read to the end, be it a reset."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    return data


def ask(port: int, host: str, *fields: str, path: str = "/", method: str = "GET") -> bytes:
    """Send a request and return all that comes back."""
    head = "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {host}", *fields])
    with dial("127.0.0.1", port) as client:
        client.sendall(f"{head}\r\n\r\n".encode())
        return read_all(client)


def status(answer: bytes) -> int:
    """Return an answer's status."""
    return int(answer.split(b" ")[1])


@contextlib.contextmanager
def serving(place: Visit, serve: Serve, host: str = "127.0.0.1", port: int = 8080) -> Iterator[None]:
    """Let every connection to a port of the test's leaf be served, each by a thread."""
    with at(place.leaf):
        listener = listen(host, port)

    def loop() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                connection.settimeout(5)
                threads.append(threading.Thread(target=run, args=(connection,)))
                threads[-1].start()

    def run(connection: socket.socket) -> None:
        with connection:
            serve(connection)

    listener.settimeout(None)
    threads: list[threading.Thread] = []
    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        for one in (thread, *threads):
            one.join()
        listener.close()


def named(text: bytes) -> Serve:
    """Return a server that says its name, and what it was asked, and closes."""

    def serve(connection: socket.socket) -> None:
        head = read_head(connection)
        body = text + b" " + head
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    return serve


@inside
def test_each_leaf_has_its_name(world: World) -> None:
    """Servers at the same port of two leaves are told apart by name; the request arrives as it was sent."""
    one, two = Visit(world, "w0"), Visit(world, "w1")
    with at(world.outer):
        port = one.client.browse()
        assert two.client.browse() == port
        with serving(one, named(b"first")), serving(two, named(b"second")):
            first = ask(port, f"w0-t1.localhost:{port}", "Cookie: a=b", path="/x?y")
            assert b"first GET /x?y HTTP/1.1\r\nHost: w0-t1.localhost:%d\r\nCookie: a=b\r\n" % port in first
            assert b"second" in ask(port, "W1-T1.LOCALHOST")


@inside
@pytest.mark.parametrize(("bound", "at_port"), [("::1", 8080), ("0.0.0.0", 3000), ("::", 65535)])
def test_wherever_it_listens(world: World, bound: str, at_port: int) -> None:
    """A server at ::1 only, or at another port, is found too; the port that is meant without a number is the leaf's."""
    visit = Visit(world)
    visit.client.label(visit.leaf.name, "test_it", service_port=8080)
    with at(world.outer):
        port = visit.client.browse()
        with serving(visit, named(b"found"), bound, at_port):
            assert b"found" in ask(port, f"{at_port}.w0-t1.localhost")
            assert status(ask(port, "w0-t1.localhost")) == (200 if at_port == 8080 else 502)
            visit.client.label(visit.leaf.name, "test_it", service_port=at_port)
            assert b"found" in ask(port, "w0-t1.localhost")


@inside
def test_says_why_not(world: World) -> None:
    """Who asks for a leaf that is not there, or that has ended, or in which nobody listens, is told what there is."""
    visit = Visit(world)
    with at(world.outer):
        port = visit.client.browse()
        with serving(visit, named(b"other"), port=9000):
            silent = ask(port, "w0-t1.localhost")
        assert status(silent) == 502
        assert b"Nobody answers at port 8080 in w0-t1\nConnection refused" in silent
        assert b"127.0.0.1:9000" in silent
        unknown = ask(port, "w9.localhost")
        assert status(unknown) == 404
        assert b"There was none of that name" in unknown
        assert b"w0-t1" in unknown
        visit.client.label(visit.leaf.name, "test_<b>")
        assert b"<td>test_&lt;b&gt;</td>" in ask(port, "localhost", "Accept: text/html")
        visit.client.release(visit.leaf.name)
        assert visit.client.blocked() == []
        ended = ask(port, "w0-t1.localhost", "Accept: text/html")
        assert b"It has ended, with test_&lt;b&gt;." in ended


@inside
def test_index(world: World) -> None:
    """The index lists live leaves with links that lead there, says which are held, and is nobody's frame."""
    visit = Visit(world)
    with at(world.outer):
        port = visit.client.browse()
        page = ask(port, f"localhost:{port}", "Accept: text/html")
        for name in ("w0", "w0-t1"):
            assert f'<a href="http://{name}.localhost:{port}/">'.encode() in page
        assert b"(held)" not in page
        visit.client.hold(visit.leaf.name, "it failed")
        assert b"(held)" in ask(port, "127.0.0.1", "Accept: text/html")
        assert b"frame-ancestors 'none'" in page
        assert status(ask(port, "localhost", path="/favicon.ico")) == 404
        assert status(ask(port, "localhost", method="POST")) == 405
        assert ask(port, "localhost", method="HEAD").endswith(b"\r\n\r\n")


@inside
@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "w0-t1.localhost.evil", "198.18.0.2"])
def test_foreign_names_are_refused(world: World, host: str) -> None:
    """A web site whose name was made to lead here gets nothing, neither the index nor a leaf."""
    visit = Visit(world)
    with at(world.outer):
        port = visit.client.browse()
        with serving(visit, named(b"secret")):
            answer = ask(port, host)
    assert status(answer) == 421
    assert b"secret" not in answer
    assert b"w0" not in answer.replace(host.encode(), b"")


@inside
@pytest.mark.parametrize("body", ["", "Content-Length: 5", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("together", [False, True])
def test_second_request_is_never_misrouted(world: World, body: str, together: bool) -> None:
    """A client that goes on with another leaf's name, to a server that keeps connections, reaches no wrong one."""
    one, two = Visit(world, "w0"), Visit(world, "w1")
    heard: list[bytes] = []

    def keeping(connection: socket.socket) -> None:
        data = b""
        with contextlib.suppress(OSError):
            connection.settimeout(0.3)
            while piece := connection.recv(65536):
                data += piece
                if data.endswith((b"\r\n\r\n", b"12345")) and not heard:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        heard.append(data)

    content = {"": b"", "C": b"12345", "T": b"5\r\n12345\r\n0\r\n\r\n"}[body[:1]]
    first = f"POST / HTTP/1.1\r\nHost: w0-t1.localhost\r\n{body}\r\n\r\n".replace("\r\n\r\n\r\n", "\r\n\r\n").encode()
    second = b"GET /second HTTP/1.1\r\nHost: w1-t1.localhost\r\n\r\n"
    with at(world.outer):
        port = one.client.browse()
        with serving(one, keeping), serving(two, keeping), dial("127.0.0.1", port) as client:
            client.sendall(first + content + (second if together else b""))
            if not together:
                assert read_head(client).endswith(b"ok")
                client.sendall(second)
            read_all(client)
    assert all(b"/second" not in data for data in heard)


@inside
def test_much_is_carried(world: World) -> None:
    """A long body and a long answer arrive whole; what follows the former is not passed on, however long that was."""
    visit = Visit(world)
    size = 3 << 20
    heard: list[int] = []

    def serve(connection: socket.socket) -> None:
        head, _, rest = read_head(connection).partition(b"\r\n\r\n")
        assert b"Connection: close" in head
        got = len(rest)
        while got < size:
            got += len(connection.recv(65536))
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * size)
        connection.shutdown(socket.SHUT_WR)
        heard.append(got + len(read_all(connection)))

    with at(world.outer):
        port = visit.client.browse()
        with serving(visit, serve), dial("127.0.0.1", port) as client:
            client.sendall(b"PUT / HTTP/1.1\r\nHost: w0-t1.localhost\r\nContent-Length: %d\r\n\r\n" % size)
            client.sendall(b"y" * size)
            assert len(read_all(client)) == len(b"HTTP/1.1 200 OK\r\n\r\n") + size
            with contextlib.suppress(OSError):
                client.sendall(b"GET /second HTTP/1.1\r\nHost: w0.localhost\r\n\r\n")
    assert heard == [size]


@inside
@pytest.mark.parametrize("agrees", [True, False])
def test_upgrade(world: World, agrees: bool) -> None:
    """After "101" both sides say what they like; a client that was not upgraded has made its one request."""
    visit = Visit(world)
    heard: list[bytes] = []

    def serve(connection: socket.socket) -> None:
        head = read_head(connection)
        assert b"Upgrade: websocket" in head
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\nhi" if agrees else b"HTTP/1.1 200 OK\r\n\r\n")
        connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            while piece := connection.recv(100):
                heard.append(piece)
                connection.sendall(piece.upper())

    head = b"GET / HTTP/1.1\r\nHost: w0-t1.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    with at(world.outer):
        port = visit.client.browse()
        with serving(visit, serve), dial("127.0.0.1", port) as client:
            client.sendall(head)
            read_head(client)
            for word in (b"one", b"two"):
                with contextlib.suppress(OSError):
                    client.sendall(word)
                    assert client.recv(100).removeprefix(b"hi") == (word.upper() if agrees else b"")
    assert b"".join(heard) == (b"onetwo" if agrees else b"")


@inside
def test_ends_with_the_leaf(world: World) -> None:
    """A connection into a leaf is reset with the leaf, whether its server has said something yet or not."""
    visit = Visit(world)
    waiting = threading.Barrier(3)

    def serve(connection: socket.socket) -> None:
        read_head(connection)
        waiting.wait(5)
        read_all(connection)

    with at(world.outer):
        port = visit.client.browse()
        with serving(visit, serve), dial("127.0.0.1", port) as plain, dial("127.0.0.1", port) as upgraded:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: w0-t1.localhost\r\n\r\n")
            upgraded.sendall(
                b"GET / HTTP/1.1\r\nHost: w0-t1.localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            waiting.wait(5)
            visit.client.release(visit.leaf.name)
            for client in (plain, upgraded):
                with pytest.raises(ConnectionResetError):
                    client.recv(1)


@inside
def test_port(own_world: World) -> None:
    """The port that was asked for is taken or refused with a reason; without one, a free one is found; at 127.0.0.1."""
    visit = Visit(own_world)
    with at(own_world.outer):
        taken = listen("127.0.0.1", 8321)
        with pytest.raises(KernelError, match=r"127\.0\.0\.1:8321 on the host cannot be had") as caught:
            visit.client.browse(8321)
        assert caught.value.errno == errno.EADDRINUSE
        port = visit.client.browse()
        assert port != 8321
        assert attempt("203.0.113.1", port).error == "ECONNREFUSED"
        taken.close()
        with at(visit.leaf):
            assert attempt("127.0.0.1", port).error == "ECONNREFUSED"

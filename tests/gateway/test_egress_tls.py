"""A TLS client that was let through to a server by a name has to ask the server for that name."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from certificates import Certificate, make_certificate
from outside import address_of, new_name, own
from traffic import dial, listen, port_of, start, was_reset
from worlds import HOSTS, Visit, World, at, inside
from zone import Zone

TO_HOSTS = pytest.mark.parametrize("host", HOSTS)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Return a certificate for any server below example.com."""
    directory = tmp_path_factory.mktemp("tls")
    return make_certificate(directory, ["*.example.com"])


class Server:
    """A TLS server on the internet that echoes one message of each client, and knows what it was asked for."""

    def __init__(self, world: World, host: str, certificate: Certificate) -> None:
        """Serve, in a thread, until the process ends."""
        self.asked: list[str | None] = []
        self.heard: list[bytes] = []
        self._context = certificate.server()
        self._context.sni_callback = lambda _socket, name, _context: self.asked.append(name)
        with at(world.internet):
            self.listener = listen(host)
        self.listener.settimeout(None)
        self.port = port_of(self.listener)
        start(self._serve)

    def _serve(self) -> None:
        while True:
            start(self._serve_one, self.listener.accept()[0])

    def _serve_one(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as session:
            self.heard.append(session.recv(100))
            session.sendall(self.heard[-1])


class Case:
    """A server with a name, and a leaf that may reach it by a rule."""

    def __init__(
        self, world: World, certificate: Certificate, rule: str, *, host: str = HOSTS[0], sni: bool = True
    ) -> None:
        """Prepare both."""
        self.name = own("server.example.com")
        Zone(world, {self.name: [host]})
        self.server = Server(world, host, certificate)
        self.visit = Visit(world, rules=[own(rule)], sni=sni)
        self.address = address_of(self.visit.leaf, self.name)
        self._context = certificate.client()

    def connection(self) -> socket.socket:
        """Return a connection to the server, on which nothing was said yet."""
        with at(self.visit.leaf):
            return dial(self.address, self.server.port)

    def told(self, asked: str | None, context: ssl.SSLContext | None = None) -> str:
        """Speak TLS, and ask for this name; return the server's answer, or what became of the connection."""
        try:
            with (context or self._context).wrap_socket(self.connection(), server_hostname=asked) as session:
                session.sendall(b"secret")
                return session.recv(100).decode()
        except ConnectionResetError:
            return "reset"

    def blocked(self) -> list[str]:
        """Return why connections were refused, by the record."""
        return [
            flow.reason or "" for flow in self.visit.client.flows(self.visit.leaf.name) if flow.verdict == "blocked"
        ]


@inside
@pytest.mark.parametrize(("host", "rule"), [(HOSTS[0], "server.example.com:1-65535"), (HOSTS[1], "*.example.com")])
def test_right_name(world: World, certificate: Certificate, host: str, rule: str) -> None:
    """A client that asks for the name that it dialled is served, in capitals as well."""
    case = Case(world, certificate, rule, host=host)
    assert case.told(case.name) == "secret"
    assert case.told(case.name.upper()) == "secret"
    assert case.blocked() == []
    assert len(case.server.asked) == 2


@inside
@TO_HOSTS
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_wrong_name(world: World, certificate: Certificate, host: str, version: ssl.TLSVersion) -> None:
    """A client that asks for another name is reset, the server hears nothing, and the record says why."""
    case = Case(world, certificate, "server.example.com", host=host)
    context = certificate.client()
    context.minimum_version = context.maximum_version = version
    for name in (own("www.example.com"), f"x.{case.name}", "example.com", f"{case.name}.evil.org"):
        assert case.told(name, context) == "reset"
        assert case.blocked()[-1] == f"its TLS ClientHello asks for {name}, which {case.name} does not allow"
    time.sleep(0.05)
    assert case.server.asked == []
    summary = {one.endpoint: one for one in case.visit.client.blocked(own=True)}
    assert summary[f"tcp {case.name}:{case.server.port}"].count == 4
    assert summary[f"tcp {case.name}:{case.server.port}"].allow is None
    assert "which server." in (summary[f"tcp {case.name}:{case.server.port}"].reason or "")


@inside
def test_other_names_below_a_wildcard(world: World, certificate: Certificate) -> None:
    """Under a wildcard any name below it may be asked for, and none that is not."""
    case = Case(world, certificate, "*.example.com")
    assert case.told(own("www.example.com")) == "secret"
    assert case.told(own("a.b.example.com")) == "secret"
    for name in (own("example.com"), own("www.example.org")):
        assert case.told(name) == "reset"
    assert len(case.server.heard) == 2


@inside
def test_names_are_free_without_the_check(world: World, certificate: Certificate) -> None:
    """Where the check is off, and where a rule lists the address, any name may be asked for."""
    case = Case(world, certificate, "server.example.com", sni=False)
    assert case.told(own("www.example.org")) == "secret"
    case.visit.client.label(case.visit.leaf.name, "test_next", rules=[HOSTS[0]])
    case.address = HOSTS[0]
    assert case.told(own("www.example.org")) == "secret"
    assert case.blocked() == []


@inside
def test_no_name(world: World, certificate: Certificate) -> None:
    """A client that asks for no name, since it knows the server by its address, is served."""
    case = Case(world, certificate, "server.example.com")
    assert case.told(None) == "secret"
    assert case.server.asked == [None]


@inside
@pytest.mark.parametrize(("size", "right"), [(1, False), (7, True), (100, False), (100, True)])
def test_split_hello(world: World, certificate: Certificate, size: int, right: bool) -> None:
    """A hello that arrives in many pieces is judged as a whole: none of it is passed on before."""
    case = Case(world, certificate, "server.example.com")
    hello = hello_for(case.name if right else own("www.example.com"))
    client = case.connection()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        for offset in range(0, len(hello), size):
            client.sendall(hello[offset : offset + size])
            time.sleep(0.0005)
    if right:
        assert client.recv(5)[:1] == b"\x16"
        assert case.server.asked == [case.name]
    else:
        assert was_reset(client)
        assert case.server.asked == []


@inside
def test_hello_that_is_not_finished(world: World, certificate: Certificate) -> None:
    """As long as the name is not there, nothing goes to the server; nor where it never comes."""
    case = Case(world, certificate, "server.example.com")
    with at(world.internet):
        silent = listen(HOSTS[0])
    with at(case.visit.leaf):
        client = dial(case.address, port_of(silent))
    server = silent.accept()[0]
    server.settimeout(0.2)
    client.sendall(hello_for(case.name)[:50])
    with pytest.raises(TimeoutError):
        server.recv(1)
    client.sendall(hello_for(own("www.example.com"))[50:])
    assert was_reset(client)
    assert was_reset(server)


def hello_for(name: str) -> bytes:
    """Return the first message of a client that asks for this name."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    session = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    return outgoing.read()


@inside
@pytest.mark.parametrize(("right", "sni"), [(True, True), (False, True), (False, False)])
def test_second_hello(world: World, certificate: Certificate, right: bool, sni: bool) -> None:
    """A server that asks for a second hello gets it, unless that asks for another name than the first."""
    case = Case(world, certificate, "server.example.com", sni=sni)
    other = case.name.replace("server", "forged")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = certificate.client().wrap_bio(incoming, outgoing, server_hostname=case.name)
    with openssl_server(world, certificate) as port, at(case.visit.leaf), dial(case.address, port) as client:
        for hello in ("first", "second"):
            with contextlib.suppress(ssl.SSLWantReadError):
                session.do_handshake()
            data = outgoing.read()
            if hello == "second" and not right:
                assert case.name.encode() in data
                data = data.replace(case.name.encode(), other.encode())
            client.sendall(data)
            if hello == "first":  # the answer: the client shall offer another curve
                incoming.write(client.recv(10_000))
        if right or not sni:
            assert client.recv(1) == b"\x16"
            assert case.blocked() == []
        else:
            assert was_reset(client)
            assert len(case.blocked()) == 1


@contextlib.contextmanager
def openssl_server(world: World, certificate: Certificate) -> Iterator[int]:
    """Serve with OpenSSL's program, which can be told to take a curve only that no client offers a key for at first."""
    with at(world.internet):
        probe = listen(HOSTS[0])
        port = port_of(probe)
        probe.close()
        command = ["openssl", "s_server", "-accept", f"{HOSTS[0]}:{port}", "-cert", str(certificate.path)]
        command += ["-key", str(certificate.key), "-groups", "P-384", "-tls1_3", "-quiet"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        with at(world.outer):
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection((HOSTS[0], port), 1):
                    break
                time.sleep(0.02)
        yield port
    finally:
        process.kill()
        process.wait()


@inside
def test_plain_text(world: World, certificate: Certificate) -> None:
    """What is no TLS is none of this check's business: HTTP, a server that speaks first, TLS after plain text."""
    case = Case(world, certificate, "server.example.com")
    with at(world.internet):
        listener = listen(HOSTS[0])
    for first in (b"GET / HTTP/1.1\r\nHost: www.example.org\r\n\r\n", b"EHLO me\r\nSTARTTLS\r\n"):
        with at(case.visit.leaf):
            client = dial(case.address, port_of(listener))
        server = listener.accept()[0]
        server.sendall(b"220 ready\r\n")
        assert client.recv(100) == b"220 ready\r\n"
        client.sendall(first)
        assert server.recv(100) == first
        client.sendall(hello_for(own("www.example.org")))
        assert server.recv(5)[:1] == b"\x16"
    assert case.blocked() == []


@inside
def test_each_client_is_judged_by_itself(world: World, certificate: Certificate) -> None:
    """Of fifty clients at once those get through that ask for the right name."""
    case = Case(world, certificate, "server.example.com")
    told: dict[int, str] = {}
    connections = [case.connection() for _ in range(50)]

    def speak(number: int) -> None:
        name = case.name if number % 2 else new_name(number)
        try:
            with certificate.client().wrap_socket(connections[number], server_hostname=name) as session:
                session.sendall(str(number).encode())
                told[number] = session.recv(100).decode()
        except ConnectionResetError:
            told[number] = "reset"

    threads: list[threading.Thread] = [start(speak, number) for number in range(50)]
    for thread in threads:
        thread.join(10)
    assert told == {number: str(number) if number % 2 else "reset" for number in range(50)}
    assert len(case.blocked()) == 25

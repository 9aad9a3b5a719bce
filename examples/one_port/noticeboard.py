"""A noticeboard: HTTP to pin, read and take down notices, UDP on the same port to look one up.

Start it with ``python noticeboard.py [--host HOST] [--port PORT]``; it stops on SIGTERM or SIGINT.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import BaseRequestHandler, ThreadingUDPServer


class Board:
    """The notices, each under a name; safe to use from several threads."""

    def __init__(self) -> None:
        """Start empty."""
        self._lock = threading.Lock()
        self._notices: dict[str, bytes] = {}

    def pin(self, name: str, text: bytes) -> None:
        """Put up a notice, in place of one of the same name."""
        with self._lock:
            self._notices[name] = text

    def read(self, name: str) -> bytes | None:
        """Return a notice's text, or None."""
        with self._lock:
            return self._notices.get(name)

    def take_down(self, name: str) -> bool:
        """Remove a notice, and tell whether there was one."""
        with self._lock:
            return self._notices.pop(name, None) is not None

    def names(self) -> list[str]:
        """List the names of all notices."""
        with self._lock:
            return sorted(self._notices)


class HttpServer(ThreadingHTTPServer):
    """The board's HTTP side."""

    def __init__(self, address: tuple[str, int], board: Board) -> None:
        """Bind to an address and listen."""
        self.board = board
        super().__init__(address, HttpHandler)


class HttpHandler(BaseHTTPRequestHandler):
    """Serves ``GET /``, and ``GET``, ``PUT`` and ``DELETE /<name>``."""

    server: HttpServer

    def do_GET(self) -> None:
        """Send one notice, or all names."""
        name = self.path.removeprefix("/")
        text = self.server.board.read(name) if name else "\n".join(self.server.board.names()).encode()
        self._answer(HTTPStatus.NOT_FOUND if text is None else HTTPStatus.OK, text or b"")

    def do_PUT(self) -> None:
        """Pin a notice."""
        self.server.board.pin(self.path.removeprefix("/"), self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(HTTPStatus.CREATED)

    def do_DELETE(self) -> None:
        """Take a notice down."""
        found = self.server.board.take_down(self.path.removeprefix("/"))
        self._answer(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND)

    def _answer(self, status: HTTPStatus, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is http.server's
        """Keep quiet."""


class UdpServer(ThreadingUDPServer):
    """The board's UDP side."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], board: Board) -> None:
        """Bind to an address."""
        self.board = board
        super().__init__(address, UdpHandler)


class UdpHandler(BaseRequestHandler):
    """Answers a datagram that holds a name with the notice's text, which may be empty."""

    server: UdpServer

    def handle(self) -> None:
        """Answer one datagram."""
        datagram, sock = self.request
        sock.sendto(self.server.board.read(datagram.decode()) or b"", self.client_address)


@contextlib.contextmanager
def serving(host: str, port: int) -> Iterator[Board]:
    """Serve a new board over TCP and UDP while the block runs."""
    board = Board()
    with HttpServer((host, port), board) as tcp, UdpServer((host, port), board) as udp:
        threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in (tcp, udp)]
        for thread in threads:
            thread.start()
        try:
            yield board
        finally:
            tcp.shutdown()
            udp.shutdown()
            for thread in threads:
                thread.join()


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    arguments = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with serving(arguments.host, arguments.port):
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()

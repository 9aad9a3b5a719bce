"""Ways to ask a noticeboard."""

from __future__ import annotations

import http.client
import socket


def ask(method: str, name: str, body: bytes | None = None, *, host: str = "127.0.0.1", port: int) -> tuple[int, bytes]:
    """Send one HTTP request and return status and body."""
    connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, f"/{name}", body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def look_up(name: str, *, host: str = "127.0.0.1", port: int) -> bytes:
    """Ask for a notice over UDP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect((host, port))
        client.send(name.encode())
        return client.recv(2048)

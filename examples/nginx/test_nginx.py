"""Every test has an nginx of its own, all of them on port 80, started by whoever runs the tests.

Run them with ``pytest --netns -n 4 examples/nginx``. They need Debian's ``nginx-light``.
"""

from __future__ import annotations

import http.client
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_netns import ServicePort

NGINX = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin")
CONFIG = Path(__file__).with_name("nginx.conf")

pytestmark = [
    pytest.mark.netns(port=80),
    pytest.mark.skipif(NGINX is None, reason="needs nginx: apt-get install nginx-light"),
]


@pytest.fixture
def site(netns_service: ServicePort, tmp_path: Path) -> Iterator[Path]:
    """Start nginx and return the folder that it serves."""
    html = tmp_path / "html"
    html.mkdir()
    assert NGINX is not None
    with subprocess.Popen([NGINX, "-p", tmp_path, "-e", "stderr", "-c", CONFIG]) as server:
        netns_service.wait()
        yield html
        server.terminate()


def get(host: str, path: str) -> tuple[int, bytes]:
    """Fetch a page from port 80."""
    connection = http.client.HTTPConnection(host, 80, timeout=5)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("text", [b"one", b"two", b"three", b"four"])
def test_serves_this_tests_page(site: Path, host: str, text: bytes) -> None:
    """The page is this test's, whatever others serve on port 80 at the same time."""
    (site / "page").write_bytes(text)
    assert get(host, "/page") == (200, text)


def test_missing_page(site: Path) -> None:
    """A page of another test is not here."""
    assert get("127.0.0.1", "/page")[0] == 404

"""``--netns-publish``, looked at in Chromium."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import Suite, requires

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]

SITE = '''
import base64, hashlib, http.server, os, threading
from tools import note

LEAF = os.environ["PYTEST_NETNS"]
PAGE = """<!doctype html><title>{leaf}</title><iframe src="http://{other}.localhost:{port}/frame"></iframe><script>
const heard = {{}};
function hear(from, what) {{
    heard[from] = what;
    if (heard.socket && heard.frame)
        fetch("/result", {{method: "POST", body: heard.socket + " " + heard.frame + " " + location.host}});
}}
onmessage = event => hear("frame", event.data);
const socket = new WebSocket("ws://" + location.host + "/socket");
socket.onopen = () => socket.send("a word");
socket.onmessage = event => hear("socket", event.data);
</script>"""
FRAME = "<!doctype html><script>parent.postMessage('frame of {leaf}', '*')</script>"

class Site(http.server.BaseHTTPRequestHandler):
    """Two pages, a WebSocket that answers one message, and what the page has heard."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/socket":
            return self.talk()
        port = self.headers["Host"].partition(":")[2]
        other = {"gw0-t1": "gw1-t1", "gw1-t1": "gw0-t1"}[LEAF]
        page = FRAME.format(leaf=LEAF) if self.path == "/frame" else PAGE.format(leaf=LEAF, other=other, port=port)
        self.say(page.encode())

    def do_POST(self):
        note(LEAF, "heard:", self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.say(b"")

    def say(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def talk(self):
        key = self.headers["Sec-WebSocket-Key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key).digest()).decode())
        self.end_headers()
        length = self.rfile.read(2)[1] & 127
        mask, data = self.rfile.read(4), self.rfile.read(length)
        answer = bytes(one ^ mask[place % 4] for place, one in enumerate(data)).upper()
        self.wfile.write(bytes([0x81, len(answer)]) + answer)
        self.close_connection = True

    def log_message(self, *_):
        pass

def serve():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Site)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
'''

TESTS = """
import os, time
import pytest

@pytest.mark.parametrize("number", [1, 2])
def test_site(number):
    from website import serve
    server = serve()
    while not os.path.exists("looked"):
        time.sleep(0.02)
    server.shutdown()
    server.server_close()
"""


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[list[str]]:
    """Return the beginning of a command for a browser of the test's own; in CI there has to be one."""
    if not CHROMIUM:
        (pytest.fail if "CI" in os.environ else pytest.skip)("there is no Chromium here")
    yield [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    shutil.rmtree(tmp_path / "profile", ignore_errors=True)


@requires("pytest-xdist")
def test_in_a_browser(suite: Suite, chromium: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers at one port of parallel tests are all seen at once, by name, WebSockets included, and in the index."""
    suite.write(website=SITE, test_site=TESTS)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # the header is wanted while the tests run
    process = suite.start("--netns", "--netns-publish", "-n2", "-s")
    assert process.stdout is not None
    found = None
    while found is None:
        line = process.stdout.readline()
        assert line
        found = re.search(r"leaves at http://localhost:(\d+)/", line)
    port = int(found.group(1))
    try:
        index = read_index(chromium, port)
        for leaf in ("gw0-t1", "gw1-t1"):
            assert f'<a href="http://{leaf}.localhost:{port}/">' in index
        assert "test_site.py::test_site[2]" in index
        heard = look(suite, chromium, f"http://gw0-t1.localhost:{port}/")
        assert heard == f"gw0-t1 heard: A WORD frame of gw1-t1 gw0-t1.localhost:{port}"
    finally:
        suite.path.joinpath("looked").touch()
        rest = process.communicate(timeout=30)[0]
    assert "2 passed" in rest


def read_index(chromium: list[str], port: int) -> str:
    """Return the index as the browser has it, once both tests have their leaves."""
    url = f"http://127.0.0.1:{port}/"
    deadline = time.monotonic() + 30
    while not all(leaf in urllib.request.urlopen(url, timeout=10).read() for leaf in (b"gw0-t1", b"gw1-t1")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command = [*chromium, "--dump-dom", f"http://localhost:{port}/"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def look(suite: Suite, chromium: list[str], url: str) -> str:
    """Open a page, and return what it tells its server."""
    with subprocess.Popen(
        [*chromium, url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as browser:
        try:
            deadline = time.monotonic() + 40
            while not (notes := suite.notes()):
                assert time.monotonic() < deadline, "the page has told nothing"
                time.sleep(0.05)
            return notes[0]
        finally:
            os.killpg(browser.pid, signal.SIGKILL)

"""pytest-playwright, with a real browser."""

from __future__ import annotations

from runs import IN_EVERY_WAY, Suite, requires

pytestmark = requires("pytest-playwright", program="/usr/bin/chromium")

CONFTEST = """
import pytest

QUIET = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"

@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    options = ["--no-sandbox", "--disable-background-networking", QUIET]
    return browser_type_launch_args | {"executable_path": "/usr/bin/chromium", "args": options}

@pytest.fixture(scope="session")
def tab(browser):
    with browser.new_context() as context:
        yield context.new_page()
"""
APPLICATION = """
import http.server, sys

class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        text = f"<title>{sys.argv[1]}</title>{self.path}".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Page).serve_forever()
"""
SUITE = """
import socket, subprocess, sys, time
import pytest

@pytest.fixture
def application(request):
    name = request.node.name
    with subprocess.Popen([sys.executable, "application.py", name]) as process:
        while socket.socket().connect_ex(("127.0.0.1", 8080)):
            time.sleep(0.02)
        yield name
        process.kill()

def check(page, application):
    for host in "localhost", "127.0.0.1":
        page.goto(f"http://{host}:8080/")
        assert page.title() == application
        assert page.evaluate("fetch('/more').then(answer => answer.text())").endswith("/more")

@pytest.mark.parametrize("number", range(2))
def test_own_page(application, page, number):
    check(page, application)

@pytest.mark.parametrize("number", range(2))
def test_same_page(application, tab, number):
    check(tab, application)
"""


@IN_EVERY_WAY
def test_one_port(suite: Suite, way: tuple[str, ...]) -> None:
    """The session's browser finds the application of each test at the one port, also in a page that all tests share."""
    suite.write(conftest=CONFTEST, application=APPLICATION, test_browser=SUITE)
    suite.passes(*way, plugins="playwright", passed=4)

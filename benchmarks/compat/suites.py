"""The suites: which projects, at which version, with what installed, and how their own authors run them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True)
class Suite:
    """One project's tests.

    Attributes:
        name: the project, as the registry has it.
        version: which of its source distributions to take.
        requirements: what its tests need to be installed besides the project itself.
        arguments: for pytest, in every configuration: what to run, and what the project's own settings would add.
        extras: the project's extras to install.
        isolated: for pytest, under ``--netns`` only: the rules that the suite needs.
        drop: what to take away from the source, so that the installed package is what is imported.
        files: files to add to the source, by name.
        before: a shell command, run as root in the suite's world, that starts what the suite expects there.
        users: who can run it at all.
        environment: variables for the run.
        limit: seconds after which a run is ended.
        ci: whether it belongs to the subset that every commit is tried with.
        causes: why tests fail under isolation that pass without, by pattern of the test's name.
    """

    name: str
    version: str
    requirements: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    extras: str = ""
    isolated: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    before: str = ""
    users: tuple[str, ...] = ("root", "tester")
    environment: Mapping[str, str] = field(default_factory=dict)
    limit: int = 240
    ci: bool = False
    causes: Mapping[str, str] = field(default_factory=dict)


_NO_ADDOPTS = ("-o", "addopts=")
_POSTGRESQL = """
install --directory --owner postgres ../database
runuser -u postgres -- initdb --auth=trust --username=postgres ../database/data >/dev/null
runuser -u postgres -- pg_ctl --pgdata=../database/data --log=../database/log --wait start \\
    --options="-k '' -c fsync=off -c max_prepared_transactions=10" >/dev/null
runuser -u postgres -- /usr/lib/postgresql/*/bin/createdb --host=127.0.0.1 psycopg2_test
"""

# Each the way its authors run it, but for coverage; the long ones in part: what has to do with the network.
SUITES = (
    Suite(
        "httpx",
        "0.28.1",
        ("pytest>=8.4", "trio", "trustme", "uvicorn", "chardet", "cryptography"),
        extras="brotli,cli,http2,socks,zstd",
        drop=("httpx",),
    ),
    Suite(
        "pytest-httpserver",
        "1.2.0",
        ("requests", "tomli"),
        ("--deselect=tests/test_release.py",),
        drop=("pytest_httpserver",),
        ci=True,
    ),
    Suite(
        "uvicorn",
        "0.54.0",
        ("pytest-mock", "trustme", "cryptography", "httpx2", "a2wsgi", "wsproto", "zttp", "psutil"),
        (
            *("-o", "addopts=-rxXs", "tests/protocols/test_websocket.py", "tests/test_server.py"),
            *("tests/test_main.py", "tests/test_ssl.py", "tests/middleware"),
        ),
        extras="standard",
        drop=("uvicorn",),
    ),
    Suite(
        "werkzeug",
        "3.1.9",
        ("cffi", "cryptography", "ephemeral-port-reserve", "pytest-timeout", "watchdog"),
        ("--deselect=tests/test_serving.py::test_reloader_sys_path[watchdog]",),  # hangs by itself, now and then
        drop=("src",),
    ),
    Suite(
        "aiohttp",
        "3.14.5",
        (
            *("blockbuster", "freezegun", "proxy.py>=2.4.4rc5", "pytest-mock", "pytest-timeout", "pytest-cov"),
            *("pytest-codspeed", "trustme", "isal", "zlib_ng", "python-on-whales", "pkgconfig", "uvloop"),
        ),
        (
            *_NO_ADDOPTS,
            *(f"tests/test_{name}.py" for name in ("web_functional", "connector", "resolver", "web_server")),
            *(f"tests/test_{name}.py" for name in ("web_sendfile_functional", "client_ws_functional", "test_utils")),
        ),
        extras="speedups",
        drop=("aiohttp",),
    ),
    Suite(
        "hypercorn",
        "0.18.0",
        ("httpx", "hypothesis", "mock", "pytest", "pytest-asyncio", "pytest-trio", "trio"),
        _NO_ADDOPTS,
        extras="h3,trio,uvloop",
        drop=("src",),
    ),
    Suite(
        "tornado",
        "6.6.1",
        ("pycurl", "twisted", "pytest"),
        (
            *("-p", "no:logging", "-o", "python_files=*_test.py test_own_runner.py", "test_own_runner.py", "--pyargs"),
            *(f"tornado.test.{name}_test" for name in ("netutil", "tcpclient", "tcpserver", "process", "ioloop")),
        ),
        drop=("tornado",),
        causes={
            "*::test_source_port_fail": "expects an ordinary user not to get port 1; inside, any is free for everybody"
        },
        files={
            "test_own_runner.py": (
                "import subprocess, sys\n\n\ndef test_own_runner():\n"
                "    subprocess.run([sys.executable, '-m', 'tornado.test'], check=True)\n"
            )
        },
    ),
    Suite(
        "trio",
        "0.35.0",
        ("trustme", "pyopenssl", "cryptography", "async_generator", "astor", "pytest>=8.4"),
        (
            *("-p", "trio._tests.pytest_plugin", "--skip-optional-imports", "--pyargs", "trio"),
            *("-o", "addopts=--strict-markers --import-mode=importlib", "-k", "not test_exports and not tools"),
        ),
        drop=("src",),
    ),
    Suite(
        "anyio",
        "4.16.0",
        (
            *("blockbuster>=1.5.29", "hypothesis", "psutil", "pytest>=9", "pytest-mock", "pytest-timeout"),
            *("trustme", "truststore", "uvloop", "coverage"),
        ),
        (
            *("-m", "not network", "-k", "not uvloop", "tests/test_sockets.py", "tests/test_to_thread.py"),
            *("tests/test_subprocesses.py", "tests/test_from_thread.py", "tests/streams/test_tls.py"),
        ),
        extras="trio",
        drop=("src",),
    ),
    Suite(
        "gunicorn",
        "27.0.1",
        (
            *("gevent>=24.10.1", "h2", "packaging", "pytest-asyncio", "uvloop", "httpx[http2]", "inotify"),
            *("tornado", "setproctitle", "coverage"),
        ),
        (
            *("-o", "addopts=--assert=plain"),
            *(
                f"tests/test_{name}.py"
                for name in ("sock", "statsd", "systemd", "gtornado", "asgi_worker", "http2_live")
            ),
            *(f"tests/test_{name}_integration.py" for name in ("control_socket", "http2", "signal")),
        ),
        drop=("gunicorn",),
    ),
    Suite(
        "sanic",
        "25.12.1",
        (
            *("sanic-testing>=23.6", "beautifulsoup4", "chardet==3.*", "docutils", "pygments", "uvicorn"),
            *("pytest-benchmark", "pytest-sanic", "setuptools<80", "cryptography"),
        ),
        drop=("sanic",),
    ),
    Suite(
        "urllib3",
        "2.8.0",
        (
            *("anyio[trio]", "h2", "httpx", "hypercorn", "pysocks", "pytest-socket", "pytest-timeout", "quart"),
            *("quart-trio", "trio", "cryptography", "idna", "pyopenssl", "trustme"),
        ),
        ("test/with_dummyserver", "--ignore=test/with_dummyserver/test_https.py"),
        extras="brotli,zstd,socks,h2",
        drop=("src",),
    ),
    Suite(
        "requests",
        "2.34.2",
        ("pytest-httpbin==2.1.0", "httpbin~=0.10.0", "pytest-mock", "trustme"),
        (*_NO_ADDOPTS, "-k", "not test_encoded_methods", "tests/test_requests.py", "tests/test_utils.py"),
        extras="socks",
        drop=("src",),
    ),
    Suite("flask", "3.1.3", ("asgiref", "greenlet", "pytest<9", "python-dotenv"), drop=("src",), ci=True),
    Suite(
        "asyncssh",
        "2.24.1",
        ("aiofiles", "bcrypt", "ifaddr", "pyopenssl", "uvloop", "setuptools"),
        ("tests/test_agent.py", "tests/test_forward.py"),
        drop=("asyncssh",),
    ),
    Suite(
        "pyftpdlib",
        "2.2.0",
        ("psutil", "pyopenssl", "pytest-instafail", "setuptools"),
        (*_NO_ADDOPTS,),
        extras="ssl",
    ),
    Suite(
        "zeroconf",
        "0.154.0",
        ("pytest-asyncio", "pytest-timeout", "pytest-codspeed"),
        (*_NO_ADDOPTS, "--ignore=tests/benchmarks", "--ignore=tests/test_circular_imports.py"),
        drop=("src",),
    ),
    Suite("pyzmq", "27.3.0", ("pytest-asyncio", "tornado", "pymongo", "gevent"), drop=("zmq",)),
    Suite(
        "redis",
        "8.1.0",
        (
            *("pytest-asyncio", "pytest-timeout", "numpy", "xxhash", "pybreaker", "opentelemetry-api"),
            *("redis-entraid==1.2.1", "cryptography", "pyopenssl", "uvloop", "ujson", "PyJWT", "aiohttp"),
            "opentelemetry-sdk",
        ),
        (
            *("-m", "not onlycluster and not redismod and not ssl and not replica", "--timeout=30"),
            *(f"tests/{name}.py" for name in ("test_pipeline", "test_lock", "test_pubsub", "test_monitor")),
            *(f"tests/test_asyncio/{name}.py" for name in ("test_pipeline", "test_lock", "test_scripting")),
        ),
        isolated=("--netns-allow=localhost:6379",),
        drop=("redis",),
        before="redis-server --daemonize yes --save '' --enable-debug-command yes >/dev/null; sleep 0.5",
    ),
    Suite(
        "psycopg2",
        "2.9.13",
        ("pytest",),
        ("tests",),
        isolated=("--netns-allow=localhost:5432",),
        drop=("lib",),
        before=_POSTGRESQL,
        environment={"PSYCOPG2_TESTDB_HOST": "127.0.0.1", "PSYCOPG2_TESTDB_USER": "postgres"},
    ),
    Suite(
        "asyncpg",
        "0.32.0",
        ("distro", "uvloop", "pytest"),
        ("tests", "--ignore=tests/test__environment.py", "--ignore=tests/test__sourcecode.py"),
        drop=("asyncpg",),
        users=("tester",),  # starts PostgreSQL itself, which refuses to be root's
        environment={"PGINSTALLATION": "/usr/lib/postgresql/15/bin"},
    ),
)

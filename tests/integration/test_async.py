"""pytest-asyncio and anyio."""

from __future__ import annotations

import pytest
from runs import Suite, requires

ASYNCIO = """
import asyncio
import pytest, pytest_asyncio
from tools import leaf

async def serve(port, word):
    async def greet(reader, writer):
        writer.write(word)
        writer.close()
    return await asyncio.start_server(greet, "127.0.0.1", port)

async def ask(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await reader.read()
    finally:
        writer.close()

@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def base():
    server = await serve(9000, b"session")
    place = leaf()
    yield place
    assert leaf() == place
    assert await ask(9000) == b"session"
    server.close()

@pytest_asyncio.fixture
async def server():
    server = await serve(8080, b"function")
    place = leaf()
    yield place
    assert leaf() == place
    assert await ask(8080) == b"function"
    server.close()

@pytest_asyncio.fixture(loop_scope="session")
async def server_of_session_loop():
    server = await serve(8080, b"function")
    place = leaf()
    yield place
    assert leaf() == place
    server.close()

@pytest.mark.asyncio
@pytest.mark.parametrize("number", range(2))
async def test_function_loop(server, number):
    assert leaf() == server
    assert await ask(8080) == b"function"

@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("number", range(2))
async def test_session_loop(base, server_of_session_loop, number):
    assert leaf() == server_of_session_loop != base
    assert await ask(8080) == b"function"
    assert await ask(9000) == b"session"

@pytest.mark.asyncio(loop_scope="module")
async def test_threads(server):
    assert await asyncio.to_thread(leaf) == leaf()
    process = await asyncio.create_subprocess_exec("readlink", "/proc/self/ns/net", stdout=asyncio.subprocess.PIPE)
    assert (await process.communicate())[0].decode() == f"net:[{leaf()[1]}]\\n"
"""
ANYIO = """
import contextlib
import anyio, pytest
from anyio.abc import SocketAttribute
from tools import leaf

pytestmark = pytest.mark.anyio

@pytest.fixture(scope="module", params=["asyncio", "trio"])
def anyio_backend(request):
    return request.param

@contextlib.asynccontextmanager
async def serving(port, word):
    async def greet(client):
        async with client:
            await client.send(word)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port) as listener:
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, greet)
            yield leaf()
            group.cancel_scope.cancel()

async def ask(port):
    async with await anyio.connect_tcp("127.0.0.1", port) as client:
        return await client.receive()

@pytest.fixture(scope="module")
async def base():
    async with serving(9000, b"module") as place:
        yield place
        assert leaf() == place

@pytest.fixture
async def server():
    async with serving(8080, b"function") as place:
        yield place
        assert leaf() == place

@pytest.mark.parametrize("number", range(2))
async def test_it(base, server, number):
    assert leaf() == server != base
    assert await ask(8080) == b"function"
    assert await ask(9000) == b"module"
"""


@requires("pytest-asyncio")
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_asyncio(suite: Suite, workers: tuple[str, ...]) -> None:
    """Tests and fixtures run where they belong, whichever loop runs them, and servers of both are reached."""
    suite.write(test_asyncio=ASYNCIO)
    options = ("-o", "asyncio_default_fixture_loop_scope=function", "-Werror")
    suite.run("--netns", *workers, *options, plugins="asyncio").assert_outcomes(passed=5)


@requires("anyio", "trio")
@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_anyio(suite: Suite, workers: tuple[str, ...]) -> None:
    """So they do with anyio, on asyncio and on trio."""
    suite.write(test_anyio=ANYIO)
    suite.run("--netns", *workers, "-Werror", plugins="anyio").assert_outcomes(passed=4)

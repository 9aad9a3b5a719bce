"""Taking clients on where descriptors are short."""

from __future__ import annotations

import asyncio
import os
import resource
import socket

from pytest_netns.gateway.accepting import accept


def test_without_descriptors() -> None:
    """Who can't be taken on for want of a descriptor waits, without keeping the gateway busy, and is taken on later."""
    calls, taken = [], []

    def take(listener: socket.socket) -> None:
        calls.append(listener)
        accepted = accept(listener, take, listener)
        if accepted is not None:
            taken.append(accepted[0])

    async def main() -> None:
        loop, (soft, hard) = asyncio.get_running_loop(), resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            listener.setblocking(False)
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
            try:
                loop.add_reader(listener, take, listener)
                await asyncio.sleep(0.35)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert taken == []
            assert 1 <= len(calls) <= 5
            await asyncio.sleep(0.15)
            loop.remove_reader(listener)
        assert [one.getblocking() for one in taken] == [False]
        taken[0].close()

    asyncio.run(main())


def test_closed_meanwhile() -> None:
    """A listener that is closed while it is left alone is not taken up again."""
    problems: list[object] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: problems.append(context))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
            listener.setblocking(False)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                assert accept(listener, problems.append, listener) is None
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await asyncio.sleep(0.15)

    asyncio.run(main())
    assert problems == []

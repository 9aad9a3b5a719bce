"""Look names up as the host does, without keeping the gateway's loop waiting."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import threading
import time
import weakref
from typing import Final, NamedTuple

from pytest_netns.policy import Address

_FRESH: Final = 1.0  # seconds; so the question for a name and the connection to it are one look-up
_TIMEOUT: Final = 20.0  # seconds
_AT_ONCE: Final = 256  # threads
_AT_ONCE_EACH: Final = 16
_MISSING: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})


class Found(NamedTuple):
    """One of a name's addresses, and whether it is the host's own."""

    address: Address
    own: bool


class LookupFailedError(OSError):
    """The host could not find out whether the name exists."""


class Resolver:
    """The host's resolver, asked through getaddrinfo(3): its files, caches and search order apply."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, asyncio.Future[list[Found]]]] = {}
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._turns: weakref.WeakKeyDictionary[object, asyncio.Semaphore] = weakref.WeakKeyDictionary()

    async def look_up(self, name: str, asker: object) -> list[Found]:
        """Return a name's addresses in the host's order of preference; none where it does not exist.

        Whoever asks for many names at once waits, and keeps others from theirs as little as can be.

        Raises:
            LookupFailedError: nobody who could tell has answered in time.
        """
        known = self._fresh(name)
        if known is None:
            async with self._turns.setdefault(asker, asyncio.Semaphore(_AT_ONCE_EACH)):
                known = self._fresh(name)
                if known is None:
                    known = asyncio.ensure_future(self._ask(name))
                    self._known[name] = time.monotonic(), known
                return await asyncio.shield(known)
        return await asyncio.shield(known)

    def _fresh(self, name: str) -> asyncio.Future[list[Found]] | None:
        """Return the look-up of a name that is going on, or has just succeeded."""
        oldest = time.monotonic() - _FRESH
        self._known = {
            other: (began, answer)
            for other, (began, answer) in self._known.items()
            if not answer.done() or (began > oldest and not answer.exception())
        }
        return self._known.get(name, (0.0, None))[1]

    async def _ask(self, name: str) -> list[Found]:
        async with self._turn:
            try:
                return await asyncio.wait_for(_in_thread(name), _TIMEOUT)
            except asyncio.TimeoutError:
                raise LookupFailedError(f"no answer for {name} within {_TIMEOUT:.0f} s") from None


def _in_thread(name: str) -> asyncio.Future[list[Found]]:
    """Look a name up in a thread that the process does not wait for when it ends."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[list[Found]] = loop.create_future()

    def settle(found: list[Found] | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(found or [])

    def run() -> None:
        found, error = None, None
        try:
            found = _addresses(name)
        except OSError as problem:
            error = LookupFailedError(f"{name}: {problem.strerror}")
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, found, error)

    threading.Thread(target=run, name="resolver", daemon=True).start()
    return future


def _addresses(name: str) -> list[Found]:
    try:
        answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except socket.gaierror as error:
        if error.errno in _MISSING:
            return []
        raise
    except UnicodeError:  # a label that is too long for Python's own encoder
        return []
    found = [ipaddress.ip_address(str(answer[4][0]).partition("%")[0]) for answer in answers]
    return [Found(address, _is_own(address)) for address in found]


def _is_own(address: Address) -> bool:
    """Tell whether an address is this machine's: then what is sent there has it as its source, too."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))  # which sends nothing
            return bool(probe.getsockname()[0] == str(address))
    except OSError:
        return False

"""What is put right the moment that a test returns, before anybody else in the process gets to see it."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Generator
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

from pytest_netns.errors import KernelError

if TYPE_CHECKING:
    from pytest_netns.isolation import Isolation

__all__ = ["Aftermath", "strand"]

_PATIENCE: Final = 5.0  # seconds

# A test may have replaced them.
_exit, _getpid, _sleep = os._exit, os.getpid, time.sleep
_getrlimit, _setrlimit = resource.getrlimit, resource.setrlimit


class Aftermath:
    """A plugin of every process that runs tests."""

    def __init__(self, isolation: Isolation) -> None:
        """Put nothing right that is not isolated."""
        self._isolation = isolation

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Let no second process go on as pytest, and give the first back its descriptors."""
        __tracebackhide__ = True
        if self._isolation.leaf is None:
            return (yield)
        pid, limits = _getpid(), _getrlimit(resource.RLIMIT_NOFILE)
        try:
            return (yield)
        finally:
            if _getpid() != pid:
                _wait_for_the_end()
            if _getrlimit(resource.RLIMIT_NOFILE)[0] < limits[0]:
                with contextlib.suppress(OSError, ValueError):  # an ordinary user can't raise what was lowered for good
                    _setrlimit(resource.RLIMIT_NOFILE, limits)


def strand(item: pytest.Item, error: KernelError, *, replaced: bool) -> NoReturn:
    """End a process that can't leave a test's network any more: no other test would be sound in it.

    Args:
        item: the test.
        error: what the kernel said.
        replaced: whether the process is a worker, in whose place the controller takes another.
    """
    text = (
        f"{item.nodeid} has left pytest without the right to leave that test's network ({error.strerror}); "
        "let it give up capabilities in a process of its own, which netns.popen() or multiprocessing starts"
    )
    if replaced:
        os.write(2, f"netns: {text}\n".encode())
        _exit(1)
    pytest.exit(f"netns: {text}", returncode=pytest.ExitCode.INTERNAL_ERROR)


def _wait_for_the_end() -> None:
    """Stay in the leaf, in a process that a test forked and did not end: it is ended there, and named, as all is.

    Had it gone on, there would be two runs from here, with one gateway, one terminal and one cache.
    """
    _sleep(_PATIENCE)
    _exit(1)

"""What is put right the moment that a test returns, before anybody else in the process gets to see it."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final, NoReturn

import pytest

from pytest_netns.causes import told
from pytest_netns.errors import KernelError, NetnsError

if TYPE_CHECKING:
    from pytest_netns.isolation import Isolation

__all__ = ["Aftermath", "plainly", "strand"]

_PATIENCE: Final = 5.0  # seconds

_LIMITS: Final = (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)

# A test may have replaced them.
_exit, _fstat, _getpid, _open, _sleep, _write = os._exit, os.fstat, os.getpid, os.open, time.sleep, os.write
_getrlimit, _setrlimit = resource.getrlimit, resource.setrlimit


class Aftermath:
    """A plugin of every process that runs tests."""

    def __init__(self, isolation: Isolation) -> None:
        """Put nothing right that is not isolated."""
        self._isolation = isolation
        self._terminal = _terminal(isolation.session.config)

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        """Let no second process go on as pytest, give the first back its limits, and note what else has changed.

        It ends without its files.
        """
        __tracebackhide__ = True
        stay = self._isolation.session.stay
        if self._isolation.leaf is None or stay is None:
            return (yield)
        pid, limits, ours = _getpid(), [_getrlimit(one) for one in _LIMITS], stay.descriptors()
        files, leaf, traits = [_inode(one) for one in ours], self._isolation.leaf, self._isolation.traits
        traits.begin()
        try:
            return (yield)
        finally:
            if _getpid() != pid:
                _wait_for_the_end()
            for one, before in zip(_LIMITS, limits, strict=True):
                _restore(one, before)
            traits.end(item, leaf.changes)
            if [_inode(descriptor) for descriptor in ours] != files:
                _deprived(item, self._terminal)


def _terminal(config: pytest.Config) -> str | None:
    """Return the path of what pytest writes to, if it has one; None for a pipe, and in a worker of xdist."""
    try:
        path = os.readlink(f"/proc/self/fd/{config.get_terminal_writer()._file.fileno()}")  # noqa: SLF001 - nobody tells
    except (AssertionError, AttributeError, OSError, ValueError):
        return None
    return path if path.startswith("/") else None


def _restore(limit: int, before: tuple[int, int]) -> None:
    """Raise a limit again that a test has lowered; an ordinary user can't raise what was lowered for good."""
    now = _getrlimit(limit)[0]
    if now != before[0] and now != resource.RLIM_INFINITY and (now < before[0] or before[0] == resource.RLIM_INFINITY):
        with contextlib.suppress(OSError, ValueError):
            _setrlimit(limit, before)


def _inode(descriptor: int) -> int | None:
    """Return what a descriptor refers to, by number; None where it is closed."""
    try:
        return _fstat(descriptor).st_ino
    except OSError:
        return None


def _deprived(item: pytest.Item, terminal: str | None) -> NoReturn:
    """End a process whose descriptors a test has closed: pytest's own are among them, and no other test would be sound.

    Where pytest had put a file in the place of the terminal for the test, what leads back is closed, too, and the
    terminal is opened anew.
    """
    remedy = "let it close its own only, or do so in a process of its own, which netns.popen() starts"
    text = f"netns: {item.nodeid} has closed pytest's descriptors, and no other test would be sound; {remedy}\n"
    with contextlib.suppress(OSError):
        target = 2
        if terminal is not None:
            target = _open(terminal, os.O_WRONLY | os.O_NOCTTY | os.O_APPEND)
            text = f"\n{text}netns: the run ends here, without a summary; with pytest -n1 another worker goes on\n"
        _write(target, text.encode())
    _exit(pytest.ExitCode.INTERNAL_ERROR)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Let a test fail by what keeps it from its place, or from leaving that, in plain words: it is not its doing."""
    __tracebackhide__ = True
    try:
        yield
    except (NetnsError, OSError) as error:
        raise pytest.fail.Exception(told(error), pytrace=False) from None


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

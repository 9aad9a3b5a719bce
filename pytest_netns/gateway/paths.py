"""Where a run keeps its socket and lock: a directory that none but its user may enter."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from posix import geteuid  # tests replace the one in os
from typing import TYPE_CHECKING, Final

from pytest_netns.errors import GatewayError
from pytest_netns.kernel import clock

if TYPE_CHECKING:
    from filelock import FileLock

PREFIX: Final = "pytest-netns-"
"""What stands before the user's number in the name of the directory that all runs of that user are in."""

SOCKET_NAME: Final = "gateway.sock"
OBSERVERS_NAME: Final = "look.sock"
LOCK_NAME: Final = "lock"
FLOWS_NAME: Final = "flows.jsonl"
KEYS_PREFIX: Final = "keys-"
ATTEMPTS: Final = 100
"""How often to make a run's directory that somebody removes at that moment."""

_POLL: Final = 0.01  # seconds
_REMOVALS: Final = 3  # somebody may put a lock back meanwhile
_UNUSED: Final = 10.0  # seconds in which whoever makes a directory has long since begun to hold it


def directory_of(run_id: str) -> Path:
    """Return where the directory of a run is, if there is one."""
    return Path(os.path.abspath(tempfile.gettempdir()), f"{PREFIX}{geteuid()}", run_id)


def run_directory(run_id: str) -> Path:
    """Return the directory of a run, made where it does not exist yet; see ``make``."""
    directory = directory_of(run_id)
    make(directory)
    return directory


def make(directory: Path) -> None:
    """Make the directory of a run where it does not exist yet, with mode 0700.

    Raises:
        GatewayError: something of that name belongs to somebody else or is open to others.
    """
    parent = directory.parent
    for _ in range(ATTEMPTS):
        made = _made(parent)
        try:
            made += _made(directory)
            if is_there(directory):
                return
        except FileNotFoundError:  # another run's gateway has just taken the empty parent away
            continue
        except (GatewayError, OSError):
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise
    raise removed(directory)


def removed(directory: Path) -> GatewayError:
    """Return the error to raise where a run's directory does not stay."""
    parent = directory.parent
    return GatewayError(f"{parent} is removed again and again while this run needs it; set TMPDIR to another directory")


def _made(path: Path) -> list[Path]:
    """Make a directory with mode 0700, and return it in a list; an empty one where it is there."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return []
    return [path]


def _check_private(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != geteuid() or status.st_mode & 0o077:
        raise GatewayError(
            f"{path} is not a directory of your own with mode 0700, so somebody else could take the place of "
            f"the gateway. Remove it, or set TMPDIR to a directory of your own."
        )


def is_there(directory: Path) -> bool:
    """Tell whether a run has its directory.

    Raises:
        GatewayError: what is there instead, or above it, belongs to somebody else or is open to others.
    """
    try:
        for path in (directory.parent, directory):
            _check_private(path)
    except FileNotFoundError:
        return False
    return True


def hold(directory: Path) -> int:
    """Keep a run's directory from being swept; return the descriptor that does, as long as anybody has it open."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def is_held(directory: Path) -> bool:
    """Tell whether anybody keeps a run's directory; one that is not there is kept by nobody."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextlib.contextmanager
def locked(directory: Path, timeout: float) -> Iterator[Callable[[], bool]]:
    """Keep others from starting a gateway for a run; yield what tells whether the directory is still the locked one.

    A gateway that ends takes the directory away, be it before it could be locked. Whoever comes then makes another.

    Args:
        directory: the run's, which is not made here.
        timeout: seconds.

    Raises:
        GatewayError: somebody else had the lock all the time, or the directory is not the user's own.
    """
    with contextlib.ExitStack() as stack:
        opened = None
        try:
            if is_there(directory):
                opened = _opened(directory, stack)
                stack.callback(_acquire(directory / LOCK_NAME, timeout).release)
                _take_back(directory, opened)
        except (FileNotFoundError, FileExistsError):  # the latter where it comes and goes while filelock makes it
            opened = None
        yield lambda: opened is not None and _is_at(directory, opened)


def _acquire(path: Path, timeout: float) -> FileLock:
    """Wait for a lock; directories that it makes where the run's have just gone are private, too."""
    from filelock import FileLock, Timeout  # noqa: PLC0415 - not needed where nothing is isolated

    lock, deadline = FileLock(path), clock.monotonic() + timeout
    while True:
        mask = os.umask(0o077)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            if clock.monotonic() >= deadline:
                msg = f"another process held {path} for over {timeout:.0f} s; end it and run again"
                raise GatewayError(msg) from None
        else:
            return lock
        finally:
            os.umask(mask)
        time.sleep(_POLL)


def _opened(directory: Path, stack: contextlib.ExitStack) -> int:
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    stack.callback(os.close, descriptor)
    return descriptor


def _take_back(directory: Path, opened: int) -> None:
    """Remove the directory that the lock has made where the run's had just gone, unless it is in use by now."""
    if not _is_at(directory, opened) and not is_held(directory):
        remove(directory)


def _is_at(directory: Path, opened: int) -> bool:
    """Tell whether a path leads to the directory that is open, and a lock is in there."""
    try:
        return os.path.samestat(directory.stat(), os.fstat(opened)) and (directory / LOCK_NAME).exists()
    except FileNotFoundError:
        return False


def remove(directory: Path) -> None:
    """Remove a run's directory, and the one that it is in where it was the last; what is gone already is fine."""
    for _ in range(_REMOVALS):
        with contextlib.suppress(OSError):
            _clear(directory)
            directory.rmdir()
        if not os.path.lexists(directory):
            break
    with contextlib.suppress(OSError):
        directory.parent.rmdir()


def _clear(directory: Path) -> None:
    names = {SOCKET_NAME, OBSERVERS_NAME, LOCK_NAME, FLOWS_NAME}
    for path in list(directory.iterdir()):
        if path.name in names or path.name.startswith(KEYS_PREFIX):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def sweep(parent: Path) -> None:
    """Remove the directories of runs that were killed together with their gateway: nobody holds them."""
    with contextlib.suppress(OSError):
        for directory in list(parent.iterdir()):
            with contextlib.suppress(GatewayError, OSError):
                if time.time() - directory.stat().st_mtime < _UNUSED:
                    continue
                descriptor = hold(directory)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    with locked(directory, timeout=0):  # or somebody starts a gateway there
                        if not _is_served(directory):
                            remove(directory)
                finally:
                    os.close(descriptor)


def _is_served(directory: Path) -> bool:
    """Tell whether somebody listens in a run's directory without holding it, as a gateway of another release may."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection,
        short_path(directory / SOCKET_NAME) as path,
    ):
        connection.setblocking(False)
        return connection.connect_ex(path) not in (errno.ENOENT, errno.ECONNREFUSED)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """Give a socket's path in a form that fits the 107 bytes that unix(7) allows, however long it is."""
    descriptor = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{path.name}"
    finally:
        os.close(descriptor)

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
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pytest_netns.errors import GatewayError

PREFIX: Final = "pytest-netns-"
"""What stands before the user's number in the name of the directory that all runs of that user are in."""

SOCKET_NAME: Final = "gateway.sock"
OBSERVERS_NAME: Final = "look.sock"
LOCK_NAME: Final = "lock"
LOG_NAME: Final = "gateway.log"
FLOWS_NAME: Final = "flows.jsonl"
KEYS_PREFIX: Final = "keys-"
_ATTEMPTS: Final = 100
_REMOVALS: Final = 3  # somebody may put a lock back meanwhile
_UNUSED: Final = 10.0  # seconds in which whoever makes a directory has long since begun to hold it


def directory_of(run_id: str) -> Path:
    """Return where the directory of a run is, if there is one."""
    return Path(tempfile.gettempdir(), f"{PREFIX}{os.geteuid()}", run_id)


def run_directory(run_id: str) -> Path:
    """Return the directory of a run, made where it does not exist yet, with mode 0700.

    Raises:
        GatewayError: something of that name belongs to somebody else or is open to others.
    """
    directory = directory_of(run_id)
    parent = directory.parent
    for _ in range(_ATTEMPTS):
        made = _made(parent)
        try:
            made += _made(directory)
            for path in (parent, directory):
                _check_private(path)
        except FileNotFoundError:  # another run's gateway has taken the empty parent away, or this run's own has ended
            continue
        except (GatewayError, OSError):
            for path in reversed(made):
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise
        return directory
    raise GatewayError(f"{parent} is removed again and again while this run needs it; set TMPDIR to another directory")


def _made(path: Path) -> list[Path]:
    """Make a directory with mode 0700, and return it in a list; an empty one where it is there."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        return []
    return [path]


def _check_private(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise GatewayError(
            f"{path} is not a directory of your own with mode 0700, so somebody else could take the place of "
            f"the gateway. Remove it, or set TMPDIR to a directory of your own."
        )


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
    names = {SOCKET_NAME, OBSERVERS_NAME, LOCK_NAME, LOG_NAME, FLOWS_NAME}
    for path in list(directory.iterdir()):
        if path.name in names or path.name.startswith(KEYS_PREFIX):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def sweep(parent: Path) -> None:
    """Remove the directories of runs that were killed together with their gateway: nobody holds them."""
    with contextlib.suppress(OSError):
        for directory in list(parent.iterdir()):
            with contextlib.suppress(OSError):
                if time.time() - directory.stat().st_mtime < _UNUSED:
                    continue
                descriptor = hold(directory)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
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

"""Keeping a test's packets: which tests', where, and with which keys. Loaded only where some are kept."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pytest_netns.errors import NetnsError
from pytest_netns.gateway.captures import FILE_NAME
from pytest_netns.gateway.paths import KEYS_PREFIX, run_directory

if TYPE_CHECKING:
    from pytest_netns.report import Record
    from pytest_netns.session import Session

__all__ = ["capture_line", "clear", "keep", "keep_keys", "size_of"]

_VARIABLE: Final = "SSLKEYLOGFILE"


def clear(directory: str) -> None:
    """Remove the captures of an earlier run, and the folders that held nothing else."""
    with contextlib.suppress(OSError):  # a folder that can't be listed is told of once something is to be kept there
        for path in list(Path(directory).glob(f"*/{FILE_NAME}")):
            with contextlib.suppress(OSError):
                path.unlink()
                path.parent.rmdir()


def keep_keys(cleanup: contextlib.ExitStack, run_id: str) -> str:
    """Have TLS clients write down their keys until the end, and return the file: the user's own, if one is set."""
    path = os.environ.get(_VARIABLE)
    if not path:  # which TLS clients take for none
        path = os.environ[_VARIABLE] = str(run_directory(run_id) / f"{KEYS_PREFIX}{os.getpid()}")
        cleanup.callback(os.environ.pop, _VARIABLE, None)
    return os.path.abspath(path)


def size_of(path: str) -> int:
    """Return how much a file of keys has by now."""
    with contextlib.suppress(OSError):
        return os.stat(path).st_size
    return 0


def keep(session: Session, record: Record) -> str | None:
    """Have a test's packets written to its file, over what was written before; return the line that tells of it."""
    client = session.client
    if client is None:
        return None
    where = {"path": record.capture} if record.capture else {"directory": session.outputs.captures}
    keys = (session.keys, record.keys_from) if session.keys is not None else ("", 0)
    try:
        record.capture, count, missing = client.save(
            record.namespace.name, record.test, since=record.started, keys=keys, **where
        )
    except (NetnsError, OSError) as error:
        return f"capture: {error}"
    return capture_line(session, record.capture, count, missing)


def capture_line(session: Session, path: str, packets: int, missing: int) -> str:
    """Return the line that tells of a file of packets."""
    path = os.path.relpath(path, session.config.invocation_params.dir)
    gaps = f", {missing} missing" if missing else ""
    return f"capture: {path} ({packets} packet{'s' * (packets != 1)}{gaps}): tshark -r {shlex.quote(path)}"

"""What is mounted, and the two moves that every private file of a leaf needs: staging and write protection."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from pytest_netns.errors import UnsupportedError
from pytest_netns.kernel import syscalls

__all__ = ["Mount", "mounts_below", "read_only", "staging"]

# These are not ours to take off a mount that came from a more privileged namespace: "locked" in mount_namespaces(7).
# The access-time flags are locked too, but the kernel keeps them by itself in a remount that names none.
_KEPT_FLAGS: Final = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "nosymfollow": 0x100,
}
_STAGES: Final = ("/proc/tty", "/proc/driver", "/mnt", "/media", "/srv")


class Mount(NamedTuple):
    """One line of mountinfo; see proc_pid_mountinfo(5)."""

    target: str
    flags: int


def mounts_below(path: str) -> list[Mount]:
    """List the mounts at or under the path, in the order in which they were made."""
    prefix = path.rstrip("/") + "/"
    with open("/proc/thread-self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        fields = [line.split(" ", 6) for line in file]  # a path may have all but a newline that Python ends lines at
    decoded = [(_unescape(target), options) for _, _, _, _, target, options, _ in fields]
    return [Mount(target, _flags(options)) for target, options in decoded if f"{target}/".startswith(prefix)]


def _unescape(target: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), target) if "\\" in target else target


def _flags(options: str) -> int:
    return sum(_KEPT_FLAGS.get(option, 0) for option in options.split(","))


def read_only(target: str) -> None:
    """Write-protect the mount at ``target`` and all mounts under it, with their other flags as they are."""
    for mount in mounts_below(os.path.realpath(target)):
        flags = mount.flags | syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
        syscalls.mount("none", mount.target, None, flags)


@contextlib.contextmanager
def staging() -> Iterator[Path]:
    """Lend a directory in memory, to make files in that are then bound to where they are wanted.

    Files that are bound by the end of the block live on with their mounts; of all others, and of the
    directory, nothing is left. It covers, for that moment and in this mount namespace only, a
    directory that hardly anything looks into. The kernel refuses to bind a memfd or an O_TMPFILE.
    """
    stage = next(filter(os.path.isdir, _STAGES), None)
    if stage is None:
        message = f"private files need a directory to be put together on, and none of {', '.join(_STAGES)} exists"
        raise UnsupportedError(f"{message}; mount /proc, or create /mnt")
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    syscalls.mount("pytest-netns", stage, "tmpfs", flags, "mode=755")
    try:
        yield Path(stage)
    finally:
        syscalls.umount2(stage, syscalls.MNT_DETACH)

"""The kernel settings of one network namespace, as a mapping."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from pytest_netns.errors import KernelError, NetnsError
from pytest_netns.kernel import privilege

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Sysctl", "UnknownSysctlError"]

_SWAP = str.maketrans("./", "/.")


class UnknownSysctlError(NetnsError, KeyError):
    """The kernel has no setting of this name."""

    __str__ = Exception.__str__


class Sysctl:
    """Settings below ``net.`` by name: ``netns.sysctl["net.ipv4.ip_default_ttl"] = "32"``.

    Names are written as sysctl(8) takes them: what the first separator is, dot or slash, separates;
    the other one stands for itself or, in dotted names, for a dot within a part.
    """

    def __init__(self, inside: Callable[[], AbstractContextManager[object]]) -> None:
        """``inside`` makes the context in which the calling thread is in the namespace."""
        self._inside = inside

    def __getitem__(self, key: str) -> str:
        """Return the setting as text, without the line's end.

        Raises:
            UnknownSysctlError: there is none of this name; a ``KeyError`` as well.
            NetnsError: it belongs to the whole machine.
        """
        return self._access(key, os.O_RDONLY, lambda fd: os.read(fd, 65536).decode().rstrip("\n"))

    def __setitem__(self, key: str, value: str | int) -> None:
        """Change the setting, in this namespace only.

        Raises:
            UnknownSysctlError: there is none of this name; a ``KeyError`` as well.
            KernelError: the kernel doesn't take the value.
            NetnsError: it belongs to the whole machine.
        """
        self._access(key, os.O_WRONLY, lambda fd: str(os.write(fd, str(value).encode())), f" = {str(value)!r}")

    def __contains__(self, key: str) -> bool:
        """Tell whether the kernel has the setting, and it is one of the namespace's own."""
        try:
            path = _path(key)
        except NetnsError:
            return False
        with self._inside():
            return os.path.isfile(path)

    def get(self, key: str, default: str | None = None) -> str | None:
        """Return the setting, or ``default`` where the kernel has none of this name."""
        try:
            return self[key]
        except UnknownSysctlError:
            return default

    def _access(self, key: str, flags: int, action: Callable[[int], str], detail: str = "") -> str:
        path = _path(key)
        with self._inside(), privilege.raised():
            try:
                fd = os.open(path, flags | os.O_CLOEXEC)
                try:
                    return action(fd)
                finally:
                    os.close(fd)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                message = f"no setting {key!r} in this namespace: {path} is no file. `sysctl -aN` lists all"
                raise UnknownSysctlError(message) from error
            except OSError as error:
                verb = "read" if flags == os.O_RDONLY else "set"
                message = f"cannot {verb} {key!r}{detail}: {error.strerror}. {_CAUSES.get(error.errno or 0, _OTHER)}"
                raise KernelError(error.errno or 0, message) from error


_OTHER = "See the kernel's Documentation/networking/ip-sysctl.rst for what it takes"
_CAUSES = {
    13: "It is read-only, or can be changed by the machine's administrator only",
    1: "It can be changed by the machine's administrator only",
    30: "/proc/sys is mounted read-only, as container engines do: run the container with a writable one",
}


def _path(key: str) -> str:
    dot, slash = key.find("."), key.find("/")
    dotted = dot >= 0 and (slash < 0 or dot < slash)
    path = key.translate(_SWAP) if dotted else key
    parts = path.split("/")
    if parts[0] != "net" or {"", ".", ".."} & set(parts):
        raise NetnsError(
            f"{key!r} is not a setting of a network namespace but of the whole machine, or no name of one. "
            "Only names that begin with 'net.' can be used; change others on the host"
        )
    return f"/proc/sys/{path}"

"""Make a box of what was asked for."""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypedDict

from pytest_netns.errors import SandboxError
from pytest_netns.sandbox.box import Sandbox
from pytest_netns.sandbox.helper import Warden
from pytest_netns.sandbox.opening import Wish
from pytest_netns.sandbox.options import (
    LIMITS,
    PATHS,
    STRICT,
    Limits,
    Paths,
    View,
    environment,
    flag,
    hostname,
    paths,
    seconds,
    user,
)

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.namespace import Namespace

__all__ = ["DEFAULTS", "SandboxOptions", "make"]

#: What a box may use unless more, or less, is said. None of them needs a control group.
DEFAULTS: Final[Mapping[str, Any]] = {
    "memory": "1G",
    "pids": 256,
    "disk": "256M",
    "file_size": "256M",
    "open_files": 1024,
    "output": "16M",
}
_WARDEN: Final = "warden"


class SandboxOptions(TypedDict, total=False):
    """What ``netns.sandbox()`` takes, besides ``workdir``.

    Sizes are bytes, or texts such as "512M". A limit that is None is not set.

    Attributes:
        overlay: whether what is written to ``workdir`` is kept apart, to be looked at, applied or thrown away (the
            default), or goes to the directory itself.
        readonly: paths that are shown although they lie under what is hidden.
        writable: paths that are written to for real.
        hide: paths that appear empty.
        tmpfs: directories that appear empty and can be written to.
        env: variables for every command; nothing else is passed on but PATH, the language, the time zone and TERM.
        hostname: what the machine is called inside; the box's name unless said.
        uid: the user that commands see themselves as; the same as outside unless said.
        boot_offset: seconds that the clock since boot is ahead, or behind if negative.
        monotonic_offset: the same for the monotonic clock.
        memory: bytes of memory, over all processes; 1G unless said.
        pids: processes and threads at a time; 256 unless said.
        cpu: processors' worth of time, 0.5 for half of one; no limit unless said.
        file_size: bytes of a file; 256M unless said.
        open_files: descriptors of a process; 1024 unless said.
        timeout: seconds that a command may take; no limit unless said.
        disk: bytes that home, /tmp and the overlay take together, in memory; 256M unless said.
        output: bytes that a command may write to its standard output and error; 16M unless said.
        limits: "strict", so that a limit which cannot be enforced here is an error, or "best-effort".
    """

    overlay: bool
    readonly: Paths
    writable: Paths
    hide: Paths
    tmpfs: Paths
    env: Mapping[str, str] | None
    hostname: str | None
    uid: int | None
    boot_offset: float
    monotonic_offset: float
    memory: int | str | None
    pids: int | None
    cpu: float | None
    file_size: int | str | None
    open_files: int | None
    timeout: float | None
    disk: int | str
    output: int | str | None
    limits: str


_OWN: Final[Mapping[str, Callable[[Any, str], Any]]] = {
    "env": environment,
    "hostname": hostname,
    "uid": user,
    "boot_offset": seconds,
    "monotonic_offset": seconds,
}


def make(
    namespace: Namespace,
    client: GatewayClient,
    name: str,
    workdir: str | os.PathLike[str] | None,
    options: Mapping[str, Any],
) -> Sandbox:
    """Make a box in a namespace.

    Args:
        namespace: whose network it has.
        client: the gateway.
        name: what it is called.
        workdir: the directory that commands start in; None for an empty home.
        options: see ``SandboxOptions``.

    Raises:
        SandboxError: an option means nothing, or the box cannot be made as it was asked for.
    """
    unknown = options.keys() - SandboxOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(SandboxOptions.__annotations__)
        raise SandboxError(f"a box has no option {', '.join(sorted(unknown))}; known are {known}")
    limits = Limits.of(
        {**DEFAULTS, **{key: options[key] for key in LIMITS if key in options}}, options.get("limits", STRICT)
    )
    if limits.disk is None:
        raise SandboxError("disk=None: what a box writes lies in memory, so it has to have a limit; write a size")
    where = None if workdir is None else _directory(workdir)
    shown = {key: paths(options[key], key) for key in PATHS if key in options}
    overlay = flag(options.get("overlay", True), "overlay")
    view = View(workdir=where, home=os.path.expanduser("~"), homes=_homes(), overlay=overlay, **shown)
    wish = Wish(
        view, limits, **{key: read(options[key], key) for key, read in _OWN.items() if options.get(key) is not None}
    )
    return Sandbox(namespace, client, _warden(client), name, wish=wish)


def _directory(given: str | os.PathLike[str]) -> str:
    path, *more = paths(given, "workdir") or ("", "")
    if more:
        raise SandboxError(f"workdir={given!r} is not one path; write one")
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return path
        reason = "is no directory; name one"
    except OSError as error:
        reason = f"cannot be used: {error.strerror}; create it first, or name one that you may look into"
    raise SandboxError(f"workdir={path!r} {reason}")


def _homes() -> tuple[str, ...]:
    return tuple({user.pw_dir for user in pwd.getpwall()} - {"/", "/nonexistent"})


def _warden(client: GatewayClient) -> Warden:
    """Return the process that makes boxes for this one, started when the first is wanted, or it has been killed."""
    warden = client.companions.get(_WARDEN)
    if isinstance(warden, Warden) and not warden.has_ended:
        return warden
    warden = client.companions[_WARDEN] = Warden(warden if isinstance(warden, Warden) else None)
    return warden

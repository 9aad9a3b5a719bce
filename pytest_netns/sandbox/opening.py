"""Have a box made: what is settled here, and what the warden is asked for."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from posix import getegid, geteuid  # tests replace those in os
from typing import TYPE_CHECKING, Final

from pytest_netns.kernel import privilege
from pytest_netns.sandbox import bubblewrap, cgroups, seccomp, wire
from pytest_netns.sandbox.limits import Enforcement, settle
from pytest_netns.sandbox.view import is_within

if TYPE_CHECKING:
    from pytest_netns.namespace import Namespace
    from pytest_netns.sandbox.helper import Answer, Warden
    from pytest_netns.sandbox.options import Limits, View
    from pytest_netns.sandbox.wire import Message

__all__ = ["Wish", "clean_environment", "owner", "start"]

#: Root's boxes run as a user from here on, a range that systemd's documentation lists as unused.
_NOBODIES: Final = 0x7000_0000
_PASSED_ON: Final = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TERM")
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"
_TMP: Final = "/tmp"  # noqa: S108 - the box's own


@dataclass(frozen=True, slots=True)
class Wish:
    """What a box shall be like.

    Attributes:
        view: which files it sees.
        limits: how much it may use.
        env: variables for its commands.
        hostname: what the machine is called inside; None for the box's name.
        uid: the user that commands see themselves as; None for who they would be outside.
        boot_offset: seconds that the clock since boot is ahead.
        monotonic_offset: seconds that the monotonic clock is ahead.
    """

    view: View
    limits: Limits
    env: Mapping[str, str] | None = None
    hostname: str | None = None
    uid: int | None = None
    boot_offset: float = 0.0
    monotonic_offset: float = 0.0

    @property
    def user(self) -> int:
        """The user that commands see themselves as."""
        return geteuid() if self.uid is None else self.uid


def owner() -> int | None:
    """Return which user a box's processes are outside; None for the user that runs the tests.

    Root's boxes are nobody that is known to the machine, and for each pytest process another one.
    """
    return _NOBODIES + os.getpid() if privilege.is_root() else None


def start(namespace: Namespace, warden: Warden, name: str, wish: Wish) -> tuple[Answer, Mapping[str, str]]:
    """Make a box, and return what its keeper says, and what holds each of its limits.

    Raises:
        SandboxError, UnsupportedError, KernelError: it cannot be made.
    """
    limits = wish.limits
    enforcement = settle(limits, cgroups.find())
    groups = cgroups.Groups(dict(enforcement.groups))
    wanted = {limit: getattr(limits, limit) for limit in groups.of if getattr(limits, limit, None) is not None}
    filter_ = seccomp.program(counted=cgroups.MEMORY in groups.of, pinned=bool(enforcement.processors))
    program = bubblewrap.find()
    try:
        groups.make(f"{os.getpid()}-{name}", wanted)
        message = {
            **_settings(name, wish, enforcement),
            "groups": groups.of,
            "program": [program.path, dict(program.shown)],
        }
        view = json.dumps(wish.view._asdict()).encode()
        return _ask(namespace, warden, message, (filter_, view)), enforcement.mechanisms
    except BaseException:
        groups.remove()
        raise


def _settings(name: str, wish: Wish, enforcement: Enforcement) -> Message:
    return {
        "op": "open",
        "disk": wish.limits.disk,
        "rlimits": enforcement.rlimits._asdict(),
        "watched": enforcement.watched,
        "processors": enforcement.processors,
        "owner": owner(),
        "uid": wish.user,
        "gid": getegid() if wish.uid is None else wish.uid,
        "hostname": wish.hostname or name,
        "offsets": [wish.boot_offset, wish.monotonic_offset],
    }


def _ask(namespace: Namespace, warden: Warden, message: Message, contents: tuple[bytes, bytes]) -> Answer:
    with contextlib.ExitStack() as stack:
        files = []
        for content, name in zip(contents, ("seccomp", "view"), strict=True):
            files.append(wire.write_file(content, name))
            stack.callback(os.close, files[-1])
        return warden.ask(message, (*namespace.descriptors(), *files))


def clean_environment(leaf: str, said: Message, wish: Wish) -> dict[str, str]:
    """Return what a command finds in its environment: nothing that could be a secret, unless it was asked for.

    Args:
        leaf: the name of the namespace.
        said: what the box's keeper said of its files.
        wish: what was asked for.
    """
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    passed["PATH"] = os.pathsep.join(_shown(passed.get("PATH", _PATH), said)) or _PATH
    user = _user(wish.user)
    own = {"HOME": said["home"], "USER": user, "LOGNAME": user, "TMPDIR": _TMP, "PYTEST_NETNS": leaf}
    return {**passed, **own, **(wish.env or {})}


def _shown(path: str, said: Message) -> Iterator[str]:
    """Yield the directories of PATH that the box sees; the others would only tell what there is outside."""
    for directory in path.split(os.pathsep):
        hidden, shown = (any(is_within(directory, place) for place in said[key]) for key in ("covers", "shown"))
        if os.path.isabs(directory) and (shown or not hidden):
            yield directory


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

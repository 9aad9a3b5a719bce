"""What a run does at the very start of pytest: first what needs a process without threads, then what takes its time."""

from __future__ import annotations

import functools
import logging
import os
import sys
import uuid
from typing import TYPE_CHECKING, Final

import pytest

from pytest_netns.errors import NetnsError, UnsupportedError
from pytest_netns.settings import Mode, Settings

if TYPE_CHECKING:
    from pytest_netns.gateway.launch import Begun

__all__ = ["enter", "run_id", "settle", "start", "taken"]

_RUN: pytest.StashKey[str] = pytest.StashKey()
_BEGUN: pytest.StashKey[Begun] = pytest.StashKey()

_XDIST_WORKER: Final = "PYTEST_XDIST_WORKER"

_log = logging.getLogger(__name__)


def enter(settings: Settings) -> None:
    """Enter a user namespace while the process has no threads, where the run will need one.

    Raises:
        NetnsError: this machine does not let us.
    """
    if settings.mode is Mode.OFF or not settings.said:
        return
    if not sys.platform.startswith("linux"):
        raise UnsupportedError(f"network namespaces are a feature of Linux, and this is {sys.platform}")
    from pytest_netns.kernel import privilege  # noqa: PLC0415

    settle()
    if not privilege.is_root() and not privilege.is_entered():
        privilege.enter_user_namespace()


def settle() -> None:
    """Make a chroot, if this is one, the root of a mount namespace, so that moving does not lead out of it.

    That is root's business alone: to an ordinary user in a chroot the kernel gives no namespaces.

    Raises:
        KernelError: the kernel refused.
    """
    from pytest_netns.kernel import chroots, privilege  # noqa: PLC0415

    if privilege.is_root() and chroots.settle():
        _log.info("the chroot is the root of a mount namespace now")


def start(config: pytest.Config, settings: Settings) -> None:
    """Have the gateway start while pytest loads conftest files, where the run will need one.

    Raises:
        NetnsError, OSError: it can't even be begun.
    """
    if settings.mode is Mode.OFF or not settings.said or _XDIST_WORKER in os.environ:
        return
    from pytest_netns.gateway.launch import begin  # noqa: PLC0415
    from pytest_netns.gateway.paths import directory_of  # noqa: PLC0415

    config.stash[_BEGUN] = begin(directory_of(run_id(config)))
    config.add_cleanup(functools.partial(_abandon, config))


def run_id(config: pytest.Config) -> str:
    """Return what tells this run from others."""
    return config.stash.setdefault(_RUN, uuid.uuid4().hex)


def taken(config: pytest.Config) -> Begun | None:
    """Return the gateway that was begun, for whoever connects to it; None the next time."""
    begun = config.stash.get(_BEGUN, None)
    if begun is not None:
        del config.stash[_BEGUN]
    return begun


def _abandon(config: pytest.Config) -> None:
    """Have a gateway that nobody connected to end, where pytest did not get as far as its session."""
    begun = taken(config)
    if begun is None:
        return
    from pytest_netns.gateway.client import GatewayClient  # noqa: PLC0415
    from pytest_netns.gateway.launch import clear  # noqa: PLC0415

    try:
        GatewayClient.connect(begun.run_dir, begun).close()
    except (NetnsError, OSError) as error:
        _log.debug("the gateway that was begun: %s", error)
        clear(begun.run_dir)

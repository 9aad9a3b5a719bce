"""Take away mounts that no box shows, before bubblewrap copies them all for each command.

It reads the table of mounts once for everything that it mounts, and changes the flags of each: twenty mounts more, as
a machine with control groups has them in every leaf, cost a command a third of its time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from pytest_netns.errors import KernelError
from pytest_netns.kernel import confinement, privilege, syscalls
from pytest_netns.kernel.mountinfo import mounts_below
from pytest_netns.sandbox.view import Plan, is_within

__all__ = ["inner", "own_mounts", "prune"]

#: Boxes have a /dev of their own, which takes some of the devices, and nothing of control groups.
_NEVER_SHOWN = ("/dev/shm", "/dev/pts", "/dev/mqueue", "/dev/hugepages", "/sys/fs/cgroup")  # noqa: S108 - covered
_SYSFS = "/sys"


def own_mounts() -> None:
    """Give the calling process a mount namespace of its own, from which nothing spreads."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def inner(plan: Plan, *, mapped: bool) -> list[str]:
    """Return where something is mounted within what the box shows as the bare directory that it is.

    What lies below has been covered by somebody, as ``netns.hide()`` does, and must not come to light.

    Args:
        plan: the box's file view.
        mapped: whether that goes for all that was asked for, and not only for what is behind an overlay.
    """
    bare = [plan.overlaid] if plan.overlaid else []
    if mapped:
        bare += [bind.target for bind in plan.binds if bind.asked]
    shown = [bind.target for bind in plan.binds]
    found = dict.fromkeys(mount.target for place in bare for mount in mounts_below(place) if mount.target != place)
    return [target for target in found if not any(is_within(path, target) for path in shown)]


def prune(plan: Plan, needed: Iterable[str], inner: Iterable[str]) -> None:
    """Detach what the box covers anyway, in the mount namespace of the calling process, which must be its own.

    Mounts that the kernel holds on to, as those that an ordinary user's namespaces were made with, stay.

    Args:
        plan: the box's file view; what it shows is kept.
        needed: other paths to keep.
        inner: what is mounted in directories that must be bare.
    """
    for target in inner:
        _detach(target, ())
    kept = {*needed, *(bind.source for bind in plan.binds), *((plan.overlaid,) if plan.overlaid else ())}
    covered = [*_NEVER_SHOWN, *plan.covers]
    gone: list[str] = []  # with all that was mounted below
    for mount in mounts_below("/"):
        above = [place for place in gone if place != mount.target]
        if _is_below(mount.target, covered) and not _is_below(mount.target, above) and _detach(mount.target, kept):
            gone.append(mount.target)
    if privilege.is_root() and [mount.target for mount in mounts_below(_SYSFS)].count(_SYSFS) > 1:
        _uncover(kept)


def _detach(target: str, kept: Iterable[str]) -> bool:
    if any(is_within(path, target) or is_within(target, path) for path in kept):
        return False
    try:
        syscalls.umount2(target, syscalls.MNT_DETACH)
    except KernelError:
        return False
    return True


def _is_below(target: str, places: Iterable[str]) -> bool:
    return any(is_within(target, place) for place in places)


def _uncover(kept: Iterable[str]) -> None:
    """Have a leaf's /sys stand alone, without the one below it and all that is mounted there."""
    if any(is_within(path, _SYSFS) or is_within(_SYSFS, path) for path in kept):
        return
    fd = os.open(_SYSFS, os.O_PATH | os.O_CLOEXEC)
    try:
        tree = confinement.open_tree(fd, recursive=True)
    finally:
        os.close(fd)
    try:
        syscalls.umount2(_SYSFS, syscalls.MNT_DETACH)
        with contextlib.suppress(KernelError):
            syscalls.umount2(_SYSFS, syscalls.MNT_DETACH)
        confinement.move_mount(tree, _SYSFS)
    finally:
        os.close(tree)

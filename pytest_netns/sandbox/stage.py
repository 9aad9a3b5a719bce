"""The stage of a box: what is mounted for it alone, in a mount namespace of its own, before bubblewrap starts.

All this runs in the keeper while it still has the right to mount. Ordinary files of the box are those of its user: a
root that is nobody outside, or the user that runs the tests.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import Final

from pytest_netns.errors import KernelError, SandboxError
from pytest_netns.kernel import confinement, identity, syscalls
from pytest_netns.sandbox.view import Bind, Plan

__all__ = ["Stage"]

#: Where the stage is mounted. All of them are covered in the box.
_PLACES: Final = ("/tmp", "/mnt", "/media", "/var", "/run")  # noqa: S108 - it is covered
_INERT: Final = syscalls.MS_NOSUID | syscalls.MS_NODEV
_INODE_BYTES: Final = 4096
_LEAST_INODES: Final = 1 << 14
#: The same as with ``userxattr``, but for attributes that only root may set.
_TRUSTED: Final = "redirect_dir=nofollow,metacopy=off,index=off"
_NO_OVERLAY: Final = (
    "the overlay of {path!r} could not be mounted: {error}. Overlays of ordinary users take Linux 5.11, and 6.6 for "
    "one in memory, and a directory in which the machine has mounted nothing. With overlay=False the box writes to the "
    "directory itself"
)
_NO_MAPPING: Final = (
    "{path!r} cannot be shown to the box: it belongs to root, whom the box must not be, and its file system cannot "
    "show it as another user's: {error}. That takes Linux 5.12, and ext4, XFS, btrfs or, from Linux 6.3 on, tmpfs (as "
    "by --basetemp on a tmpfs). Put it there, or run the tests as an ordinary user"
)


class Stage:
    """The stage of one box.

    Attributes:
        owner: the user that the box is outside, if the caller is root; None if it is the caller.
        path: where the stage is mounted.
    """

    def __init__(self, owner: int | None, disk: int, path: str = "") -> None:
        """Describe it; ``disk`` is how many bytes the box may write, in all."""
        self.owner = owner
        self.path = path
        self._disk = disk

    def set_up(self, plan: Plan, shown: dict[str, str]) -> Plan:
        """Mount everything, in the calling process's own mount namespace, and return the plan with new sources.

        Args:
            plan: the box's file view.
            shown: directories that bubblewrap itself needs, by name.

        Raises:
            SandboxError, KernelError: the kernel refuses one of the mounts.
        """
        opened = {source: _open(source) for source in (*(bind.source for bind in plan.binds), *shown.values())}
        workdir = None if plan.overlaid is None else _open(plan.overlaid)
        self._mount_disk()
        self._make_places(plan)
        if workdir is not None and plan.overlaid is not None:
            self._show(workdir, plan.overlaid, self.within("lower"), mapped=True)
            self.overlay(plan.overlaid)
        binds = []
        for number, bind in enumerate(plan.binds):
            place = self._place(f"bind{number}", opened[bind.source])
            self._show_bind(opened[bind.source], bind, place)
            binds.append(bind._replace(source=place))
        for name, source in shown.items():
            self._show(opened[source], source, self._directory(name, own=False), mapped=False)
        for fd in {*opened.values(), *([workdir] if workdir is not None else [])}:
            os.close(fd)
        return plan._replace(binds=tuple(binds))

    def within(self, name: str) -> str:
        """Return the path of something on the stage."""
        return f"{self.path}/{name}"

    def clear(self) -> None:
        """Remove what an overlay has kept, once it is not mounted any more."""
        for name in ("upper", "work"):
            _remove(self.within(name))

    def overlay(self, workdir: str) -> None:
        """Mount a fresh overlay of what is on the stage as ``lower``."""
        for name in ("upper", "work"):
            self._directory(name)
        seen = os.stat(self.within("lower"))
        os.chmod(self.within("upper"), stat.S_IMODE(seen.st_mode) & 0o777)
        if self.owner is not None:
            os.chown(self.within("upper"), seen.st_uid, seen.st_gid)
        layers = ",".join(f"{option}={self.within(name)}" for option, name in _LAYERS)
        own = self.owner is None or _has_user_attributes(self.within("work"))
        attributes = "userxattr" if own else _TRUSTED
        try:
            syscalls.mount("pytest-netns", self.within("merged"), "overlay", _INERT, f"{layers},{attributes}")
        except KernelError as error:
            raise SandboxError(_NO_OVERLAY.format(path=workdir, error=error.strerror)) from error

    def _mount_disk(self) -> None:
        place = next(filter(os.path.isdir, _PLACES), None)
        if place is None:
            raise SandboxError(
                f"a box needs one of the directories {', '.join(_PLACES)}, and there is none; create one"
            )
        inodes = max(_LEAST_INODES, self._disk // _INODE_BYTES)
        syscalls.mount("pytest-netns", place, "tmpfs", _INERT, f"size={self._disk},nr_inodes={inodes},mode=755")
        self.path = place

    def _make_places(self, plan: Plan) -> None:
        for name in ("lower", "merged", "nothing"):
            self._directory(name, own=False)
        os.chmod(self.within("nothing"), 0o555)  # noqa: S103 - there is nothing in it
        with open(self.within("empty"), "wb"):
            os.chmod(self.within("empty"), 0o444)
        self._directory("shm", mode=0o1777)
        for number, path in enumerate(plan.covers):
            name = f"cover{number}"
            self._directory(name, mode=0o1777 if path.endswith("tmp") else 0o755)
            if path == "/var":
                self._directory(f"{name}/tmp", mode=0o1777)  # noqa: S108 - on the stage
                os.symlink("/run", self.within(f"{name}/run"))
            if plan.home == path or plan.home.startswith(f"{path}/"):
                self._make_home(name, plan.home[len(path) :])

    def _make_home(self, cover: str, below: str) -> None:
        made = cover
        for part in filter(None, below.split("/")):
            made = f"{made}/{part}"
            self._directory(made)

    def _directory(self, name: str, mode: int = 0o755, *, own: bool = True) -> str:
        path = self.within(name)
        os.mkdir(path)
        os.chmod(path, mode)
        if own and self.owner is not None:
            os.chown(path, self.owner, self.owner)
        return path

    def _place(self, name: str, fd: int) -> str:
        """Make what a file or directory can be mounted on."""
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return self._directory(name, own=False)
        path = self.within(name)
        with open(path, "wb"):
            return path

    def _show_bind(self, fd: int, bind: Bind, target: str) -> None:
        try:
            self._show(fd, bind.source, target, mapped=bind.asked)
        except SandboxError:
            if bind.writable:
                raise
            self._show(fd, bind.source, target, mapped=False)

    def _show(self, fd: int, source: str, target: str, *, mapped: bool) -> None:
        """Mount what is open; ``mapped`` shows what is root's as the box's own."""
        if self.owner is None or not mapped:
            syscalls.mount(f"/proc/self/fd/{fd}", target, None, syscalls.MS_BIND | syscalls.MS_REC)
            return
        tree = confinement.open_tree(fd, recursive=False)
        try:
            seen = os.fstat(fd)
            owners = identity.mapping(_swapped(seen.st_uid, self.owner), _swapped(seen.st_gid, self.owner))
            try:
                confinement.map_owners(tree, owners, recursive=False)
            finally:
                os.close(owners)
            confinement.move_mount(tree, target)
        except KernelError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.ENOSYS):
                raise
            raise SandboxError(_NO_MAPPING.format(path=source, error=error.strerror)) from error
        finally:
            os.close(tree)


_LAYERS: Final = (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work"))


def _has_user_attributes(directory: str) -> bool:
    """Tell whether an overlay may take notes in attributes that every user may set: in memory, from Linux 6.6 on."""
    try:
        os.setxattr(directory, "user.pytest-netns", b"")
    except OSError:
        return False
    return True


def _swapped(number: int, owner: int) -> Iterator[str]:
    """Yield the lines that show one user's files as the box's user's, and everybody else's as theirs."""
    if number:
        yield f"0 0 {number}"
    yield f"{number} {owner} 1"
    yield f"{number + 1} {number + 1} {owner - number - 1}"


def _remove(path: str) -> None:
    """Remove a tree that strangers made, however deep it is and whatever they did to its modes."""
    waiting, moved = [path], 0
    while waiting:
        directory = waiting.pop()
        os.chmod(directory, 0o700)
        for entry in list(os.scandir(directory)):
            if entry.is_dir(follow_symlinks=False):
                moved += 1
                waiting.append(f"{path}.{moved}")
                os.chmod(entry.path, 0o700)  # a directory that cannot be written to cannot be moved
                os.rename(entry.path, waiting[-1])
            else:
                os.unlink(entry.path)
        os.rmdir(directory)


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError as error:
        raise SandboxError(f"{path!r} cannot be shown to the box: {error.strerror}; name what is there") from error

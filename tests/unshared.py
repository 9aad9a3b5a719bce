"""Runs a test in a child process that has namespaces of its own, as root and as an ordinary user alike."""

from __future__ import annotations

import fcntl
import functools
import os
import socket
import struct
import tempfile
import traceback
import warnings
from collections.abc import Callable
from typing import IO, ParamSpec

import pytest

from pytest_netns.errors import KernelError
from pytest_netns.kernel import privilege, syscalls

P = ParamSpec("P")
NAMESPACES = syscalls.CLONE_NEWNET | syscalls.CLONE_NEWNS

_PASSED, _FAILED, _SKIPPED = range(3)
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1


def unshared(test: Callable[P, None]) -> Callable[P, None]:
    """Run the test in a child, in a network and a mount namespace of its own; what it mounts stays there."""

    @functools.wraps(test)
    def isolated(*args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        in_child(lambda: test(*args, **kwargs), isolate)

    return isolated


def in_child(test: Callable[[], None], prepare: Callable[[], None]) -> None:
    """Run the test in a child; where its preparation fails for want of rights, skip it, or fail in CI."""
    __tracebackhide__ = True
    with tempfile.TemporaryFile("w+", encoding="utf-8") as report:
        status = _forked(test, prepare, report)
        report.seek(0)
        if status == _SKIPPED and "CI" not in os.environ:
            pytest.skip(report.read())
        elif status != _PASSED:
            pytest.fail(report.read() or f"the child ended with status {status}", pytrace=False)


def _forked(test: Callable[[], None], prepare: Callable[[], None], report: IO[str]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # The child starts no thread before it is on its own.
        child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = _FAILED
    try:
        status = _prepared(prepare, report)
        if status == _PASSED:
            test()
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells it
        traceback.print_exc(file=report)
        status = _FAILED
    finally:
        report.flush()
        os._exit(status)


def isolate() -> None:
    """Move the process to namespaces of its own, in which it has no effective capability."""
    if not privilege.is_entered():
        privilege.enter_user_namespace()
    privilege.disinherit()
    fresh()


def _prepared(prepare: Callable[[], None], report: IO[str]) -> int:
    try:
        prepare()
    except KernelError as error:
        report.write(f"this machine lets us make no namespaces: {error}")
        return _SKIPPED
    return _PASSED


def fresh() -> None:
    """Move on to new network and mount namespaces; the loopback interface is up, no mount spreads."""
    with privilege.raised():
        syscalls.unshare(NAMESPACES)
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))


def kernel_version() -> tuple[int, ...]:
    """Return the kernel's version, as far as minor ones."""
    return tuple(int(number) for number in os.uname().release.split(".")[:2])


def net_inode() -> int:
    """Return the number of the calling thread's network namespace."""
    return os.stat("/proc/thread-self/ns/net").st_ino


def mnt_inode() -> int:
    """Return the number of the calling thread's mount namespace."""
    return os.stat("/proc/thread-self/ns/mnt").st_ino


def effective() -> int:
    """Return the capabilities that the calling thread could use; root's, which stay, count as none."""
    return 0 if privilege.is_root() else syscalls.capget()[0]

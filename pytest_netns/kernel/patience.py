"""Make namespaces also where as many exist as may: those that have ended count until the kernel has cleared them."""

from __future__ import annotations

import errno
import time
from typing import Final

from pytest_netns.errors import KernelError
from pytest_netns.kernel import clock, syscalls

__all__ = ["unshare"]

_PATIENCE: Final = 2.5  # seconds; it takes as long under load, and who waits for a leaf may be behind two others
_PAUSE: Final = 0.02


def unshare(flags: int) -> None:
    """Leave the namespaces that the flags name for new ones, as soon as there may be more.

    Raises:
        KernelError: the kernel refuses, or there may not be more within a few seconds.
    """
    deadline = None
    while True:
        try:
            syscalls.unshare(flags)
        except KernelError as error:
            now = clock.monotonic()
            deadline = deadline or now + _PATIENCE
            if error.errno not in (errno.ENOSPC, errno.EUSERS) or now > deadline:
                raise
        else:
            return
        time.sleep(_PAUSE)

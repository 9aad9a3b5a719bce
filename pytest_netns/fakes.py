"""Libraries that replace the world around a test, and are not to replace it for us."""

from __future__ import annotations

import sys

__all__ = ["spare_us"]

_PACKAGE = __name__.partition(".")[0]


def spare_us(known: int = 0) -> int:
    """Let pyfakefs, where it has been imported, leave the real file system to our modules.

    Args:
        known: what the last call returned; nothing is done again unless something has been imported since.

    Returns:
        How many modules there are.
    """
    count = len(sys.modules)
    patcher = getattr(sys.modules.get("pyfakefs.fake_filesystem_unittest"), "Patcher", None)
    spared = getattr(patcher, "SKIPMODULES", None)
    if count != known and isinstance(spared, set):
        spared.update(module for name, module in sys.modules.items() if name.partition(".")[0] == _PACKAGE)
    return count

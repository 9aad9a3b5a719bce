"""Where the processes that we start look for modules."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

__all__ = ["import_path"]


def import_path() -> list[str]:
    """Return where this process looks for modules, by absolute paths, what pytest puts first at the end.

    That are the folders of tests, which may have a ``resource.py`` or a ``filelock.py``. Whoever has loaded Python's
    own, or what is installed, does not notice; a process that starts anew would take those for them. What the
    environment names comes first, as for every Python.
    """
    said = [os.path.abspath(entry) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    python = os.path.dirname(os.__file__)
    ours = str(Path(__file__).parents[2])
    installed = [*site.getsitepackages(), site.getusersitepackages()]
    order = [*said, python, os.path.join(python, "lib-dynload"), ours, *installed]
    rank = {entry: number for number, entry in reversed(list(enumerate(order)))}
    return sorted(map(os.path.abspath, sys.path), key=lambda entry: rank.get(entry, len(order)))

"""Stops a process of a run at a named step, until whoever started the run lets it go on.

Python imports a module of this name in each process that has this folder on PYTHONPATH: pytest, its workers and the
gateway. NETNS_STEP names the step: ``<module>:<function> before|after <which time>``, or ``test:<name> before <which
time>`` for one that a test calls ``stop`` at. The process then connects to the socket that NETNS_STEP_SOCKET names, and
waits for the end of that connection.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import inspect
import os
import socket
import sys
import typing
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

__all__ = ["stop"]

_VARIABLES = ("NETNS_STEP", "NETNS_STEP_SOCKET")
_HELPER = "pytest_netns.sandbox.helper"


class _Step:
    """The one that this run is to be stopped at."""

    def __init__(self, text: str) -> None:
        self.name, self.when, times = text.rsplit(" ", 2)
        self.left = int(times)
        self.module, _, self.function = self.name.partition(":")

    def reach(self) -> None:
        """Count one more time, and wait at the one that is wanted."""
        self.left -= 1
        if self.left == 0:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(os.environ["NETNS_STEP_SOCKET"])
                connection.recv(1)

    def wrapped(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            if self.when == "before":
                self.reach()
            result = function(*arguments, **named)
            if self.when == "after":
                self.reach()
            return result

        return wrapper

    def set_in(self, module: ModuleType) -> None:
        """Put the step into a module that has just been loaded."""
        *path, name = self.function.split(".")
        owner: Any = module
        for part in path:
            owner = getattr(owner, part)
        found = inspect.getattr_static(owner, name)
        if isinstance(found, (classmethod, staticmethod)):
            setattr(owner, name, type(found)(self.wrapped(found.__func__)))
        else:
            setattr(owner, name, self.wrapped(found))


class _Finders(list[Any]):
    """The list of who finds modules, with one that comes first whoever is put there later, as pytest's rewriter is."""

    def insert(self, index: typing.SupportsIndex, finder: Any) -> None:
        super().insert(max(1, int(index)), finder)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, step: _Step) -> None:
        self._step = step

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Have the step set in its module, and its name told to the process that makes boxes."""
        if fullname not in (self._step.module, _HELPER):
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, specs), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._step)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any, step: _Step) -> None:
        self._loader = loader
        self._step = step

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if module.__name__ == _HELPER:
            _pass_on(module)
        if module.__name__ == self._step.module:
            self._step.set_in(module)


def _pass_on(helper: ModuleType) -> None:
    """Have the process that makes boxes, which gets no environment, stop at its steps, too."""
    told = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    before = f"import os, sys; os.environ.update({told!r}); sys.path.insert(0, {os.path.dirname(__file__)!r}); "
    vars(helper)["_PROGRAM"] = before + "import sitecustomize; " + vars(helper)["_PROGRAM"]


def stop(name: str) -> None:
    """Stop here, if that is the step."""
    if _step is not None and _step.name == f"test:{name}":
        _step.reach()


_step = _Step(os.environ["NETNS_STEP"]) if "NETNS_STEP" in os.environ else None
if _step is not None:
    sys.meta_path = _Finders([_Finder(_step), *sys.meta_path])

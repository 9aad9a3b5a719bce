"""The parts of ``subprocess.run`` that it has no functions for."""

from __future__ import annotations

import subprocess
from typing import Any

__all__ = ["communicate", "settle_streams"]


def settle_streams(kwargs: dict[str, Any], data: Any, *, capture_output: bool, piped: bool = False) -> None:
    """Read the arguments of ``subprocess.run`` that say what is fed and captured; ``piped`` has all output captured."""
    if capture_output:
        if {"stdout", "stderr"} & kwargs.keys():
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        kwargs.update(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if data is not None:
        if kwargs.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        kwargs["stdin"] = subprocess.PIPE
    if piped:
        kwargs.setdefault("stdout", subprocess.PIPE)
        kwargs.setdefault("stderr", subprocess.PIPE)


def communicate(process: subprocess.Popen[Any], data: Any, timeout: float | None) -> tuple[Any, Any]:
    """Do what ``subprocess.run`` does once the process has been started."""
    try:
        return process.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    except BaseException:
        process.kill()
        raise

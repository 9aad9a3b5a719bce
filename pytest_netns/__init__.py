"""Every test in a network of its own.

pytest imports this package for each of its runs, so what stands here is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_netns.capture import Capture, Packet
    from pytest_netns.egress import Egress
    from pytest_netns.errors import (
        GatewayError,
        KernelError,
        NamespaceClosedError,
        NetnsError,
        SandboxError,
        ServiceNotReadyError,
        UnsupportedError,
    )
    from pytest_netns.gateway.flows import Flow
    from pytest_netns.namespace import Namespace
    from pytest_netns.report import NetnsWarning
    from pytest_netns.rules import EgressRule, RuleError
    from pytest_netns.sandbox.box import Sandbox
    from pytest_netns.sandbox.changes import Change
    from pytest_netns.sandbox.done import Done, Usage
    from pytest_netns.sandbox.process import SandboxProcess
    from pytest_netns.sandbox.shell import Shell
    from pytest_netns.service import ServicePort
    from pytest_netns.settings import SettingsError
    from pytest_netns.sysctl import UnknownSysctlError

__all__ = [
    "Capture",
    "Change",
    "Done",
    "Egress",
    "EgressRule",
    "Flow",
    "GatewayError",
    "KernelError",
    "Namespace",
    "NamespaceClosedError",
    "NetnsError",
    "NetnsWarning",
    "Packet",
    "RuleError",
    "Sandbox",
    "SandboxError",
    "SandboxProcess",
    "ServiceNotReadyError",
    "ServicePort",
    "SettingsError",
    "Shell",
    "UnknownSysctlError",
    "UnsupportedError",
    "Usage",
]

_HOMES = {
    "Capture": "capture",
    "Change": "sandbox.changes",
    "Done": "sandbox.done",
    "Egress": "egress",
    "EgressRule": "rules",
    "Flow": "gateway.flows",
    "Namespace": "namespace",
    "NetnsWarning": "report",
    "Packet": "capture",
    "RuleError": "rules",
    "Sandbox": "sandbox.box",
    "SandboxProcess": "sandbox.process",
    "ServicePort": "service",
    "SettingsError": "settings",
    "Shell": "sandbox.shell",
    "UnknownSysctlError": "sysctl",
    "Usage": "sandbox.done",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

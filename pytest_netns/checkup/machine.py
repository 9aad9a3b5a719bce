"""Read the facts about a machine that decide how something missing is mended. Nothing is tried here."""

from __future__ import annotations

import dataclasses
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CAP_NET_ADMIN: Final = 12
CAP_SYS_ADMIN: Final = 21


@dataclass(frozen=True, slots=True)
class Machine:
    """What is known of the machine and of the calling process."""

    system: str = "linux"
    """``sys.platform``."""
    release: str = ""
    """The kernel's release."""
    name: str = ""
    """The distribution's name and version, for the reader."""
    distributions: tuple[str, ...] = ()
    """The distribution's identifier and those that it is like, from os-release(5)."""
    root: bool = False
    capabilities: int = 0
    """The effective ones, as bits."""
    container: str = ""
    """docker, podman, kubernetes, lxc or nothing."""
    apparmor: str = ""
    """The label of this process; nothing where AppArmor is off."""
    apparmor_restricts: bool = False
    """Whether user namespaces of unconfined programs lose their capabilities (Ubuntu 23.10 and later)."""
    userns_clone: bool = True
    """False where Debian's switch forbids user namespaces to ordinary users."""
    seccomp: bool = False
    """Whether a seccomp filter sits on this process."""
    selinux: bool = False
    """Whether SELinux is enforcing."""
    wsl: int = 0
    """1 or 2 in the Windows Subsystem for Linux."""
    github: bool = False
    """Whether this is a GitHub Actions job."""
    modules: bool = True
    """Whether the running kernel's modules are on disk."""
    python: str = "python"
    """The interpreter, for commands."""
    program: str = "/usr/bin/python3"
    """The interpreter's file, symbolic links followed, which is what AppArmor goes by."""

    def lacks(self, capability: int) -> bool:
        """Tell whether root was deprived of a capability."""
        return self.root and not self.capabilities >> capability & 1


def read() -> Machine:
    """Look at this machine; what cannot be read counts as the usual case."""
    common = Machine(
        system=sys.platform,
        github=os.environ.get("GITHUB_ACTIONS") == "true",
        python=sys.executable or "python",
        program=os.path.realpath(sys.executable or "/usr/bin/python3"),
    )
    return _linux(common) if sys.platform == "linux" else common


def _linux(common: Machine) -> Machine:
    from pytest_netns.kernel import privilege  # noqa: PLC0415 - it is Linux's

    release = os.uname().release
    status = _pairs(_text("/proc/thread-self/status"), ":")
    system = _pairs(_text("/etc/os-release"), "=")
    return dataclasses.replace(
        common,
        release=release,
        name=system.get("PRETTY_NAME", ""),
        distributions=tuple(f"{system.get('ID', '')} {system.get('ID_LIKE', '')}".split()),
        root=privilege.is_root(),
        capabilities=int(status.get("CapEff", "0"), 16),
        container=_container(),
        apparmor=_apparmor(),
        apparmor_restricts=_text("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1",
        userns_clone=_text("/proc/sys/kernel/unprivileged_userns_clone") != "0",
        seccomp=status.get("Seccomp") == "2",
        selinux=_text("/sys/fs/selinux/enforce") == "1",
        wsl=_wsl(release),
        modules=_modules(release),
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    except OSError:
        return ""


def _pairs(text: str, separator: str) -> dict[str, str]:
    pairs = (line.partition(separator) for line in text.splitlines())
    return {key.strip(): value.strip().strip("\"'") for key, found, value in pairs if found}


def _container() -> str:
    if "KUBERNETES_SERVICE_HOST" in os.environ:
        return "kubernetes"
    if os.path.exists("/run/.containerenv"):
        return "podman"
    if os.path.exists("/.dockerenv"):
        return "docker"
    known = _text("/run/systemd/container")  # systemd as the container's init writes it
    return known if known in {"docker", "lxc", "podman"} else ""


def _apparmor() -> str:
    """Return the label of this process; /proc/self/attr/current may belong to SELinux instead."""
    if not os.path.isdir("/sys/module/apparmor"):
        return ""
    label = _text("/proc/thread-self/attr/apparmor/current") or _text("/proc/thread-self/attr/current")
    return (label or "unknown").partition(" ")[0]


def _wsl(release: str) -> int:
    if "microsoft" not in release.lower():
        return 0
    return 2 if "WSL2" in release or "microsoft-standard" in release else 1


def _modules(release: str) -> bool:
    """Tell whether the kernel could load a module: not where an update replaced the running kernel's."""
    try:
        return release in os.listdir("/lib/modules")
    except OSError:
        return True  # a container, or a kernel with everything built in

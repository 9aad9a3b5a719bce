"""The smallest set of rights that a container must be given, in the words of its engine. Pure.

As root the tests need CAP_SYS_ADMIN (namespaces, mounts; Docker's and Podman's seccomp profiles open
``unshare``, ``mount`` and ``setns`` to containers that have it) and CAP_NET_ADMIN (links, nftables).
An ordinary user gets both from a user namespace of its own, and needs the seccomp filter away for
that. Either way AppArmor's profile for containers, where there is AppArmor, forbids ``mount`` and
writing to /proc/sys/net, and the engine mounts /proc/sys read-only and masks parts of /sys.
"""

from __future__ import annotations

from typing import Final

from pytest_netns.checkup.machine import Machine

_ROOT: Final = ("--cap-add SYS_ADMIN", "--cap-add NET_ADMIN")
_USER: Final = ("--security-opt seccomp=unconfined",)
_UNMASK: Final = {
    "docker": "--security-opt systempaths=unconfined",
    "podman": "--security-opt unmask=ALL",
}


def command(machine: Machine) -> str:
    """Return the command or the setting that starts a container in which isolation works."""
    if machine.container == "kubernetes":
        return _kubernetes(machine)
    if machine.container == "lxc":
        return "on the host: lxc config set <container> security.nesting=true && lxc restart <container>"
    engine = "podman" if machine.container == "podman" else "docker"
    options = list(_ROOT if machine.root or machine.system != "linux" else _USER)
    if machine.apparmor or machine.system != "linux":
        options.append("--security-opt apparmor=unconfined")
    if engine == "podman" and machine.selinux:
        options.append("--security-opt label=disable")
    return " ".join((engine, "run", *options, _UNMASK[engine], "<image> <command>"))


def _kubernetes(machine: Machine) -> str:
    if machine.root:
        rights = "capabilities: {add: [SYS_ADMIN, NET_ADMIN]}, appArmorProfile: {type: Unconfined}"
    else:
        rights = "seccompProfile: {type: Unconfined}, appArmorProfile: {type: Unconfined}"
    return (
        f"in the pod: hostUsers: false; in the container: securityContext: {{{rights}, procMount: Unmasked}} "
        "(or securityContext: {privileged: true}; GKE Autopilot allows neither)"
    )

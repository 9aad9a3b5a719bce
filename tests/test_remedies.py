"""Which remedy belongs to which failure on which machine."""

from __future__ import annotations

import errno

import pytest

from pytest_netns.checkup import containers, names
from pytest_netns.checkup.machine import Machine, read
from pytest_netns.checkup.remedies import find
from pytest_netns.kernel.probe import FAIL, PROBE, WARN, Outcome

UBUNTU = Machine(
    apparmor_restricts=True, apparmor="unconfined", distributions=("ubuntu", "debian"), program="/usr/bin/p"
)
REMEDIES = [
    # Ubuntu 24.04: the mapping is refused, or the namespace is made and its capabilities are worth nothing
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "uid_map"),
        UBUNTU,
        "AppArmor",
        "apparmor_restrict_unprivileged_userns=0",
    ),
    (
        Outcome(names.USER, FAIL, "", errno.EACCES, "uid_map"),
        UBUNTU,
        "AppArmor",
        "profile pytest-netns /usr/bin/p flags",
    ),
    (Outcome(names.LOOPBACK, FAIL, "", errno.EPERM), UBUNTU, "AppArmor", "sudo apparmor_parser -r"),
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "uid_map"),
        Machine(apparmor_restricts=True, github=True),
        "AppArmor",
        "- run: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "uid_map"),
        Machine(apparmor_restricts=True, container="docker"),
        "AppArmor",
        "on the host of the container: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    # Debian's own switch
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "unshare"),
        Machine(userns_clone=False),
        "kernel.unprivileged_userns_clone=0",
        "sudo sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    (
        Outcome(names.USER, FAIL, "", errno.EPERM, "unshare"),
        Machine(python="py"),
        "security module",
        "sudo py -m pytest",
    ),
    (Outcome(names.USER, FAIL, "", errno.EPERM, "unshare"), Machine(python="py"), "chroot", "sudo py -m pytest"),
    (Outcome(names.USER, FAIL, "", errno.EINVAL, "unshare"), Machine(), "CONFIG_USER_NS", "standard kernel"),
    (Outcome(names.NETWORK, FAIL, "", errno.EINVAL), Machine(wsl=1), "WSL 1", "wsl --set-version"),
    (Outcome(names.NETWORK, FAIL, "", errno.EINVAL), Machine(root=True), "CONFIG_NET_NS", "standard kernel"),
    (
        Outcome(names.NETWORK, FAIL, "", errno.EPERM),
        Machine(root=True, capabilities=1 << 12),
        "deprived of CAP_SYS_ADMIN",
        "runuser",
    ),
    (
        Outcome(names.NETWORK, FAIL, "", errno.EPERM),
        Machine(root=True, container="podman"),
        "no CAP_SYS_ADMIN",
        "podman run",
    ),
    (
        Outcome(names.MOUNT, FAIL, "", errno.EACCES),
        Machine(root=True, capabilities=-1, container="docker", apparmor="docker-default"),
        "AppArmor",
        "--security-opt apparmor=unconfined",
    ),
    # kernel modules
    (
        Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "tproxy"),
        UBUNTU,
        "lacks nft_tproxy",
        "sudo apt-get install -y linux-modules-extra-$(uname -r) && sudo modprobe -a nft_tproxy",
    ),
    (
        Outcome(names.LEAF_RULES, FAIL, "", errno.ENOENT, "socket + reject"),
        Machine(distributions=("fedora",)),
        "lacks nft_socket nft_reject_inet",
        "sudo dnf install -y kernel-modules-$(uname -r) && sudo modprobe -a nft_socket nft_reject_inet",
    ),
    (
        Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "queue"),
        Machine(distributions=("debian",), release="6.1.0-18-cloud-amd64"),
        "lacks nft_queue",
        "linux-image-",
    ),
    (Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "fib"), Machine(modules=False), "update", "sudo reboot"),
    (Outcome(names.LEAF_RULES, FAIL, "", errno.ENOENT, "nat chain"), Machine(), "nft_chain_nat", "sudo modprobe -a"),
    (Outcome(names.HUB_RULES, FAIL, "", errno.ENOENT, "fib"), Machine(wsl=2), "nft_fib_inet", "wsl --update"),
    (Outcome(names.VETH, FAIL, "", errno.EOPNOTSUPP), Machine(container="docker"), "veth", "on the host"),
    (Outcome(names.QUEUE, FAIL, "", errno.EINVAL), Machine(), "nfnetlink_queue", "sudo modprobe -a nfnetlink_queue"),
    # the rest
    (Outcome(names.ADDRESSES, FAIL, "", errno.EACCES, "IPv6"), Machine(), "IPv6 is disabled", "disable_ipv6=0"),
    (Outcome(names.ADDRESSES, FAIL, "", errno.EOPNOTSUPP, "IPv6"), Machine(), "IPv6 is off", "ipv6.disable=1"),
    (Outcome(names.ROUTING, FAIL, "", errno.EAFNOSUPPORT, "IPv6"), Machine(), "IPv6 is off", "ipv6.disable=1"),
    (Outcome(names.TRANSPARENT, FAIL, "", errno.EAFNOSUPPORT, "::"), Machine(), "IPv6 is off", "ipv6.disable=1"),
    (Outcome(names.PACKAGES, FAIL, "", 0), Machine(python="py"), "package", "py -m pip install"),
    (Outcome(names.BOXES, WARN, "", 0, "bubblewrap"), Machine(python="py"), "bubblewrap 0.8", "pip install bubblewrap"),
    (Outcome(names.BOXES, WARN, "", 0, "set-up"), Machine(), "user namespaces", "sudo sysctl -w"),
    (Outcome(names.BOXES, WARN, "", 0, "set-up"), Machine(container="docker"), "masks /proc", "docker run"),
    (Outcome(PROBE, FAIL, "signal 9", 0), Machine(), "died", "python -m pytest_netns doctor"),
    (Outcome(PROBE, FAIL, "no answer", errno.ETIMEDOUT), Machine(), "busy", "python -m pytest_netns doctor"),
    (Outcome(names.HUB_RULES, FAIL, "no answer", errno.ETIMEDOUT), Machine(), "for the first time", "doctor"),
    (Outcome(names.WHOLE, FAIL, "?", errno.EIO), Machine(), "not known", "dmesg"),
]


class TestRemedies:
    """Which remedy belongs to which failure on which machine."""

    @pytest.mark.parametrize(("outcome", "machine", "cause", "fix"), REMEDIES)
    def test_fits_the_machine(self, outcome: Outcome, machine: Machine, cause: str, fix: str) -> None:
        """Cause and command are those of this failure on this machine."""
        remedy = find(outcome, machine)
        assert cause in remedy.cause
        assert fix in remedy.fix

    @pytest.mark.parametrize("name", sorted(names.REASONS))
    def test_leaves_nothing_without_advice(self, name: str) -> None:
        """Whatever fails, in whatever way, a cause and a command are given, and the table says why it matters."""
        assert names.REASONS[name]
        for error in (0, errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EINVAL, errno.EROFS, errno.ENOENT):
            for machine in (Machine(), Machine(root=True), UBUNTU, Machine(container="kubernetes"), read()):
                remedy = find(Outcome(name, FAIL, "seen", error), machine)
                assert remedy.cause
                assert remedy.fix

    @pytest.mark.parametrize(
        ("machine", "expected"),
        [
            (
                Machine(root=True, container="docker"),
                "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN {0} systempaths=unconfined",
            ),
            (
                Machine(root=True, container="docker", apparmor="docker-default"),
                "docker run --cap-add SYS_ADMIN --cap-add NET_ADMIN {0} apparmor=unconfined {0} systempaths=unconfined",
            ),
            (
                Machine(container="docker"),
                "docker run {0} seccomp=unconfined {0} systempaths=unconfined",
            ),
            (
                Machine(root=True, container="podman", selinux=True),
                "podman run --cap-add SYS_ADMIN --cap-add NET_ADMIN {0} label=disable {0} unmask=ALL",
            ),
        ],
    )
    def test_asks_for_no_more_than_is_needed(self, machine: Machine, expected: str) -> None:
        """Root gets two capabilities, an ordinary user none; nobody is told to run a privileged container."""
        assert containers.command(machine) == expected.format("--security-opt") + " <image> <command>"

    def test_speaks_the_words_of_the_engine(self) -> None:
        """Kubernetes and LXC are given settings instead of a command line."""
        assert "capabilities: {add: [SYS_ADMIN, NET_ADMIN]}" in containers.command(
            Machine(root=True, container="kubernetes")
        )
        assert "seccompProfile: {type: Unconfined}" in containers.command(Machine(container="kubernetes"))
        assert "security.nesting=true" in containers.command(Machine(container="lxc"))

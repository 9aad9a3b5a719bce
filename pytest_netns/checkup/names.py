"""What the checks are called, in the table and where a remedy is looked up."""

from __future__ import annotations

from typing import Final

from pytest_netns.kernel.probe import PLATFORM, PROBE

PACKAGES: Final = "Python packages"
RUN_DIRECTORY: Final = "run directory"
LIMITS: Final = "namespace limits"
USER: Final = "user namespace"
NETWORK: Final = "network namespace"
LOOPBACK: Final = "lo"
VETH: Final = "veth pair"
ADDRESSES: Final = "addresses"
ROUTING: Final = "policy routing"
LEAF_RULES: Final = "leaf's nftables"
HUB_RULES: Final = "hub's nftables"
QUEUE: Final = "packet queue"
TRANSPARENT: Final = "foreign addresses"
SYSCTLS: Final = "own sysctls"
PORT: Final = "port 80"
PING: Final = "ping"
MOUNT: Final = "mount namespace"
FILES: Final = "own files in /etc"
SYS: Final = "own /sys"
WHOLE: Final = "hub and leaf"
BOXES: Final = "boxes"

#: What about boxes does not work.
BUBBLEWRAP: Final = "bubblewrap"
SET_UP: Final = "set-up"

#: What isolation needs each of them for.
REASONS: Final = {
    PLATFORM: "namespaces are a feature of the Linux kernel",
    PROBE: "a process that tries everything out tells what works",
    PACKAGES: "they encode what is said to the kernel and keep workers from starting the gateway twice",
    RUN_DIRECTORY: "the workers find the gateway there, and nobody else may",
    LIMITS: "each test gets a network and a mount namespace",
    USER: "it is where an ordinary user gets the right to make the other namespaces",
    MOUNT: "a test sees files of its own, such as the resolver's configuration",
    NETWORK: "a test has ports, addresses and routes of its own",
    LOOPBACK: "a server on 127.0.0.1 needs it",
    VETH: "it connects a test's network to the gateway",
    ADDRESSES: "a service is reached from outside its namespace by them",
    ROUTING: "allowed connections are led to the gateway by it",
    LEAF_RULES: "a session's server and a test share 127.0.0.1 by it",
    HUB_RULES: "it refuses what a test may not reach",
    QUEUE: "the gateway decides on each new connection by it",
    TRANSPARENT: "the gateway answers in the name of what a test connects to",
    SYSCTLS: "a network namespace is set up by them",
    PORT: "a service under test keeps its own port, 80 or 53 too",
    PING: "programs check that a host is up by it",
    FILES: "names are resolved by the gateway, not by the host",
    SYS: "/sys/class/net shows the test's interfaces, not the host's",
    WHOLE: "it is all of the above put together, as each test gets it",
    BOXES: "netns.sandbox() runs commands that nobody trusts in them; nothing else needs them",
}

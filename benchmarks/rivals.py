"""Other ways to a network of one's own, each as a program that does it some times: ``rivals.py WAY COUNT``.

Each makes a namespace, joins it by a veth pair to the one it was started in, gives both ends an address, sets up a
route, runs ``true`` inside where it is a way to run commands, and takes everything down again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

_ADDRESSES: Final = ("192.0.2.1/30", "192.0.2.2/30")


_SCRIPT: Final = f"""
set -e
ip netns add $1
ip link add $1 type veth peer name eth0 netns $1
ip address add {_ADDRESSES[0]} dev $1
ip link set $1 up
ip -n $1 address add {_ADDRESSES[1]} dev eth0
ip -n $1 link set lo up
ip -n $1 link set eth0 up
ip -n $1 route add default via {_ADDRESSES[0].split("/")[0]}
ip netns delete $1
"""


def ip(count: int) -> None:
    """By the ip command, as shell scripts do it."""
    for number in range(count):  # the kernel is late to take a link down, so each has a name of its own
        subprocess.run(["sh", "-c", _SCRIPT, "sh", f"bench{number}"], check=True)


def pyroute2(count: int) -> None:
    """By pyroute2, one call for each step, as its documentation shows."""
    from pyroute2 import IPRoute, NetNS  # noqa: PLC0415 - its import is not what is measured

    with IPRoute() as here:
        for number in range(count):
            _one_by_pyroute2(here, f"bench{number}", NetNS)


def _one_by_pyroute2(here: object, name: str, namespace: type) -> None:
    local, inside = (address.split("/") for address in _ADDRESSES)
    with namespace(name) as there:
        here.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": name})  # type: ignore[attr-defined]
        index = here.link_lookup(ifname=name)[0]  # type: ignore[attr-defined]
        here.addr("add", index=index, address=local[0], prefixlen=30)  # type: ignore[attr-defined]
        here.link("set", index=index, state="up")  # type: ignore[attr-defined]
        (eth0,) = there.link_lookup(ifname="eth0")
        there.addr("add", index=eth0, address=inside[0], prefixlen=30)
        there.link("set", index=1, state="up")
        there.link("set", index=eth0, state="up")
        there.route("add", dst="default", gateway=local[0])
        there.remove()


def unshare(count: int) -> None:
    """By util-linux' unshare, a command each; no link and no address."""
    for _ in range(count):
        subprocess.run(["unshare", "--map-root-user", "--net", "true"], check=True)


def bwrap(count: int) -> None:
    """By bubblewrap, a command each; loopback alone."""
    for _ in range(count):
        subprocess.run(["bwrap", "--dev-bind", "/", "/", "--unshare-net", "true"], check=True)


WAYS: Final = {way.__name__: way for way in (ip, pyroute2, unshare, bwrap)}

if __name__ == "__main__":
    WAYS[sys.argv[1]](int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)

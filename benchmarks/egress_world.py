"""The places that egress.py measures from, each a network namespace that it made, and processes in them.

``host`` plays the machine: it has a server's address, 198.51.100.1 on its loopback interface, and a link to
``routed``, a client's namespace. Relays that this machine has (slirp4netns, pasta) run in ``host`` and serve a
client's namespace of their own. Nothing here touches the machine's own interfaces.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import fcntl
import ipaddress
import os
import pickle
import shutil
import signal
import socket
import struct
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pytest_netns.gateway.hub import write_sysctls
from pytest_netns.kernel import links, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_ROUTE, NetlinkSocket
from pytest_netns.kernel.position import hop_to

T = TypeVar("T")

SERVER = ipaddress.IPv4Address("198.51.100.1")
NAME = "server.benchmark.example"
LIMIT = 60.0  # seconds for anything, beyond what is asked for

_HOST_END, _ROUTED_END = ipaddress.IPv4Address("192.0.2.1"), ipaddress.IPv4Address("192.0.2.2")
_LO, _ETH0, _LINK = 1, 100, 101
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_SYSCTLS = {
    "net/ipv4/tcp_tw_reuse": "1",  # many short connections to one endpoint would use its ports up
    "net/ipv4/ip_local_port_range": "10000 65535",
}
_TUN = "/dev/net/tun"
_RELAYS = {
    # The greatest MTU that each takes, as container engines start them; each address is the program's own default.
    "slirp4netns": "slirp4netns --configure --mtu=65520 --disable-host-loopback --netns-type=path {netns} tap0",
    "pasta": "pasta --foreground --quiet --config-net --ipv4-only --mtu 65520 --no-map-gw"
    " -t none -u none -T none -U none {runas} --netns {netns}",
}


class Place(NamedTuple):
    """A pair of namespaces."""

    net_fd: int
    mnt_fd: int


class Job(Generic[T]):
    """A process of ours in a place; it ends with us at the latest."""

    def __init__(self, place: Place, work: Callable[[], T], limit: float = LIMIT) -> None:
        """Start it; with a limit of 0 it goes on until ``end``."""
        self._reading, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(self._reading)
            _work(place, work, limit, writing)
        os.close(writing)

    def result(self) -> T:
        """Wait for what the work returns."""
        with open(self._reading, "rb") as told:
            data = told.read()
        os.waitpid(self._pid, 0)
        if not data:
            raise RuntimeError("a process of the benchmark ended without a result; did it take too long?")
        found, value = pickle.loads(data)
        if not found:
            raise RuntimeError(value)
        result: T = value
        return result

    def end(self) -> None:
        """End the process."""
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._reading)


def _work(place: Place, work: Callable[[], object], limit: float, told: int) -> None:
    try:
        if limit:
            faulthandler.dump_traceback_later(limit, exit=True)
        hop_to(place.net_fd, place.mnt_fd)
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            answer = True, work()
        except Exception:  # noqa: BLE001 - the parent raises it
            answer = False, traceback.format_exc()
        with open(told, "wb") as file:
            pickle.dump(answer, file)
    finally:
        os._exit(0)


@dataclasses.dataclass
class World:
    """The places by name, and why there is none for a program."""

    host: Place
    clients: dict[str, Place]
    lacking: dict[str, str]


@contextlib.contextmanager
def made() -> Iterator[World]:
    """Make the world and move to ``host`` for good; at the end, end what was started."""
    if not privilege.is_root():
        privilege.enter_user_namespace()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="egress-benchmark-")))
        with privilege.raised():
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        _name_the_server(stack, folder / "hosts")
        mnt = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        lacking = {program: reason for program in _RELAYS if (reason := _obstacle(program))}
        present = [program for program in _RELAYS if program not in lacking]
        clients = {name: fresh(mnt) for name in ("loopback", "routed", *present)}
        host = fresh(mnt)
        _connect(host, clients["routed"])
        for program in present:
            _relay(stack, folder / f"{program}.log", program, host, clients[program])
        yield World(host, clients, lacking)


def _obstacle(program: str) -> str | None:
    """Return what keeps a program from being compared with."""
    if not shutil.which(program):
        return "is not installed"
    return None if os.access(_TUN, os.R_OK | os.W_OK) else f"may not open {_TUN}"


def _name_the_server(stack: contextlib.ExitStack, hosts: Path) -> None:
    """Let the host's resolver know the server by a name."""
    hosts.write_text(f"127.0.0.1 localhost\n{SERVER} {NAME}\n", encoding="ascii")
    hosts.chmod(0o444)
    with privilege.raised():
        syscalls.mount(str(hosts), "/etc/hosts", None, syscalls.MS_BIND)
    stack.callback(_unmount, "/etc/hosts")


def _unmount(path: str) -> None:
    with privilege.raised():
        syscalls.umount2(path, syscalls.MNT_DETACH)


def fresh(mnt: int) -> Place:
    """Move to a new network namespace with loopback up."""
    with privilege.raised():
        syscalls.unshare(syscalls.CLONE_NEWNET)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP))
        write_sysctls(_SYSCTLS)
    return Place(os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC), mnt)


def _connect(host: Place, routed: Place) -> None:
    """Give the host, which we are in, its addresses and a link to the namespace of the direct way."""
    with privilege.raised():
        route = NetlinkSocket(NETLINK_ROUTE)
        veth = links.add_veth(
            "link0", _LINK, 1500, peer_name="eth0", peer_index=_ETH0, peer_netns=routed.net_fd, peer_group=0
        )
        ours = links.set_up(_LINK) + links.add_address(_LINK, _HOST_END, 24) + links.add_address(_LO, SERVER, 32)
        route.request(veth + ours, "connect the host")
        syscalls.setns(routed.net_fd, syscalls.CLONE_NEWNET)
        there = NetlinkSocket(NETLINK_ROUTE)
        syscalls.setns(host.net_fd, syscalls.CLONE_NEWNET)
        theirs = links.set_up(_ETH0) + links.add_address(_ETH0, _ROUTED_END, 24)
        there.request(theirs + links.add_route(_ETH0, None, _HOST_END), "connect the direct way")
        # pasta takes its addresses from the interface of the default route
        route.request(links.add_route(_LINK, None, _ROUTED_END), "route the host")
        there.close()
        route.close()


def _relay(stack: contextlib.ExitStack, log: Path, program: str, host: Place, client: Place) -> None:
    """Have a program serve a client's namespace, and wait until that has a default route."""
    descriptor = os.dup(client.net_fd)  # which exec does not close
    os.set_inheritable(descriptor, True)
    runas = "--runas 0" if privilege.is_root() else ""  # without, root's pasta becomes nobody, who may not enter
    command = _RELAYS[program].format(netns=f"/proc/self/fd/{descriptor}", runas=runas).split()

    def run() -> None:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # pasta does not start where it is ignored, as Python has it
        with open(os.devnull, "rb") as null, log.open("wb") as file:
            for number, opened in enumerate((null, file, file)):
                os.dup2(opened.fileno(), number)
            with privilege.inheritable():
                os.execvp(command[0], command)

    stack.callback(Job(host, run, limit=0).end)
    os.close(descriptor)
    try:
        Job(client, lambda: _await_route(program)).result()
    except RuntimeError as error:
        raise RuntimeError(f"{error}\n{program} said:\n{log.read_text(errors='replace')}") from None


def _await_route(program: str) -> None:
    deadline = time.monotonic() + LIMIT / 4
    while "\t00000000\t" not in Path("/proc/self/net/route").read_text(encoding="ascii"):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{program} did not connect its namespace")
        time.sleep(0.02)

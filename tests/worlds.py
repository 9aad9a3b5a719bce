"""A world of its own for tests of the gateway: an outer network, in which another host plays the internet.

The gateway runs in the outer network and may reach that host, which is its name server, too (see ``zone``).
So whatever arrives there, or does not, tells from outside what the gateway let through.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import ipaddress
import os
import resource
import select
import shutil
import socket
import struct
import sys
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, ParamSpec, Protocol

import pytest
from pyroute2.netlink.rtnl import RTM_NEWROUTE
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from unshared import fresh, in_child

from pytest_netns.gateway.client import GatewayClient, LeafGrant, run_directory
from pytest_netns.gateway.flows import Flow
from pytest_netns.gateway.hub import write_sysctls
from pytest_netns.kernel import links, mounts, privilege, syscalls
from pytest_netns.kernel.netlink import NETLINK_ROUTE, NLM_F_CREATE, NetlinkSocket, encode
from pytest_netns.kernel.position import Position

P = ParamSpec("P")

OUTER, INTERNET = ipaddress.ip_address("203.0.113.1"), ipaddress.ip_address("203.0.113.5")
OUTER6, INTERNET6 = ipaddress.ip_address("2001:db8::1"), ipaddress.ip_address("2001:db8::5")
HOSTS = (str(INTERNET), str(INTERNET6))
UNREACHABLE = ("198.51.100.1", "2001:db8:dead::1")

#: A folder of hooks, for ``new_world``: with it, the second of the two rulesets for leaves is taken.
TRACKING = Path(__file__).parent / "tracking"
OUT_INDEX, IN_INDEX = 200, 100  # beyond the tunnels that some kernels put into each network
_RTN_UNREACHABLE = 7
_ETH_P_ALL = 3
_CONTROL = b"the witness's own: "
_PACKET_OUTGOING = 4
_SYSCTLS = {
    "net/ipv4/ip_unprivileged_port_start": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/router_solicitations": "0",
    "net/ipv6/conf/default/addr_gen_mode": "1",
}
_CHILD_SECONDS = 60


class Located(Protocol):
    """Anything that names a pair of namespaces."""

    @property
    def net_fd(self) -> int:
        """Return the network namespace's descriptor."""

    @property
    def mnt_fd(self) -> int:
        """Return the mount namespace's descriptor."""


class Place(NamedTuple):
    """A pair of namespaces."""

    net_fd: int
    mnt_fd: int


@contextlib.contextmanager
def at(place: Located) -> Iterator[None]:
    """Be there while the block runs; sockets that are opened there stay there."""
    home = Position()
    try:
        home.hop_to(place.net_fd, place.mnt_fd)
        yield
    finally:
        home.restore()
        home.close()


@dataclass
class World:
    """The outer network and the internet, each a pair of namespaces, with a gateway running in the former."""

    user_fd: int
    outer: Place
    internet: Place
    directory: Path
    runs: bool
    hooks: Path | None

    def enter(self) -> None:
        """Move the process to the outer network, with the rights of a pytest process that has just started."""
        if os.stat("/proc/self/ns/user").st_ino != os.fstat(self.user_fd).st_ino:
            syscalls.setns(self.user_fd, syscalls.CLONE_NEWUSER)
        with privilege.raised():
            syscalls.setns(self.outer.net_fd, syscalls.CLONE_NEWNET)
            syscalls.setns(self.outer.mnt_fd, syscalls.CLONE_NEWNS)
        if self.runs:
            privilege.disinherit()
        elif not privilege.is_root():  # who starts a gateway passes capabilities on to it
            _inherit()
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # some tests are a thousand clients and their servers
        faulthandler.dump_traceback_later(_CHILD_SECONDS, exit=True, file=2)

    def connect(self) -> GatewayClient:
        """Connect to the gateway."""
        return GatewayClient.connect(self.directory)


def _inherit() -> None:
    syscalls.capset(privilege._MASK, privilege._MASK, privilege._MASK)
    for number in privilege.NEEDED:
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
    syscalls.capset(0, privilege._MASK, privilege._MASK)


class Visit:
    """A pytest process's part of a world: a worker leaf and one test's leaf."""

    def __init__(
        self,
        world: World,
        name: str = "w0",
        *,
        open_egress: bool = False,
        rules: Sequence[str] = (),
        run_wide: Sequence[str] = (),
        record: bool = False,
        sni: bool = True,
    ) -> None:
        """Join the gateway and lease the test's leaf."""
        self._began = time.time()
        self.client = world.connect()
        self.worker = self.client.join(name, open_egress=open_egress, rules=run_wide, record=record)
        self.leaf = self.client.lease("test_it", rules=[*run_wide, *rules], sni=sni)

    def sides(self, server: str) -> tuple[LeafGrant, LeafGrant]:
        """Return where the server and where the client of a connection stand."""
        return (self.worker, self.leaf) if server == "worker" else (self.leaf, self.worker)

    def flows(self, leaf: LeafGrant, count: int = 1) -> list[Flow]:
        """Return what was tried from a leaf once it is that much; one of an earlier visit may have the same name."""
        deadline = time.monotonic() + 2
        while len(found := self.client.flows(leaf.name, after=self._began)) < count and time.monotonic() < deadline:
            time.sleep(0.005)
        return found


class Witness:
    """Sees every packet that arrives on the internet."""

    def __init__(self, world: World) -> None:
        """Begin to watch."""
        self._world = world
        with at(world.internet), privilege.raised():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_ALL))
            self._socket.bind(("eth0", _ETH_P_ALL))
        self._socket.settimeout(5)

    def seen(self) -> list[bytes]:
        """Return the packets that came until now, without those by which neighbours find each other."""
        control = _CONTROL + uuid.uuid4().bytes
        with at(self._world.outer), socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.sendto(control, (str(INTERNET), 9))
        found: list[bytes] = []
        while True:
            packet, (_, protocol, kind, *_) = self._socket.recvfrom(65536)
            if packet.endswith(control):
                return found
            if kind != _PACKET_OUTGOING and protocol != 0x0806 and not _is_discovery(packet) and _CONTROL not in packet:
                found.append(packet)


def _is_discovery(packet: bytes) -> bool:
    if packet[0] >> 4 != 6:
        return False
    protocol, rest = packet[6], packet[40:]
    if protocol == 0 and len(rest) > 8:
        protocol, rest = rest[0], rest[8:]
    return protocol == 58 and rest[0] in {130, 131, 132, 133, 135, 136, 143}


def inside(test: Callable[P, None]) -> Callable[P, None]:
    """Run the test in a child, in the outer network of the fixture ``world``."""

    @functools.wraps(test)
    def isolated(*args: P.args, **kwargs: P.kwargs) -> None:
        __tracebackhide__ = True
        world = kwargs.get("world") or kwargs["own_world"]
        assert isinstance(world, World)
        in_child(lambda: test(*args, **kwargs), world.enter)

    return isolated


@contextlib.contextmanager
def new_world(*, gateway: bool = True, hooks: Path | None = None) -> Iterator[World]:
    """Make a world; a process of its own keeps its gateway until the end.

    ``hooks`` is a folder whose sitecustomize the gateway takes up.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        keeper = os.fork()
    if not keeper:
        ours.close()
        if hooks is not None:
            os.environ["PYTHONPATH"] = str(hooks)
            sys.path.insert(0, str(hooks))
        _keep(theirs, gateway=gateway)
    theirs.close()
    descriptors: list[int] = []
    try:
        text, descriptors, _, _ = socket.recv_fds(ours, 65536, 4)
        if not descriptors:
            (pytest.fail if "CI" in os.environ else pytest.skip)(f"no world can be made here: {text.decode()}")
        user_fd, outer, internet, mnt = descriptors
        world = World(user_fd, Place(outer, mnt), Place(internet, mnt), Path(text.decode()), gateway, hooks)
        yield world
    finally:
        ours.close()
        os.waitpid(keeper, 0)
        for descriptor in descriptors:
            os.close(descriptor)
    wait_until(lambda: not world.directory.exists(), 5)


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Wait until something is so; return how long it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < seconds, f"not so within {seconds} s"
        time.sleep(0.01)
    return time.monotonic() - begin


def _keep(channel: socket.socket, *, gateway: bool) -> None:
    """Make the world, tell of it, and wait until nobody needs it."""
    try:
        if not privilege.is_entered():
            privilege.enter_user_namespace()
        fresh()
        with privilege.raised():
            mounts.prepare_template(f"nameserver {INTERNET}\noptions timeout:1 attempts:2\n", hide_resolvers=True)
            outer, internet = _networks()
        directory = run_directory(uuid.uuid4().hex)
        client = GatewayClient.connect(directory) if gateway else None
        user = os.open("/proc/self/ns/user", os.O_RDONLY)
        socket.send_fds(channel, [str(directory).encode()], [user, *outer[:1], *internet])
        channel.recv(1)
        if client is not None:
            client.close()
        else:
            shutil.rmtree(directory, ignore_errors=True)
    except BaseException:  # noqa: BLE001 - whatever it is, the parent tells it
        with contextlib.suppress(OSError):
            channel.send(traceback.format_exc()[-4000:].encode())
    finally:
        os._exit(0)


def _networks() -> tuple[Place, Place]:
    """Make of the present network the outer one, and add the internet."""
    mnt = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    outer, outer_route = os.open("/proc/self/ns/net", os.O_RDONLY), NetlinkSocket(NETLINK_ROUTE)
    write_sysctls(_SYSCTLS)
    syscalls.unshare(syscalls.CLONE_NEWNET)
    internet, route = os.open("/proc/self/ns/net", os.O_RDONLY), NetlinkSocket(NETLINK_ROUTE)
    write_sysctls(_SYSCTLS)
    veth = links.add_veth(
        "eth0", IN_INDEX, 1500, peer_name="out0", peer_index=OUT_INDEX, peer_netns=outer, peer_group=0
    )
    route.request(veth + links.set_up(1) + _side(IN_INDEX, INTERNET, INTERNET6), "connect the internet")
    routes = links.add_route(OUT_INDEX, None, INTERNET) + links.add_route(OUT_INDEX, None, INTERNET6)
    unreachable = b"".join(_unreachable(host) for host in UNREACHABLE)
    outer_route.request(_side(OUT_INDEX, OUTER, OUTER6) + routes + unreachable, "connect the outer network")
    syscalls.setns(outer, syscalls.CLONE_NEWNET)
    return Place(outer, mnt), Place(internet, mnt)


def _side(index: int, address: links.Address, address6: links.Address) -> bytes:
    addresses = links.add_address(index, address, 24) + links.add_address(index, address6, 64)
    return links.set_up(index) + addresses


def _unreachable(host: str) -> bytes:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    size = 128 if ":" in host else 32
    fields = {"family": family, "dst_len": size, "table": 254, "proto": 4, "scope": 0, "type": _RTN_UNREACHABLE}
    return encode(rtmsg(), RTM_NEWROUTE, NLM_F_CREATE, {**fields, "flags": 0}, [("RTA_DST", host)])


def sent_packets() -> int:
    """Return how many packets have left the leaf that we are in."""
    for line in Path("/proc/thread-self/net/dev").read_text(encoding="ascii").splitlines():
        name, _, counters = line.partition(":")
        if name.strip() == "eth0":
            return int(counters.split()[9])
    raise AssertionError("there is no eth0 here")


def peer_pid(client: GatewayClient) -> int:
    """Return the gateway's process id."""
    credentials = client._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return int(struct.unpack("iII", credentials)[0])


def nothing_arrived(*listeners: socket.socket) -> bool:
    """Tell whether none of the sockets has anything to accept or to read."""
    return not select.select(listeners, [], [], 0)[0]

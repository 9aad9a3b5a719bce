"""The one port that the service under test listens on."""

from __future__ import annotations

import _socket  # tests replace what is in socket, or forbid its use
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Final, NamedTuple

from pytest_netns.addressing import PEER_MARK
from pytest_netns.errors import ServiceNotReadyError
from pytest_netns.kernel import clock, privilege
from pytest_netns.kernel.sockets import listeners

if TYPE_CHECKING:
    from pytest_netns.namespace import Namespace

__all__ = ["Published", "ServicePort"]

_TAKERS: Final = ("127.0.0.1", "0.0.0.0")  # noqa: S104 - only compared
_PERHAPS: Final = "::"  # takes IPv4 too, unless told not to
_FIRST_PAUSE: Final = 0.002
_LONGEST_PAUSE: Final = 0.05


class Published(NamedTuple):
    """Where the host reaches a service of a leaf."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The same as a URL of the http scheme."""
        return f"http://{self.host}:{self.port}"


class ServicePort:
    """The address of the service under test, the same in each leaf.

    Attributes:
        host: 127.0.0.1, where to listen and to connect inside.
        port: 8080 unless set.
    """

    host: Final = "127.0.0.1"

    def __init__(self, namespace: Namespace, port: int | None = None) -> None:
        """Describe the service of a leaf; its own service port unless another is given."""
        self.port = namespace.service_port if port is None else port
        self._namespace = namespace

    def __repr__(self) -> str:
        """Name address and leaf."""
        return f"<ServicePort {self.host}:{self.port} in {self._namespace.name}>"

    @property
    def url(self) -> str:
        """The service's URL of the http scheme, inside."""
        return f"http://{self.host}:{self.port}"

    @property
    def address(self) -> str:
        """The leaf's IPv4 address, at which other leaves reach the service, even if it listens on 127.0.0.1 only."""
        return self._namespace.ipv4

    def wait(self, timeout: float = 10.0) -> None:
        """Wait until the service accepts connections at 127.0.0.1.

        A server that listens in the leaf itself is recognized without a connection to it, so that
        one which serves a single connection still has it to give. (One at ``::`` takes a connection.)

        Raises:
            ServiceNotReadyError: it did not within ``timeout`` seconds; the text says what does listen.
        """
        deadline = clock.monotonic() + timeout
        pause = _FIRST_PAUSE
        with self._namespace:
            while not self._is_ready(max(0.001, deadline - clock.monotonic())):
                if clock.monotonic() >= deadline:
                    raise ServiceNotReadyError(self._not_ready(timeout))
                time.sleep(min(pause, max(0.0, deadline - clock.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE)

    def publish(self) -> Published:
        """Make the service reachable from the host at a free 127.0.0.1 port, for as long as the leaf lives."""
        return Published("127.0.0.1", self._namespace.publish(self.port))

    def _is_ready(self, patience: float) -> bool:
        hosts = {one.host for one in listeners("tcp") if one.port == self.port}
        if not hosts.isdisjoint(_TAKERS):
            return True
        with contextlib.closing(_socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
            probe.settimeout(patience)
            if _PERHAPS not in hosts:  # one that begins to listen right now is not to be connected to
                with contextlib.suppress(OSError), privilege.raised():
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PEER_MARK)
            return probe.connect_ex((self.host, self.port)) == 0

    def _not_ready(self, timeout: float) -> str:
        found = sorted({one.endpoint.partition(" ")[2] for one in listeners("tcp")})
        seen = f"what listens there: {', '.join(found)}" if found else "no program listens on any TCP port there"
        inside = ", ".join(f"{pid} ({command})" for pid, command in self._namespace.processes()) or "none"
        return (
            f"nothing accepted a connection at {self.host}:{self.port} in {self._namespace.name} within {timeout:g} s; "
            f"{seen}; processes there: {inside}. Start the service inside (netns.popen, or from the test), "
            f"let it listen on {self.host} or 0.0.0.0 at the port netns_port, or allow it more time"
        )

"""What a process that runs tests has got from the gateway, from its first test to its last."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pytest_netns import early
from pytest_netns.errors import KernelError, NetnsError
from pytest_netns.kernel import privilege
from pytest_netns.leases import Leases
from pytest_netns.namespace import Namespace
from pytest_netns.pools import Pools
from pytest_netns.scoping import Place, Traveller
from pytest_netns.session import UnsaidError
from pytest_netns.settings import Keep, Mode

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.session import Session

__all__ = ["Stay", "engage"]

_log = logging.getLogger(__name__)

_UNSAID: Final = (
    "this test asks for a network of its own, but pytest runs as an ordinary user, whose process cannot return to "
    "the host's network once it has left it, so it has to be told at the start. Add --netns-marked to the command "
    'line, or netns = "marked" to the configuration of pytest, without the quotes in an ini file (tests that do not '
    "ask then run in one network per worker, with egress open); or isolate every test with --netns"
)


@dataclass
class Stay:
    """What a process that runs tests has got from the gateway.

    Attributes:
        client: the gateway.
        traveller: what moves the process.
        host: the namespaces that pytest was started in.
        returns: whether the process may go back there.
        worker: the worker leaf, where there is one.
        leases: the leaves of its tests.
    """

    client: GatewayClient
    traveller: Traveller
    host: Place
    returns: bool
    worker: Namespace | None
    leases: Leases

    def descriptors(self) -> tuple[int, ...]:
        """Return what the process can't go on without: the way to the gateway, to where it is, and back."""
        return self.client.fileno(), *self.traveller.base.descriptors, *self.traveller.place.descriptors

    def go_to_base(self) -> None:
        """Go where the process lives between tests."""
        self.traveller.go(self.traveller.base)

    def finish(self) -> None:
        """Give up all leaves, and bring the process home, if it may go there."""
        with contextlib.suppress(KernelError):  # where a test has given up the right to
            self.go_to_base()
        try:
            self.leases.release_all()
        except BaseException:  # Ctrl-C: what is left, the gateway ends, as for a process that has gone
            self.client.close()
            raise
        if self.returns:
            self.traveller.base = self.host
            with contextlib.suppress(KernelError):
                self.go_to_base()


def engage(session: Session) -> Stay:
    """Connect to the gateway, and go where the process lives between tests.

    Raises:
        UnsaidError: pytest would have had to be told at its start that tests will ask.
        NetnsError, OSError: isolation cannot work here.
    """
    early.settle()
    host, settings = Place.here(), session.settings
    session.cleanup.callback(host.close)
    returns = privilege.is_entered() and host.is_reachable()
    if not returns and not settings.said:
        raise UnsaidError(_UNSAID)
    client = session.client or session.connect()
    traveller = Traveller(host, str(session.config.invocation_params.dir))
    worker = None
    grant = session.join(client, own_leaf=not (returns and settings.mode is Mode.MARKED))
    if grant is not None:
        worker = Namespace(grant, client)
        session.cleanup.callback(_quietly, worker.close)
        traveller.base = Place.of(grant)
        traveller.go(traveller.base)
        _log.info("in the worker's network, leaf %s, %s", worker.name, worker.ipv4)
    privilege.disinherit()
    if settings.pcap is not Keep.OFF and settings.tls_keys:
        from pytest_netns.keeping import keep_keys  # noqa: PLC0415 - most runs keep none

        session.keys = keep_keys(session.cleanup, session.run_id)
    shared = settings.mode is Mode.ALL
    pools = Pools()
    session.cleanup.callback(pools.remove)
    pools.install()
    leases = Leases(client, worker, traveller.base, pools, shared=shared, rules=settings.allow)
    return Stay(client, traveller, host, returns, worker, leases)


def _quietly(close: Callable[[], None]) -> None:
    """Close what the gateway has a part in; it may be gone, and then everything of it is."""
    try:
        close()
    except (NetnsError, OSError) as error:
        _log.debug("closing: %s", error)

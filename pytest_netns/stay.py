"""What a process that runs tests has got from the gateway, from its first test to its last."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_netns.errors import KernelError

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.leases import Leases
    from pytest_netns.namespace import Namespace
    from pytest_netns.scoping import Place, Traveller

__all__ = ["Stay"]


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

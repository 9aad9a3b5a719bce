"""One pytest process and its part in the run: gateway, worker leaf, and the way back.

The xdist controller runs no tests: it starts the gateway and holds on to it, so that it outlives the
workers. A worker, or a process alone, enters its worker leaf. Without ``all`` or ``marked`` said,
nothing at all is done before a test asks.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_netns.errors import NetnsError, UnsupportedError
from pytest_netns.settings import Mode, Settings

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient
    from pytest_netns.gateway.flows import BlockedSummary
    from pytest_netns.leases import Leases
    from pytest_netns.namespace import Namespace
    from pytest_netns.scoping import Place, Traveller

__all__ = ["BLOCKED", "FAILURE", "RUN_ID", "SESSION", "Role", "Session", "enter_early", "explained"]

RUN_ID: Final = "netns_run_id"
FAILURE: Final = "netns_failure"
BLOCKED: Final = "netns_blocked"

_log = logging.getLogger(__name__)

SESSION = pytest.StashKey["Session"]()

_UNSAID: Final = (
    "this test asks for a network of its own, but pytest runs as an ordinary user, whose process cannot return to "
    "the host's network once it has left it, so it has to be told at the start. Add --netns-marked to the command "
    'line, or netns = "marked" to [tool.pytest] in pyproject.toml (tests that do not ask then run in one network per '
    "worker, with egress open); or isolate every test with --netns"
)


class _UnsaidError(UnsupportedError):
    """Nothing is missing but the user's word."""


class Role(enum.Enum):
    """What a pytest process does in a run."""

    ALONE = "alone"
    WORKER = "worker"
    CONTROLLER = "controller"


def explained(error: Exception) -> str:
    """Return what the user reads of a failure: what is missing, why, and what to do."""
    from pytest_netns import doctor  # noqa: PLC0415

    return doctor.explain(error)


def enter_early(settings: Settings) -> None:
    """Enter a user namespace while the process has no threads, where the run will need one.

    Raises:
        NetnsError: this machine does not let us.
    """
    if settings.mode is Mode.OFF or not settings.said:
        return
    if not sys.platform.startswith("linux"):
        raise UnsupportedError(f"network namespaces are a feature of Linux, and this is {sys.platform}")
    from pytest_netns.kernel import privilege  # noqa: PLC0415

    if not privilege.is_root() and not privilege.is_entered():
        privilege.enter_user_namespace()


def _quietly(close: Callable[[], None]) -> None:
    """Close what the gateway has a part in; it may be gone, and then everything of it is."""
    try:
        close()
    except (NetnsError, OSError) as error:
        _log.debug("closing: %s", error)


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

    def go_to_base(self) -> None:
        """Go where the process lives between tests."""
        self.traveller.go(self.traveller.base)

    def finish(self) -> None:
        """Give up all leaves, and bring the process home, if it may go there."""
        self.go_to_base()
        self.leases.release_all()
        if self.returns:
            self.traveller.base = self.host
            self.go_to_base()


class Session:
    """What one pytest process holds for the run; it lives in ``config.stash``."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        """Hold nothing yet."""
        self.config = config
        self.settings = settings
        self.failure: str | None = self._workerinput.get(FAILURE)
        self.client: GatewayClient | None = None
        self.stay: Stay | None = None
        self.reported: dict[str, tuple[int, str]] = {}
        self.run_id: str = self._workerinput.get(RUN_ID) or uuid.uuid4().hex
        self._cleanup = contextlib.ExitStack()

    @property
    def _workerinput(self) -> dict[str, Any]:
        workerinput: dict[str, Any] = getattr(self.config, "workerinput", {})
        return workerinput

    @property
    def role(self) -> Role:
        """What this process does."""
        if self._workerinput:
            return Role.WORKER
        return Role.CONTROLLER if self.config.pluginmanager.hasplugin("dsession") else Role.ALONE

    def start(self) -> None:
        """Do what has to be done before collection.

        Raises:
            NetnsError, OSError: isolation cannot work here.
        """
        self.config.add_cleanup(self.close)
        if self.settings.mode is Mode.OFF or not self.settings.said or self.failure:
            return
        if self.role is Role.CONTROLLER:
            self._connect()
        else:
            self._engage()

    def ready(self) -> Stay:
        """Return what it takes to isolate a test, getting it if need be.

        Raises:
            pytest.fail.Exception: it is not to be had; pytest.skip.Exception, if so desired.
        """
        if self.stay is None and self.failure is None:
            try:
                return self._engage()
            except _UnsaidError as error:
                self.failure = str(error)
            except (NetnsError, OSError) as error:
                self.failure = explained(error)
        if self.stay is not None:
            return self.stay
        if self.settings.skip_unsupported:
            raise pytest.skip.Exception(f"netns: {self.failure}", _use_item_location=True)
        pytest.fail(f"netns: {self.failure}", pytrace=False)

    def _connect(self) -> GatewayClient:
        from pytest_netns.gateway.client import GatewayClient, run_directory  # noqa: PLC0415

        try:
            self.client = GatewayClient.connect(run_directory(self.run_id))
        except FileNotFoundError:  # the gateway of another worker has just ended, and took the directory with it
            self.client = GatewayClient.connect(run_directory(self.run_id))
        except BaseException:
            directory = run_directory(self.run_id)
            with contextlib.suppress(OSError):  # not empty: somebody else's gateway is up
                directory.rmdir()
                directory.parent.rmdir()
            raise
        self._cleanup.callback(self.client.close)
        return self.client

    def _engage(self) -> Stay:
        """Connect to the gateway, and go where the process lives between tests."""
        from pytest_netns.kernel import privilege  # noqa: PLC0415
        from pytest_netns.leases import Leases  # noqa: PLC0415
        from pytest_netns.namespace import Namespace  # noqa: PLC0415
        from pytest_netns.scoping import Place, Traveller  # noqa: PLC0415

        host = Place.here()
        self._cleanup.callback(host.close)
        returns = privilege.is_entered() and host.is_reachable()
        if not returns and not self.settings.said:
            raise _UnsaidError(_UNSAID)
        client = self._connect()
        name = self._workerinput.get("workerid", "main")
        traveller = Traveller(host, str(self.config.invocation_params.dir))
        worker = None
        if returns and self.settings.mode is Mode.MARKED:
            client.attach(name)
        else:
            grant = client.join(name, open_egress=self.settings.mode is Mode.MARKED, service_port=self.settings.port)
            worker = Namespace(grant, client)
            self._cleanup.callback(_quietly, worker.close)
            traveller.base = Place.of(grant)
            traveller.go(traveller.base)
        privilege.disinherit()
        leases = Leases(client, worker, traveller.base, shared=self.settings.mode is Mode.ALL)
        self.stay = Stay(client, traveller, host, returns, worker, leases)
        return self.stay

    def finish(self) -> None:
        """Leave all leaves at the end of the run; a worker tells its controller what was blocked."""
        if self.stay is None:
            return
        if self.role is Role.WORKER:
            output: dict[str, Any] = self.config.workeroutput  # type: ignore[attr-defined]
            with contextlib.suppress(NetnsError):
                output[BLOCKED] = [[one.endpoint, one.count, one.first_test] for one in self.stay.client.blocked()]
        stay, self.stay = self.stay, None
        stay.finish()

    def blocked(self) -> list[BlockedSummary]:
        """Return the blocked endpoints of the whole run, most frequent first."""
        if self.client is not None:
            return self.client.blocked()
        if not self.reported:
            return []
        from pytest_netns.gateway.flows import BlockedSummary  # noqa: PLC0415

        found = [BlockedSummary(endpoint, *rest) for endpoint, rest in self.reported.items()]
        return sorted(found, key=lambda summary: -summary.count)

    def close(self) -> None:
        """Give everything back; doing so twice is harmless."""
        with contextlib.suppress(NetnsError):
            self.finish()
        self._cleanup.close()
        self.client = None

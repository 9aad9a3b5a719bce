"""One pytest process and its part in the run: gateway, worker leaf, and the way back.

The xdist controller runs no tests: it starts the gateway and holds on to it, so that it outlives the
workers. A worker, or a process alone, enters its worker leaf. Without ``all`` or ``marked`` said,
nothing at all is done before a test asks.
"""

from __future__ import annotations

import contextlib
import enum
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_netns import early
from pytest_netns.errors import GatewayError, KernelError, NetnsError, UnsupportedError
from pytest_netns.outputs import Outputs
from pytest_netns.settings import EgressMode, Keep, Mode, Settings, SettingsError

if TYPE_CHECKING:
    from pytest_netns.gateway.client import GatewayClient, LeafGrant
    from pytest_netns.stay import Stay
    from pytest_netns.tally import Tally

__all__ = ["FAILURE", "OUTPUTS", "RUN_ID", "SESSION", "TALLY", "Role", "Session", "UnsaidError", "explained"]

RUN_ID: Final = "netns_run_id"
FAILURE: Final = "netns_failure"
OUTPUTS: Final = "netns_outputs"
TALLY: Final = "netns_tally"

_log = logging.getLogger(__name__)

SESSION = pytest.StashKey["Session"]()

_NOTHING_TO_PUBLISH: Final = (
    "--netns-publish: no test has a network of its own that could be shown, since pytest runs as an ordinary user and "
    "has not been told which tests to isolate. Add --netns, or --netns-marked for those that ask"
)


class UnsaidError(UnsupportedError):
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


class Session:
    """What one pytest process holds for the run; it lives in ``config.stash``."""

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        """Hold nothing yet."""
        self.config = config
        self.settings = settings
        self.failure: str | None = self._workerinput.get(FAILURE)
        self.client: GatewayClient | None = None
        self.stay: Stay | None = None
        self.page: str | None = None
        self.told: list[dict[str, Any]] = []
        self.losses = 0  # of gateways that have ended before the run did
        told = self._workerinput.get(OUTPUTS)
        self.outputs = Outputs(**told) if told else Outputs.of(settings, str(config.invocation_params.dir))
        self.keys: str | None = None
        self.run_id: str = self._workerinput.get(RUN_ID) or early.run_id(config)
        self.cleanup = contextlib.ExitStack()

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
        if self.settings.mode is Mode.OFF or self.failure:
            return
        if not self.settings.said:
            self._start_unsaid()
            return
        if self.role is Role.CONTROLLER:
            self.connect()
        else:
            self._engage()

    def _start_unsaid(self) -> None:
        """Connect to the gateway only where something has to be told, or kept, from before the first test that asks."""
        if self.settings.publish is not None and self.role is not Role.WORKER:
            from pytest_netns.kernel import privilege  # noqa: PLC0415

            if privilege.is_root():
                self.connect()
                return
            if not self.settings.skip_unsupported:
                raise SettingsError(_NOTHING_TO_PUBLISH)
        if self.outputs.report is not None and self.role is Role.CONTROLLER:
            with contextlib.suppress(NetnsError, OSError):  # then the tests that ask will say so
                self.connect()

    def ready(self) -> Stay:
        """Return what it takes to isolate a test, getting it if need be.

        Raises:
            pytest.fail.Exception: it is not to be had; pytest.skip.Exception, if so desired.
        """
        if self.stay is None and self.failure is None:
            try:
                return self._engage()
            except UnsaidError as error:
                self.failure = str(error)
            except (NetnsError, OSError) as error:
                self.failure = explained(error)
        if self.stay is not None:
            return self.stay
        if self.settings.skip_unsupported:
            raise pytest.skip.Exception(f"netns: {self.failure}", _use_item_location=True)
        pytest.fail(f"netns: {self.failure}", pytrace=False)

    def connect(self) -> GatewayClient:
        """Start the gateway of the run, if nobody has, and connect to it.

        Raises:
            NetnsError, OSError: it cannot be had.
        """
        from pytest_netns.gateway.client import GatewayClient  # noqa: PLC0415
        from pytest_netns.gateway.launch import begin, clear  # noqa: PLC0415
        from pytest_netns.gateway.paths import FLOWS_NAME  # noqa: PLC0415

        directory, begun = self.directory(), early.taken(self.config)
        early.settle()
        try:
            if begun is None and self.role is not Role.WORKER:  # nobody else looks for one before this process has it
                begun = begin(directory)
            self.client = GatewayClient.connect(directory, begun)
        except BaseException:
            clear(directory)
            raise
        if self.outputs.report is not None and self.role is not Role.WORKER:
            self.outputs.flows = str(directory / FLOWS_NAME)
        _log.info("connected to the gateway of run %s", self.run_id)
        self.cleanup.callback(self._disconnect, self.client)
        self.direct(self.client)
        return self.client

    def direct(self, client: GatewayClient) -> None:
        """Tell a gateway what it is to do for the whole run."""
        for path in self.outputs.journals:
            client.log_to(path)
        if self.settings.publish is not None:
            self._publish(client, self.settings.publish)

    def _disconnect(self, client: GatewayClient) -> None:
        from pytest_netns.gateway.launch import clear  # noqa: PLC0415
        from pytest_netns.gateway.paths import remove  # noqa: PLC0415

        client.close()
        directory = self.directory()  # the gateway removes it, too, at this very moment
        if client.lost:
            clear(directory)  # looks for one that has taken over, which may wait for this process
        if self.role is not Role.WORKER:  # the last one that goes, so that it need not matter how the gateway ends
            remove(directory)

    def directory(self) -> Path:
        """Return where the run keeps its socket and lock; the gateway makes it."""
        from pytest_netns.gateway.paths import directory_of  # noqa: PLC0415

        return directory_of(self.run_id)

    def _publish(self, client: GatewayClient, port: int) -> None:
        try:
            self.page = f"http://localhost:{client.browse(port)}/"
        except KernelError as error:
            reason = f"{error.strerror}".rpartition("browse: ")[2]
            raise SettingsError(f"--netns-publish: {reason}; name another port, or none") from None

    def _engage(self) -> Stay:
        from pytest_netns.stay import engage  # noqa: PLC0415

        self.stay = engage(self)
        return self.stay

    def join(self, client: GatewayClient, *, own_leaf: bool, leaf: tuple[int, int] | None = None) -> LeafGrant | None:
        """Become a worker, with a leaf of its own, which may be there already, or without."""
        settings = self.settings
        name, record = self._workerinput.get("workerid", "main"), settings.egress is EgressMode.RECORD
        tapped = settings.pcap is not Keep.OFF
        if not own_leaf:
            client.attach(name, record=record, tapped=tapped)
            return None
        opened, port, rules = settings.mode is Mode.MARKED, settings.port, settings.allow
        return client.join(
            name, open_egress=opened, service_port=port, rules=rules, record=record, tapped=tapped, leaf=leaf
        )

    def finish(self) -> None:
        """Leave all leaves at the end of the run; a worker tells its controller what was tried from its own."""
        if self.stay is None:
            return
        if self.role is Role.WORKER:
            from pytest_netns.tally import Tally  # noqa: PLC0415

            output: dict[str, Any] = self.config.workeroutput  # type: ignore[attr-defined]
            with contextlib.suppress(NetnsError):
                output[TALLY] = Tally.of(self.stay.client, own=True).tell()
        stay, self.stay = self.stay, None
        stay.finish()

    @property
    def has_isolated(self) -> bool:
        """Whether the run had a gateway, be it through its workers."""
        return self.client is not None or bool(self.told)

    def tally(self) -> Tally:
        """Return what was tried over the whole run.

        Raises:
            NetnsError: the gateway does not tell.
        """
        from pytest_netns.tally import Tally  # noqa: PLC0415

        if self.client is not None and not self.client.lost:
            try:
                return Tally.of(self.client)
            except GatewayError:
                if not self.client.lost:
                    raise
        self.losses += self.client is not None
        return Tally.sum(self.told)

    def close(self) -> None:
        """Give everything back; doing so twice is harmless."""
        with contextlib.suppress(NetnsError, OSError):
            self.finish()
        self.cleanup.close()
        self.client = None

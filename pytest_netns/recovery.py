"""What is done when the gateway has ended before the run did: another takes its place, and what lived on goes on."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import pytest

from pytest_netns.errors import NetnsError
from pytest_netns.session import explained

if TYPE_CHECKING:
    from pytest_netns.session import Session

__all__ = ["LOSS", "recover"]

LOSS: Final = (
    "netns: the gateway has ended while this test was running, and with it the test's way out; somebody has killed it, "
    "or the machine lacked memory (dmesg tells). Another one is started for the next test"
)

_log = logging.getLogger(__name__)


def recover(session: Session) -> None:
    """Have another gateway take over a run whose gateway was lost, with its worker leaf and what lives in that.

    Raises:
        pytest.fail.Exception: it cannot be had.
    """
    if session.stay is None or not session.stay.client.lost:
        return
    _log.info("the gateway of run %s has ended; another one takes over", session.run_id)
    try:
        _hand_over(session)
    except (NetnsError, OSError) as error:
        raise pytest.fail.Exception(f"netns: {explained(error)}", pytrace=False) from None


def _hand_over(session: Session) -> None:
    stay = session.stay
    if stay is None:
        return
    client, worker = stay.client, stay.worker
    if stay.returns:
        back = stay.traveller.visit(stay.host)  # where a gateway belongs, if one has to be started
        try:
            client.reconnect(session.directory())
        finally:
            back()
    else:
        client.reconnect(session.directory(), may_start=False)
    session.losses += 1
    session.direct(client)
    leaf = worker.descriptors() if worker is not None else None
    grant = session.join(client, own_leaf=worker is not None, leaf=leaf)
    if worker is not None and grant is not None:
        worker.rewire(grant)
    stay.leases.renew()

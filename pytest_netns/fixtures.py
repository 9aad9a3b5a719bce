"""The fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_netns.namespace import Namespace
    from pytest_netns.service import ServicePort

__all__ = ["netns", "netns_port", "netns_service"]


@pytest.fixture
def netns(request: pytest.FixtureRequest) -> Namespace:
    """The network and mount namespace that this test runs in, made for it."""
    from pytest_netns.isolation import ISOLATION  # noqa: PLC0415

    namespace: Namespace = request.config.stash[ISOLATION].namespace_of(request.node)
    return namespace


@pytest.fixture(scope="session")
def netns_port(request: pytest.FixtureRequest) -> int:
    """The one port for the service under test, the same in each network: 8080 unless set."""
    from pytest_netns.session import SESSION  # noqa: PLC0415

    port: int = getattr(request, "param", request.config.stash[SESSION].settings.port)
    return port


@pytest.fixture
def netns_service(request: pytest.FixtureRequest, netns: Namespace) -> ServicePort:
    """Where the service under test listens (host, port, url), wait() for it, publish() it to the host."""
    from pytest_netns.isolation import ISOLATION  # noqa: PLC0415
    from pytest_netns.service import ServicePort  # noqa: PLC0415

    return ServicePort(netns, request.config.stash[ISOLATION].settings_of(request.node).port)

"""The fixtures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_netns.egress import Egress
    from pytest_netns.namespace import Namespace
    from pytest_netns.sandbox.box import Sandbox
    from pytest_netns.service import ServicePort

__all__ = ["netns", "netns_egress", "netns_factory", "netns_port", "netns_sandbox", "netns_service"]


@pytest.fixture
def netns(request: pytest.FixtureRequest) -> Namespace:
    """The network and mount namespace that this test runs in, made for it."""
    from pytest_netns.isolation import ISOLATION  # noqa: PLC0415

    namespace: Namespace = request.config.stash[ISOLATION].namespace_of(request.node)
    return namespace


@pytest.fixture
def netns_egress(request: pytest.FixtureRequest, netns: Namespace) -> Iterator[Egress]:
    """What may leave the test's network (rules, allow()), and what tried to (flows, blocked)."""
    from pytest_netns.egress import Egress  # noqa: PLC0415
    from pytest_netns.isolation import ISOLATION  # noqa: PLC0415

    isolation, test = request.config.stash[ISOLATION], request.node
    rules = isolation.settings_of(test).allow
    egress = Egress(netns, isolation.session.ready().client, rules=rules, test=test.nodeid)
    yield egress
    egress.close()


@pytest.fixture
def netns_factory(request: pytest.FixtureRequest) -> Callable[..., Namespace]:
    """Makes further namespaces for the test: ``other = netns_factory(allow=[...], port=...)``."""
    from pytest_netns.isolation import ISOLATION  # noqa: PLC0415

    isolation = request.config.stash[ISOLATION]
    isolation.namespace_of(request.node)  # or it fails, or skips
    return functools.partial(isolation.further, request.node)


@pytest.fixture(scope="session")
def netns_port(request: pytest.FixtureRequest) -> int:
    """The one port for the service under test, the same in each network: 8080 unless set."""
    from pytest_netns.session import SESSION  # noqa: PLC0415

    port: int = getattr(request, "param", request.config.stash[SESSION].settings.port)
    return port


@pytest.fixture
def netns_sandbox(request: pytest.FixtureRequest, netns: Namespace, tmp_path: Path) -> Iterator[Sandbox]:
    """A box for commands that nobody trusts (run(), popen(), shell(), changes), with tmp_path as its directory."""
    from pytest_netns.sandbox.configured import read_options  # noqa: PLC0415
    from pytest_netns.session import SESSION  # noqa: PLC0415

    options = read_options(request.config.stash[SESSION].settings.sandbox)
    with netns.sandbox(**{"workdir": tmp_path, **options}) as box:
        yield box


@pytest.fixture
def netns_service(request: pytest.FixtureRequest, netns: Namespace) -> ServicePort:
    """Where the service under test listens (host, port, url), wait() for it, publish() it to the host."""
    from pytest_netns.isolation import ISOLATION  # noqa: PLC0415
    from pytest_netns.service import ServicePort  # noqa: PLC0415

    return ServicePort(netns, request.config.stash[ISOLATION].settings_of(request.node).port)

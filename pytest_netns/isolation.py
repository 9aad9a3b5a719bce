"""The hooks that bring each test, and each fixture, to where it belongs, and back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from pytest_netns import values
from pytest_netns.aftermath import plainly, strand
from pytest_netns.detours import Detour
from pytest_netns.errors import GatewayError, KernelError, NamespaceClosedError, NetnsError
from pytest_netns.kernel import clock
from pytest_netns.markers import marks_of
from pytest_netns.recovery import LOSS, recover
from pytest_netns.report import RECORD
from pytest_netns.session import Role
from pytest_netns.settings import ItemSettings, Mode, Scope, SettingsError
from pytest_netns.telling import Telling
from pytest_netns.traits import Traits
from pytest_netns.warning import warn_of

if TYPE_CHECKING:
    from pytest_netns.namespace import Namespace
    from pytest_netns.scoping import Leaf
    from pytest_netns.session import Session

__all__ = ["ISOLATION", "Isolation"]

ISOLATION = pytest.StashKey["Isolation"]()


class Isolation:
    """A plugin of every process that runs tests."""

    def __init__(self, session: Session) -> None:
        """Isolate nothing before a test asks."""
        self.session = session
        self.leaf: Leaf | None = None
        self._refusal: BaseException | None = None
        self.kept: Leaf | None = None
        self.telling = Telling(session)
        self.traits = Traits()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Generator[None, object, object]:
        """Bring the process to where the test belongs; it stays until after the tear-down."""
        __tracebackhide__ = True
        self._refusal = self.kept = None
        try:
            with plainly():
                self._enter(item)
        except (Exception, pytest.fail.Exception, pytest.skip.Exception) as error:  # noqa: BLE001 - raised below
            self._refusal = error
        return (yield)

    @pytest.hookimpl(specname="pytest_runtest_setup", tryfirst=True)
    def pytest_netns_refuse(self) -> None:
        """Fail or skip a test that cannot be isolated; not in the wrapper, lest others' wrappers are left out."""
        __tracebackhide__ = True
        refusal, self._refusal = self._refusal, None
        if refusal is not None:
            raise refusal

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: pytest.Item | None
    ) -> Generator[None, object, object]:
        """Leave the test's leaf, and give back what nothing needs any more."""
        __tracebackhide__ = True
        try:
            result = yield
        except BaseException:
            with contextlib.suppress(NetnsError, OSError):  # the test has failed already
                self._leave(item, nextitem, failed=True)
            raise
        with plainly():
            self._leave(item, nextitem, failed=False)
        return result

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Let a fixture that outlives a test run where it belongs, at set-up and at tear-down."""
        __tracebackhide__ = True
        scope = Scope[request.scope.upper()]
        if scope is Scope.FUNCTION:
            return (yield)
        detour = Detour(self, scope, request.node)
        fixturedef.addfinalizer(detour.finish)
        with plainly():
            detour.begin()
        try:
            return (yield)
        finally:
            detour.end()
            fixturedef.addfinalizer(detour.begin)

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self) -> Generator[None, object, object]:
        """Let plugins that send reports somewhere do so from the host, if that is where they would be."""
        stay = self.session.stay
        back = stay.traveller.visit(stay.host) if stay is not None and stay.worker is None else None
        try:
            return (yield)
        finally:
            if back is not None:
                back()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_exception_interact(self) -> Generator[None, object, object]:
        """Debug a failed tear-down, too, in the test's leaf, which ``_leave`` has kept for it."""
        stay, leaf = self.session.stay, self.kept
        back = stay.traveller.visit(leaf.place) if stay is not None and leaf is not None else None
        try:
            return (yield)
        finally:
            self.kept = None
            if back is not None:
                back()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_sessionfinish(self) -> Generator[None, object, object]:
        """Give back all leaves, once the last fixture has been torn down, and go home."""
        try:
            return (yield)
        finally:
            self.leaf = None
            self.session.finish()

    def namespace_of(self, item: pytest.Item) -> Namespace:
        """Return the handle of the leaf that the test runs in, entering one if it does not run in any."""
        settings = self.settings_of(item)
        if self.session.settings.mode is Mode.OFF:
            reason = "needs a network of its own, but netns is off"
            raise pytest.skip.Exception(reason, _use_item_location=True)
        if settings.opted_out_by is not None:
            wish = "asks for a network of its own through a fixture, but is marked no_netns; take one of the two away"
            pytest.fail(f"{item.nodeid} {wish} (the marker is on {settings.opted_out_by})", pytrace=False)
        with plainly():
            return (self.leaf or self.open(item, settings)).namespace

    def further(self, item: pytest.Item, *, allow: Sequence[str] = (), port: int | None = None) -> Namespace:
        """Make one more leaf for a test that is running; it goes by the test's rules, and these."""
        record = item.stash.get(RECORD, None)
        if record is None:
            raise NamespaceClosedError(f"{item.nodeid} is over: call netns_factory while the test runs")
        settings = self.settings_of(item)
        rules = dict.fromkeys((*settings.allow, *values.rules(allow, "netns_factory(allow=...)")))
        chosen = settings.port if port is None else values.port(port, "netns_factory(port=...)")
        settings = dataclasses.replace(settings, allow=tuple(rules), port=chosen)
        namespace = self.session.ready().leases.take_further(item, settings).namespace
        record.further.append(namespace)
        return namespace

    def open(self, item: pytest.Item, settings: ItemSettings) -> Leaf:
        """Bring the process into the test's leaf, from now on, whatever its mode and markers say of it."""
        stay, begin = self.session.ready(), clock.monotonic()
        try:
            leaf = stay.leases.take(item, settings)
        except GatewayError as error:
            if not stay.client.lost:
                raise
            raise pytest.fail.Exception(f"{LOSS} ({error})", pytrace=False) from None
        record = self.telling.begin(item, leaf.namespace)
        self.leaf = leaf
        stay.traveller.go(leaf.place)
        record.setup, record.alone = clock.monotonic() - begin, leaf.scope is Scope.FUNCTION
        stay.leases.arrived()
        return leaf

    def settings_of(self, item: pytest.Item) -> ItemSettings:
        """Return what holds for one test."""
        try:
            return self.session.settings.for_item(marks_of(item), getattr(item, "fixturenames", ()))
        except SettingsError as error:
            raise pytest.fail.Exception(str(error), pytrace=False) from None

    def _enter(self, item: pytest.Item) -> None:
        settings = self.settings_of(item)
        self._release(item, item)
        self._watch(item)
        recover(self.session)
        if settings.isolated:
            self.open(item, settings)
            return
        self.leaf = None
        stay = self.session.stay
        if stay is None:
            return
        stay.leases.rest()
        if settings.opted_out_by and stay.returns:
            stay.traveller.go(stay.host)
            return
        stay.traveller.go(stay.traveller.base)
        if self.session.settings.mode is Mode.ALL and stay.worker is not None:
            self.telling.begin(item, stay.worker, own=False)

    def _watch(self, item: pytest.Item) -> None:
        """See to it that what pytest does for the collectors above the test is done in the base.

        A package's ``setup_module`` is run when its first test is set up, and what was registered with
        a collector when the last one is torn down, after the test's own finalizers.
        """
        vars(item)["teardown"] = functools.partial(self._teardown, item.teardown)
        package = item.getparent(pytest.Package)
        while package is not None:
            vars(package).setdefault("setup", functools.partial(self._setup, package, package.setup))
            package = package.parent.getparent(pytest.Package) if package.parent is not None else None

    def _teardown(self, original: Callable[[], None]) -> None:
        __tracebackhide__ = True
        try:
            original()
        finally:
            if self.session.stay is not None:
                with plainly():
                    self.session.stay.go_to_base()

    def _setup(self, package: pytest.Package, original: Callable[[], None]) -> None:
        __tracebackhide__ = True
        detour = Detour(self, Scope.PACKAGE, package)
        package.addfinalizer(detour.finish)
        with plainly():
            detour.begin()
        try:
            original()
        finally:
            detour.end()
            package.addfinalizer(detour.begin)

    def _leave(self, item: pytest.Item, nextitem: pytest.Item | None, *, failed: bool) -> None:
        vars(item).pop("teardown", None)
        stay = self.session.stay
        if stay is None:
            return
        if stay.traveller.place is not stay.traveller.base:  # the test has not got as far as its own tear-down
            try:
                stay.go_to_base()
            except KernelError as error:
                strand(item, error, replaced=self.session.role is Role.WORKER)
        leaf, self.leaf = self.leaf, None
        if leaf is not None:
            stay.leases.note(leaf, item)
        self.telling.end(item, failed=failed)
        if failed and (item.config.getoption("usepdb") or self.session.settings.hold):
            self.kept = leaf  # it is given back when the next test is set up
            return
        try:
            self._release(item, nextitem)
        except NetnsError:
            if not failed and not stay.client.lost:
                raise
        if stay.client.lost and leaf is not None and not failed:
            pytest.fail(LOSS, pytrace=False)

    def _foreseen(self, item: pytest.Item | None) -> tuple[str, ItemSettings] | None:
        """Return what the next leaf will be needed for, if one will be; the test itself tells what is wrong with it."""
        if item is None:
            return None
        with contextlib.suppress(pytest.fail.Exception):
            settings = self.settings_of(item)
            if settings.isolated and settings.scope is Scope.FUNCTION:
                return item.nodeid, settings
        return None

    def _release(self, item: pytest.Item, nextitem: pytest.Item | None) -> None:
        """Give back the leaves that are needed no more, telling ``item`` what was left in them."""
        if self.session.stay is None:
            return
        leases = self.session.stay.leases
        record = item.stash.get(RECORD, None)
        for leaf in leases.left(nextitem):
            leftovers = leases.release(leaf, self._foreseen(nextitem))
            warn_of(item, leftovers)
            if record is not None:
                record.add(leftovers)

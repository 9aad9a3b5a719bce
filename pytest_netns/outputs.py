"""The files that a run writes for its user: where they are, and that they can be written."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from pytest_netns.settings import Keep, SettingsError

if TYPE_CHECKING:
    from pytest_netns.settings import Settings

__all__ = ["Outputs"]


@dataclass
class Outputs:
    """Absolute paths, which hold for the controller of a run and for its workers alike.

    Attributes:
        captures: the directory that captures are written to.
        log: the file that every attempt is written to; None if none is.
        report: the file that the report in HTML is written to; None if none is.
        flows: the file that the report is made of.
    """

    captures: str
    log: str | None = None
    report: str | None = None
    flows: str | None = None

    @classmethod
    def of(cls, settings: Settings, directory: str) -> Outputs:
        """Take paths from the settings; those that are relative begin in a directory."""
        log, report = (
            None if path is None else os.path.join(directory, path) for path in (settings.log, settings.report)
        )
        return cls(os.path.join(directory, settings.output), log, report)

    @property
    def journals(self) -> list[str]:
        """The files that the gateway writes to as the run goes on."""
        return [path for path in (self.log, self.flows) if path is not None]

    def begin(self, settings: Settings) -> None:
        """Empty the files that the run writes, and take away the captures of an earlier run; make no directory yet.

        Raises:
            SettingsError: one cannot be written.
        """
        for option, given, path in (
            ("--netns-egress-log", settings.log, self.log),
            ("--netns-report", settings.report, self.report),
        ):
            if path is not None:
                _empty(option, given, path)
        if settings.pcap is not Keep.OFF:
            from pytest_netns.keeping import clear  # noqa: PLC0415 - most runs keep none

            _check_directory("--netns-output", settings.output, self.captures)
            clear(self.captures)

    def tell(self) -> dict[str, Any]:
        """Return them as a worker can be sent them."""
        return asdict(self)


def _empty(option: str, given: str | None, path: str) -> None:
    try:
        with open(path, "wb"):
            pass
    except OSError as error:
        remedy = "name a file that can be written"
        if not os.path.isdir(os.path.dirname(path)):
            remedy = f"make the directory {os.path.dirname(path)}, or name another"
        raise SettingsError(f"{option}: {given!r} cannot be written: {error.strerror}; {remedy}") from None


def _check_directory(option: str, given: str, path: str) -> None:
    """See whether a directory can be written to, or be made where it would lie."""
    try:
        while True:
            try:
                os.stat(os.path.join(path, ""))  # an error, unless it is a directory
                break
            except FileNotFoundError:
                path = os.path.dirname(path)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        remedy = "name a directory that can be written to, or leave --netns-pcap out"
        raise SettingsError(f"{option}: {given!r} cannot be written to: {error.strerror}; {remedy}") from None

"""What can be asked of the gateway's records."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pytest_netns.gateway.flows import BlockedSummary, Flow
from pytest_netns.gateway.line import Line
from pytest_netns.gateway.questions import Question

__all__ = ["Inquiries"]


class Inquiries(Line):
    """Requests that change nothing for a leaf."""

    def flows(self, name: str, *, after: float = 0.0) -> list[Flow]:
        """Return what was tried from a leaf that is alive, oldest first, from a time on in seconds since the epoch."""
        return [Flow(**fields) for fields in self._rows(op="flows", leaf=name, after=after)]

    def asked(self, name: str, *, after: float = 0.0) -> list[Question]:
        """Return what names a leaf that is alive asked for, from a time on in seconds since the epoch."""
        return [Question(*row) for row in self._rows(op="asked", leaf=name, after=after)]

    def listening(self, ports: Iterable[int]) -> set[int]:
        """Return on which of these TCP ports of the host's loopback somebody listens."""
        return set(self._ask(op="listening", ports=sorted(ports))["ports"])

    def blocked(self, *, own: bool = False) -> list[BlockedSummary]:
        """Return the blocked endpoints of the whole run, over all workers, or only of this worker's leaves."""
        return [BlockedSummary(*row) for row in self._rows(op="blocked", own=own)]

    def needed(self, *, own: bool = False) -> list[tuple[str, str]]:
        """Return which tests were let through without a rule while recording, and the rules that they would need."""
        return [(test, rule) for test, rule in self._rows(op="needed", own=own)]

    def log_to(self, path: str) -> None:
        """Have each flow of the run appended to a file as a line of JSON when it ends; OSError as open(2) has it."""
        self._ask(op="log_to", path=path)

    def save(
        self,
        name: str,
        test: str,
        *,
        since: float,
        path: str = "",
        directory: str = "",
        keys: tuple[str, int] = ("", 0),
    ) -> tuple[str, int, int]:
        """Have a test's packets written to a file; return its path, how many they are, and how many are missing.

        Args:
            name: the leaf.
            test: the test's node id, which the file is labelled with.
            since: when the test began, in seconds since the epoch.
            path: the file; one that was returned before.
            directory: where to make a new one, if there is no ``path``.
            keys: a file of TLS keys, and the offset from which they are the test's.
        """
        request = {"leaf": name, "test": test, "since": since, "path": path, "directory": directory, "keys": keys}
        answer = self._ask(op="save", **request)
        return answer["path"], answer["packets"], answer["missing"]

    def obituary(self, worker: str, test: str, directory: str = "") -> dict[str, Any] | None:
        """Return what there was in the leaf of a worker that has died in a test; None where nothing is known.

        Args:
            worker: its name.
            test: the test's node id.
            directory: where to write a file of the test's packets, if they are to be kept.
        """
        facts: dict[str, Any] | None = self._ask(op="obituary", of=worker, test=test, directory=directory)["facts"]
        return facts

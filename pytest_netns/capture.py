"""The packets of a leaf while a block of code runs: the handle that ``netns.capture()`` gives."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pytest_netns.errors import NetnsError
from pytest_netns.gateway import packet
from pytest_netns.gateway.captures import INTERFACES, Label, Writer
from pytest_netns.kernel import privilege, tap
from pytest_netns.kernel.tap import Tap

if TYPE_CHECKING:
    import os
    from types import TracebackType

__all__ = ["Capture", "Packet"]

_ETHERNET: Final = 14
_SECOND: Final = 1e9  # nanoseconds


@dataclass(frozen=True)
class Packet:
    """A packet that a leaf has sent or received.

    Attributes:
        time: when it was seen, in seconds since the epoch.
        interface: ``lo``, ``eth0``, or the number of another.
        data: its bytes, from the Ethernet header on.
        length: how many bytes it had, of which ``data`` may be fewer.
        protocol: ``tcp``, ``udp``, ``icmp``, ``sctp``, or ``ip-<number>``; empty where it is no IP packet.
        source: the address that it comes from; empty where it is no IP packet.
        source_port: the port; 0 where the protocol has none.
        destination: the address that it goes to; empty where it is no IP packet.
        destination_port: the port; 0 where the protocol has none.
        payload: what TCP or UDP carries; empty where it is neither.
    """

    time: float
    interface: str
    data: bytes = field(repr=False)
    length: int
    protocol: str = ""
    source: str = ""
    source_port: int = 0
    destination: str = ""
    destination_port: int = 0
    payload: bytes = b""

    @classmethod
    def of(cls, seen: tap.Packet) -> Packet:
        """Take a packet apart that was seen."""
        interface = INTERFACES.get(seen.interface, str(seen.interface))
        when, content = seen.time / _SECOND, seen.data[_ETHERNET:]
        ends = packet.parse(content)
        if ends is None:
            return cls(when, interface, seen.data, seen.length)
        return cls(
            when,
            interface,
            seen.data,
            seen.length,
            ends.protocol_name,
            str(ends.source),
            ends.source_port,
            str(ends.destination),
            ends.destination_port,
            packet.payload(content),
        )


class Capture:
    """What a leaf sends and receives while ``with netns.capture() as capture:`` runs, up to 1 MiB.

    Loopback shows each packet once. To begin and to end it takes about 20 ms each.
    """

    def __init__(self, leaf: str, inside: Callable[[], AbstractContextManager[None]]) -> None:
        """See nothing before the block begins.

        Args:
            leaf: its name.
            inside: moves the calling thread there for as long as a block runs.
        """
        self._leaf = leaf
        self._inside = inside
        self._tap: Tap | None = None
        self._seen: list[tap.Packet] = []
        self._lost = 0

    def __repr__(self) -> str:
        """Name the leaf."""
        return f"<Capture of {self._leaf}>"

    def __enter__(self) -> Capture:  # noqa: PYI034 - Self came with Python 3.11
        """Begin to see packets; KernelError where the kernel has no room for them."""
        if self._tap is not None:
            raise NetnsError("a capture can be begun once at a time; call netns.capture() for another")
        with self._inside(), privilege.raised():
            self._tap = Tap()
        try:
            self._tap.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """See no more."""
        if self._tap is not None:
            self._tap.stop()
            self._look(self._tap)
        self._close()

    @property
    def packets(self) -> list[Packet]:
        """What was seen so far, oldest first."""
        if self._tap is not None:
            self._look(self._tap)
        return [Packet.of(seen) for seen in self._seen]

    @property
    def lost(self) -> int:
        """How many packets found no room, and are missing at the end."""
        if self._tap is not None:
            self._look(self._tap)
        return self._lost

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was seen so far to a file that Wireshark and tshark read (pcapng); OSError as open(2) has it."""
        if self._tap is not None:
            self._look(self._tap)
        with open(path, "wb") as file:
            writer = Writer(file, Label(self._leaf, f"leaf {self._leaf}", []))
            for seen in self._seen:
                writer.add(seen)

    def _look(self, from_where: Tap) -> None:
        self._seen = list(tap.packets(from_where.rest()))
        self._lost = from_where.lost

    def _close(self) -> None:
        opened, self._tap = self._tap, None
        if opened is not None:
            opened.close()

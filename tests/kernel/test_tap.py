"""Seeing packets through a ring, against the kernel."""

from __future__ import annotations

import os
import select
import socket
import time

from unshared import unshared

from pytest_netns.kernel import privilege, tap
from pytest_netns.kernel.tap import Packet, Tap


def opened() -> Tap:
    """Return a tap that sees what happens here."""
    with privilege.raised():
        seeing = Tap()
    seeing.start()
    return seeing


def say(words: bytes) -> None:
    """Send a datagram to loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(words, ("127.0.0.1", 9))


def said(packets: list[Packet]) -> list[bytes]:
    """Return the datagrams' content, without the errors that answer them."""
    return [one.data[42:] for one in packets if one.data[23] == 17]


@unshared
def test_sees_each_packet_once() -> None:
    """With its time, and where it was; nothing from before it started or after it stopped."""
    with privilege.raised():
        seeing = Tap()
    say(b"before")
    seeing.start()
    began = time.time_ns()
    say(b"one")
    say(b"two")
    ended = time.time_ns()
    seeing.stop()
    say(b"after")
    found = list(tap.packets(seeing.rest()))
    assert said(found) == [b"one", b"two"]
    assert all(began <= one.time <= ended and one.interface == tap.LOOPBACK for one in found)
    assert [one.length for one in found] == [len(one.data) for one in found]
    assert seeing.lost == 0
    seeing.close()
    seeing.close()


@unshared
def test_full() -> None:
    """A ring that is full keeps what it has and counts the rest; what was taken makes room and is not seen again."""
    seeing = opened()
    sent = 200
    for number in range(sent):
        say(number.to_bytes(2, "big") + bytes(20_000))
    assert select.select([seeing], [], [], 0)[0] == [seeing]
    kept = said(list(tap.packets(seeing.rest())))
    assert kept[0].startswith(b"\0\0")
    assert 20 < len(kept) < sent
    assert seeing.lost >= sent - len(kept)
    assert said(list(tap.packets(seeing.take()))) == kept
    assert seeing.rest() == seeing.take() == []
    say(b"room again")
    assert said(list(tap.packets(seeing.rest()))) == [b"room again"]
    seeing.close()


@unshared
def test_largest() -> None:
    """The largest datagram is kept whole."""
    seeing = opened()
    words = os.urandom(65_000)
    say(words)
    assert said(list(tap.packets(seeing.rest()))) == [words]
    seeing.close()

"""Write packets down as Wireshark and tshark read them: the pcapng format, as far as it is needed here.

See draft-ietf-opsawg-pcapng. Pure: it makes bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["interface", "packet", "secrets", "section", "statistics"]

_SECTION, _INTERFACE, _STATISTICS, _PACKET, _SECRETS = 0x0A0D0D0A, 1, 5, 6, 10
_BYTE_ORDER: Final = 0x1A2B3C4D
_ETHERNET: Final = 1
_TLS_KEY_LOG: Final = 0x544C534B
_COMMENT: Final = 1
_OS, _APPLICATION = 3, 4  # of a section
_NAME, _DESCRIPTION, _RESOLUTION = 2, 3, 9  # of an interface
_DROPPED: Final = 5  # of an interface's statistics: by the capture, for want of room
_NANOSECONDS: Final = b"\x09"
_LONGEST: Final = 65_535

Option = tuple[int, bytes]


def section(*, comment: str, application: str, system: str) -> bytes:
    """Return what a file begins with."""
    options = [(_COMMENT, _text(comment)), (_OS, _text(system)), (_APPLICATION, _text(application))]
    return _block(_SECTION, struct.pack("=IHHq", _BYTE_ORDER, 1, 0, -1), options)


def interface(name: str, description: str) -> bytes:
    """Return what introduces an Ethernet interface; packets refer to them by their order, from 0 on."""
    options = [(_NAME, _text(name)), (_DESCRIPTION, _text(description)), (_RESOLUTION, _NANOSECONDS)]
    return _block(_INTERFACE, struct.pack("=HHI", _ETHERNET, 0, 0), options)


def secrets(keys: bytes) -> bytes:
    """Return what lets TLS be decrypted: lines in the form of SSLKEYLOGFILE. It stands before the packets."""
    return _block(_SECRETS, struct.pack("=II", _TLS_KEY_LOG, len(keys)) + keys)


def packet(number: int, time: int, length: int, data: bytes, comments: Iterable[str] = ()) -> bytes:
    """Return one packet.

    Args:
        number: of its interface.
        time: when it was seen, in nanoseconds since the epoch.
        length: how many bytes it had.
        data: those that were kept, from the Ethernet header on.
        comments: what is to be said of it.
    """
    head = struct.pack("=IIIII", number, time >> 32, time & 0xFFFF_FFFF, len(data), length)
    return _block(_PACKET, head + data, [(_COMMENT, _text(comment)) for comment in comments])


def statistics(number: int, time: int, *, dropped: int) -> bytes:
    """Return how many packets an interface's capture has lost by ``time``, in nanoseconds since the epoch."""
    head = struct.pack("=III", number, time >> 32, time & 0xFFFF_FFFF)
    return _block(_STATISTICS, head, [(_DROPPED, struct.pack("=Q", dropped))])


def _text(text: str) -> bytes:
    return text.encode("utf-8", "replace")[:_LONGEST].decode("utf-8", "ignore").encode()


def _block(kind: int, body: bytes, options: Sequence[Option] = ()) -> bytes:
    written = b"".join(struct.pack("=HH", code, len(value)) + _padded(value) for code, value in options)
    content = _padded(body) + (written + bytes(4) if options else b"")
    size = struct.pack("=I", len(content) + 12)
    return struct.pack("=I", kind) + size + content + size


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)

"""Send batches of netlink messages and wait for the kernel's answer.

pyroute2 encodes the messages; sending them here, many to one system call, takes a fraction of the
time that one high-level call for each step would.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from pytest_netns.errors import KernelError

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_APPEND: Final = 0x800

_NLMSG_ERROR: Final = 2
_NFNL_MSG_BATCH_END: Final = 0x11
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence number, port id; see netlink(7)
_RECEIVE_BYTES: Final = 8192  # the rest of a longer answer is dropped; what is looked at stands at its beginning
_LEFT_AT_MOST: Final = 1024  # answers to one batch
_TIMEOUT: Final = 10  # seconds; an acknowledgement takes microseconds unless the machine is stuck


class Batch(NamedTuple):
    """Messages that are numbered and ready to be sent, with the number of the last."""

    messages: bytes
    last: int


def batch(messages: bytes) -> Batch:
    """Number encoded messages and ask for an acknowledgement of the last one that can give it."""
    numbered = bytearray(messages)
    sequence = offset = last_offset = last = 0
    while offset < len(numbered):
        length, kind, flags, _, _ = _HEADER.unpack_from(numbered, offset)
        sequence += 1
        _HEADER.pack_into(numbered, offset, length, kind, flags, sequence, 0)
        if kind != _NFNL_MSG_BATCH_END:  # kernels before 6.10 do not acknowledge it
            last_offset, last = offset, sequence
        offset += (length + 3) & ~3
    length, kind, flags, _, _ = _HEADER.unpack_from(numbered, last_offset)
    _HEADER.pack_into(numbered, last_offset, length, kind, flags | NLM_F_ACK, last, 0)
    return Batch(bytes(numbered), last)


class NetlinkSocket:
    """A netlink socket of the network namespace in which it was made, usable from any other."""

    def __init__(self, protocol: int) -> None:
        """Open the socket; ``protocol`` is NETLINK_ROUTE or NETLINK_NETFILTER."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._is_settled = True
        # The kernel keeps the time. Python would call poll(2) for it, before each call.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _TIMEOUT, 0))

    def request(self, messages: bytes | Batch, what: str) -> None:
        """Send encoded messages back to back and return when the kernel has carried out all of them.

        Raises:
            KernelError: the kernel refused one; ``what`` names the request in its text.
        """
        ready = messages if isinstance(messages, Batch) else batch(messages)
        if not self._is_settled:
            self._settle()
        self._is_settled = False
        try:
            self._socket.send(ready.messages)
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, f"{what}: {error.strerror}") from error
        while True:
            for sequence, kind, payload in _split(self._receive(what)):
                if kind != _NLMSG_ERROR:
                    continue
                self._is_settled = sequence == ready.last
                refused = -int.from_bytes(payload[:4], sys.byteorder, signed=True)
                if refused:
                    raise KernelError(refused, f"{what}: {os.strerror(refused)}")
                if self._is_settled:
                    return

    def close(self) -> None:
        """Give the socket back; harmless when done twice."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def _receive(self, what: str) -> bytes:
        try:
            return self._socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            raise KernelError(errno.ETIMEDOUT, f"{what}: the kernel did not answer within {_TIMEOUT} s") from None
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, f"{what}: no answer arrived: {error.strerror}") from error

    def _settle(self) -> None:
        """Pass over what is left of the answers to a request that failed: it would be taken for one to the next."""
        for _ in range(_LEFT_AT_MOST):
            try:
                self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError:  # answers were lost; more may follow
                continue


def _split(data: bytes) -> Iterable[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:  # an answer that is cut short, or none
            return
        yield sequence, kind, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def encode(message: Any, kind: int, flags: int, fields: dict[str, Any], attributes: Sequence[tuple[str, Any]]) -> bytes:
    """Encode one pyroute2 message object to the bytes that the kernel expects."""
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [list(pair) for pair in attributes]
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | flags
    message["header"]["pid"] = 0
    message.encode()
    return bytes(message.data)

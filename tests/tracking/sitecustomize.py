"""Python imports this at its start where its folder is on PYTHONPATH: then a gateway's kernel seems to be as Linux 7.3.

That takes no rule which writes to packets from anybody but the machine's root.
"""

from __future__ import annotations

import errno

from pytest_netns.errors import KernelError
from pytest_netns.kernel.netlink import Batch, NetlinkSocket

_request = NetlinkSocket.request


def _refusing(self: NetlinkSocket, messages: bytes | Batch, what: str) -> None:
    whole = messages.messages if isinstance(messages, Batch) else messages
    if what == "load a leaf's nftables ruleset" and b"readdress" not in whole:
        raise KernelError(errno.EPERM, what)
    _request(self, messages, what)


NetlinkSocket.request = _refusing  # type: ignore[method-assign]

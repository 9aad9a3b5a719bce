"""What listens in a network namespace, against the kernel."""

from __future__ import annotations

import os
import signal
import socket
import sys

import pytest
from unshared import unshared

from pytest_netns.kernel import sockets
from pytest_netns.kernel.sockets import holders, listeners


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("0100007F:1F90", ("127.0.0.1", 8080)),
        ("00000000:0050", ("0.0.0.0", 80)),
        ("00000000000000000000000001000000:0035", ("::1", 53)),
        ("0000000000000000FFFF00000100007F:1F90", ("127.0.0.1", 8080)),
        ("0000000000000000FFFF000000000000:0050", ("0.0.0.0", 80)),
        ("B80D01200000000000000000FFFF0000:FFFF", ("2001:db8::ffff", 65535)),
    ],
)
@pytest.mark.skipif(sys.byteorder == "big", reason="the table has the machine's byte order")
def test_decodes_the_kernels_table(text: str, endpoint: tuple[str, int]) -> None:
    """Addresses of the kernel's tables are words in the machine's byte order."""
    assert sockets._endpoint(text) == endpoint


@unshared
def test_listeners_and_their_holders() -> None:
    """Whoever takes connections or datagrams is listed, and found; sockets that are only open are not."""
    tcp = socket.create_server(("127.0.0.1", 8080))
    tcp6 = socket.create_server(("::1", 8081), family=socket.AF_INET6)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", 5353))
    client = socket.create_connection(("127.0.0.1", 8080))
    found = {one.endpoint: one.inode for one in listeners()}
    assert set(found) == {"tcp 127.0.0.1:8080", "tcp [::1]:8081", "udp 0.0.0.0:5353"}
    assert {one.port for one in listeners("tcp")} == {8080, 8081}
    child = os.fork()
    if not child:
        tcp6.close()
        udp.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    held = holders(found.values(), [os.getpid(), child, 2**30])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    client.close()
    tcp.close()
    assert held[found["tcp 127.0.0.1:8080"]] == [os.getpid(), child]
    assert held[found["tcp [::1]:8081"]] == held[found["udp 0.0.0.0:5353"]] == [os.getpid()]

"""Reading queued packets and judging them, from bytes and against the kernel."""

from __future__ import annotations

import ipaddress
import select
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unshared import unshared

from pytest_netns.kernel import nft, nft_table, privilege
from pytest_netns.kernel.netlink import NETLINK_NETFILTER, NetlinkSocket
from pytest_netns.kernel.queue import NF_DROP, NF_REPEAT, PacketQueue, Queued, parse

_PACKET = 3 << 8


def attribute(kind: int, value: bytes) -> bytes:
    """Return a netlink attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(*attributes: bytes, kind: int = _PACKET) -> bytes:
    """Return a netlink message of the queue's."""
    body = struct.pack("!BBH", 2, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def queued(number: int, ifindex: int, payload: bytes, hook: int) -> bytes:
    """Return the message that tells of one queued packet."""
    header = attribute(1, struct.pack("!IHBx", number, 0x800, hook))
    return message(header, attribute(5, struct.pack("!I", ifindex)), attribute(10, payload))


@given(st.binary(max_size=300))
def test_never_raises(data: bytes) -> None:
    """Any bytes whatever hold packets, or none."""
    assert all(isinstance(packet, Queued) for packet in parse(data))


@given(st.binary(max_size=100), st.integers(min_value=0, max_value=2**32 - 1))
def test_never_raises_on_a_message(attributes: bytes, length: int) -> None:
    """A message of the right kind may hold anything and lie about its length."""
    assert len(list(parse(struct.pack("=IHHII", length, _PACKET, 0, 0, 0) + bytes(4) + attributes))) <= 8


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**31 - 1), st.binary(max_size=80), st.integers(0, 4)))
)
def test_reads_every_packet(packets: list[tuple[int, int, bytes, int]]) -> None:
    """All packets of a read are found, in order, among messages of other kinds."""
    data = b"".join(message(kind=2) + queued(*packet) for packet in packets)
    assert list(parse(data)) == [Queued(*packet) for packet in packets]


def test_passes_over_what_names_no_packet() -> None:
    """Without a number or an interface there is nothing to judge."""
    header, indev = attribute(1, bytes(8)), attribute(5, bytes(4))
    for incomplete in ((), (header,), (indev,), (attribute(1, b"xx"), indev), (header, attribute(5, b"xx"))):
        assert list(parse(message(*incomplete))) == []
    assert list(parse(message(header, indev))) == [Queued(0, 0, b"")]


def load_queue(number: int) -> PacketQueue:
    """Queue what is sent to UDP port 5000 over loopback; a mark of 3 lets it pass."""
    with privilege.raised():
        channel = NetlinkSocket(NETLINK_NETFILTER)
        for rule in (nft.queue(number), nft.queue_xtables(number)):
            rules = [[*nft.mark(3), nft.ACCEPT], [*nft.l4proto(17), *nft.dport(5000), *rule]]
            table = nft_table.Table("t", nft.NFPROTO_IPV4, [nft_table.Chain("c", nft.PREROUTING, -150, rules)])
            try:
                channel.request(nft_table.transaction(table.encode()), "load")
            except OSError:
                continue
            return PacketQueue(number)
    raise AssertionError("this kernel has neither queue")


def next_packet(queue: PacketQueue) -> Queued:
    """Wait for a packet."""
    assert select.select([queue], [], [], 5)[0], "no packet was queued"
    (packet,) = queue.read()
    return packet


@unshared
def test_verdicts() -> None:
    """A packet waits for its verdict; accepted or repeated with a mark it arrives, dropped it does not."""
    queue = load_queue(7)
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 5000))
        server.settimeout(5)
        for text, verdict, mark in ((b"drop", NF_DROP, 0), (b"accept", 1, 0), (b"repeat", NF_REPEAT, 3)):
            client.sendto(text, ("127.0.0.1", 5000))
            packet = next_packet(queue)
            assert packet.payload.endswith(text)
            assert packet.ifindex == 1
            assert packet.payload[16:20] == ipaddress.ip_address("127.0.0.1").packed
            assert not select.select([server], [], [], 0.02)[0]
            with privilege.raised():
                queue.judge(packet, verdict, mark)
            if verdict:
                assert server.recv(10) == text
        assert not select.select([server], [], [], 0.05)[0]
    assert list(queue.read()) == []
    queue.close()


@unshared
def test_nobody_reads() -> None:
    """What is queued while nobody reads is dropped."""
    queue = load_queue(0)
    queue.close()
    with socket.socket(type=socket.SOCK_DGRAM) as server, socket.socket(type=socket.SOCK_DGRAM) as client:
        server.bind(("127.0.0.1", 5000))
        client.sendto(b"lost", ("127.0.0.1", 5000))
        assert not select.select([server], [], [], 0.1)[0]


@unshared
def test_large_packets_arrive_whole() -> None:
    """The largest datagram is seen to its last byte."""
    queue = load_queue(1)
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        client.sendto(bytes(65_000) + b"end", ("127.0.0.1", 5000))
        assert next_packet(queue).payload.endswith(b"end")


@unshared
def test_second_reader_is_refused() -> None:
    """A queue has one reader; the second is told."""
    first = load_queue(2)
    with privilege.raised(), pytest.raises(OSError, match="bind packet queue"):
        PacketQueue(2)
    first.close()

"""Fuzz what reads bytes that tests can choose: it must not raise, nor be talked into what is not there.

    python -m venv /tmp/fuzz && /tmp/fuzz/bin/pip install atheris dnspython -e .
    /tmp/fuzz/bin/python benchmarks/fuzz/fuzz.py TARGET [--seconds 300] [libFuzzer's arguments]

Targets are ``dns``, ``tls``, ``packet`` and ``queue``. A run starts from real messages and goes on from what it
finds; give a folder as a further argument to keep that. An input that breaks a promise is written to
``crash-...`` in the current folder, and tried again when that file is given as a further argument. The figures at
the end say how many inputs were run, and how many edges ("cov") of the code they reached.

The promises are checked by other implementations where there are any: dnspython reads the answers of the name
server, and OpenSSL, as a server, is given the streams that a name was read from. Its certificate is made by the
program ``openssl``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import ipaddress
import itertools
import os
import ssl
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.message
import dns.name

atheris: Any = importlib.import_module("atheris")  # has no types

with atheris.instrument_imports(include=["pytest_netns"]):
    from pytest_netns.gateway import dns as own
    from pytest_netns.gateway import packet, tls
    from pytest_netns.gateway.tls import Hello
    from pytest_netns.kernel import queue

_ADDRESSES: Final = [ipaddress.ip_address(text) for text in ("192.0.2.1", "2001:db8::1", "198.51.100.7")]
_SERVERS: Final = ("good.example", "evil.example")


def check_dns(data: bytes) -> None:
    """A question is the one dnspython reads, and every answer is one to it."""
    question = own.parse(data)
    try:
        name, used = dns.name.from_wire(data, 12)
        whole = len(data) >= 16 + used and data[2] < 0x80 and data[4:6] == b"\0\1"
        compressed = b"".join(bytes([len(label)]) + label for label in name.labels) != data[12 : 12 + used]
    except (dns.exception.DNSException, IndexError):
        whole = False
    if question is None:
        assert not whole or compressed
        return
    assert whole
    assert not compressed
    assert dns.name.from_text(question.name) == name
    assert question.name.isascii()
    assert question.name.isprintable()
    assert question.section == data[12 : 16 + used]
    for answer in (own.refuse, own.refuse_kind, own.missing, own.fail, own.decline):
        _check_answer(question, answer(question), [])
    _check_answer(question, own.refuse(question, data.decode("utf-8", "surrogateescape")), [])
    versions = {own.A: 4, own.AAAA: 6} if question.is_lookup else {}
    fitting = [str(address) for address in _ADDRESSES if address.version == versions.get(question.kind)]
    _check_answer(question, own.answer(question, _ADDRESSES, 60), fitting)
    assert question.is_lookup is (data[2] & 0x78 == 0 and question.section.endswith(b"\0\1"))


def _check_answer(question: own.Question, wire: bytes, addresses: list[str]) -> None:
    assert len(wire) <= 512
    assert wire.startswith(struct.pack("!H", question.identifier))
    assert wire[12:].startswith(question.section)
    if question.opcode != own.QUERY:  # dnspython goes by rules of the opcode's own
        assert not addresses
        return
    answer = dns.message.from_wire(wire)
    assert answer.flags & 0xFFF0 in (0x8180, 0x8080)  # an answer, of a server that recurses, whether asked to or not
    assert len(answer.question) == 1
    assert (answer.edns == 0) is question.extended
    assert [record.to_text() for rrset in answer.answer for record in rrset] == addresses
    assert not answer.authority
    assert not answer.additional


def check_tls(data: bytes) -> None:
    """However a stream arrives, the same name is read, and OpenSSL goes by no other."""
    stream = _framed(data[1:], data[0]) if data else b""
    asked = tls.server_name(stream)
    reader, step = tls.HelloReader(), 1 + len(stream) // 100
    pieces = [reader.feed(stream[start : start + step]) for start in range(0, len(stream), step)]
    changes = [key for key, _ in itertools.groupby([Hello.MORE, *pieces])]
    assert changes[-1] == asked
    assert len(changes) <= 3
    assert len(changes) < 3 or changes[-1] is Hello.MALFORMED
    if isinstance(asked, str):
        assert 0 < len(asked) <= 253
        assert asked == asked.lower()
        assert set(asked) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")
        assert all(0 < len(label) < 64 for label in asked.split("."))
        assert not _is_address(asked)
        _check_seen(stream, {asked})
    elif asked is not Hello.MALFORMED:
        _check_seen(stream, {None} if asked is Hello.NAMELESS else set())


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _sized(data: bytes, width: int = 2) -> bytes:
    return len(data).to_bytes(width, "big") + data


def _framed(data: bytes, how: int) -> bytes:
    """Make a stream of the bytes: as they are, or with the right lengths around them, lest all fail by those."""
    if how % 4 == 0:
        return data
    if how % 4 == 1:  # records, of a type and length that a byte tells each
        records = b""
        while data:
            kind, size = 20 + data[0] % 8, data[0] // 4
            records += bytes([22 if kind > 24 else kind]) + b"\3\3" + _sized(data[1 : size + 1])
            data = data[size + 1 :]
        return records
    if how % 4 == 2:  # the name of a proper hello
        data = b"\0\0" + _sized(_sized(b"\0" + _sized(data)))
    elif len(data) > 60000:
        return data
    begin, extensions = _ANONYMOUS
    return b"\x16\3\1" + _sized(b"\1" + _sized(begin + _sized(data + extensions), 3))


def _hello(name: str | None, curve: str | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if curve is not None:
        context.set_ecdh_curve(curve)
    outgoing = ssl.MemoryBIO()
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name).do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError


def _anonymous() -> tuple[bytes, bytes]:
    """Return a hello's body up to its extensions, and these."""
    body = _hello(None)[9:]
    end = 34
    for width in (1, 2, 1):
        end += width + int.from_bytes(body[end : end + width], "big")
    return body[:end], body[end + 2 :]


def _server() -> Callable[[bytes], set[str | None]]:
    """Return what tells which names an OpenSSL server goes by; it asks for a second hello if it can."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as folder:
        key, certificate = Path(folder, "key"), Path(folder, "certificate")
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
        subprocess.run(
            [*new, "-nodes", "-subj", "/CN=x", "-keyout", key, "-out", certificate],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        context.load_cert_chain(certificate, key)
    context.set_ecdh_curve("prime256v1")
    seen: set[str | None] = set()
    context.sni_callback = lambda _server, name, _context: seen.add(name)

    def names(stream: bytes) -> set[str | None]:
        seen.clear()
        incoming = ssl.MemoryBIO()
        incoming.write(stream)
        with contextlib.suppress(ssl.SSLError):
            context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
        return {name and name.lower().removesuffix(".") for name in seen}

    return names


def _check_seen(stream: bytes, expected: set[str | None]) -> None:
    seen = _SEEN(stream)
    assert seen <= expected, (seen, expected)


def check_packet(data: bytes) -> None:
    """Addresses, protocol and ports stand in the packet, after its header and nowhere else."""
    found = packet.parse(data)
    version = data[0] >> 4 if data else 0
    if found is None:
        assert not (version == 4 and len(data) >= 20 and data[0] & 15 >= 5)
        assert not (version == 6 and len(data) >= 40)
        return
    assert version == found.source.version == found.destination.version
    at, size, header = (12, 4, (data[0] & 15) * 4) if version == 4 else (8, 16, 40)
    assert header >= 20
    assert data[at:].startswith(found.source.packed + found.destination.packed)
    assert len(found.source.packed) == size
    assert found.protocol_name
    ports = struct.pack("!HH", found.source_port, found.destination_port)
    if found.protocol not in {packet.TCP, packet.UDP}:
        assert not found.is_syn
        assert ports == bytes(4)
    if ports != bytes(4):
        assert ports in data[header:]
    if version == 4:
        assert found.protocol == data[9]
        assert ports == bytes(4) or not struct.unpack_from("!H", data, 6)[0] & 0x1FFF
        assert ports in (bytes(4), data[header : header + 4])
    if found.is_syn:
        assert found.protocol == packet.TCP
        assert any(data[place] & 0x12 == 2 for place in range(header + 13, len(data)))


def check_queue(data: bytes) -> None:
    """Queued packets are parts of what was read, and one that follows whole messages is always found."""
    found = list(queue.parse(data))
    assert len(found) <= len(data) // 16
    for queued in found:
        assert queued.payload in data
        assert struct.pack("!I", queued.number) in data
        assert struct.pack("!I", queued.ifindex) in data
    known = _queued(7, 9, data)
    assert list(queue.parse(known)) == [queue.Queued(7, 9, data)]
    assert list(queue.parse(known + data)) == [queue.Queued(7, 9, data), *found]


def _queued(number: int, ifindex: int, payload: bytes) -> bytes:
    body = struct.pack("!BBH", 2, 0, 0)
    for kind, value in ((1, struct.pack("!IHBx", number, 0x0800, 0)), (5, struct.pack("!I", ifindex)), (10, payload)):
        body += struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return struct.pack("=IHHII", 16 + len(body), 3 << 8, 0, 0, 0) + body


def _dns_seeds() -> list[bytes]:
    names = ("api.example.com", ".", "_x.Y.", ".".join(["a" * 63] * 3 + ["b" * 61]))
    made = [dns.message.make_query(name, kind, use_edns=0) for name in names for kind in ("A", "AAAA", "HTTPS")]
    wires = [message.to_wire() for message in made]
    longest = b"\x3d" + b"b" * 61
    return [*wires, *(wire.replace(longest, b"\x3e" + b"b" * 62) for wire in wires if longest in wire)]


def _tls_seeds() -> list[bytes]:
    first, second = _hello(_SERVERS[0]), _hello(_SERVERS[1], curve="prime256v1")
    change, alert = bytes.fromhex("140303000101"), bytes.fromhex("1503010002015a")
    streams = [first, first + second, first + change + second, alert + first, _hello(None), b"\x16\3\1\0\0" + first]
    extension = b"\0\0" + _sized(_sized(b"\0" + _sized(b"good.example")))
    return [
        *(b"\0" + stream for stream in streams),
        b"\2good.example",
        b"\2" + b"192.0.2.1",
        b"\3" + extension,
        b"\3" + extension * 2,
        b"\1" + b"".join(bytes([4 * 60 + 2]) + first[start : start + 60] for start in range(5, len(first), 60)),
    ]


def _packet_seeds() -> list[bytes]:
    source, destination = ipaddress.ip_address("198.18.0.16").packed, ipaddress.ip_address("203.0.113.5").packed
    syn = struct.pack("!HHIIBBHHH", 40000, 443, 1, 0, 0x50, 2, 65535, 0, 0)
    four = struct.pack("!BBHHHBBH", 0x45, 0, 40, 1, 0, 64, 6, 0) + source + destination + syn
    six = [
        struct.pack("!IHBB", 6 << 28, len(rest), kind, 64) + bytes(12) + source + bytes(12) + destination + rest
        for kind, rest in ((6, syn), (0, b"\x06\0" + bytes(6) + syn), (44, b"\x11\0\0\1" + bytes(4) + syn))
    ]
    return [four, b"\x46" + four[1:20] + bytes(4) + syn, *six]


def _queue_seeds() -> list[bytes]:
    return [_queued(1, 2, b"payload"), _queued(1, 2, b"") * 3, _queued(3, 4, bytes(1500))]


_TARGETS: Final[dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]], int]]] = {
    "dns": (check_dns, _dns_seeds, 600),
    "tls": (check_tls, _tls_seeds, 4096),
    "packet": (check_packet, _packet_seeds, 300),
    "queue": (check_queue, _queue_seeds, 2048),
}
_ANONYMOUS: Final = _anonymous()
_SEEN: Final = _server()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=_TARGETS)
    parser.add_argument("--seconds", type=int, default=300)
    options, rest = parser.parse_known_args()
    check, seeds, longest = _TARGETS[options.target]
    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds()):
            Path(folder, f"seed-{number}").write_bytes(seed)
        folders = [] if any(Path(one).is_file() for one in rest) else [folder]
        limits = [f"-max_total_time={options.seconds}", f"-max_len={longest}", "-timeout=10", "-print_final_stats=1"]
        fuzzer = os.fork()  # it ends without cleaning up
        if fuzzer == 0:
            atheris.Setup([sys.argv[0], *limits, *rest, *folders], check)
            atheris.Fuzz()
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(fuzzer, 0)[1]))


if __name__ == "__main__":
    _main()

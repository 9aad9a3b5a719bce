"""Reading the server's name from what a TLS client sends first."""

from __future__ import annotations

import base64
import itertools
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pytest_netns.gateway.tls import Hello, HelloReader, server_name

NAME = "api.example.com"
ALERT, CHANGE_CIPHER, DATA = bytes.fromhex("1503030002015a"), bytes.fromhex("140303000101"), b"\x17\3\3\0\4data"


def real(name: str | None, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3, curve: str | None = None) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = version
    if curve is not None:
        context.set_ecdh_curve(curve)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def sized(data: bytes, width: int = 2) -> bytes:
    """Return the bytes with their length before them."""
    return len(data).to_bytes(width, "big") + data


def sni(*names: bytes, kind: int = 0) -> bytes:
    """Return the extension that names servers."""
    return b"\0\0" + sized(sized(b"".join(bytes([kind]) + sized(name) for name in names)))


def hello(*extensions: bytes, tail: bytes = b"") -> bytes:
    """Return a ClientHello, without the record around it."""
    body = b"\3\3" + bytes(32) + sized(b"session", 1) + sized(b"\x13\x01") + sized(b"\0", 1)
    return b"\1" + sized(body + (sized(b"".join(extensions)) if extensions else b"") + tail, 3)


def record(fragment: bytes, version: bytes = b"\3\1", kind: int = 22) -> bytes:
    """Return a record."""
    return bytes([kind]) + version + sized(fragment)


def named(name: bytes) -> bytes:
    """Return a stream that begins with a ClientHello for a name."""
    return record(hello(sni(name)))


def filled(size: int) -> bytes:
    """Return a ClientHello of so many bytes."""
    return hello(
        sni(b"api.example.com"), b"\0\x15" + sized(bytes(size - len(hello(sni(b"api.example.com"), bytes(4)))))
    )


PADDING = b"\0\x15" + sized(bytes(500))
ENCRYPTED = b"\xfe\x0d" + sized(b"\0\0\1\0\1\7" + sized(bytes(32)) + sized(b"evil.example" * 9))
FIRST, SECOND, ANONYMOUS = real(NAME), real("evil.example.com", curve="prime256v1"), real(None)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("asked", "sent"),
    [
        (NAME, NAME),
        ("CASE.Example.Com", "case.example.com"),
        ("b\xfccher.example", "xn--bcher-kva.example"),
        ("localhost", "localhost"),
        ("_service.example", "_service.example"),
        (".".join(["a" * 62] * 4), ".".join(["a" * 62] * 4)),
    ],
)
def test_real_client(asked: str, sent: str, version: ssl.TLSVersion) -> None:
    """The name that a real client sends is read, in lower case."""
    assert server_name(real(asked, version)) == sent


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("asked", [None, "192.0.2.1", "2001:db8::1"])
def test_real_client_without_a_name(asked: str | None, version: ssl.TLSVersion) -> None:
    """A client that knows its server by address sends no name."""
    assert server_name(real(asked, version)) is Hello.NAMELESS


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (named(b"api.example.com"), NAME),
        (named(b"API.Example.COM."), NAME),
        (record(hello(PADDING, sni(b"api.example.com"), PADDING)), NAME),
        (record(hello(ENCRYPTED, sni(b"api.example.com"))), NAME),
        (record(hello(sni(b"api.example.com")), version=b"\3\0"), NAME),
        (record(hello(sni(b"api.example.com")), version=b"\3\x99"), NAME),
        (named(b"a.b"), "a.b"),
        (named(b".".join([b"a" * 63] * 3 + [b"a" * 61])), ".".join(["a" * 63] * 3 + ["a" * 61])),
        (record(filled(1 << 14)), NAME),
        (record(hello()), Hello.NAMELESS),
        (record(hello(PADDING)), Hello.NAMELESS),
        (record(hello(ENCRYPTED)), Hello.NAMELESS),
        (record(hello(b"")), Hello.NAMELESS),
    ],
)
def test_hello(stream: bytes, expected: str | Hello) -> None:
    """The name stands anywhere among the extensions, if at all; the encrypted hello's own is of no account."""
    assert server_name(stream) == expected


@pytest.mark.parametrize(
    "name",
    [
        b"", b".", b"..", b"a..b", b".a", b"a.b..", b"a b", b"a/b", b"a\0b", b"a\n", b"a.b\n", b"*.example.com",
        b"b\xfccher.example", "b\xfccher.example".encode(), "\uff45vil.example".encode(), b"user@host", b"host:443",
        b"[::1]", b"::1", b"192.0.2.1", b"192.0.2.1.", b"127.1", b"2130706433", b"x" * 64,
        b".".join([b"a" * 63] * 3 + [b"a" * 62]),
    ],
)  # fmt: skip
def test_illegal_name(name: bytes) -> None:
    """What is no host name, or an address, is no name that anyone may be let through by."""
    assert server_name(named(name)) is Hello.MALFORMED


BODY = hello(sni(b"api.example.com"))


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(record(hello(sni(b"a.example"), sni(b"b.example"))), id="two extensions"),
        pytest.param(record(hello(sni(b"a.example"), sni(b"a.example"))), id="the extension twice"),
        pytest.param(record(hello(sni(b"a.example", b"b.example"))), id="two names"),
        pytest.param(record(hello(sni())), id="an empty list"),
        pytest.param(record(hello(b"\0\0\0\0")), id="an empty extension"),
        pytest.param(record(hello(sni(b"a.example", kind=1))), id="a name of another type"),
        pytest.param(record(hello(b"\0\0" + sized(sized(b"\0" + sized(b"a")) + b"x"))), id="more after the list"),
        pytest.param(record(hello(b"\0\0" + sized(sized(b"\0" + sized(b"a") + b"x")))), id="more after the name"),
        pytest.param(record(hello(sni(b"a.example") + b"\0")), id="half an extension"),
        pytest.param(record(hello(sni(b"a.example"), tail=b"\0")), id="more after the extensions"),
        pytest.param(record(hello(tail=b"\0")), id="one byte of extensions"),
        pytest.param(record(b"\1" + sized(b"\3\3", 3)), id="a version alone"),
        pytest.param(record(b"\1\0\0\0"), id="nothing"),
        pytest.param(record(BODY + b"\1"), id="more after the hello"),
        pytest.param(record(BODY + BODY), id="two in one record"),
        pytest.param(record(b"\1\1\0\1"), id="more than 64 KiB"),
        pytest.param(record(filled((1 << 14) + 1)), id="too long a record"),
        pytest.param(record(b"") + record(BODY), id="an empty record first"),
        pytest.param(record(BODY[:9]) + record(b"") + record(BODY[9:]), id="an empty record between"),
        pytest.param(record(BODY[:9]) + ALERT + record(BODY[9:]), id="an alert between"),
        pytest.param(record(BODY[:9]) + record(BODY[9:], b"\2\0"), id="another version between"),
        pytest.param(ALERT + record(BODY), id="an alert first"),
        pytest.param(b"\x15\0\0\0\2\1\x5a" + record(BODY), id="an alert of another version first"),
        pytest.param(CHANGE_CIPHER + record(BODY), id="a change of cipher first"),
        pytest.param(b"\x14\3\3\0\0" + record(BODY), id="an empty change of cipher first"),
        pytest.param(DATA + record(BODY), id="data first"),
        pytest.param(record(b"\1\0\1", kind=24) + record(BODY), id="a heartbeat first"),
        pytest.param(record(BODY, b"\2\0"), id="version 2.0"),
        pytest.param(record(BODY, b"\0\0"), id="version 0.0"),
        pytest.param(record(BODY, b"\x0f\xff"), id="version 15"),
    ],
)
def test_malformed(stream: bytes) -> None:
    """What no honest client sends, though a server might take it for a hello with a name, is told apart."""
    assert server_name(stream) is Hello.MALFORMED


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n",
        b"SSH-2.0-x\r\n",
        b"\0",
        b"\xff" * 9,
        b"\x13\3\1\0\2\1",
        b"\x19\3\1\0\2\1",
        b"\0\0\0\x08\x04\xd2\x16\x2f",  # PostgreSQL asks whether it may speak TLS
        b"\x80\x2e\1\3\1\0\x15\0\0\0\x10" + bytes(40),  # SSLv2's format
        b"\x16\xfe\xff\0\0\0\0\0\0\0\1\1",  # a datagram's TLS
        record(b"\2" + sized(b"\3\3" + bytes(40), 3)),
        record(BODY, b"\x10\0"),
        b"\x15\0\0\0\x64\xff\xff\0\x20\0\0\x08\09P2000.L",  # the file protocol 9P
        b"\x16\0\0\0\0\0",
        b"\x14\0\0\0\1\1",
    ],
)
def test_other_protocols(stream: bytes) -> None:
    """What does not begin as TLS does is something else, and seen to be as early as its first bytes tell."""
    assert server_name(stream) is Hello.OTHER
    assert server_name(stream[:6]) is Hello.OTHER
    assert server_name(stream[:2]) is (Hello.OTHER if stream[0] not in range(20, 25) or stream[1] >= 16 else Hello.MORE)


def test_large_hello() -> None:
    """A hello of up to 64 KiB is read, from as many records as it takes."""
    whole = filled(4 + (1 << 16))
    records = [record(whole[start : start + (1 << 14)]) for start in range(0, len(whole), 1 << 14)]
    assert server_name(b"".join(records)) == NAME
    assert server_name(record(filled(5 + (1 << 16))[: 1 << 14])) is Hello.MALFORMED


def test_byte_by_byte() -> None:
    """Bytes, and records, that come one at a time cost no more than their number."""
    whole = filled(65000)
    reader = HelloReader()
    stream = b"".join(record(bytes([byte])) for byte in whole)
    found = {reader.feed(bytes([byte])) for byte in stream[:-1]}
    assert found == {Hello.MORE}
    assert reader.feed(stream[-1:]) == NAME


@given(st.binary(max_size=300))
@example(b"")
@example(b"\x16")
@example(b"\x16\3\1\0\0")
def test_never_raises(data: bytes) -> None:
    """Any bytes whatever are one thing or the other."""
    assert isinstance(server_name(data), (str, Hello))


@given(st.binary(max_size=300), st.integers(min_value=0, max_value=len(FIRST) - 1))
def test_never_raises_on_what_begins_well(data: bytes, size: int) -> None:
    """A hello may break off anywhere, and go on in any way."""
    assert isinstance(server_name(FIRST[:size] + data), (str, Hello))
    body = FIRST[9:size] + data
    assert server_name(record(b"\1" + sized(body, 3))) is not Hello.MORE


@given(st.integers(min_value=0, max_value=len(FIRST) - 1))
def test_beginnings(size: int) -> None:
    """A hello that has not come as a whole says nothing yet."""
    assert server_name(FIRST[:size]) is Hello.MORE


@given(st.lists(st.integers(min_value=1, max_value=len(FIRST) - 6), max_size=20), st.lists(st.integers(1, 900)))
def test_split_anywhere(cuts: list[int], arrivals: list[int]) -> None:
    """However a hello is cut into records, and these into what comes at once, the name is the same."""
    fragments = FIRST[5:]
    edges = [0, *sorted(set(cuts)), len(fragments)]
    stream = b"".join(record(fragments[start:end]) for start, end in itertools.pairwise(edges))
    reader = HelloReader()
    for size in arrivals:
        assert reader.feed(stream[:size]) in ({Hello.MORE} if len(stream) > size else {NAME})
        stream = stream[size:]
    assert reader.feed(stream) == NAME


@pytest.mark.parametrize(
    "between", [b"", CHANGE_CIPHER, DATA, CHANGE_CIPHER + DATA * 3, ALERT, record(b""), b"\x17\3\3\0\0"]
)
class TestSecondHello:
    """After a HelloRetryRequest, a client says hello again."""

    def test_with_the_same_name(self, between: bytes) -> None:
        """The same name again changes nothing, nor does what comes later."""
        reader = HelloReader()
        assert reader.feed(FIRST) == NAME
        assert reader.feed(between + real(NAME, curve="prime256v1")) == NAME
        assert reader.feed(SECOND) == NAME

    def test_with_another_name(self, between: bytes) -> None:
        """Another name is not let through, at the latest when its last byte comes."""
        for second in (SECOND, ANONYMOUS, record(SECOND[5:9]) + between + record(SECOND[9:])):
            reader = HelloReader()
            assert reader.feed(FIRST + between + second[:-1]) == NAME
            assert reader.feed(second[-1:]) is Hello.MALFORMED
            assert reader.feed(FIRST) is Hello.MALFORMED

    def test_without_end(self, between: bytes) -> None:
        """A second hello which never ends is none that could be let through."""
        assert server_name(FIRST + between + record(b"\1\xff" + bytes(9000)) * 8) is Hello.MALFORMED


@pytest.mark.parametrize("name", [NAME, None])
@pytest.mark.parametrize(
    "rest",
    [
        record(b"\x10" + bytes(70)) + CHANGE_CIPHER + record(b"\1" + bytes(39)),
        CHANGE_CIPHER + record(b"\1" + bytes(range(200, 239))) + DATA * 100,
        CHANGE_CIPHER + record(b"\1" + bytes(range(39))) + DATA * 100,
        DATA * 100,
        b"\x16\3\3",
        b"no TLS any more",
    ],
)
def test_rest_of_a_session(name: str | None, rest: bytes) -> None:
    """What follows the hello is passed over, though an encrypted message may begin as a hello does."""
    reader = HelloReader()
    expected = name or Hello.NAMELESS
    assert reader.feed(real(name)) == expected
    assert {reader.feed(rest[place : place + 1]) for place in range(len(rest))} == {expected}


# A certificate for "x" and its key, which nobody has ever trusted.
CERTIFICATE = (
    "MIIBEzCBuwIUBA/aKpRJhLPp1VnXLqoWrDBhDdIwCgYIKoZIzj0EAwIwDDEKMAgGA1UEAwwBeDAgFw0yNjExMjIwNjMwNTVaGA8y"
    "MTI2MTAyOTA2MzA1NVowDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABI+dzv01Y17QWybM1LDa4/GvOAa4"
    "Cw6RTJEA9aflYb1HpcboaJP9k1Gc3W10212zjAFDWJB2AtCxEyivjlM103UwCgYIKoZIzj0EAwIDRwAwRAIgVvf2CYh92sE2wkBb"
    "AdZzujjom884f/EmyujFfB02D+ACIDC46/N7IK43tpSlpZ0LP79rKU+mqoxySEQwMAOrDqo+"
)
KEY = (
    "MHcCAQEEIACSy7/wk6Tvvh8m7WYNuwk40q6H4Gp+FrN4sqotHwnfoAoGCCqGSM49AwEHoUQDQgAEj53O/TVjXtBbJszUsNrj8a84"
    "BrgLDpFMkQD1p+VhvUelxuhok/2TUZzdbXTbXbOMAUNYkHYC0LETKK+OUzXTdQ=="
)


@pytest.fixture(scope="module")
def names_seen(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], list[str | None]]:
    """Return what tells which names a server, OpenSSL's, reads from a client's stream."""
    folder: Path = tmp_path_factory.mktemp("server")
    (folder / "certificate").write_text(ssl.DER_cert_to_PEM_cert(base64.b64decode(CERTIFICATE)), encoding="ascii")
    lines = ("-----BEGIN EC PRIVATE KEY-----", KEY, "-----END EC PRIVATE KEY-----")
    (folder / "key").write_text("\n".join(lines), encoding="ascii")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate", folder / "key")
    context.set_ecdh_curve("prime256v1")
    seen: list[str | None] = []
    context.sni_callback = lambda _server, name, _context: seen.append(name)

    def names(stream: bytes) -> list[str | None]:
        seen.clear()
        incoming = ssl.MemoryBIO()
        incoming.write(stream)
        with pytest.raises(ssl.SSLError):
            context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
        return seen.copy()

    return names


def test_a_server_goes_by_the_second_name(names_seen: Callable[[bytes], list[str | None]]) -> None:
    """The reason to watch for a second hello: a server asks for it, and takes the name from that."""
    assert names_seen(FIRST) == [NAME]
    assert names_seen(FIRST + SECOND) == [NAME, "evil.example.com"]
    assert names_seen(record(b"") + SECOND) == ["evil.example.com"]


NOISE = [ALERT, CHANGE_CIPHER, DATA, *(record(b"", b"\3\3", kind) for kind in range(20, 25)), FIRST, SECOND, b"\0"]


@st.composite
def dialogues(draw: st.DrawFn) -> bytes:
    """Make streams of hellos in pieces, with other records before, between and after."""
    pieces: list[bytes] = []
    for message in draw(st.lists(st.sampled_from([FIRST, SECOND, ANONYMOUS, named(b"short")]), min_size=1, max_size=3)):
        cuts = draw(st.lists(st.integers(1, len(message) - 6), max_size=2))
        for start, end in itertools.pairwise([0, *sorted(set(cuts)), len(message) - 5]):
            version = draw(st.sampled_from([b"\3\1", b"\3\1", b"\3\3", b"\3\0", b"\2\0"]))
            pieces += [*draw(st.lists(st.sampled_from(NOISE), max_size=1)), record(message[5:][start:end], version)]
    return b"".join(pieces)


@given(dialogues())
def test_agrees_with_a_server(names_seen: Callable[[bytes], list[str | None]], stream: bytes) -> None:
    """No stream makes a server go by another name than the one that was read."""
    asked, seen = server_name(stream), names_seen(stream)
    if isinstance(asked, str):
        assert set(seen) <= {asked}
    elif asked is not Hello.MALFORMED:
        assert set(seen) <= ({None} if asked is Hello.NAMELESS else set())

"""Egress rules, ``host[:port[-port]][/udp]``: which outside parties a leaf may reach, as frozen values.

Pure: nothing is looked up here. A rule by name speaks of the name, a rule by address of the address;
which name an address stands for is for the caller to know.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from pytest_netns import addressing
from pytest_netns.errors import NetnsError
from pytest_netns.hostnames import LOCALHOST, HostError, checked_name, is_loopback, normal_name

__all__ = ["EgressRule", "RuleError", "embedded_ipv4", "smallest", "text_for", "why_unreachable"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

EXAMPLE: Final = "api.example.com:443"
EXAMPLE6: Final = "[2001:db8::1]:443"
MAX_PORT: Final = 65_535

_SERVICES: Final = {
    "domain": 53, "ftp": 21, "http": 80, "https": 443, "imaps": 993, "ldap": 389, "ldaps": 636,
    "mysql": 3306, "postgres": 5432, "postgresql": 5432, "redis": 6379, "smtp": 25, "ssh": 22,
}  # fmt: skip
_LOOPBACK: Final = frozenset({addressing.LOOPBACK, addressing.LOOPBACK6})
_NAT64: Final = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48"))
_UNREACHABLE: Final[dict[Network, str]] = {
    ipaddress.IPv4Network("127.0.0.0/8"): "that is the test's own loopback",
    ipaddress.IPv6Network("::1/128"): "that is the test's own loopback",
    ipaddress.IPv4Network("0.0.0.0/32"): "the unspecified address is nobody's",
    ipaddress.IPv6Network("::/128"): "the unspecified address is nobody's",
    ipaddress.IPv4Network("224.0.0.0/4"): "multicast never leaves a leaf",
    ipaddress.IPv6Network("ff00::/8"): "multicast never leaves a leaf",
    ipaddress.IPv4Network("255.255.255.255/32"): "broadcast never leaves a leaf",
    ipaddress.IPv6Network("fe80::/10"): "a link-local address is known on the leaf's own link only",
    ipaddress.IPv6Network("::ffff:0:0/96"): "an IPv4 address is never sent as an IPv6 one",
    addressing.LEAVES: "that is the range of the leaves themselves",
    addressing.LEAVES6: "that is the range of the leaves themselves",
}
_URL: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:[^/?#]*@)?(?P<place>[^/?#]*).*", re.DOTALL)
_RULE: Final = re.compile(
    r"""(?P<host> (?: \[[^\[\]]*\] | [^\[\]/:]* | [^\[\]/:]*:[^\[\]/:]*:[^\[\]/]* ) (?:/[0-9]+)? )
        (?: : (?P<port>[^\[\]/:]*) )?
        (?P<suffix>(?:/.*)?)""",
    re.DOTALL | re.VERBOSE,
)
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class RuleError(NetnsError, ValueError):
    """A text is no egress rule; the message quotes it, says why, and ends in a form that is one.

    Attributes:
        right: the rule that was probably meant, or None if that cannot be told.
    """

    def __init__(self, message: str, right: str | None = None) -> None:
        super().__init__(message)
        self.right = right


@dataclass(frozen=True, slots=True)
class EgressRule:
    """One party that may be reached, and at which ports; ``parse`` makes it.

    Attributes:
        host: a normal name, ``*.`` and a normal name, ``localhost`` for the host's loopback, or a network.
        first: the lowest port.
        last: the highest port.
        protocol: the one protocol that is allowed.
    """

    host: str | Network
    first: int = 1
    last: int = MAX_PORT
    protocol: Literal["tcp", "udp"] = "tcp"

    @classmethod
    def parse(cls, text: object) -> EgressRule:
        """Return the rule that a text spells.

        Raises:
            RuleError: the text is no rule.
        """
        host, port, suffix = _parts(text)
        first, last = (1, MAX_PORT) if port is None else _ports(text, host, port, suffix)
        try:
            return cls(_host(host), first, last, "udp" if suffix else "tcp")
        except HostError as error:
            why, *meant = error.args
            tail = ("" if port is None else f":{port}") + suffix
            example = EXAMPLE6 if ":" in host else EXAMPLE
            raise _error(text, why, f"{meant[0]}{tail}" if meant else None, example) from None

    def __str__(self) -> str:
        host = str(self.host)
        if not isinstance(self.host, str) and self.host.prefixlen == self.host.max_prefixlen:
            host = str(self.host.network_address)
        suffix = "" if self.protocol == "tcp" else f"/{self.protocol}"
        if (self.first, self.last) == (1, MAX_PORT):
            return f"{host}{suffix}"
        if ":" in host:
            address, slash, length = host.partition("/")
            host = f"[{address}]{slash}{length}"
        ports = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{host}:{ports}{suffix}"

    def covers(self, protocol: str, port: int) -> bool:
        """Tell whether the rule allows this port, whoever the party is."""
        return protocol == self.protocol and self.first <= port <= self.last

    def covers_name(self, name: str) -> bool:
        """Tell whether the rule speaks of this name, which must be normal."""
        if isinstance(self.host, str) and self.host.startswith("*."):
            return name.endswith(self.host[1:])
        return name == self.host

    def covers_address(self, address: Address) -> bool:
        """Tell whether the rule speaks of this address; no block, ``0.0.0.0/0`` included, opens an unreachable one.

        An IPv6 address is not taken for the IPv4 address inside, for which see ``embedded_ipv4``.
        """
        if isinstance(self.host, str):
            return self.host == LOCALHOST and address in _LOOPBACK
        return address in self.host and why_unreachable(address) is None

    def includes(self, other: EgressRule) -> bool:
        """Tell whether this rule allows whatever the other allows."""
        if isinstance(other.host, str):
            covered = self.host == other.host or self.covers_name(other.host.removeprefix("*"))
        else:
            covered = not isinstance(self.host, str) and _within(other.host, self.host)
        return covered and all(self.covers(other.protocol, port) for port in (other.first, other.last))


def embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address at which a packet to this IPv6 address may end."""
    if address.teredo is not None:
        return address.teredo[1]
    if 1 < int(address) < 1 << 32 or any(address in network for network in _NAT64):
        return ipaddress.IPv4Address(address.packed[-4:])
    return address.ipv4_mapped or address.sixtofour


def why_unreachable(address: Address) -> str | None:
    """Return why no rule can allow an address; None if one can."""
    return next((why for network, why in _UNREACHABLE.items() if address in network), None)


def text_for(protocol: str, host: str | Address, port: int | None) -> str:
    """Return the text of the rule that allows this endpoint and no other.

    Raises:
        RuleError: no rule could, as with multicast.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        word = normal_name(str(host))
        if word is None:
            raise _error(host, "no host can have this name") from None
    else:
        address = getattr(address, "ipv4_mapped", None) or address
        word = LOCALHOST if address in _LOOPBACK else str(address)
    tail = ("" if port is None else f":{port}") + ("" if protocol == "tcp" else f"/{protocol}")
    return str(EgressRule.parse(f"[{word}]{tail}" if ":" in word else f"{word}{tail}"))


def smallest(rules: Iterable[EgressRule]) -> list[EgressRule]:
    """Return rules that allow the same as these, none inside another, in an order that is always the same."""
    merged: list[EgressRule] = []
    for rule in sorted(rules, key=_order):
        before = merged[-1] if merged else None
        same = before is not None and (before.host, before.protocol) == (rule.host, rule.protocol)
        if before is not None and same and rule.first <= before.last + 1:
            merged[-1] = replace(before, last=max(before.last, rule.last))
        else:
            merged.append(rule)
    broad = [rule for rule in merged if not isinstance(rule.host, str) or rule.host.startswith("*.")]
    return [rule for rule in merged if not any(other is not rule and other.includes(rule) for other in broad)]


def _order(rule: EgressRule) -> tuple[int, str, int, int, str, int]:
    if isinstance(rule.host, str):
        return 0, rule.host, 0, 0, rule.protocol, rule.first
    return rule.host.version, "", int(rule.host.network_address), rule.host.prefixlen, rule.protocol, rule.first


def _error(text: object, why: str, meant: str | None = None, example: str = EXAMPLE) -> RuleError:
    """Make an error whose advice is never refused in its turn."""
    right = None if meant is None else _repaired(meant)
    return RuleError(
        f"{text!r} is no egress rule: {why}; write {right or f'for example {_repaired(example) or EXAMPLE}'}", right
    )


def _repaired(text: str) -> str | None:
    try:
        return str(EgressRule.parse(text))
    except RuleError as error:
        return error.right


def _parts(text: object) -> tuple[str, str | None, str]:
    """Part a rule into host, port if any, and ``/udp`` or nothing."""
    if not isinstance(text, str):
        raise _error(text, f"it is of type {type(text).__name__}, not a text")
    if url := _URL.fullmatch(text.strip()):
        place, service = url["place"], _SERVICES.get(url["scheme"].lower())
        complete = service is None or re.search(r":[0-9]*$", place)
        raise _error(text, "a rule has no scheme and no path", place if complete else f"{place}:{service}")
    if "@" in text.partition("/")[0]:
        raise _error(text, "a rule has no user", text.rpartition("@")[2])
    several = re.split(r"[\s,]+", text.strip())
    if len(several) > 1:
        raise _error(text, "a rule is one host, with one port or range, and another is a rule of its own", several[0])
    match = _RULE.fullmatch(text.strip())
    if match is None:
        raise _error(text, "brackets go in pairs, around one IPv6 address", example=EXAMPLE6)
    host, port, suffix = match["host"], match["port"], match["suffix"].lower()
    if suffix not in {"", "/tcp", "/udp"}:
        why = f"{suffix!r} is neither /tcp nor /udp, and a rule has no path"
        raise _error(text, why, host if port is None else f"{host}:{port}")
    return host, port, suffix.removeprefix("/tcp")


def _ports(text: object, host: str, port: str, suffix: str) -> tuple[int, int]:
    if port.lower() in _SERVICES:
        raise _error(text, f"port {port!r} is not a number", f"{host}:{_SERVICES[port.lower()]}{suffix}")
    if port == "*":
        raise _error(text, "for any port none is given", f"{host}{suffix}")
    match = _PORTS.fullmatch(port)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not (1 <= first <= MAX_PORT and 1 <= last <= MAX_PORT):
        raise _error(text, f"{port!r} is no port from 1 to {MAX_PORT}", example=f"{host}:443{suffix}")
    if first > last:
        raise _error(text, f"ports {port} run backwards", f"{host}:{last}-{first}{suffix}")
    return first, last


def _host(word: str) -> str | Network:
    inner = word.replace("[", "").replace("]", "")
    if inner != word and ":" not in inner:
        raise HostError("brackets are for IPv6 addresses", inner)
    if ":" in inner and "%" in inner:
        raise HostError("a scope id names an interface, and a leaf has none of the host's")
    network = _network(inner)
    if network is not None:
        return network
    if "/" in inner:
        raise HostError(f"{inner!r} is no block of addresses", inner.partition("/")[0])
    if ":" in inner:
        head, _, port = inner.rpartition(":")
        raise HostError(f"{inner!r} is no IPv6 address, and a port goes behind brackets", f"[{head}]:{port}")
    return _pattern(inner)


def _network(word: str) -> Network | None:
    """Return the addresses that a word spells, if any; those that nobody can reach are an error."""
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        return None
    address, length = network.network_address, network.prefixlen
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped and length >= 96:
        raise HostError("an IPv4 address is never sent as an IPv6 one", f"{address.ipv4_mapped}/{length - 96}")
    for unreachable, why in _UNREACHABLE.items():
        if _within(network, unreachable):
            raise HostError(why, *([LOCALHOST] if unreachable.is_loopback else []))
    if ipaddress.ip_address(word.partition("/")[0]) != address:
        raise HostError("the address has bits beyond the prefix", f"[{network}]" if ":" in word else str(network))
    return network


def _within(inner: Network, outer: Network) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


def _pattern(word: str) -> str:
    """Return the normal form of a name or of a wildcard."""
    if word == "*":
        raise HostError("list the names; --netns-egress=record lets everything through and lists what was needed")
    name = word.removeprefix("*.")
    if not name:
        raise HostError("it names no host")
    if "*" in name:
        parent = name.rpartition("*")[2].removeprefix(".")
        raise HostError("a wildcard is *. before a name", *([f"*.{parent}"] if "." in parent else []))
    normal = checked_name(name)
    if is_loopback(normal) and (normal != LOCALHOST or name != word):
        raise HostError("what is below localhost is the test's own loopback", LOCALHOST)
    return normal if name == word else f"*.{normal}"

"""Host names in one normal form, so that equal names are equal texts: pure."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from typing import Final

LOCALHOST: Final = "localhost"

# What IDNA 2003 maps away and IDNA 2008 keeps: one spelling, two names, perhaps two owners.
_DISPUTED: Final = frozenset("\u00df\u1e9e\u03c2\u200c\u200d")
_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")
_NUMBER: Final = re.compile(r"0x[0-9a-f]*|[0-9]+")


class HostError(ValueError):
    """The host of a rule is none; the arguments are the reason and, where it can be told, the host that was meant."""


def normal_name(text: str) -> str | None:
    """Return a name as rules have it, or None for what no host can be called, an address in disguise included."""
    try:
        return checked_name(text)
    except HostError:
        return None


def checked_name(word: str) -> str:
    """Return a host name in its normal form; HostError where it is none, or an address in disguise."""
    name = (word if word.isascii() or len(word) > 254 else _a_labels(word)).lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253:
        raise HostError("a name has at most 253 characters")
    if _NUMBER.fullmatch(labels[-1]):
        if address := _disguised(labels):
            raise HostError(f"resolvers read it as the address {address}", str(address))
        raise HostError("a name does not end in a number, and it is no address")
    for label in labels:
        if not _LABEL.fullmatch(label):
            raise HostError(f"label {label!r} is not 1 to 63 letters, digits, underscores and inner hyphens")
    return name


def is_loopback(name: str) -> bool:
    """Tell whether a normal name is the one that leads to loopback everywhere, or below it (RFC 6761, section 6.3)."""
    return name == LOCALHOST or name.endswith(f".{LOCALHOST}")


def _a_labels(word: str) -> str:
    """Return the ASCII form of an international name."""
    folded = unicodedata.normalize("NFKC", word).replace("\u3002", ".")
    if not _DISPUTED.isdisjoint(folded):
        labels = folded.lower().split(".")
        meant = [label if label.isascii() else f"xn--{label.encode('punycode').decode()}" for label in labels]
        raise HostError("IDNA 2003 and 2008 disagree on it, so only the xn-- form is clear", ".".join(meant))
    try:
        return folded.casefold().encode("idna").decode()
    except UnicodeError as error:
        raise HostError(f"it is no international name ({error})") from None


def _disguised(labels: list[str]) -> ipaddress.IPv4Address | None:
    """Return the address that inet_aton(3) reads: up to four numbers in base 8, 10 or 16, the last filling the rest."""
    if len(labels) > 4 or not all(map(_NUMBER.fullmatch, labels)):
        return None
    try:
        *heads, last = (int(re.sub(r"^0(?=[0-9])", "0o", label), 0) for label in labels)
        return ipaddress.IPv4Address(bytes(heads) + last.to_bytes(4 - len(heads), "big"))
    except (ValueError, OverflowError):
        return None

"""What name resolution in a leaf is told: pure functions from the host's files to the leaf's.

/etc/hosts keeps the host's lines for addresses that lead nowhere else (loopback, multicast,
unspecified), so ``localhost`` has the families that it has on the host: a server that is told to listen there
takes the same clients. Lines for other machines are left out, so that these names are asked of the hub's
name server: rules name hosts, and the gateway consults the host's own file when it connects.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator

from pytest_netns.errors import NetnsError

__all__ = ["entry", "hosts", "nsswitch"]

_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


def hosts(host_text: str, hostname: str) -> str:
    """Make a leaf's /etc/hosts from the host's: local lines, ``localhost``, the machine's own name."""
    kept = [line for line, address, _ in _entries(host_text) if _leads_nowhere(address)]
    own = [(address.version, names) for _, address, names in _entries(host_text) if address.is_loopback]
    known = {(version, name) for version, names in own for name in names}
    if not {(4, "localhost"), (6, "localhost")} & known:
        kept.append("::1 localhost ip6-localhost ip6-loopback")
    if (4, "localhost") not in known:
        kept.insert(0, "127.0.0.1 localhost")
    if (4, hostname.lower()) not in known and _NAME.fullmatch(hostname):
        kept.append(f"127.0.0.1 {hostname}")
    return "\n".join(kept) + "\n"


def nsswitch(host_text: str) -> str:
    """Make a leaf's /etc/nsswitch.conf from the host's: host names come from files and DNS, and nowhere else."""
    lines = [line for line in host_text.splitlines() if not re.match(r"\s*hosts\s*:", line)]
    return "\n".join([*lines, "hosts: files dns"]) + "\n"


def entry(name: str, addresses: Iterable[str]) -> str:
    """Make lines of /etc/hosts for one name.

    Raises:
        NetnsError: the name is not one, an address is not one, or there is none.
    """
    if not _NAME.fullmatch(name):
        raise NetnsError(f"cannot add the host {name!r}: not a host name. Use letters, digits, '-' and '.'")
    try:
        lines = [f"{ipaddress.ip_address(address)} {name}\n" for address in addresses]
    except ValueError as error:
        raise NetnsError(f"cannot add the host {name!r}: {error}. Give IPv4 or IPv6 literals") from error
    if not lines:
        raise NetnsError(f"cannot add the host {name!r}: no address was given. Give at least one, such as '127.0.0.1'")
    return "".join(lines)


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _entries(text: str) -> Iterator[tuple[str, _Address, list[str]]]:
    for line in text.splitlines():
        fields = line.partition("#")[0].split()
        if len(fields) > 1:
            try:
                address = ipaddress.ip_address(fields[0])
            except ValueError:
                continue
            yield line, address, [name.lower() for name in fields[1:]]


def _leads_nowhere(address: _Address) -> bool:
    return address.is_loopback or address.is_multicast or address.is_unspecified

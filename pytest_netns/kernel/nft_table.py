"""Write whole nftables tables, with their chains, rules and sets, as Python values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pytest_netns.kernel import nft_wire
from pytest_netns.kernel.netlink import NLM_F_APPEND
from pytest_netns.kernel.nft import Rule

_TARGET: Final = b"target\0"


@dataclass(frozen=True)
class Chain:
    """A base chain: where it hooks in, when, what it ends in, and its rules in order."""

    name: str
    hook: int
    priority: int
    rules: list[Rule]
    kind: str = "filter"
    policy: int = 1


@dataclass(frozen=True)
class Table:
    """One nftables table with its chains, and its sets with the size of their keys in bytes."""

    name: str
    family: int
    chains: list[Chain]
    sets: dict[str, int] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the netlink messages that create the table."""
        parts = [nft_wire.message(nft_wire.NEWTABLE, self.family, [nft_wire.string(1, self.name)])]
        parts += [self._encode_set(name, size, number) for number, (name, size) in enumerate(self.sets.items(), 1)]
        for chain in self.chains:
            parts.append(self._encode_chain(chain))
            parts += [self._encode_rule(chain.name, rule) for rule in chain.rules]
        return b"".join(parts)

    def _encode_set(self, name: str, size: int, number: int) -> bytes:
        identity = [nft_wire.string(1, self.name), nft_wire.string(2, name), nft_wire.integer(3, 0)]
        key = [nft_wire.integer(4, 0), nft_wire.integer(5, size), nft_wire.integer(10, number)]
        return nft_wire.message(nft_wire.NEWSET, self.family, identity + key)

    def _encode_chain(self, chain: Chain) -> bytes:
        hook = nft_wire.nested(4, nft_wire.integer(1, chain.hook), nft_wire.integer(2, chain.priority))
        identity = [nft_wire.string(1, self.name), nft_wire.string(3, chain.name), hook]
        return nft_wire.message(
            nft_wire.NEWCHAIN,
            self.family,
            [*identity, nft_wire.integer(5, chain.policy), nft_wire.string(7, chain.kind)],
        )

    def _encode_rule(self, chain: str, rule: Rule) -> bytes:
        attributes = [nft_wire.string(1, self.name), nft_wire.string(2, chain), nft_wire.nested(4, *rule)]
        if any(_TARGET in expression for expression in rule):  # an xtables target wants to know of which protocol
            attributes.append(nft_wire.nested(5, nft_wire.integer(1, 0), nft_wire.integer(2, 0)))
        return nft_wire.message(nft_wire.NEWRULE, self.family, attributes, NLM_F_APPEND)


def remove(name: str, family: int) -> bytes:
    """Return the message that takes a table away; the kernel refuses it for one that is not there."""
    return nft_wire.message(nft_wire.DELTABLE, family, [nft_wire.string(1, name)])


def add_element(table: str, family: int, name: str, key: bytes) -> bytes:
    """Return the message that adds one key to a set; it may be there already."""
    return _element(nft_wire.NEWSETELEM, table, family, name, key)


def remove_element(table: str, family: int, name: str, key: bytes) -> bytes:
    """Return the message that takes one key out of a set; the kernel refuses it for one that is not there."""
    return _element(nft_wire.DELSETELEM, table, family, name, key)


def _element(kind: int, table: str, family: int, name: str, key: bytes) -> bytes:
    entry = nft_wire.nested(1, nft_wire.nested(1, nft_wire.value(key)))
    return nft_wire.message(
        kind, family, [nft_wire.string(1, table), nft_wire.string(2, name), nft_wire.nested(3, entry)]
    )


def transaction(messages: bytes) -> bytes:
    """Frame messages so that the kernel carries out all of them or none."""
    return nft_wire.frame(nft_wire.BATCH_BEGIN) + messages + nft_wire.frame(nft_wire.BATCH_END)

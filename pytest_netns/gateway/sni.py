"""Hold TLS clients that were let through by a name to asking the server for a name that is allowed."""

from __future__ import annotations

from collections.abc import Callable

from pytest_netns.gateway.pump import Inspect, Judgement
from pytest_netns.gateway.tls import Hello, HelloReader
from pytest_netns.rules import EgressRule


def inspector(rule: EgressRule, refused: Callable[[str], None]) -> Inspect:
    """Return what judges a client's bytes.

    Args:
        rule: what the connection was let through by; its names, and no others, may be asked for.
        refused: is called with the reason, before the connection is reset.
    """
    reader = HelloReader()

    def judge(data: bytes) -> Judgement:
        if not data:
            refused("it sends urgent data where a TLS ClientHello may be")
            return Judgement.REFUSE
        asked = reader.feed(data)
        if asked is Hello.MORE:
            return Judgement.HOLD
        if asked is Hello.OTHER:
            return Judgement.DONE
        if asked is Hello.MALFORMED:
            refused("its TLS ClientHello cannot be read for certain")
            return Judgement.REFUSE
        if isinstance(asked, str) and not rule.covers_name(asked):
            refused(f"its TLS ClientHello asks for {asked}, which {rule} does not allow")
            return Judgement.REFUSE
        return Judgement.PASS

    return judge

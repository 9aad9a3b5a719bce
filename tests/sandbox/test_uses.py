"""What boxes are used for; the uses are in ``inside``."""

from __future__ import annotations

import pytest
from battles import Battle, listed


@pytest.mark.parametrize(("file", "name"), list(listed("use_*.py")))
def test_use(battle: Battle, file: str, name: str) -> None:
    """A use is served, as its own assertions have it."""
    for outcome, text in battle.outcomes(file).get(name, [("error", "it did not run")]):
        if outcome == "skipped":
            pytest.skip(text)
        assert outcome == "passed", text

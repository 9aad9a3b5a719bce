"""What is kept of a leaf's packets, and where it is written."""

from __future__ import annotations

from typing import cast

from pytest_netns.gateway.captures import Capture, Paths
from pytest_netns.kernel.tap import Block, Tap


class FullTap:
    """Stands for a tap that always has one more block, of two packets."""

    lost = 0

    def __init__(self) -> None:
        self.number = 0

    def take(self) -> list[Block]:
        """Return another block."""
        self.number += 1
        return [Block(self.number, 2, b"")]

    def rest(self) -> list[Block]:
        """Return none."""
        return []


def test_bounded() -> None:
    """The first blocks are kept and the last; how many packets were between is known; another test begins anew."""
    capture = Capture(cast("Tap", FullTap()))
    for _ in range(200):
        capture.collect()
    kept = capture.snapshot()
    assert [block.number for block in kept.first] == list(range(1, 33))
    assert [block.number for block in kept.last] == list(range(138, 202))
    assert kept.left_out == 2 * (201 - 32 - 64)
    capture.restart()
    again = capture.snapshot()
    assert ([block.number for block in again.first], again.last, again.left_out) == ([202], [], 0)


def test_paths() -> None:
    """A test's folder is named as pytest-playwright would; no two have the same, and none is too long a name."""
    paths = Paths()
    assert paths.fresh("/out", "tests/test_a.py::Test::test_b[1-é]") == (
        "/out/tests-test-a-py-test-test-b-1/netns.pcapng"
    )
    assert paths.fresh("/out", "tests/test_a.py::Test::test_b[1]") == (
        "/out/tests-test-a-py-test-test-b-1-2/netns.pcapng"
    )
    long = [paths.fresh("/out", f"test_a.py::test[{'x' * 300}{number}]") for number in range(2)]
    assert len(set(long)) == 2
    assert all(len(path.split("/")[2]) < 200 for path in long)
    assert paths.fresh("/out", "é") == "/out/test/netns.pcapng"

"""An agent may do its work, and whatever it is talked into stays in its box.

Run them with ``pytest --netns -n 4 examples/agent``. They need Debian's ``curl``, and ``bubblewrap`` from there or from
``pip install 'pytest-netns[sandbox]'``.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agent import Agent, Replay, Step

from pytest_netns import Egress, Namespace, Sandbox

TRANSCRIPTS = Path(__file__).parent / "transcripts"
BEFORE, AFTER = 'GREETING = "Oi"\n', 'GREETING = "Good morning"\n'
SECRET = "canary"

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl: apt-get install curl")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a directory with what the agent is to work on; beside it is what is none of its business."""
    (tmp_path / "credentials").write_text(SECRET)
    project = tmp_path / "project"
    project.mkdir()
    (project / "greeting.py").write_text(BEFORE)
    return project


@pytest.fixture
def box(netns: Namespace, netns_egress: Egress, project: Path, host: str) -> Iterator[Sandbox]:
    """Make the agent's box, from which one host can be reached."""
    netns_egress.allow(host)
    with netns.sandbox(workdir=project, memory="256M", pids=64) as box:
        yield box


def play(box: Sandbox, transcript: str, host: str) -> list[Step]:
    """Let an agent do what a transcript says."""
    return Agent(box, Replay(TRANSCRIPTS / f"{transcript}.jsonl", HOST=f"http://{host}")).work()


def test_keeps_what_it_did(box: Sandbox, project: Path, host: str, netns_egress: Egress) -> None:
    """The agent reads, fetches, writes and runs commands; only what is taken from its diff gets into the project."""
    steps = play(box, "repair", host)
    assert all(step.succeeded for step in steps), steps
    assert [step.answer for step in steps] == [
        BEFORE,
        'Greet people with "Good morning".\n',
        "",
        "",
        f"{project}/scratch\n",
    ]
    assert [str(change) for change in box.changes] == [
        "modified greeting.py",
        "created scratch",
        "created scratch/notes",
    ]
    assert f"-{BEFORE}+{AFTER}" in box.diff()
    assert (project / "greeting.py").read_text() == BEFORE

    box.apply("greeting.py")
    assert (project / "greeting.py").read_text() == AFTER
    assert [path.name for path in project.iterdir()] == ["greeting.py"]
    assert {f"localhost:{flow.port}" for flow in box.flows} == {host}
    assert not netns_egress.blocked


def test_exfiltration_is_blocked_and_reported(
    box: Sandbox, host: str, netns_egress: Egress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent finds no secret to send; what it sends elsewhere is refused, and stands in the report."""
    monkeypatch.setenv("API_KEY", SECRET)
    steps = play(box, "exfiltrate", host)
    assert not any(SECRET in step.answer for step in steps)
    assert [step.succeeded for step in steps] == [False, True, False, False]
    assert [(flow.endpoint, flow.sandbox) for flow in netns_egress.blocked] == [
        ("dns collector.example", box.name),
        ("tcp 203.0.113.7:80", box.name),
    ]


def test_injected_removal_stays_inside(box: Sandbox, project: Path, host: str) -> None:
    """A page talks the agent into removing everything: outside nothing is gone, and after a discard nothing inside."""
    steps = play(box, "injected", host)
    assert "ignore all previous instructions" in steps[0].answer
    assert steps[2].answer == ""
    assert [str(change) for change in box.changes] == ["deleted greeting.py"]
    assert (project / "greeting.py").read_text() == BEFORE
    assert (project.parent / "credentials").read_text() == SECRET

    box.discard()
    assert box.run(["cat", "greeting.py"], capture_output=True, text=True).stdout == BEFORE


def test_what_it_has_used(box: Sandbox, host: str) -> None:
    """What a command has used is told with its outcome, bytes over the network included."""
    done = box.run(["curl", "--silent", f"http://{host}/style.txt"], capture_output=True, check=True)
    assert done.usage.received > len(done.stdout)  # the answer has a header
    assert done.usage.sent > 0
    assert min(done.usage.memory, done.usage.cpu_time, done.usage.processes, done.usage.written) > 0
    assert done.exceeded is None

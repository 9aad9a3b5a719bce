"""Where a suite is run: a network without an outside, a fresh copy of the source, and an end for all that is started.

Every configuration, the plain one too, runs in such a world, so that all of them see the same: loopback, one
interface with an address for documentation, no way out, and a name server that can't be reached.
"""

from __future__ import annotations

import json
import os
import pwd
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from suites import Suite

__all__ = ["BASE", "CONFIGURATIONS", "ISOLATED", "Run", "run"]

CONFIGURATIONS: Final[dict[str, tuple[str, ...]]] = {
    "plain": (),
    "again": (),
    "netns": ("--netns",),
    "session": ("--netns", "--netns-scope=session"),
    "netns-n2": ("--netns", "-n", "2"),
    "plain-n2": ("-n", "2"),
}

BASE: Final = ("plain", "again")
ISOLATED: Final = ("netns", "session", "netns-n2")

_GRACE: Final = 20  # seconds to write what is known after the limit
_LATE: Final = frozenset({124, 137})  # what timeout(1) ends with

_WORLD: Final = """
ip link set lo up
ip link add outside type veth peer name nobody
ip address add 192.0.2.10/24 dev outside
ip address add 2001:db8::10/64 dev outside nodad
ip link set outside up
ip link set nobody up
printf '127.0.0.1 localhost\\n::1 localhost\\n' >hosts
mount --bind hosts /etc/hosts
for folder in /run/nscd /run/systemd/resolve /run/dbus; do
    [ ! -d "$folder" ] || mount -t tmpfs none "$folder"
done
"""


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        junit: its JUnit file, which is missing where pytest did not get that far.
        seconds: what it took.
        processor: the processor time of all that ran, in seconds.
        status: pytest's exit status, or that of timeout(1).
    """

    junit: Path
    seconds: float
    processor: float
    status: int

    @property
    def hung(self) -> bool:
        """Whether the limit ended it."""
        return self.status in _LATE


def run(suite: Suite, user: str, configuration: str, *, work: Path, again: bool = False, keep: bool = False) -> Run:
    """Run a suite once, and leave its JUnit file, its output and its figures below ``work``.

    With ``keep``, what an earlier run of the same has left there is returned instead, if there is any.

    Raises:
        RuntimeError: it did not come to run at all.
    """
    stem = f"{configuration}-again" if again else configuration
    results = work / "results" / suite.name / user
    results.mkdir(parents=True, exist_ok=True)
    junit, log, figures = (results / f"{stem}{ending}" for ending in (".xml", ".log", ".json"))
    if not (keep and figures.exists()):
        for old in (junit, figures):
            old.unlink(missing_ok=True)
        place = Path(tempfile.mkdtemp(prefix="compat.", dir="/tmp"))
        try:
            _furnish(place, suite, user, work)
            found = _run_in(place, log, _script(suite, user, _command(suite, configuration), work=work, place=place))
            made = place / "junit" / "junit.xml"
            if made.exists():  # some tests have their folder in their names
                junit.write_text(made.read_text("utf-8").replace(str(place), "/world"), "utf-8")
        finally:
            shutil.rmtree(place, ignore_errors=True)
        figures.write_text(json.dumps(found), "utf-8")
    return Run(junit, **json.loads(figures.read_text("utf-8")))


def _run_in(place: Path, log: Path, text: str) -> dict[str, float]:
    """Run a script as the first process of a world of its own, and return the figures of what it has run."""
    script = place / "run"
    script.write_text(text, "utf-8")
    world = ["unshare", "--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", str(script)]
    with log.open("wb") as output:
        subprocess.run(world, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False)
    told = place / "told"
    if not told.exists():
        raise RuntimeError(f"nothing was run; see {log}")
    status, began, ended, *times = told.read_text(encoding="ascii").split()
    processor = sum(map(_seconds, times[6:])) - sum(map(_seconds, times[2:4]))  # of all children, then and before
    return {"seconds": float(ended) - float(began), "processor": processor, "status": int(status)}


def _seconds(text: str) -> float:
    """Read what the shell's ``times`` prints, as 1m2.345s."""
    minutes, seconds = text.removesuffix("s").split("m")
    return 60 * int(minutes) + float(seconds)


def _furnish(place: Path, suite: Suite, user: str, work: Path) -> None:
    """Give the user a home, a folder for temporary files, and a source tree that nobody has used before."""
    shutil.copytree(work / "sources" / suite.name, place / "source", symlinks=True)
    for name in suite.drop:
        shutil.rmtree(place / "source" / name)
    for name, text in suite.files.items():
        (place / "source" / name).write_text(text, encoding="utf-8")
    for name in ("home", "tmp", "junit"):
        (place / name).mkdir()
    place.chmod(0o755)
    owner = pwd.getpwnam(user)
    for part in ("source", "home", "tmp", "junit"):
        for folder, _, files in os.walk(place / part):
            for name in (".", *files):
                os.chown(Path(folder, name), owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def _command(suite: Suite, configuration: str) -> list[str]:
    """Return the command for pytest."""
    options = CONFIGURATIONS[configuration]
    options = (*options, *suite.isolated) if "--netns" in options else ("-p", "no:netns", *options)
    junit = ("--junitxml=../junit/junit.xml", "-o", "junit_family=xunit1", "-p", "no:cacheprovider")
    return ["python", "-m", "pytest", *junit, *suite.arguments, *options]


def _script(suite: Suite, user: str, command: list[str], *, work: Path, place: Path) -> str:
    """Return what root does as the world's first process: a shell, which reaps what is orphaned, too."""
    environment = {
        "HOME": f"{place}/home",
        "USER": user,
        "LANG": "C.UTF-8",
        "TMPDIR": f"{place}/tmp",
        "PATH": f"{work}/environments/{suite.name}/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        **suite.environment,
    }
    limited = ["timeout", "--signal=INT", f"--kill-after={_GRACE}", str(suite.limit), *command]
    variables = [f"{name}={value}" for name, value in environment.items()]
    line = shlex.join(
        ["runuser", "-u", user, "--", "env", "-i", "--default-signal=INT,QUIT,PIPE", *variables, *limited]
    )
    return f"""
set -e
cd {place}
{_WORLD}
cd source
{suite.before}
times >{place}/times
began=$(date +%s.%N)
status=0
{line} || status=$?
ended=$(date +%s.%N)
sleep 0.3 # what is still ending is waited for by nobody but this shell
{{ echo "$status $began $ended" && cat {place}/times && times; }} >{place}/told
"""

"""Send the gateway messages that no client of ours sends, 10,000 of them: nobody else may notice.

    python benchmarks/fuzz/strangers.py [--messages 10000] [--seed 1]

Runs ``tests/gateway/test_strangers.py`` with one seed after the other, each with 500 messages and a gateway of its
own; see there for what has to stay as it was. A seed that fails ends it, and is named.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

_AT_ONCE = 500
_TEST = Path(__file__).resolve().parent.parent.parent / "tests" / "gateway" / "test_strangers.py"


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1, help="the first of the seeds")
    wanted = parser.parse_args()
    runs = -(-wanted.messages // _AT_ONCE)
    for seed in range(wanted.seed, wanted.seed + runs):
        environment = {**os.environ, "NETNS_FUZZ_SEED": str(seed), "NETNS_FUZZ_MESSAGES": str(_AT_ONCE)}
        command = [sys.executable, "-m", "pytest", "-q", str(_TEST), "-k", "nonsense"]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"{done.stdout}\nseed {seed} failed")
        print(f"seed {seed}: {_AT_ONCE} messages, nothing changed", flush=True)
    print(f"{runs * _AT_ONCE} messages, nothing changed")


if __name__ == "__main__":
    _main()

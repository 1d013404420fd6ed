"""A sweep on the CPU, killed with SIGKILL at random moments and started again until it is done.

    python tests/benchmarks/bench_killed_sweeps.py [--kills 20]

Prints one JSON line: how many kills hit a running sweep, and what they cost. After each, no stored
row may be lost or doubled and no worker may outlive its sweep; at the end the keys are those of a
sweep that nobody disturbed. Exits 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from planner.store import Store

SWEEP = (
    sys.executable, "-m", "profiler.cli", "run", "--device", "cpu", "--shape", "tiny",
    "--mixers", "full_attention,linear_attention", "--lengths", "32:256", "--no-dense",
    "--ratios", "none", "--time-cap", "0.2", "--caches", "cold,warm", "-q",
)  # fmt: skip
SETTLE_S = 2.0  # a worker looks for its parent five times a second
LIMIT_S = 900


def start(store: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*SWEEP, "--store", str(store)], stdout=subprocess.DEVNULL)


def keys(store: Path) -> Counter[str]:
    if not store.exists():
        return Counter()
    opened = Store.open(str(store), shipped=False)
    found = Counter(opened.points()["key"])
    opened.close()
    return found


def workers_of(sweep: int) -> int:
    """Live processes that were started to serve this one."""
    found = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            found += b"profiler.spawned" in words and str(sweep).encode() in words and state != "Z"
    return found


def kill_again_and_again(folder: Path, kills: int, span_s: float, seed: int) -> dict[str, int]:
    """Kills that many sweeps while they run, and counts what is amiss after each.

    A sweep that is done before its moment has shown that it completes; the next starts afresh.
    """
    moment = random.Random(seed)
    found = {"kills": 0, "completed": 0, "lost_rows": 0, "doubled_rows": 0, "orphans": 0}
    seen: Counter[str] = Counter()
    while found["kills"] < kills:
        store = folder / f"killed-{found['completed']}.db"
        sweep = start(store)
        try:
            assert sweep.wait(moment.uniform(0.1, 1.0) * span_s) == 0
            found["completed"] += 1
            seen = Counter()
            continue
        except subprocess.TimeoutExpired:
            sweep.kill()
            sweep.wait()
        time.sleep(SETTLE_S)
        now = keys(store)
        found["kills"] += 1
        found["lost_rows"] += len(seen.keys() - now.keys())
        found["doubled_rows"] += sum(n > 1 for n in now.values())
        found["orphans"] += workers_of(sweep.pid)
        seen = now
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calm = folder / "calm.db"
        began = time.monotonic()
        assert start(calm).wait(LIMIT_S) == 0
        whole_s = time.monotonic() - began
        found = kill_again_and_again(folder, options.kills, whole_s, options.seed)
        assert start(folder / f"killed-{found['completed']}.db").wait(LIMIT_S) == 0
        wanted = keys(calm)
        incomplete = sum(keys(store) != wanted for store in folder.glob("killed-*.db"))
    found |= {"rows": len(wanted), "incomplete": incomplete}
    print(json.dumps(found | {"sweep_s": round(whole_s, 1)}))
    amiss = ("lost_rows", "doubled_rows", "orphans", "incomplete")
    return 1 if any(found[what] for what in amiss) else 0


if __name__ == "__main__":
    sys.exit(main())

"""A run from plan to end: store, environment, what is left of the plan, sweep, how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import UsageError
from planner.store import Environment, Store
from profiler.accounts import Accounts
from profiler.check import doubtful
from profiler.device import Device
from profiler.measure.environment import fingerprint
from profiler.measure.timing import Limits
from profiler.plan import PlannedJob, count_points, unfinished
from profiler.progress import make_progress
from profiler.protocol import CONTEXT_BYTES
from profiler.sweep import Settings, Sweep, Tally

MIN_SAMPLES = {"cpu": 10, "cuda": 20}  # on a GPU a sample of a short call is a millisecond
QUICK_TIME_CAP_S = 0.15


WORKER_BYTES = {"cpu": 400 << 20, "cuda": CONTEXT_BYTES}
WORKER_SHARE = 0.3
"""Workers together may take this much of the device's memory just by being there."""


def make_settings(
    device: Device, *, quick: bool, budget_s: float | None, time_cap_s: float | None
) -> Settings:
    limits = Limits(min_samples=MIN_SAMPLES[device.kind])
    if quick:
        limits = replace(limits, time_cap_s=QUICK_TIME_CAP_S, min_samples_long=3)
    if time_cap_s is not None:
        if time_cap_s <= 0:
            raise UsageError(f"--time-cap must be positive, got {time_cap_s}")
        limits = replace(limits, time_cap_s=time_cap_s)
    room = int(WORKER_SHARE * device.memory_bytes / WORKER_BYTES[device.kind])
    return Settings(
        limits=limits,
        budget_s=budget_s,
        parallel=os.cpu_count() or 1,
        max_workers=max(2, min(room, 40)),
    )


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended. `already` counts points that earlier runs had finished."""

    name: str
    environment_id: str
    tally: Tally
    already: int
    interrupted: bool


def measure(
    plan: list[PlannedJob],
    device: Device,
    settings: Settings,
    opened: Store,
    *,
    command: str,
    name: str | None = None,
    retry_failed: bool = False,
    retry_doubtful: bool = False,
    quiet: bool = False,
) -> Ended:
    """Runs what is left of the plan; an interrupt, SIGTERM or a lost terminal ends it with all
    points kept."""
    accounts = Accounts()
    with accounts.clock("bookkeeping"):
        environment = environment_of(device, opened)
        finished = opened.finished_keys(environment.id, retry_faults=retry_failed)
        with_energy = keys_with_energy(opened, environment.id)
        if retry_doubtful:
            doubted = doubtful(opened.points(environment_id=environment.id))
            finished -= doubted - with_energy  # whose joules a run without --energy would lose
            with_energy -= doubted
        todo = unfinished(plan, finished, environment.id, with_energy=with_energy)
        for killed in opened.runs():
            if killed.status == "running" and killed.environment_id == environment.id:
                opened.end_run(killed.id, "interrupted")
        run_id = opened.start_run(
            name or f"{device.kind}-{len(opened.runs()) + 1}",
            environment,
            command=command,
            planned_points=count_points(todo),
            commit=commit(),
        )
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(ending, signal.default_int_handler)
    interrupted = True
    with make_progress(quiet=quiet) as progress:
        sweep = Sweep(
            opened, environment, device, settings, progress, run_id=run_id, accounts=accounts
        )
        with suppress(KeyboardInterrupt):
            sweep.run(todo)
            interrupted = False
    opened.end_run(run_id, "interrupted" if interrupted or sweep.tally.left else "done")
    return Ended(
        name=opened.run(run_id).name,
        environment_id=environment.id,
        tally=sweep.tally,
        interrupted=interrupted,
        already=count_points(plan) - count_points(todo),
    )


def keys_with_energy(opened: Store, environment_id: str) -> set[str]:
    points = opened.points(environment_id=environment_id)
    return set(points.loc[points["energy_j"].notna() | (points["outcome"] != "ok"), "key"])


def environment_of(device: Device, opened: Store) -> Environment:
    """This machine's environment, with the ceilings that earlier runs saw on it."""
    environment = fingerprint(device)
    known = opened.environments().get(environment.id)
    if known is None or "ceilings" not in known.facts:
        return environment
    return replace(environment, facts={**environment.facts, "ceilings": known.facts["ceilings"]})


def commit() -> str:
    """The checkout's commit, "+" appended where it has changes; "" outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True,
            text=True,
            check=True,
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return described.stdout.strip()

"""What a run will take before it is started: time and memory, from the roofline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from planner.hardware import Hardware
from profiler.footprint import held_bytes
from profiler.measure.timing import Limits, is_heavy
from profiler.plan import PlannedJob

TYPICAL_EFFICIENCY = 0.25
"""Bound over measured time of a usual kernel: the middle of what sweeps have shown."""

JOB_OVERHEAD_S = {"cpu": 0.35, "cuda": 0.15}
"""Inputs, gate and memory of one job; compiling comes on top on a GPU with an empty cache."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    points: int
    seconds: float
    peak_bytes: float


def call_seconds(planned: PlannedJob, hardware: Hardware) -> float:
    return hardware.lower_bound_of(planned.job.workload) / TYPICAL_EFFICIENCY


def job_seconds(planned: PlannedJob, hardware: Hardware, limits: Limits, kind: str) -> float:
    """Set-up, and for each point enough samples, within the time cap where that allows three.

    Heavy calls take their fixed time, in graphs; the few eager ones are counted like them.
    """
    if planned.reason:
        return 0.0
    call = call_seconds(planned, hardware)
    enough_s = 3 * limits.min_samples * max(call, 1e-3)
    if kind == "cuda" and is_heavy(planned.job.workload):
        enough_s = max(enough_s, limits.heavy_s)
    sampling = max(3 * call, min(limits.time_cap_s, enough_s))
    return JOB_OVERHEAD_S[kind] + 3 * call + len(planned.cells) * sampling


def estimate(
    plan: Iterable[PlannedJob], hardware: Hardware, limits: Limits, kind: str
) -> Estimate:
    """`peak_bytes` counts inputs and outputs alone: kernels may need more."""
    plan = list(plan)
    return Estimate(
        points=sum(len(p.cells) for p in plan),
        seconds=sum(job_seconds(p, hardware, limits, kind) for p in plan),
        peak_bytes=max((held_bytes(p.job.workload) for p in plan if not p.reason), default=0.0),
    )

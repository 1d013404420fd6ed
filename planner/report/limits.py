"""Limits: what each one rejects, and how far it would have to give for the next design."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from planner.cost.model import Deployment
from planner.decision.recommendation import Constraint, Evaluated, Recommendation, Verdict
from planner.units import bytes_text, percent, seconds_text
from planner.workload import dtype_bytes

SMALLER_DTYPES = ("bf16", "fp8", "int4")
"""Dtypes of weights that engines serve, from wide to narrow."""

TITLES: dict[Constraint, str] = {
    "floor": "Retention floor",
    "score_floor": "Score floor",
    "ttft": "TTFT",
    "tpot": "TPOT",
    "memory": "Device memory",
    "session_bytes": "Memory per session",
    "kv_slope": "KV growth",
    "profile": "Profile",
}


@dataclass(frozen=True, kw_only=True)
class LimitReport:
    """One limit: how many of `designs` it rejects, how many of them for no other reason.

    `nearest` is the design that comes closest to it. `relax_to` is the value at which a design
    that breaks nothing else would pass (seconds, bytes or retention); NaN if there is none. Memory
    gives way to smaller weights instead: `relax_dtype` is the first dtype that fits, "" if none.
    """

    constraint: str
    title: str
    rejects: int
    rejects_alone: int
    designs: int
    nearest: str
    nearest_text: str
    relax_to: float
    relax_dtype: str
    relax_text: str


def limits_of(found: Recommendation) -> tuple[LimitReport, ...]:
    """The limits that reject a design, the one that most alone stands in the way first."""
    uniform = [e for e in found.evaluated if e.candidate.placement == "uniform"]
    names = dict.fromkeys(v.constraint for e in uniform for v in e.broken)
    reports = [_limit(name, uniform, found) for name in names]
    return tuple(sorted(reports, key=lambda r: (-r.rejects_alone, -r.rejects)))


def _limit(name: Constraint, uniform: Sequence[Evaluated], found: Recommendation) -> LimitReport:
    broken = [(e, v) for e in uniform for v in e.broken if v.constraint == name]
    alone = [(e, v) for e, v in broken if len(e.broken) == 1]
    nearest, verdict = min(broken, key=lambda pair: _distance(pair[1]))
    relax_to, relax_dtype = math.nan, ""
    if name == "memory":
        relax_dtype, relax_text = _smaller_weights([e for e, _ in alone], found.deployment)
    else:
        relax_to, relax_text = _relaxed(name, alone, found.use_case.floor.level)
    return LimitReport(
        constraint=name,
        title=TITLES[name],
        rejects=len(broken),
        rejects_alone=len(alone),
        designs=len(uniform),
        nearest=nearest.candidate.label,
        nearest_text=verdict.text,
        relax_to=relax_to,
        relax_dtype=relax_dtype,
        relax_text=relax_text,
    )


def _distance(verdict: Verdict) -> float:
    """How far beyond its limit a value is; what has no figure is farthest."""
    if math.isnan(verdict.value):
        return math.inf
    gap = verdict.value - verdict.limit
    return -gap if verdict.constraint in ("floor", "score_floor") else gap


def _relaxed(
    name: Constraint, alone: Sequence[tuple[Evaluated, Verdict]], level: float
) -> tuple[float, str]:
    """The nearest value of this limit at which one more design passes, and who it is."""
    if name == "floor":
        reachable = [(_reachable_floor(e, level), e) for e, _ in alone]
        reachable = [pair for pair in reachable if math.isfinite(pair[0])]
        if not reachable:
            return math.nan, ""
        value, e = max(reachable, key=lambda pair: pair[0])
        return value, f"{e.candidate.label} passes at a floor of {percent(value)}"
    finite = [(v.value, e) for e, v in alone if math.isfinite(v.value)]
    if name in ("profile", "score_floor") or not finite:
        return math.nan, ""
    value, e = min(finite, key=lambda pair: pair[0])
    return value, f"{e.candidate.label} passes at {TITLES[name]} {_text(name, value)}"


def _smaller_weights(alone: Sequence[Evaluated], deployment: Deployment) -> tuple[str, str]:
    """The widest dtype of weights at which one of these fits, and how many sessions then do."""
    narrower = [
        d for d in SMALLER_DTYPES if dtype_bytes(d) < dtype_bytes(deployment.weights_dtype)
    ]
    for dtype in narrower:
        smaller = replace(deployment, weights_dtype=dtype)
        for e in sorted(alone, key=lambda e: e.cost.memory.total):
            fit = smaller.memory_model(e.candidate.arch).max_concurrency(e.cost.traffic.context)
            if fit >= 1:
                sessions = "1 session fits" if fit == 1 else f"{fit:,} sessions fit"
                return dtype, f"with weights in {dtype}, {e.candidate.label}: {sessions}"
    return "", ""


def _reachable_floor(e: Evaluated, level: float) -> float:
    """The highest floor, in whole percent, that this design keeps with probability `level`."""
    floors = (whole / 100 for whole in range(150, -1, -1))
    return next((f for f in floors if e.quality.probability_at_least(f) >= level), math.nan)


def _text(name: Constraint, value: float) -> str:
    if name in ("ttft", "tpot"):
        return seconds_text(value)
    per = " per token" if name == "kv_slope" else ""
    return f"{bytes_text(value)}{per}"

"""What to measure next, judged by the points so far. Pure functions; the sweep asks.

Under a budget, once the ends and the middle of the curves are there, a length in between is worth
the more

- the further its curve may stray from the straight line between its neighbours (in log-log): half
  the change of slope at a neighbour, times the distance to it;
- if full attention and another mixer change places between the neighbours: the crossover is there.

Beyond the usual lengths only the two fastest providers of each operation are worth their time, and
a point only if it is likely to stay under a cap; the others are skipped, with the reason.

    >>> bend([(1.0, 0.0), (2.0, 1.0), (4.0, 5.0)], 3.0)          # slope 1, then 2
    0.5
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import pandas as pd

from planner.mixers import MIXERS
from planner.store.records import Outcome
from planner.units import seconds_text
from planner.workload import MixerOp, Op, Workload, format_tokens, operation_from
from profiler.plan import PlannedJob, groups
from profiler.protocol import Failed

CROSSOVER = 1.0
"""What a crossover between the neighbours counts for, beside bends: those are below 0.5."""

FASTEST = 2
"""Providers of an operation that are measured beyond the usual lengths."""

LONG_CALLS = 6
"""Calls a long point needs: the first, one before and one in a graph, and the samples."""

Curve = Mapping[float, float]
"""Log seconds by log tokens."""


@dataclass(frozen=True)
class Conditions:
    """What points of one curve share beside operation and provider."""

    phase: str
    segment: bool
    batch_size: int
    dtype: str

    @classmethod
    def of(cls, workload: Workload) -> Conditions:
        segment = workload.new_tokens > 1 and workload.cached_tokens > 0
        return cls(workload.phase, segment, workload.batch_size, workload.dtype)


class Curves:
    """The times measured in one environment, by operation, conditions and provider."""

    def __init__(self, points: pd.DataFrame) -> None:
        self._found: dict[tuple[Op, Conditions], dict[str, dict[float, float]]] = {}
        ops: dict[tuple[str, str], Op] = {}
        plain = points[(points["outcome"] == "ok") & (points["variant"] == "")]
        for row in plain.itertuples():
            name = (str(row.family), str(row.spec))
            if name not in ops:
                ops[name] = operation_from(name[0], json.loads(name[1]))
            self._add(
                Workload(
                    op=ops[name],
                    batch_size=int(row.batch_size),  # type: ignore[arg-type]
                    new_tokens=int(row.new_tokens),  # type: ignore[arg-type]
                    cached_tokens=int(row.cached_tokens),  # type: ignore[arg-type]
                    dtype=str(row.dtype),
                    training=bool(row.training),
                ),
                str(row.provider),
                float(row.median_s),  # type: ignore[arg-type]
            )

    def _add(self, workload: Workload, provider: str, seconds: float) -> None:
        """Of several modes and cache states the fastest counts."""
        by_provider = self._found.setdefault((workload.op, Conditions.of(workload)), {})
        curve = by_provider.setdefault(provider, {})
        at = math.log(workload.context)
        curve[at] = min(curve.get(at, math.inf), math.log(seconds))

    def of(self, workload: Workload) -> Mapping[str, Curve]:
        """By provider."""
        return self._found.get((workload.op, Conditions.of(workload)), {})

    def fastest(self, op: Op, conditions: Conditions) -> Curve:
        """The fastest provider at each length."""
        best: dict[float, float] = {}
        for curve in self._found.get((op, conditions), {}).values():
            for at, log_s in curve.items():
                best[at] = min(best.get(at, math.inf), log_s)
        return best

    def rivals(self, workload: Workload) -> Iterable[Curve]:
        """Fastest curves of the mixers on the other side: full attention, or those beside it."""
        if not isinstance(workload.op, MixerOp):
            return
        conditions = Conditions.of(workload)
        for op, others in self._found:
            if (
                others == conditions
                and isinstance(op, MixerOp)
                and _full(op) != _full(workload.op)
            ):
                yield self.fastest(op, conditions)


def _full(op: MixerOp) -> bool:
    return MIXERS[op.spec.mixer].kind == "full"


# Under a budget


def most_informative(jobs: Sequence[PlannedJob], curves: Curves) -> list[PlannedJob]:
    """The jobs by what they would teach, all providers of a workload staying together."""
    worth = {
        group[0].job.workload: max(informativeness(planned, curves) for planned in group)
        for group in groups(jobs)
    }
    return sorted(jobs, key=lambda planned: -worth[planned.job.workload])


def informativeness(planned: PlannedJob, curves: Curves) -> float:
    workload = planned.job.workload
    at = math.log(workload.context)
    curve = curves.of(workload).get(planned.job.provider, {})
    crossed = any(
        changes_places(curves.fastest(workload.op, Conditions.of(workload)), rival, at)
        for rival in curves.rivals(workload)
    )
    return bend(sorted(curve.items()), at) + CROSSOVER * crossed


def bend(curve: Sequence[tuple[float, float]], at: float) -> float:
    """How far the curve may be from the line between the neighbours of `at`, in log seconds."""
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairwise(curve)]
    found = 0.0
    for i, ((x0, _), (x1, _)) in enumerate(pairwise(curve)):
        if x0 < at < x1:
            for slope, distance in zip(
                (slopes[i - 1 : i], slopes[i + 1 : i + 2]), (at - x0, x1 - at), strict=True
            ):
                found = max([found, *(abs(s - slopes[i]) * distance / 2 for s in slope)])
    return found


def changes_places(one: Curve, other: Curve, at: float) -> bool:
    """Whether the lead changes between the nearest lengths around `at` that both have."""
    shared = sorted(one.keys() & other.keys())
    below, above = [x for x in shared if x < at], [x for x in shared if x > at]
    if not below or not above:
        return False
    before, after = (one[x] - other[x] for x in (below[-1], above[0]))
    return before * after <= 0


# Beyond the usual lengths


@dataclass(frozen=True)
class Skipped:
    """A job that is left out, and why."""

    planned: PlannedJob
    failed: Failed


def long_enough(
    jobs: Iterable[PlannedJob], curves: Curves, cap_s: float
) -> tuple[list[PlannedJob], list[Skipped]]:
    """Of the long jobs those of the fastest providers that should stay under the cap, in order."""
    kept, skipped = [], []
    for planned in jobs:
        why = reason_to_skip(planned, curves, cap_s)
        if planned.reason or not why:
            kept.append(planned)
        else:
            skipped.append(Skipped(planned, Failed(outcome=Outcome.SKIPPED, reason=why)))
    return kept, skipped


def reason_to_skip(planned: PlannedJob, curves: Curves, cap_s: float) -> str:
    """Empty where it is worth measuring."""
    workload, provider = planned.job.workload, planned.job.provider
    found = curves.of(workload)
    if provider not in found:
        return "no time at the usual lengths to judge it by"
    longest, fastest = fastest_providers(found)
    if provider not in fastest:
        return (
            f"not among the {FASTEST} fastest at {format_tokens(round(math.exp(longest)))} "
            f"tokens ({', '.join(fastest)})"
        )
    expected = expected_seconds(workload, *max(found[provider].items()))
    if LONG_CALLS * expected > cap_s:
        return (
            f"about {seconds_text(expected)} a call, {LONG_CALLS} calls: over the cap of "
            f"{seconds_text(cap_s)} a point"
        )
    return ""


def fastest_providers(found: Mapping[str, Curve]) -> tuple[float, list[str]]:
    """The fastest by their times at one length, and that length, as log tokens.

    It is the longest at which enough of them have one. The longest of all may be one beyond the
    usual that an interrupted run has measured of the first provider and not yet of the second.
    """
    reached = sorted((at for curve in found.values() for at in curve), reverse=True)
    times = Counter(reached)
    enough = min(FASTEST, len(found))
    longest = next((at for at in reached if times[at] >= enough), reached[0])
    order = sorted((curve[longest], name) for name, curve in found.items() if longest in curve)
    return longest, [name for _, name in order[:FASTEST]]


def expected_seconds(workload: Workload, at: float, log_s: float) -> float:
    """From a shorter call of the provider, growing as FLOPs or bytes do, whichever grow more."""
    longer = workload.context - round(math.exp(at))
    field = "cached_tokens" if workload.cached_tokens else "new_tokens"
    shorter = replace(workload, **{field: max(1, getattr(workload, field) - longer)})
    growth = max(
        workload.model_flops / shorter.model_flops, workload.min_bytes / shorter.min_bytes
    )
    return math.exp(log_s) * growth

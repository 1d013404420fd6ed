"""The recommendation: cost and quality of every candidate, the limits, and the choice.

The rule, in order:
1. A candidate that breaks a limit (memory, TTFT, TPOT, bytes per session, KV slope) is out.
2. One that misses the floor is out: P(score >= floor) must reach the use case's level. What no
   evidence covers meets no floor above zero. The same for floors on a benchmark's own score.
3. The best score sets the mark. Candidates that joint draws put within the points the use case
   would trade for cost, more likely than not, are tied with it.
4. Among the tied, those with evidence of at least the use case's strength stay.
5. Of these the cheapest wins, but never by an absence of evidence: not a ratio without accuracy
   rows of its kind, nor a mixer that is judged by others' rows, while some have their own. Among
   costs that their intervals cannot tell apart, the better score.
6. Placement moves no cost. Without evidence it is uniform, by convention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from planner.architecture import Architecture
from planner.cost.model import CostModel, ModelCost
from planner.cost.ratio import surely_cheaper
from planner.decision import explain
from planner.decision.candidates import Candidate, candidates
from planner.decision.frontier import pareto_front
from planner.decision.recommendation import (
    Constraint,
    Decider,
    Evaluated,
    Recommendation,
    Verdict,
    shortage_text,
)
from planner.decision.use_case import STRENGTHS, Intent, UseCase
from planner.quality.task_mix import MixScore, TaskMix
from planner.units import bytes_text, seconds_text
from planner.workload import format_tokens

TIE_PROBABILITY = 0.5
"""Tied with the best: within the tolerated points of it in at least half of the joint draws."""


def evaluate(
    use_case: UseCase,
    model: Architecture,
    found: Sequence[Candidate],
    cost_model: CostModel,
    task_mix: TaskMix,
) -> list[Evaluated]:
    """Cost, quality and verdicts of every candidate; the first is the baseline."""
    costs: dict[tuple[str, str], ModelCost] = {}
    floors: dict[tuple[str, str], tuple[Verdict, ...]] = {}
    for c in found:
        if c.cost_key not in costs:
            costs[c.cost_key] = cost_model.estimate(c.arch, use_case.traffic)
            floors[c.cost_key] = score_floors(use_case, c, task_mix)
    scores = task_mix.scores(
        [c.arch for c in found],
        use_case.task_weights,
        context=use_case.traffic.prompt_tokens,
        baseline=0,
    )
    base = costs[found[0].cost_key].gpu_seconds_per_request
    evaluated = [
        Evaluated(
            candidate=c,
            cost=costs[c.cost_key],
            quality=score,
            verdicts=(
                *verdicts(use_case, costs[c.cost_key], score),
                *floors[c.cost_key],
            ),
            cost_ratio=costs[c.cost_key].gpu_seconds_per_request / base,
            has_ratio_rows=c.is_baseline or task_mix.has_ratio_rows(c.arch),
        )
        for c, score in zip(found, scores, strict=True)
    ]
    return mark_frontier(evaluated)


def mark_frontier(evaluated: Sequence[Evaluated]) -> list[Evaluated]:
    """Marks who is on the Pareto frontier of cost and score, limits aside."""
    front = set(
        pareto_front(
            np.array([e.cost.gpu_seconds_per_request for e in evaluated]),
            np.array([e.quality.median if e.quality.covered else np.nan for e in evaluated]),
        )
    )
    return [replace(e, on_frontier=i in front) for i, e in enumerate(evaluated)]


def verdicts(use_case: UseCase, cost: ModelCost, score: MixScore) -> tuple[Verdict, ...]:
    """Every limit of the use case against this candidate, the met ones too; that on TPOT only
    where something is decoded: a candidate that does not fit has none."""
    limits, traffic = use_case.limits, use_case.traffic
    found = [_memory(cost)]
    if cost.blocked:
        found.append(
            Verdict(
                constraint="profile",
                ok=False,
                value=math.nan,
                limit=math.nan,
                text=f"the profile says {cost.blocked}",
            )
        )
    asked: tuple[tuple[Constraint, float, float | None, str, Callable[[float], str]], ...] = (
        ("ttft", cost.ttft_s, limits.ttft_s, "TTFT", seconds_text),
        ("tpot", cost.tpot_s, limits.tpot_s, f"TPOT at batch {cost.batch_size}", seconds_text),
        (
            "session_bytes",
            cost.memory.per_sequence,
            limits.session_bytes,
            "memory per session",
            bytes_text,
        ),
        (
            "kv_slope",
            cost.kv_slope_bytes,
            limits.kv_slope_bytes,
            f"KV growth at {format_tokens(traffic.context)} tokens",
            lambda b: f"{b:,.0f} bytes/token",
        ),
    )
    for constraint, value, limit, what, show in asked:
        if limit is not None and (constraint != "tpot" or cost.batch_size):
            text = f"{what} {show(value)} (limit {show(limit)})"
            found.append(
                # NaN (no figure) breaks a limit: what is not known is not known to be met.
                Verdict(
                    constraint=constraint,
                    ok=bool(value <= limit),
                    value=value,
                    limit=limit,
                    text=text,
                )
            )
    return (*found, _floor(use_case, score))


def _memory(cost: ModelCost) -> Verdict:
    needed, capacity = cost.memory.total, cost.memory.capacity
    ok = cost.batch_size >= 1
    gib = 2**30
    fits = (
        f"{cost.max_concurrency} sequences fit; {cost.memory.batch_size} need "
        f"{needed / gib:.1f} GiB of {capacity / gib:.1f} GiB usable"
    )
    return Verdict(
        constraint="memory",
        ok=ok,
        value=needed,
        limit=capacity,
        text=fits if ok else f"does not fit, {shortage_text(cost.memory)}",
    )


def _floor(use_case: UseCase, score: MixScore) -> Verdict:
    floor = use_case.floor
    probability = 1.0 if floor.retention == 0 else score.probability_at_least(floor.retention)
    what = (
        f"P(accuracy kept >= {floor.retention:.0%}) = {probability_text(probability, floor.level)}"
        if score.covered
        else "the evidence does not cover this architecture for these tasks"
    )
    return Verdict(
        constraint="floor",
        ok=probability >= floor.level,
        value=probability,
        limit=floor.level,
        text=f"{what} (needs {floor.level:.2f})",
    )


def probability_text(probability: float, needed: float) -> str:
    """With as many digits as it takes not to look met."""
    digits = 2
    while probability < needed and float(f"{probability:.{digits}f}") >= needed:
        digits += 1
    return f"{probability:.{digits}f}"


def score_floors(
    use_case: UseCase, candidate: Candidate, task_mix: TaskMix
) -> tuple[Verdict, ...]:
    """Floors on a benchmark's own score: what models like the candidate score, or not covered."""
    found = []
    for floor in use_case.score_floors:
        level = task_mix.level(floor, candidate.arch)
        probability, limit = level.probability_at_least(floor.score), use_case.floor.level
        ok = level.meets(floor.score, limit, use_case.evidence)
        too_weak = probability >= limit and not ok
        asked = f"; {use_case.evidence} evidence is asked for" if too_weak else ""
        found.append(
            Verdict(
                constraint="score_floor",
                ok=ok,
                value=probability,
                limit=limit,
                text=f"P({floor}) = {probability_text(probability, limit)} (needs {limit:.2f}): "
                f"{level}{asked}",
            )
        )
    return tuple(found)


def choose(
    evaluated: Sequence[Evaluated], use_case: UseCase
) -> tuple[Evaluated | None, tuple[Evaluated, ...], Decider]:
    """(winner, the tied candidates cheapest first, what decided) by the rule of this module."""
    eligible = [e for e in evaluated if e.feasible and _is_uniform(e)]
    if not eligible:
        return None, (), "policy"
    tied = _tied(eligible, use_case.tolerance_points)
    known = _known(tied, use_case.evidence)
    measured = [e for e in known if e.has_ratio_rows] or known
    allowed = [e for e in measured if e.has_own_rows] or measured
    ordered = sorted(
        allowed,
        key=lambda e: (e.cost.gpu_seconds_per_request, -e.quality.median),
    )
    winner = _best_of_equal_cost(ordered)
    rest = [e for e in ordered if e is not winner]
    designs = {e.candidate.cost_key for e in allowed}
    decided: Decider = "evidence"
    if len({e.candidate.cost_key for e in eligible}) == 1:
        decided = "policy"
    elif len(designs) > 1 and ordered[0].candidate.cost_key == winner.candidate.cost_key:
        decided = "cost"
    return winner, (winner, *rest), decided


def _tied(eligible: Sequence[Evaluated], tolerance: float) -> list[Evaluated]:
    """Who is within `tolerance` points of the best in at least half of the joint draws."""
    scored = [e for e in eligible if e.quality.covered]
    if not scored:
        return list(eligible)
    best = max(scored, key=lambda e: e.quality.median)
    mark = best.quality.draws - tolerance / 100.0
    tied = [e for e in scored if np.mean(e.quality.draws >= mark) >= TIE_PROBABILITY or e is best]
    return tied


def _known(tied: Sequence[Evaluated], evidence: str) -> list[Evaluated]:
    """Those with evidence of at least `evidence`, or the strongest there are."""
    rank = STRENGTHS.index
    need = min(rank(evidence), max(rank(e.quality.strength) for e in tied))
    return [e for e in tied if rank(e.quality.strength) >= need]


def _is_uniform(e: Evaluated) -> bool:
    """Other placements have no evidence of their own: uniform stands for them, by convention."""
    return e.candidate.placement == "uniform"


def _best_of_equal_cost(ordered: Sequence[Evaluated]) -> Evaluated:
    """The best score among those that the cheapest is not surely cheaper than."""
    cheapest = ordered[0]
    equal = [e for e in ordered if not surely_cheaper(cheapest.cost, e.cost)]
    return max(equal or [cheapest], key=lambda e: e.quality.median)


def recommend(
    use_case: UseCase,
    *,
    model: Architecture,
    intent: Intent,
    cost_model: CostModel,
    task_mix: TaskMix,
    mixers: Sequence[str] | None = None,
    ratios: Sequence[str] | None = None,
) -> Recommendation:
    """Evaluates the candidates over `model` and chooses by the rule of this module."""
    options: Mapping[str, Sequence[str]] = {
        k: v for k, v in {"mixers": mixers, "ratios": ratios}.items() if v is not None
    }
    found = candidates(model, intent=intent, **options)  # type: ignore[arg-type]
    evaluated = evaluate(use_case, model, found, cost_model, task_mix)
    winner, tied, decided = choose(evaluated, use_case)
    runner_up = next(
        (e for e in tied if winner and e.candidate.cost_key != winner.candidate.cost_key), None
    ) or _next_best(evaluated, winner)
    return Recommendation(
        use_case=use_case,
        intent=intent,
        model=model,
        deployment=cost_model.deployment,
        baseline=evaluated[0],
        winner=winner,
        runner_up=runner_up,
        tied=tied,
        evaluated=tuple(evaluated),
        reasons=explain.reasons(use_case, evaluated, winner, runner_up, tied, decided),
        decided_by=decided,
        notes=explain.notes(use_case, intent, evaluated, winner, runner_up, tied),
    )


def _next_best(evaluated: Sequence[Evaluated], winner: Evaluated | None) -> Evaluated | None:
    """The best score among the other feasible candidates, if any."""
    others = [
        e
        for e in evaluated
        if e.feasible
        and winner is not None
        and e.quality.covered
        and _is_uniform(e)
        and e.candidate.cost_key != winner.candidate.cost_key
    ]
    return min(others, key=lambda e: (-e.quality.median, e.cost_order), default=None)

"""Why: sentences for a recommendation, each with the number that decided, its basis and source."""

from __future__ import annotations

import math
from collections.abc import Sequence

from planner.cost.model import ModelCost
from planner.cost.ratio import surely_cheaper
from planner.decision.recommendation import Decider, Evaluated, Reason
from planner.decision.use_case import STRENGTHS, Intent, UseCase
from planner.units import bytes_text, percent, seconds_text, times
from planner.workload import format_tokens


def basis_text(cost: ModelCost) -> str:
    """The worst basis, and what share of the prefill rests on which."""
    shares = ", ".join(
        f"{share:.0%} {basis.label}" for basis, share in cost.prefill.basis_shares().items()
    )
    return f"{cost.basis.label} (prefill: {shares})"


def providers_text(cost: ModelCost) -> str:
    """Which provider runs each mixer in each phase: "gated_deltanet: fla (prefill), …"."""
    found: dict[str, None] = {}
    for phase, name in ((cost.prefill, "prefill"), (cost.decode, "decode")):
        for part in phase.parts:
            if part.role == "mixer" and part.provider:
                found[f"{part.name} {name}: {part.provider}"] = None
    return ", ".join(found) or "roofline of the datasheet, nothing profiled"


def score_text(e: Evaluated) -> str:
    """Points first, then the interval, then what carries it."""
    q = e.quality
    if e.candidate.is_baseline:
        return "the control itself: 100 % by definition"
    if not q.covered:
        return "not covered by the evidence"
    return (
        f"{100 * (q.median - 1):+.1f} % against full attention, 80 %: "
        f"{100 * (q.low - 1):+.1f} to {100 * (q.high - 1):+.1f} %, "
        f"{q.num_sources} sources, {q.num_rows} rows, {q.strength} evidence"
        + ("" if q.coverage >= 1 else f" on {q.coverage:.0%} of the task weight, none on the rest")
    )


def reasons(
    use_case: UseCase,
    evaluated: Sequence[Evaluated],
    winner: Evaluated | None,
    runner_up: Evaluated | None,
    tied: Sequence[Evaluated],
    decided: Decider,
) -> tuple[Reason, ...]:
    """What decided first, then cost, accuracy and limits."""
    if winner is None:
        return tuple(_binding(evaluated))
    return (
        _deciding(use_case, evaluated, winner, runner_up, tied, decided),
        _quality(use_case, winner),
        _cost(winner, evaluated[0]),
        *_limits(winner),
        _placement(winner),
    )


def _reason(kind: str, text: str, basis: str, source: str) -> Reason:
    return Reason(kind=kind, text=text, basis=basis, source=source)  # type: ignore[arg-type]


def _deciding(
    use_case: UseCase,
    evaluated: Sequence[Evaluated],
    winner: Evaluated,
    runner_up: Evaluated | None,
    tied: Sequence[Evaluated],
    decided: Decider,
) -> Reason:
    designs = len({e.candidate.cost_key for e in tied})
    feasible = len({e.candidate.cost_key for e in evaluated if e.feasible})
    total = len({e.candidate.cost_key for e in evaluated})
    if decided == "policy":
        text = (
            f"{winner.candidate.label} is the only one of {total} designs that meets every "
            f"limit and the floor"
        )
        return _reason("policy", text, "limits of the use case", use_case.source)
    seconds = seconds_text(winner.cost.gpu_seconds_per_request)
    evidence = min(use_case.evidence, winner.quality.strength, key=STRENGTHS.index)
    if designs == 1:
        text = (
            f"of {feasible} designs that meet the limits, only {winner.candidate.label} has the "
            f"best score with {evidence} or stronger evidence: {score_text(winner)}"
        )
        return _reason("evidence", text, winner.quality.basis, sources_text(winner))
    own = " of their own" if winner.has_own_rows else ""
    text = (
        f"{designs} designs keep as much accuracy as the best (within "
        f"{use_case.tolerance_points:g} points, more likely than not) and "
        + (
            f"have {evidence} or stronger evidence{own}; "
            if evidence != "none"
            else "none has evidence on every task; "
        )
    )
    if decided == "evidence":
        cheapest = min(tied, key=lambda e: e.cost_order)
        text += (
            f"the cost of {winner.candidate.label} ({seconds} of GPU time a request) cannot be "
            f"told apart from the cheapest of them, {cheapest.candidate.label} at "
            f"{cheapest.cost_text}, and its score is the best"
        )
        return _reason("evidence", text, winner.quality.basis, sources_text(winner))
    text += f"{winner.candidate.label} is the cheapest of them at {seconds} of GPU time a request"
    if runner_up is not None:
        text += (
            f"; next is {runner_up.candidate.label} at {runner_up.cost_text} against "
            f"{winner.cost_text}"
            + (" of the baseline" if math.isfinite(winner.cost_ratio) else "")
        )
    return _reason("cost", text, basis_text(winner.cost), providers_text(winner.cost))


def sources_text(e: Evaluated) -> str:
    own = e.quality.own_sources
    names = [f"{s} (your own)" for s in own] + [s for s in e.quality.sources if s not in own]
    shown = ", ".join(names[:5])
    return (shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")) or "definition"


def _quality(use_case: UseCase, e: Evaluated) -> Reason:
    floor = use_case.floor
    text = f"accuracy kept: {score_text(e)}"
    if not e.candidate.is_baseline and floor.retention > 0 and e.quality.covered:
        probability = e.quality.probability_at_least(floor.retention)
        text += (
            f"; P(at least {percent(floor.retention)}) = {probability:.2f}, "
            f"floor asks {floor.level:.2f}"
        )
    if e.candidate.is_baseline:
        return _reason("evidence", text, "definition", "definition")
    return _reason("evidence", text, f"{e.quality.basis}, {e.quality.level}", sources_text(e))


def _cost(e: Evaluated, base: Evaluated) -> Reason:
    low, high = e.cost.gpu_seconds_interval()
    of_base = f"{times(e.cost_ratio)} of {base.candidate.label}"
    if not math.isfinite(e.cost_ratio):
        of_base = f"no ratio, since no sequence of {base.candidate.label} fits"
    text = (
        f"{seconds_text(e.cost.gpu_seconds_per_request)} of GPU time a request "
        f"(80 %: {seconds_text(low)} to {seconds_text(high)}), {of_base}; "
        f"TTFT {seconds_text(e.cost.ttft_s)}, TPOT "
        f"{seconds_text(e.cost.tpot_s)} at batch {e.cost.batch_size}; a mixer that were free "
        f"would prefill {e.cost.prefill.ceiling():.2f}x and decode "
        f"{e.cost.decode.ceiling():.2f}x faster"
    )
    return _reason("cost", text, basis_text(e.cost), providers_text(e.cost))


def _limits(e: Evaluated) -> list[Reason]:
    found = [
        _reason(
            "limit",
            v.text,
            _basis_of(v.constraint, e),
            "limits of the use case",
        )
        for v in e.verdicts
        if v.constraint != "floor"
    ]
    return [*found, _reason("limit", session_text(e), "formula", "layer dimensions of the model")]


def _basis_of(constraint: str, e: Evaluated) -> str:
    if constraint == "ttft":
        return e.cost.prefill.basis.label
    if constraint == "tpot":
        return e.cost.decode.basis.label
    if constraint == "floor":
        return e.quality.basis
    return "published" if constraint == "score_floor" else "formula"


def session_text(e: Evaluated) -> str:
    """Bytes that one session holds, and how they grow."""
    cost = e.cost
    return (
        f"a session of {format_tokens(cost.traffic.context)} tokens holds "
        f"{bytes_text(cost.session_kv_bytes)} of KV cache and "
        f"{bytes_text(cost.session_state_bytes)} of state; the next token adds "
        f"{cost.kv_slope_bytes:,.0f} bytes"
    )


def _placement(e: Evaluated) -> Reason:
    if e.candidate.arch.linear_mixer is None or not e.candidate.arch.num_full_layers:
        text = "every layer is alike: there is nothing to place"
    elif e.candidate.is_baseline:
        text = "the model's layers stay where they are"
    else:
        text = (
            "full-attention layers spread evenly: uniform, by convention. Placement does not "
            "change the cost, and no controlled retrieval measurement compares placements"
        )
    return _reason("policy", text, "convention", "see the evidence page on placement")


def _binding(evaluated: Sequence[Evaluated]) -> list[Reason]:
    """For each limit that rejects somebody: how many, and the nearest value reached."""
    found: list[Reason] = []
    names = list(dict.fromkeys(v.constraint for e in evaluated for v in e.broken))
    for name in names:
        broken = [(e, v) for e in evaluated for v in e.broken if v.constraint == name]
        nearest_e, nearest = min(
            broken, key=lambda pair: _distance(pair[1].value, pair[1].limit, name)
        )
        found.append(
            _reason(
                "limit",
                f"{name} rejects {len(broken)} of {len(evaluated)} candidates; nearest is "
                f"{nearest_e.candidate.label}: {nearest.text}",
                _basis_of(name, nearest_e),
                "limits of the use case",
            )
        )
    return found


def _distance(value: float, limit: float, name: str) -> float:
    if math.isnan(value):
        return math.inf
    return limit - value if name in ("floor", "score_floor") else value - limit


def beyond_context(tokens: int, trained: int) -> str:
    return (
        f"{tokens:,} tokens are beyond the model's context of {trained:,}: as it is it was not "
        f"made for them, whatever is kept of its accuracy"
    )


def judged_by_others(evaluated: Sequence[Evaluated], winner: Evaluated) -> list[Evaluated]:
    """Cheaper designs that meet every limit, by accuracy rows of other mixers; one per mixer."""
    found: dict[str, Evaluated] = {}
    dear = winner.cost.gpu_seconds_per_request
    for e in sorted(evaluated, key=lambda e: e.cost_order):
        cheaper = e.feasible and e.cost.gpu_seconds_per_request < dear
        if cheaper and e.quality.covered and not e.has_own_rows:
            found.setdefault(e.candidate.mixer, e)
    return list(found.values())


def notes(
    use_case: UseCase,
    intent: Intent,
    evaluated: Sequence[Evaluated],
    winner: Evaluated | None,
    runner_up: Evaluated | None,
    tied: Sequence[Evaluated],
) -> tuple[str, ...]:
    """What a reader must know besides: ties, thin evidence, what is not modelled."""
    found = []
    trained = evaluated[0].candidate.arch.max_context
    if trained is not None and use_case.traffic.context > trained:
        found.append(beyond_context(use_case.traffic.context, trained))
    if (
        winner
        and runner_up
        and runner_up in tied
        and not surely_cheaper(winner.cost, runner_up.cost)
    ):
        found.append(
            f"no clear winner between {winner.candidate.label} and "
            f"{runner_up.candidate.label}: accuracy and cost intervals overlap"
        )
    cheaper = judged_by_others(evaluated, winner) if winner and winner.has_own_rows else []
    if cheaper:
        named = ", ".join(f"{e.candidate.label} ({e.cost_text})" for e in cheaper)
        found.append(
            f"cheaper, but without accuracy rows of their own mixer: {named}. Numbers of your "
            f"own, with a full-attention control, would admit them"
        )
    if winner is not None and not winner.candidate.is_baseline:
        found.append(
            "measure retrieval accuracy on your own tasks before you commit: published "
            "evidence comes from other data, sizes and lengths"
        )
    if intent == "deploy":
        found.append(
            "alternatives to the model as it is are conversions: their accuracy is "
            "predicted from converted models only; chunking the input and summarising is "
            "the usual way out at lengths beyond the model's training"
        )
    asked = use_case.traffic.concurrency
    if winner is not None and winner.cost.batch_size < asked:
        found.append(
            f"only {winner.cost.batch_size} of the {asked} sequences asked for fit at once in "
            f"{winner.candidate.label}: its TPOT and cost are those of that batch"
        )
    if intent == "deploy" and evaluated[0].candidate.arch.linear_mixer is not None:
        found.append(
            "the model as it is counts as 100 %, by definition; conversions are judged against "
            "full attention, so what the model itself lost to it is not in the comparison"
        )
    if any(0 < e.cost.batch_size < asked for e in evaluated if e is not winner):
        found.append(
            f"memory limits some candidates to fewer sequences at once than the {asked} asked "
            f"for; their cost is that of the batch that fits"
        )
    found.append("decode is costed undisturbed by prefills; queueing is not modelled")
    return tuple(found)

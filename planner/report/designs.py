"""Designs: every mixer and ratio of a recommendation as one row of numbers.

A design stands for all placements of a mixer at a ratio: they cost the same, and evidence on
them is rare. The row is that of the chosen placement for the winner, of the uniform one otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from planner.cost.ratio import cost_ratio
from planner.decision.recommendation import Constraint, Evaluated, Recommendation, cost_text
from planner.report.limits import TITLES

Role = Literal["recommended", "runner-up", "tied", ""]


@dataclass(frozen=True, kw_only=True)
class Design:
    """One mixer at one ratio. Times in seconds, sizes in bytes, cost and accuracy as factors of
    the baseline's, intervals 80 %; NaN where there is no figure."""

    label: str
    mixer: str
    ratio: str
    placement: str
    role: Role
    is_baseline: bool
    feasible: bool
    on_frontier: bool
    cost_ratio: float
    cost_ratio_low: float
    cost_ratio_high: float
    gpu_seconds_per_request: float
    gpu_seconds_low: float
    gpu_seconds_high: float
    ttft_s: float
    tpot_s: float
    batch_size: int
    max_concurrency: int
    session_bytes: float
    cost_basis: str
    accuracy_kept: float
    accuracy_low: float
    accuracy_high: float
    evidence: str
    num_sources: int
    num_rows: int
    breaks: tuple[str, ...]
    broken_limits: tuple[Constraint, ...]

    @property
    def cost_text(self) -> str:
        return cost_text(self.cost_ratio, self.gpu_seconds_per_request)

    @property
    def cost_interval(self) -> str:
        low = cost_text(self.cost_ratio_low, self.gpu_seconds_low)
        return f"{low} to {cost_text(self.cost_ratio_high, self.gpu_seconds_high)}"

    @property
    def cost_phrase(self) -> str:
        """The cost and what it is of, for a sentence."""
        whole = "the baseline's cost" if math.isfinite(self.cost_ratio) else "GPU time a request"
        return f"{self.cost_text} of {whole}"

    @property
    def evidence_text(self) -> str:
        """Strength and what carries it, in a table's cell."""
        if self.is_baseline:
            return "the control"
        return f"{self.evidence}, {self.num_rows} rows" if self.num_rows else self.evidence

    @property
    def verdict(self) -> str:
        """Its role, or the limits that it misses."""
        titles = [TITLES[name] for name in self.broken_limits]
        missed = ", ".join(t if t[:2].isupper() else t[:1].lower() + t[1:] for t in titles)
        return self.role or (f"misses {missed}" if missed else "passes")


def designs_of(found: Recommendation, *, all_placements: bool = False) -> tuple[Design, ...]:
    """One row per design, the baseline first, the others from cheap to dear."""
    chosen = list(found.evaluated) if all_placements else list(_one_each(found))
    rest = sorted(chosen[1:], key=lambda e: e.cost_order)
    return tuple(_design(e, found) for e in (*chosen[:1], *rest))


def costs_in_seconds(ratios: Iterable[float]) -> bool:
    """Whether costs are told in GPU seconds: no session of the baseline, no ratio to it."""
    return not any(math.isfinite(ratio) for ratio in ratios)


def frame_of(designs: Sequence[Design]) -> pd.DataFrame:
    """The rows as a table, one column per field; the broken limits joined into text."""
    rows = [
        {
            **asdict(d),
            "verdict": d.verdict,
            "breaks": "; ".join(d.breaks),
            "broken_limits": ", ".join(d.broken_limits),
        }
        for d in designs
    ]
    return pd.DataFrame(rows)


def _one_each(found: Recommendation) -> Iterator[Evaluated]:
    winner = found.winner
    for e in found.evaluated:
        same = winner is not None and e.candidate.cost_key == winner.candidate.cost_key
        if e is winner or (not same and e.candidate.placement == "uniform"):
            yield e


def _design(e: Evaluated, found: Recommendation) -> Design:
    ratio = cost_ratio(e.cost, found.baseline.cost)
    low, high = e.cost.gpu_seconds_interval()
    candidate, quality = e.candidate, e.quality
    return Design(
        label=candidate.label,
        mixer=candidate.mixer,
        ratio=candidate.ratio,
        placement=candidate.placement,
        role=_role(e, found),
        is_baseline=candidate.is_baseline,
        feasible=e.feasible,
        on_frontier=e.on_frontier,
        cost_ratio=ratio.value,
        cost_ratio_low=ratio.low,
        cost_ratio_high=ratio.high,
        gpu_seconds_per_request=e.cost.gpu_seconds_per_request,
        gpu_seconds_low=low,
        gpu_seconds_high=high,
        ttft_s=e.cost.ttft_s,
        tpot_s=e.cost.tpot_s,
        batch_size=e.cost.batch_size,
        max_concurrency=e.cost.max_concurrency,
        session_bytes=e.cost.memory.per_sequence,
        cost_basis=e.cost.basis.label,
        accuracy_kept=quality.median if quality.covered else math.nan,
        accuracy_low=quality.low if quality.covered else math.nan,
        accuracy_high=quality.high if quality.covered else math.nan,
        evidence=quality.strength,
        num_sources=quality.num_sources,
        num_rows=quality.num_rows,
        breaks=tuple(v.text for v in e.broken),
        broken_limits=tuple(v.constraint for v in e.broken),
    )


def _role(e: Evaluated, found: Recommendation) -> Role:
    if e is found.winner:
        return "recommended"
    if found.runner_up is not None and e.candidate.cost_key == found.runner_up.candidate.cost_key:
        return "runner-up"
    return "tied" if any(e is t for t in found.tied) else ""

"""What a decision is made of: candidates with what they reach, the reasons, the answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from planner.architecture import Architecture
from planner.cost.memory import Memory
from planner.cost.model import Deployment, ModelCost
from planner.decision.candidates import Candidate
from planner.decision.use_case import Intent, UseCase
from planner.quality.prediction import DEFINITION, LEVELS, WINDOW_EDGE, WITHIN_WINDOW
from planner.quality.task_mix import MixScore
from planner.units import bytes_text, seconds_text, times

Constraint = Literal[
    "memory", "ttft", "tpot", "session_bytes", "kv_slope", "floor", "score_floor", "profile"
]
Decider = Literal["evidence", "cost", "policy"]

OWN_LEVELS = (LEVELS[0], WITHIN_WINDOW, WINDOW_EDGE, DEFINITION)
"""Levels of support that speak of the mixer itself, not of its kind or of anything with full
layers."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One limit against what a candidate reaches; `text` is the sentence for people."""

    constraint: Constraint
    ok: bool
    value: float
    limit: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A candidate with its cost, its quality and what it breaks."""

    candidate: Candidate
    cost: ModelCost
    quality: MixScore
    verdicts: tuple[Verdict, ...]
    cost_ratio: float
    has_ratio_rows: bool
    on_frontier: bool = False

    @property
    def feasible(self) -> bool:
        return all(v.ok for v in self.verdicts)

    @property
    def cost_order(self) -> tuple[bool, float]:
        """Sorts from cheap to dear, what has no cost last."""
        seconds = self.cost.gpu_seconds_per_request
        return math.isnan(seconds), seconds

    @property
    def cost_text(self) -> str:
        return cost_text(self.cost_ratio, self.cost.gpu_seconds_per_request)

    @property
    def has_own_rows(self) -> bool:
        """Whether its score rests on accuracy rows of its mixer, not on those of others."""
        return self.quality.level in OWN_LEVELS

    @property
    def broken(self) -> tuple[Verdict, ...]:
        return tuple(v for v in self.verdicts if not v.ok)


def cost_text(ratio: float, gpu_seconds: float) -> str:
    """Times the baseline's cost; GPU time a request where no sequence of the baseline fits.

    >>> cost_text(0.62, 0.289), cost_text(math.nan, 118.0)
    ('0.62x', '118 s')
    """
    return times(ratio) if math.isfinite(ratio) else seconds_text(gpu_seconds)


def shortage_text(one: Memory) -> str:
    """What leaves no room for `one` sequence on a device, and what would make some."""
    if one.weights >= one.capacity:
        need = f"weights of {bytes_text(one.weights)}"
    else:
        need = f"{bytes_text(one.total)} with one sequence of {one.context:,} tokens"
    against = f"against {bytes_text(one.capacity)} usable on a device"
    if one.total <= one.capacity:
        against = "which the engine's pools of KV cache and state have no room for"
    return f"{need} {against}: use fewer bytes a weight (--weights fp8) or more devices (--tp)"


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why: the number that decided, on what basis, from which source."""

    kind: Decider | Literal["limit"]
    text: str
    basis: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer: `winner` is None where nothing meets the limits."""

    use_case: UseCase
    intent: Intent
    model: Architecture
    deployment: Deployment
    baseline: Evaluated
    winner: Evaluated | None
    runner_up: Evaluated | None
    tied: tuple[Evaluated, ...]
    evaluated: tuple[Evaluated, ...]
    reasons: tuple[Reason, ...]
    decided_by: Decider
    notes: tuple[str, ...] = field(default=())

    @property
    def hardware_name(self) -> str:
        devices = self.deployment.tensor_parallel
        name = self.deployment.hardware.name
        return name if devices == 1 else f"{devices} x {name}"

    @property
    def rejected(self) -> tuple[Evaluated, ...]:
        return tuple(e for e in self.evaluated if not e.feasible)

    def rejected_by(self) -> dict[Constraint, int]:
        """How many candidates each constraint rejects; one candidate may break several."""
        found: dict[Constraint, int] = {}
        for e in self.evaluated:
            for v in e.broken:
                found[v.constraint] = found.get(v.constraint, 0) + 1
        return found

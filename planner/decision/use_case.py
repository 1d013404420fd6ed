"""UseCase: what a model is for, as numbers: load, task weights, limits and a floor on quality.

The article's five are data files; every number may be replaced (`UseCase.changed`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from planner import catalog
from planner.errors import UnknownName, UsageError
from planner.quality.absolute import ScoreFloor
from planner.workload import Traffic

Intent = Literal["build", "deploy"]
INTENTS: tuple[Intent, ...] = get_args(Intent)

TASK_CLASSES = ("retrieval", "icl", "multi_hop", "summarization", "general")
STRENGTHS = ("none", "weak", "moderate", "strong")
"""Evidence strength from least to most."""
FIRST_USE_CASE = "throughput"
"""What is answered where no use case is named: one where cost and accuracy pull apart."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Upper limits; None where there is none. Memory always has to fit the device."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    session_bytes: float | None = None
    kv_slope_bytes: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UsageError(f"limit {name} must be a number of at least 0, got {value}")


@dataclass(frozen=True, kw_only=True)
class Floor:
    """Accuracy to keep against full attention, and how sure that must be.

    Met when P(score >= retention) reaches `level`.
    """

    retention: float
    level: float

    def __post_init__(self) -> None:
        if not 0 <= self.retention <= 1.5:
            raise UsageError(f"floor retention must be between 0 and 1.5, got {self.retention}")
        if not 0 < self.level < 1:
            raise UsageError(f"floor level must be between 0 and 1, got {self.level}")


@dataclass(frozen=True, kw_only=True)
class UseCase:
    """One use case. `score_floors` ask for a score on a benchmark itself, as sure as the floor on
    retention has to be. `tolerance_points` of score may be traded for cost among candidates that
    meet the floors; `evidence` is the least strength that counts as known in such a trade."""

    id: str
    title: str
    question: str
    traffic: Traffic
    task_weights: Mapping[str, float] = field(hash=False)
    floor: Floor
    limits: Limits
    tolerance_points: float
    evidence: str
    build_model: str
    deploy_model: str
    article: str
    source: str
    score_floors: tuple[ScoreFloor, ...] = ()

    def __post_init__(self) -> None:
        unknown = sorted(set(self.task_weights) - set(TASK_CLASSES))
        if unknown:
            raise UnknownName("task class", unknown[0], TASK_CLASSES)
        if any(w < 0 for w in self.task_weights.values()) or not self.task_weights:
            raise UsageError(f"task weights must be at least 0, got {dict(self.task_weights)}")
        if not math.isclose(sum(self.task_weights.values()), 1.0, abs_tol=1e-6):
            raise UsageError(
                f"task weights must add up to 1, got {sum(self.task_weights.values()):g}"
            )
        if self.evidence not in STRENGTHS:
            raise UnknownName("evidence strength", self.evidence, STRENGTHS)
        if self.tolerance_points < 0:
            raise UsageError(f"tolerance_points must be at least 0, got {self.tolerance_points}")

    def model_for(self, intent: Intent) -> str:
        return self.build_model if intent == "build" else self.deploy_model

    def changed(
        self,
        *,
        prompt_tokens: int | None = None,
        output_tokens: int | None = None,
        concurrency: int | None = None,
        retention_floor: float | None = None,
        floor_level: float | None = None,
        score_floors: tuple[ScoreFloor, ...] | None = None,
        ttft_s: float | None = None,
        tpot_s: float | None = None,
        session_bytes: float | None = None,
        kv_slope_bytes: float | None = None,
        tolerance_points: float | None = None,
    ) -> UseCase:
        """A copy with the given numbers replaced. Raises UsageError for values out of range."""
        traffic = {
            "prompt_tokens": prompt_tokens,
            "output_tokens": output_tokens,
            "concurrency": concurrency,
        }
        floor = {"retention": retention_floor, "level": floor_level}
        limits = {
            "ttft_s": ttft_s,
            "tpot_s": tpot_s,
            "session_bytes": session_bytes,
            "kv_slope_bytes": kv_slope_bytes,
        }
        return replace(
            self,
            traffic=replace(self.traffic, **_given(traffic)),
            floor=replace(self.floor, **_given(floor)),
            score_floors=self.score_floors if score_floors is None else score_floors,
            limits=replace(self.limits, **_given(limits)),
            tolerance_points=(
                self.tolerance_points if tolerance_points is None else tolerance_points
            ),
        )


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None}


_KEYS = (
    "id",
    "title",
    "question",
    "traffic",
    "task_weights",
    "floor",
    "limits",
    "tolerance_points",
    "evidence",
    "build_model",
    "deploy_model",
    "article",
    "source",
    "read_on",
)


_NESTED = ("traffic", "floor", "limits", "score_floors", "read_on")


def use_case_ids() -> list[str]:
    return list(catalog.entries("use_cases"))


def load_use_case(id: str) -> UseCase:
    """The use case `id`. Raises UnknownName, listing the use cases there are."""
    known = catalog.entries("use_cases")
    if id not in known:
        raise UnknownName("use case", id, known)
    data = known[id]
    where = f"use_cases/{id}"
    catalog.check_keys(data, known=(*_KEYS, "score_floors"), required=_KEYS, where=where)
    try:
        return UseCase(
            **{k: v for k, v in data.items() if k not in _NESTED},
            traffic=Traffic(**data["traffic"]),
            floor=Floor(**data["floor"]),
            limits=Limits(**data["limits"]),
            score_floors=tuple(ScoreFloor.parse(text) for text in data.get("score_floors", ())),
        )
    except TypeError as error:
        raise UsageError(f"{where}: {error}") from None

"""TaskMix: a use case's score from its task weights, with the interval carried through.

    >>> mix = TaskMix.from_store(store)                                   # doctest: +SKIP
    >>> mix.score([arch], {"retrieval": 0.7, "general": 0.3}, 32768)[0].low    # doctest: +SKIP

A score is accuracy kept against full attention, 1.0 at parity: the weighted mean over the classes
that the evidence covers. `coverage` is the share of the weights that is; with less than half the
score counts as not covered. What is not covered never adds to a score. Its strength is what at
least half of the weight reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from planner.architecture import Architecture
from planner.errors import UnknownName, UsageError
from planner.quality.absolute import AbsoluteLevel, ScoreFloor
from planner.quality.features import MixFeatures
from planner.quality.prediction import DEFINITION, WITHIN_WINDOW, design_names
from planner.quality.retention import QualityModel, Retention
from planner.quality.robust import Floats
from planner.quality.support import STRENGTHS, Strength
from planner.store.evidence_rules import TASK_CLASSES

if TYPE_CHECKING:
    from planner.store import Store

MIN_COVERAGE = 0.5
NUM_DRAWS = 2000
SEED = 20261123


@dataclass(frozen=True, kw_only=True)
class MixScore:
    """One architecture's score: median, 80 % interval, joint draws, and what carries it.

    `draws` of the architectures scored together are joint: compare them draw by draw. `marginal`
    are this one's own, from scores that all share, so that equal evidence gives equal figures.
    """

    median: float
    low: float
    high: float
    draws: Floats = field(repr=False)
    marginal: Floats = field(repr=False)
    coverage: float
    strength: Strength
    level: str
    per_class: Mapping[str, Retention]

    @property
    def covered(self) -> bool:
        return self.coverage >= MIN_COVERAGE

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sorted({s for r in self.per_class.values() for s in r.sources}))

    @property
    def own_sources(self) -> tuple[str, ...]:
        """Those of `sources` that the user imported."""
        return tuple(sorted({s for r in self.per_class.values() for s in r.own_sources}))

    @property
    def basis(self) -> str:
        """published, imported, or both; definition where no row is needed."""
        if not self.sources and self.level in (DEFINITION, WITHIN_WINDOW):
            return DEFINITION
        if not self.own_sources:
            return "published"
        return "imported" if self.own_sources == self.sources else "imported and published"

    @property
    def row_ids(self) -> tuple[str, ...]:
        return tuple(sorted({i for r in self.per_class.values() for i in r.row_ids}))

    @property
    def num_sources(self) -> int:
        return len(self.sources)

    @property
    def num_rows(self) -> int:
        return len(self.row_ids)

    def probability_at_least(self, retention: float) -> float:
        """P(score >= `retention`), 0 where the evidence does not cover half of the weights."""
        return float(np.mean(self.marginal >= retention)) if self.covered else 0.0


class _Sum:
    """A weighted mean over the classes that cover each architecture."""

    def __init__(self, n: int, k: int) -> None:
        self.total = np.zeros((n, k))
        self.weight = np.zeros(k)

    def add(self, weight: float, kept: Floats) -> None:
        known = np.isfinite(kept[0])
        self.total[:, known] += weight * kept[:, known]
        self.weight[known] += weight

    def mean(self, baseline: int | None) -> Floats:
        """NaN without any covered class; relative to the baseline where that is covered."""
        weight = np.where(self.weight > 0, self.weight, np.nan)
        found: Floats = self.total / weight
        if baseline is not None and np.isfinite(found[0, baseline]):
            found = found / np.maximum(found[:, [baseline]], 0.01)
        return found


@dataclass(frozen=True, kw_only=True)
class TaskMix:
    """Scores architectures with one fitted model; `evidence` are all numbers, for floors on a
    benchmark's own score."""

    model: QualityModel
    evidence: pd.DataFrame | None = field(default=None, repr=False)

    @classmethod
    def from_store(cls, store: Store) -> TaskMix:
        return cls(model=QualityModel.fit(store.comparisons()), evidence=store.evidence())

    def level(self, floor: ScoreFloor, arch: Architecture | MixFeatures) -> AbsoluteLevel:
        """What models like `arch` score on the floor's benchmark. Raises UsageError without
        evidence."""
        if self.evidence is None:
            raise UsageError(f"no evidence at hand to answer {floor} from")
        features = arch if isinstance(arch, MixFeatures) else MixFeatures.of(arch)
        return floor.level_of(self.evidence, features)

    def scores(
        self,
        architectures: Sequence[Architecture | MixFeatures],
        weights: Mapping[str, float],
        *,
        context: int | None,
        baseline: int | None = None,
        n_draws: int = NUM_DRAWS,
        seed: int = SEED,
    ) -> list[MixScore]:
        """The score of each architecture, drawn jointly.

        With `baseline` scores are relative to that architecture's (a deployed hybrid is its own
        control); full attention as the baseline changes nothing.
        """
        weights = normalised(weights)
        features = [a if isinstance(a, MixFeatures) else MixFeatures.of(a) for a in architectures]
        designs = design_names(features)
        rng = np.random.default_rng(seed)
        recipe = rng.standard_normal(n_draws)
        joint, alone = _Sum(n_draws, len(features)), _Sum(n_draws, len(features))
        for name, weight in weights.items():
            found = self.model.predict_each(features, name, context)
            joint.add(
                weight, found.retention_at(self.model.joint_scores(designs, n_draws, rng, recipe))
            )
            one = self.model.joint_scores(np.array(["one"]), n_draws, rng, recipe)
            alone.add(weight, found.retention_at(one))
        draws, marginal = joint.mean(baseline), alone.mean(baseline)
        per_class = {name: self.model.retentions(features, name, context) for name in weights}
        return [
            _score(
                draws[:, i],
                marginal[:, i],
                float(joint.weight[i]),
                {name: found[i] for name, found in per_class.items()},
                weights,
                i == baseline,
            )
            for i in range(len(features))
        ]

    def score(
        self,
        architectures: Sequence[Architecture | MixFeatures],
        weights: Mapping[str, float],
        context: int | None,
        n_draws: int = NUM_DRAWS,
        seed: int = SEED,
    ) -> list[MixScore]:
        """`scores` against full attention."""
        return self.scores(architectures, weights, context=context, n_draws=n_draws, seed=seed)

    def has_ratio_rows(self, arch: Architecture | MixFeatures) -> bool:
        """Whether accuracy rows exist of the architecture's mixer kind near its share of full
        layers: such a ratio may win on cost."""
        features = arch if isinstance(arch, MixFeatures) else MixFeatures.of(arch)
        return self.model.has_rows_of(features)


def middle_strength(per_class: Mapping[str, Retention], weights: Mapping[str, float]) -> Retention:
    """The class whose strength at least half of the weight reaches: the weighted median.

    The weakest class alone would make every mix as strong as its least weighted task.
    """
    ranked = sorted(per_class, key=lambda n: STRENGTHS.index(per_class[n].strength), reverse=True)
    reached = 0.0
    for name in ranked:
        reached += weights[name]
        if reached >= MIN_COVERAGE - 1e-9:
            return per_class[name]
    raise AssertionError("weights add up to 1")


def _score(
    draws: Floats,
    marginal: Floats,
    coverage: float,
    per_class: Mapping[str, Retention],
    weights: Mapping[str, float],
    is_baseline: bool,
) -> MixScore:
    low, median, high = np.quantile(marginal, (0.1, 0.5, 0.9))
    middle = middle_strength(per_class, weights)
    return MixScore(
        median=float(median),
        low=float(low),
        high=float(high),
        draws=draws,
        marginal=marginal,
        coverage=1.0 if is_baseline else round(coverage, 9),
        strength="strong" if is_baseline else middle.strength,
        level=DEFINITION if is_baseline else middle.level,
        per_class=per_class,
    )


def normalised(weights: Mapping[str, float]) -> dict[str, float]:
    """Weights above 0, adding up to 1. Raises UsageError or UnknownName."""
    for name, weight in weights.items():
        if name not in TASK_CLASSES:
            raise UnknownName("task class", name, TASK_CLASSES)
        if not (np.isfinite(weight) and weight >= 0):
            raise UsageError(f"task weight of {name} must be at least 0, got {weight}")
    total = sum(weights.values())
    if total <= 0:
        raise UsageError(f"task weights must add up to more than 0, got {dict(weights)}")
    return {name: weight / total for name, weight in weights.items() if weight > 0}

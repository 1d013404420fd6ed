"""What a model without full layers can still see: the window's edge, the state's capacity.

A window is a hard edge: a needle farther back than the window is invisible. With needles at
uniform depth, W of n of them can be found, so accuracy is W/n of what it was inside.

A recurrent state fades instead. In every published curve accuracy falls by a factor per doubling
of the length, gently up to the trained length and steeply beyond it. Both factors are medians over
sources of the curves in the evidence (an accuracy of about 100 is assumed for full attention).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from planner.quality.robust import INFLATION, source_quantiles

REFERENCE_LENGTH = 2048
"""Inputs of the recall suites behind the controlled rows are at most 2K tokens."""

FLOOR = 1.0
"""Accuracies below one point carry no slope."""


@dataclass(frozen=True, kw_only=True)
class Decay:
    """Natural log of the factor that one doubling leaves: median and 80 % interval, all <= 0."""

    median: float
    low: float
    high: float
    num_curves: int
    sources: tuple[str, ...]

    @property
    def known(self) -> bool:
        return self.num_curves > 0


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How retrieval of a pure recurrent stack falls with length, inside and beyond training."""

    inside: Decay
    beyond: Decay
    row_ids: tuple[str, ...]
    longest: int = 0

    @classmethod
    def fit(cls, rows: pd.DataFrame) -> Capacity:
        """From rows with columns source, model, task, value, eval_length, train_length."""
        used = rows.dropna(subset=["eval_length", "train_length"])
        inside, beyond = [], []
        for (source, _, _), curve in used.groupby(["source", "model", "task"], sort=True):
            found = _slopes(curve.sort_values("eval_length"))
            inside += [(str(source), found[0])] if found[0] is not None else []
            beyond += [(str(source), found[1])] if found[1] is not None else []
        return cls(
            inside=_decay(inside),
            beyond=_decay(beyond),
            row_ids=tuple(used["id"]),
            longest=int(used["eval_length"].max()) if len(used) else 0,
        )

    def log_factor(
        self, context: int | None, train_length: int | None = None
    ) -> tuple[float, float, float]:
        """ln of what is left at `context` of the accuracy at 2K: median, and how far the 80 %
        interval reaches below and above it (both >= 0).

        Without `train_length` the model is taken to be trained at `context`.
        """
        if context is None:
            return 0.0, 0.0, 0.0
        trained = context if train_length is None else train_length
        steps = max(0.0, np.log2(min(context, trained) / REFERENCE_LENGTH))
        over = max(0.0, np.log2(context / max(trained, REFERENCE_LENGTH)))
        median = steps * self.inside.median + over * self.beyond.median
        spread = [
            np.hypot(
                steps * (getattr(self.inside, side) - self.inside.median),
                over * (getattr(self.beyond, side) - self.beyond.median),
            )
            for side in ("low", "high")
        ]
        return float(median), float(spread[0]), float(spread[1])


def _slopes(curve: pd.DataFrame) -> tuple[float | None, float | None]:
    """(inside, beyond) ln factors per doubling of one curve, sorted by length; None if absent."""
    length = curve["eval_length"].to_numpy(float)
    level = np.log(np.maximum(curve["value"].to_numpy(float), FLOOR))
    trained = curve["train_length"].to_numpy(float)
    within = length <= trained
    inside = beyond = None
    if within.sum() >= 2:
        doublings = np.log2(length[within][-1] / length[within][0])
        inside = min(0.0, float((level[within][-1] - level[within][0]) / doublings))
    if within.any() and not within.all():
        first = int(np.argmin(within))
        doublings = np.log2(length[first] / length[first - 1])
        beyond = min(0.0, float((level[first] - level[first - 1]) / doublings))
    return inside, beyond


def _decay(slopes: list[tuple[str, float]]) -> Decay:
    if not slopes:
        return Decay(median=0.0, low=0.0, high=0.0, num_curves=0, sources=())
    source = np.array([s for s, _ in slopes])
    value = np.array([v for _, v in slopes])
    low, median, high = source_quantiles(value, source, (0.1, 0.5, 0.9))
    widen = 1.0 + INFLATION / len(set(source))
    return Decay(
        median=float(median),
        low=float(median + widen * (low - median)),
        high=float(min(0.0, median + widen * (high - median))),
        num_curves=len(slopes),
        sources=tuple(sorted({s for s, _ in slopes})),
    )

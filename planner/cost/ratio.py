"""The ratio of two models' costs, with its interval.

Two models on one device share kernels: the projections and the LM head of a hybrid are those of
its full-attention twin. An error in such a kernel moves both costs, so most of it cancels in the
ratio. Dividing the two intervals would count it twice.

An error group moves its parts together, and with them the logarithm of each whole:

    d(log ratio) = sum over groups of  d(log cost) - d(log base)

with different groups in quadrature, as everywhere in this package.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from planner.cost.model import ModelCost

LARGEST_FALL = 0.99
"""A group that is all of a cost may at most make it vanish to this share."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A factor with its 80 % interval; NaN where either model has no cost."""

    value: float
    low: float
    high: float


def cost_ratio(cost: ModelCost, base: ModelCost) -> Ratio:
    """GPU seconds per request of `cost` over those of `base`, shared errors cancelled."""
    value = cost.gpu_seconds_per_request / base.gpu_seconds_per_request
    if not math.isfinite(value):
        return Ratio(value=math.nan, low=math.nan, high=math.nan)
    mine, theirs = _log_errors(cost), _log_errors(base)
    rise = fall = 0.0
    for group in {**mine, **theirs}:
        low, high = mine.get(group, (0.0, 0.0))
        base_low, base_high = theirs.get(group, (0.0, 0.0))
        moves = (high - base_high, base_low - low, 0.0)
        rise += max(moves) ** 2
        fall += min(moves) ** 2
    return Ratio(
        value=value,
        low=value * math.exp(-math.sqrt(fall)),
        high=value * math.exp(math.sqrt(rise)),
    )


def surely_cheaper(cost: ModelCost, other: ModelCost) -> bool:
    """Whether `cost` is below `other` at 80 %, shared errors cancelled; one without a cost is
    dearer than any with one."""
    ratio = cost_ratio(cost, other)
    if math.isnan(ratio.value):
        return math.isfinite(cost.gpu_seconds_per_request)
    return ratio.high < 1.0


def _log_errors(cost: ModelCost) -> dict[tuple[str, str], tuple[float, float]]:
    """(phase, error group) -> how far it lowers and raises the logarithm of the whole."""
    total = cost.gpu_seconds_per_request
    low, high = cost.half_widths("low"), cost.half_widths("high")
    return {
        group: (
            -math.log1p(-min(low[group] / total, LARGEST_FALL)),
            math.log1p(high[group] / total),
        )
        for group in low
    }

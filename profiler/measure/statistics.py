"""Median and its uncertainty from raw samples, by the bootstrap.

The stopping rule needs them many times per point, so they are numpy and deterministic: the same
samples give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 200
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Median, quantiles and a bootstrap interval of the median, in the samples' unit."""

    median: float
    p20: float
    p80: float
    low: float
    high: float
    count: int

    @property
    def half_width(self) -> float:
        """Half the interval as a fraction of the median."""
        return (self.high - self.low) / 2 / self.median


def summarise(samples: Sequence[float]) -> Summary:
    """Percentile bootstrap of the median, 200 resamples, 95 %."""
    values = np.asarray(samples, dtype=float)
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, size=(RESAMPLES, values.size)), axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(medians, (tail, 1 - tail))
    p20, median, p80 = np.quantile(values, (0.2, 0.5, 0.8))
    return Summary(
        median=float(median),
        p20=float(p20),
        p80=float(p80),
        low=float(low),
        high=float(high),
        count=values.size,
    )

"""The split normal: a median with unequal reaches to the 10 % and 90 % quantiles."""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from planner.quality.robust import Floats

Z80 = float(ndtri(0.9))


def split_normal_cdf(x: float, median: float, low: float, high: float) -> float:
    """Of a normal whose two halves reach the 10 % and 90 % quantiles `low` and `high`."""
    side = high if x > median else low
    if side == median:
        return float(x >= median)
    return float(ndtr(Z80 * (x - median) / abs(side - median)))


def split_normal_quantile(z: Floats, median: Floats, low: Floats, high: Floats) -> Floats:
    """The same distribution at standard normal scores `z`; all arguments broadcast."""
    return median + z / Z80 * np.where(z > 0, high - median, median - low)

"""The Pareto frontier of cost and quality."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pareto_front(cost: NDArray[np.float64], quality: NDArray[np.float64]) -> list[int]:
    """Indices that no other beats on both cost (lower) and quality (higher); of exact ties, one.

    NaN in either is never on the frontier. In order of rising cost.
    """
    best, front = -np.inf, []
    for i in np.lexsort((-quality, cost)):
        if np.isfinite(cost[i]) and quality[i] > best:
            front.append(int(i))
            best = quality[i]
    return front

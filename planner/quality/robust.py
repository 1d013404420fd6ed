"""Medians and quantiles in which every source counts the same, however many rows it has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Strings = NDArray[np.str_]

INFLATION = 1.0
"""An interval from K sources is widened by 1 + 1/K: the next source is one more draw of K + 1."""


def source_weights(source: Strings, weight: Floats | None = None) -> Floats:
    """Row weights that add up to 1, or to `weight` of the row, within each source."""
    _, index, count = np.unique(source, return_inverse=True, return_counts=True)
    own = 1.0 / count[index]
    return own if weight is None else own * weight


def weighted_quantiles(values: Floats, weights: Floats, q: Sequence[float]) -> Floats:
    """Quantiles of a weighted sample, linear between the middles of the weights."""
    order = np.argsort(values, kind="stable")
    x, w = values[order], weights[order]
    middle = (np.cumsum(w) - 0.5 * w) / w.sum()
    return np.interp(q, middle, x)


def source_quantiles(
    values: Floats, source: Strings, q: Sequence[float], weight: Floats | None = None
) -> Floats:
    return weighted_quantiles(values, source_weights(source, weight), q)


def source_medians(values: Floats, source: Strings, weight: Floats) -> tuple[Floats, Floats]:
    """(median of each source's values, the source's weight)."""
    names = np.unique(source)
    medians = np.array([np.median(values[source == s]) for s in names])
    weights = np.array([weight[source == s][0] for s in names])
    return medians, weights


def shrunk_median(
    values: Floats, source: Strings, weight: Floats, toward: float, strength: float
) -> float:
    """Weighted mean of the sources' medians and of `toward`, worth `strength` sources."""
    if len(values) == 0:
        return toward
    medians, weights = source_medians(values, source, weight)
    return float((weights @ medians + strength * toward) / (weights.sum() + strength))

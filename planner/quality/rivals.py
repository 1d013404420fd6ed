"""Two plainer methods that the retention model has to beat, in the same leave-one-source-out.

`shrunk_medians`: per task class the mean of the sources' medians, shrunk to that of all rows, with
the spread of the residuals of left-out sources. No mixers, no lengths, no cautions.

`mixed_model`: points = class + mixer + source + error, class fixed, the others normal; variances
by restricted maximum likelihood on a grid, the interval that of a new source (Searle, Casella and
McCulloch 1992, chapters 6 and 7).

Both train on the rows that the baselines train on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from planner.quality.distribution import Z80
from planner.quality.robust import INFLATION, Floats, Strings, shrunk_median, source_quantiles

METHODS = ("shrunk_medians", "mixed_model")

_VARIANCE_RATIOS = (0.01, 0.1, 0.3, 1.0, 3.0)
"""Of a random effect to the error: the grid that is searched."""


def rivals(train: pd.DataFrame, asked: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """Each method's median, low and high for the asked rows."""
    found = {"shrunk_medians": _shrunk(train, asked), "mixed_model": _mixed(train, asked)}
    return {
        name: pd.DataFrame(
            {"median": median, "low": low, "high": high, "level": ""}, index=asked.index
        )
        for name, (median, low, high) in found.items()
    }


# Source-shrunk medians


def _shrunk(train: pd.DataFrame, asked: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    source: Strings = train["source"].to_numpy(dtype=str)
    residuals = np.empty(len(train))
    for name in np.unique(source):
        mine = source == name
        others = train[~mine] if not mine.all() else train
        residuals[mine] = train["points"].to_numpy(float)[mine] - _centres(others, train[mine])
    low, high = source_quantiles(residuals, source, (0.1, 0.9))
    widen = 1.0 + INFLATION / len(np.unique(source))
    median = _centres(train, asked)
    return median, median + widen * min(low, 0.0), median + widen * max(high, 0.0)


def _centres(train: pd.DataFrame, asked: pd.DataFrame) -> Floats:
    """The shrunk median of each asked row's class."""
    overall = _centre(train, 0.0)
    by_class = {name: _centre(rows, overall) for name, rows in train.groupby("task_class")}
    return np.array([by_class.get(name, overall) for name in asked["task_class"]], dtype=float)


def _centre(rows: pd.DataFrame, toward: float) -> float:
    points, source = rows["points"].to_numpy(float), rows["source"].to_numpy(dtype=str)
    return shrunk_median(points, source, np.ones(len(rows)), toward, 1.0)


# A mixed model


class _Fit(NamedTuple):
    """Variances of mixer and source as ratios to the error's; `v_inverse` [n, n] of the rows."""

    likelihood: float
    mixer: float
    source: float
    error: float
    beta: Floats
    v_inverse: Floats


def _mixed(train: pd.DataFrame, asked: pd.DataFrame) -> tuple[Floats, Floats, Floats]:
    y = train["points"].to_numpy(float)
    classes = sorted(train["task_class"].unique())
    x = np.asarray(_same(train["task_class"], pd.Series(classes)))
    by_mixer, by_source = (_same(train[c], train[c]) for c in ("mixer", "source"))
    grid = product(_VARIANCE_RATIOS, _VARIANCE_RATIOS)
    best = max(
        (_fit(y, x, by_mixer, by_source, a, b) for a, b in grid), key=lambda f: f.likelihood
    )
    x_new = _same(asked["task_class"], pd.Series(classes))
    x_new[x_new.sum(axis=1) == 0] = 1.0 / len(classes)
    shared = best.mixer * _same(asked["mixer"], train["mixer"])
    weights = shared @ best.v_inverse
    median: Floats = x_new @ best.beta + weights @ (y - x @ best.beta)
    left = x_new - weights @ x
    fixed = np.linalg.inv(x.T @ best.v_inverse @ x)
    variance = 1.0 + best.mixer + best.source - np.sum(weights * shared, axis=1)
    reach = Z80 * np.sqrt(best.error * (variance + np.sum((left @ fixed) * left, axis=1)))
    return median, median - reach, median + reach


def _same(mine: pd.Series, theirs: pd.Series) -> Floats:
    """[n, m]: 1 where two labels are the same."""
    a, b = mine.to_numpy(dtype=str), theirs.to_numpy(dtype=str)
    return np.asarray(a[:, None] == b[None, :], dtype=float)


def _fit(y: Floats, x: Floats, by_mixer: Floats, by_source: Floats, a: float, b: float) -> _Fit:
    """The restricted likelihood and estimates at given variance ratios."""
    v = np.eye(len(y)) + a * by_mixer + b * by_source
    v_inverse = np.linalg.inv(v)
    information = x.T @ v_inverse @ x
    beta = np.asarray(np.linalg.solve(information, x.T @ v_inverse @ y), dtype=float)
    residual = y - x @ beta
    freedom = len(y) - x.shape[1]
    error = float(residual @ v_inverse @ residual) / freedom
    determinants = float(np.linalg.slogdet(v)[1] + np.linalg.slogdet(information)[1])
    likelihood = -0.5 * (freedom * math.log(error) + determinants)
    return _Fit(likelihood, a, b, error, beta, np.asarray(v_inverse, dtype=float))

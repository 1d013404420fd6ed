"""What changed between two sets of points: each workload's time, and where mixers cross.

A change is significant when the bootstrap interval of the ratio of medians leaves 1 and the
change is at least 1 %.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from planner.mixers import get_mixer

WORKLOAD = (
    "family",
    "spec",
    "batch_size",
    "new_tokens",
    "cached_tokens",
    "dtype",
    "phase",
    "provider",
    "variant",
    "mode",
    "cache_state",
)
SMALLEST_CHANGE = 0.01
RESAMPLES = 500
TAIL = 0.025


def ratio_interval(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """95 % bootstrap interval of median(b) / median(a); the same samples give the same one."""
    rng = np.random.default_rng(0)

    def medians(samples: Sequence[float]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        values = np.asarray(samples, dtype=float)
        drawn = rng.choice(values, size=(RESAMPLES, values.size))
        return np.asarray(np.median(drawn, axis=1))

    low, high = np.quantile(medians(b) / medians(a), (TAIL, 1 - TAIL))
    return float(low), float(high)


def compare(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Points measured in both, `change` being b over a minus 1; largest significant first.

    Columns: the workload's, `a_s`, `b_s`, `change`, `low`, `high`, `significant`.
    """
    both = a[a["outcome"] == "ok"].merge(
        b[b["outcome"] == "ok"], on=list(WORKLOAD), suffixes=("_a", "_b")
    )
    found = both[list(WORKLOAD)].copy()
    found["a_s"], found["b_s"] = both["median_s_a"], both["median_s_b"]
    found["change"] = found["b_s"] / found["a_s"] - 1
    intervals = [
        ratio_interval(x, y) for x, y in zip(both["samples_s_a"], both["samples_s_b"], strict=True)
    ]
    found["low"] = [low - 1 for low, _ in intervals]
    found["high"] = [high - 1 for _, high in intervals]
    apart = (found["low"] > 0) | (found["high"] < 0)
    found["significant"] = apart & (found["change"].abs() >= SMALLEST_CHANGE)
    order = found["significant"].astype(float) * 10 + found["change"].abs()
    order = order.sort_values(ascending=False)
    return found.loc[order.index].reset_index(drop=True)


def crossovers(points: pd.DataFrame) -> pd.DataFrame:
    """Where each linear mixer becomes cheaper than full attention, by phase, batch and mode.

    The fastest provider of each length counts; between lengths, straight lines in log-log.
    `crossover_tokens` is 0 if it is always cheaper, infinite if never within the range.
    """
    ok = points[(points["outcome"] == "ok") & (points["cache_state"] == "cold")].copy()
    ok["tokens"] = ok["new_tokens"] + ok["cached_tokens"]
    mixers = _known_linear(set(ok["family"]))
    by = ["phase", "batch_size", "dtype", "mode"]
    found = []
    for conditions, part in ok.groupby(by):
        full = _fastest(part[part["family"] == "full_attention"])
        for mixer in sorted(mixers):
            linear = _fastest(part[part["family"] == mixer])
            shared = full.index.intersection(linear.index)
            if len(shared) < 2:
                continue
            ratio = np.log(linear[shared].to_numpy() / full[shared].to_numpy())
            at = crossing(np.log(shared.to_numpy(dtype=float)), ratio)
            found.append(
                dict(zip(by, conditions, strict=True))
                | {"mixer": mixer, "crossover_tokens": at, "longest": int(shared.max())}
            )
    columns = ["mixer", *by, "crossover_tokens", "longest"]
    return pd.DataFrame(found, columns=columns)


def _known_linear(families: set[str]) -> set[str]:
    measured = families - {"dense", "short_convolution", "stack", "experts", "all_reduce"}
    return {name for name in measured if get_mixer(name).kind != "full"}


def _fastest(points: pd.DataFrame) -> pd.Series[float]:
    return points.groupby("tokens")["median_s"].min().sort_index()


def crossing(log_tokens: np.ndarray, log_ratio: np.ndarray) -> float:
    """The length beyond which the ratio stays under 1."""
    above = np.flatnonzero(log_ratio >= 0)
    if above.size == 0:
        return 0.0
    last = int(above[-1])
    if last == len(log_ratio) - 1:
        return float("inf")
    x0, x1 = log_tokens[last], log_tokens[last + 1]
    y0, y1 = log_ratio[last], log_ratio[last + 1]
    return float(np.exp(x0 + (x1 - x0) * y0 / (y0 - y1)))

"""Frames: what the pages' charts and tables show, computed from the store's frames. No drawing.

points ─ describe ─→ one row per point with its length, times in ms and the roofline
points ─ stack_residuals ─→ how far measured stacks are from the sum of their layers
comparisons ─ retention / retention_bands ─→ accuracy kept by mixer kind, ratio and task class
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from planner import calibration
from planner.hardware import Hardware
from planner.mixers import MIXERS
from planner.workload import operation_from

# Measurements


def describe(points: pd.DataFrame, hardware: Mapping[str, Hardware]) -> pd.DataFrame:
    """Points with `length` (tokens new in a prefill, cached in a decode step), `shape`, and
    `latency_ms`, `p20_ms`, `p80_ms`, `roofline_ms` and `roofline_share` (1 is the bound)."""
    decode = points["phase"] == "decode"
    bound = pd.Series(np.nan, index=points.index)
    for device, of_device in points.groupby("device_id"):
        for dtype, rows in of_device.groupby("dtype"):
            if str(device) in hardware:
                bound[rows.index] = hardware[str(device)].lower_bound_s(
                    rows["model_flops"].to_numpy(), rows["min_bytes"].to_numpy(), str(dtype)
                )
    return points.assign(
        length=points["cached_tokens"].where(decode, points["new_tokens"]),
        shape=_shapes(points),
        latency_ms=1e3 * points["median_s"],
        p20_ms=1e3 * points["p20_s"],
        p80_ms=1e3 * points["p80_s"],
        roofline_ms=1e3 * bound,
        roofline_share=bound / points["median_s"],
    )


def _shapes(points: pd.DataFrame) -> list[str]:
    """Each operation as a person would write it, its family left out."""
    known: dict[tuple[str, str], str] = {}
    for family, spec in set(zip(points["family"], points["spec"], strict=True)):
        text = operation_from(family, json.loads(spec)).short()
        known[family, spec] = text.removeprefix(family).strip()
    return [known[pair] for pair in zip(points["family"], points["spec"], strict=True)]


def mixer_families(points: pd.DataFrame) -> list[str]:
    """The mixers among the points, in the registry's order."""
    there = set(points["family"])
    return [name for name in MIXERS if name in there]


def fastest(curves: pd.DataFrame) -> pd.DataFrame:
    """Of each family and length the fastest provider, on the family's most measured shape."""
    ok = curves[curves["outcome"] == "ok"]
    if ok.empty:
        return ok
    usual = ok.groupby("family")["shape"].agg(lambda s: s.value_counts().index[0])
    ok = ok[ok["shape"] == ok["family"].map(usual)]
    return ok.loc[ok.groupby(["family", "length"])["latency_ms"].idxmin()]


def stack_residuals(points: pd.DataFrame) -> pd.DataFrame:
    """Measured stacks against the sum of their layers, in ms: see `planner.calibration.stacks`.

    Of those in graphs, where there are any: an eager stack of short layers is the host's time.
    """
    found = calibration.stack_residuals(points)
    if (found["mode"] == "graph").any():
        found = found[found["mode"] == "graph"]
    return found.assign(measured_ms=1e3 * found["stack_s"], predicted_ms=1e3 * found["sum_s"])


# Evidence

BANDS = ("0:1", "1:1 and below", "2:1 to 4:1", "5:1 to 7:1", "above 7:1", "1:0", "unknown")
"""Ratios as published are many; bands of the full-attention share keep like with like."""

SCORED = ("accuracy", "score", "rouge_l")
"""Metrics in percent, higher is better: only of these is a quotient a retention."""


def band(full_share: float) -> str:
    """The band of a share of full-attention layers."""
    if math.isnan(full_share):
        return "unknown"
    if full_share in (0.0, 1.0):
        return "1:0" if full_share == 0.0 else "0:1"
    edges = ((0.4, "1:1 and below"), (0.19, "2:1 to 4:1"), (0.12, "5:1 to 7:1"))
    return next((name for edge, name in edges if full_share >= edge), "above 7:1")


def retention(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Comparisons of a percent metric with `retention` (value over its control's) and `band`."""
    scored = comparisons[comparisons["metric"].isin(SCORED) & (comparisons["control_value"] > 0)]
    return scored.assign(
        retention=scored["value"] / scored["control_value"],
        band=[band(share) for share in scored["full_share"]],
    )


def retention_bands(rows: pd.DataFrame) -> pd.DataFrame:
    """Median and quartiles of retention by kind, band and task class, with what carries them."""
    by = ["task_class", "kind", "band"]
    if rows.empty:
        columns = [*by, "median", "q1", "q3", "lowest", "highest", "rows", "sources"]
        return pd.DataFrame(columns=columns)
    grouped = rows.groupby(by)
    kept = grouped["retention"]
    found = pd.DataFrame(
        {
            "median": kept.median(),
            "q1": kept.quantile(0.25),
            "q3": kept.quantile(0.75),
            "lowest": kept.min(),
            "highest": kept.max(),
            "rows": kept.size(),
            "sources": grouped["source"].nunique(),
        }
    ).reset_index()
    order = found["band"].map({name: i for i, name in enumerate(BANDS)})
    ordered = found.assign(order=order).sort_values(["task_class", "kind", "order"])
    return ordered.drop(columns="order").reset_index(drop=True)

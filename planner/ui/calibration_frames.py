"""Calibration as frames for a page: what its charts and tables show. No drawing.

kernels    folds in words, and where a kernel's points come from
stacks     every stack and each way to predict it, with the signed error
ratios     our times beside imported ones, each with a verdict
"""

from __future__ import annotations

import math

import pandas as pd

from planner.calibration.imported import HIGH, LOW
from planner.calibration.stacks import ALL, MIN_STACK_S, as_the_model
from planner.units import seconds_text
from planner.workload import format_tokens

FOLDS = {
    "leave_one_out": "a point between others",
    "leave_one_out_short": "the same, under 30 µs or 1,000 tokens",
    "leave_row_out": "a whole batch size",
    "leave_end_out_2x": "the end, 2 times beyond",
    "leave_end_out_4x": "the end, 4 times beyond",
    "leave_end_out_8x": "the end, 8 times beyond",
    "leave_shape_out": "a whole shape",
}
"""What each fold leaves out, from the easiest to the hardest."""

AS_MODEL, FROM_KERNELS = "cost model", "sum of kernels"
FROM_LAYERS, LESS_STARTS = "sum of layers", "layers, less starts"


def kernels(table: pd.DataFrame) -> pd.DataFrame:
    """`kernel_calibration` with `what` was left out and the `origin` of the points."""
    return table.assign(
        what=table["fold"].map(FOLDS),
        origin=["imported" if "@" in p else "measured here" for p in table["provider"]],
    )


def per_point(rows: pd.DataFrame, column: str) -> float:
    """The mean of a column over points, not over kernels."""
    return float((rows[column] * rows["n"]).sum() / rows["n"].sum())


def stacks(residuals: pd.DataFrame, sums: pd.DataFrame) -> pd.DataFrame:
    """Stacks of at least 100 us in CUDA graphs by `way` of predicting: `percent` is the
    prediction over the measurement, less 1; only sums of kernels can be `inside` an interval."""
    layers = residuals.assign(inside=False)
    parts = (
        (AS_MODEL, _with_inside(as_the_model(sums))),
        (FROM_KERNELS, _with_inside(sums)),
        (FROM_LAYERS, layers.assign(predicted_s=layers["sum_s"])),
        (LESS_STARTS, layers.dropna(subset="predicted_s")),
    )
    columns = ["phase", "mode", "ratio", "label", "length", "stack_s", "predicted_s", "inside"]
    frame = pd.concat([part[columns].assign(way=way) for way, part in parts], ignore_index=True)
    frame = frame[(frame["stack_s"] >= MIN_STACK_S) & (frame["mode"] == "graph")]
    return frame.assign(
        percent=100 * (frame["predicted_s"] / frame["stack_s"] - 1),
        measured_ms=1e3 * frame["stack_s"],
        predicted_ms=1e3 * frame["predicted_s"],
    )


def _with_inside(sums: pd.DataFrame) -> pd.DataFrame:
    within = (sums["low_s"] <= sums["stack_s"]) & (sums["stack_s"] <= sums["high_s"])
    return sums.assign(inside=within)


def stack_errors(frame: pd.DataFrame) -> pd.DataFrame:
    """Errors of `stacks` by phase, way and ratio, "all" for every ratio."""
    every = pd.concat([frame.assign(ratio=ALL), frame])
    grouped = every.assign(ape=every["percent"].abs()).groupby(["phase", "way", "ratio"])
    return pd.DataFrame(
        {
            "n": grouped.size(),
            "median_ape": grouped["ape"].median(),
            "p90_ape": grouped["ape"].quantile(0.9),
            "signed": grouped["percent"].median(),
        }
    ).reset_index()


def linear_share(ratio: str) -> float:
    """0 for "0:1", 0.75 for "3:1": the order of ratios on an axis."""
    linear, _, full = ratio.partition(":")
    return float(linear) / (float(linear) + float(full))


INSIDE = "inside"
SIZED = "outside: cold cache or start of the timing"
OTHER = "outside: another kernel or release"


def ratios(rows: pd.DataFrame) -> pd.DataFrame:
    """`beside_imported` with the `pair` of providers and a `verdict`."""
    verdict = pd.Series(OTHER, index=rows.index)
    verdict[rows["left"].between(LOW, HIGH)] = SIZED
    verdict[~rows["outside"].astype(bool)] = INSIDE
    return rows.assign(
        pair=rows["family"] + " " + rows["phase"] + ": " + rows["ours"] + " / " + rows["theirs"],
        verdict=verdict,
        ours_us=1e6 * rows["ours_s"],
        theirs_us=1e6 * rows["theirs_s"],
    )


def outside(rows: pd.DataFrame) -> pd.DataFrame:
    """The ratios outside 0.75 to 1.33 as a table, the farthest from 1 first."""
    far = rows[rows["outside"].astype(bool)].sort_values(
        "ratio", key=lambda ratios: -(ratios.map(math.log).abs())
    )
    return pd.DataFrame(
        {
            **{c: far[c] for c in ("family", "phase", "shape", "batch_size", "length")},
            "versions": far["versions"],
            "ours": far["ours_s"].map(seconds_text),
            "theirs": far["theirs_s"].map(seconds_text),
            **{c: far[c] for c in ("ratio", "left", "causes")},
        }
    )


def claims(rows: pd.DataFrame) -> pd.DataFrame:
    """`end_to_end` with a `label` such as "decode, 512k"."""
    places = zip(rows["phase"], rows["context"], strict=True)
    return rows.assign(label=[f"{phase}, {format_tokens(int(n))}" for phase, n in places])


def misses(rows: pd.DataFrame) -> pd.DataFrame:
    """`quality.misses` with a numbered `label`."""
    named = zip(rows["source"], rows["mixer"], rows["stratum"], strict=True)
    return rows.assign(label=[f"{i}. {', '.join(name)}" for i, name in enumerate(named, start=1)])

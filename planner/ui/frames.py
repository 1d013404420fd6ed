"""Frames: what the pages' charts and tables show, computed from the store's frames. No drawing.

points ─ describe ─→ one row per point with its length, times in ms and the roofline
points ─ stack_residuals ─→ how far measured stacks are from the sum of their layers
comparisons ─ retention / retention_bands ─→ accuracy kept by mixer kind, ratio and task class
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from planner.architecture import LayerPattern
from planner.hardware import Hardware
from planner.mixers import MIXERS, MixerSpec, get_mixer
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


STACK_COLUMNS = (
    "label", "mixer", "ratio", "pattern", "phase", "batch_size", "length", "provider",
    "measured_ms", "predicted_ms", "residual",
)  # fmt: skip

_CONTEXT = (
    "environment_id", "phase", "batch_size", "new_tokens", "cached_tokens", "dtype", "training",
    "mode", "cache_state",
)  # fmt: skip


def stack_residuals(points: pd.DataFrame) -> pd.DataFrame:
    """Measured stacks against the sum of their layers: `residual` is measured / predicted - 1.

    A layer's time is that of the stack of its kind alone, measured under the same conditions with
    the same provider, over its number of layers. Stacks without both pure ones are left out.
    """
    stacks = points[(points["family"] == "stack") & (points["outcome"] == "ok")]
    per_layer: dict[tuple[Any, ...], float] = {}
    mixed: list[tuple[Any, dict[str, Any]]] = []
    rows: Any = stacks.itertuples()
    for row in rows:
        spec = json.loads(row.spec)
        if len(set(spec["pattern"])) == 1:
            letter = spec["pattern"][0]
            key = _layer_key(row, spec, letter, row.provider)
            per_layer[key] = row.median_s / len(spec["pattern"])
        else:
            mixed.append((row, spec))
    found = [_residual(row, spec, per_layer) for row, spec in mixed]
    return pd.DataFrame([r for r in found if r is not None], columns=list(STACK_COLUMNS))


def _layer_key(row: Any, spec: dict[str, Any], letter: str, provider: str) -> tuple[Any, ...]:
    kind = json.dumps(spec["kinds"][letter], sort_keys=True)
    sizes = spec["hidden_size"], spec.get("mlp_size", 0)
    return (*(getattr(row, name) for name in _CONTEXT), *sizes, kind, provider)


def _residual(
    row: Any, spec: dict[str, Any], per_layer: Mapping[tuple[Any, ...], float]
) -> dict[str, Any] | None:
    """One mixed stack; its provider names one per letter, joined by + in order of letter."""
    used = [letter for letter in spec["kinds"] if letter in spec["pattern"]]
    providers = row.provider.split("+")
    if len(providers) != len(used):
        return None
    named = dict(zip(used, providers, strict=True))
    counts = Counter(spec["pattern"])
    keys = {letter: _layer_key(row, spec, letter, named[letter]) for letter in counts}
    if not all(key in per_layer for key in keys.values()):
        return None
    predicted = sum(n * per_layer[keys[letter]] for letter, n in counts.items())
    specs = {c: MixerSpec.from_dict(spec["kinds"][c]) for c in used}
    linear = [s.mixer for s in specs.values() if get_mixer(s.mixer).kind != "full"]
    ratio = _ratio(spec["pattern"], specs)
    return {
        "label": f"{ratio} {'+'.join(linear)}",
        "mixer": linear[0] if linear else "full_attention",
        "ratio": ratio,
        "pattern": spec["pattern"],
        "phase": row.phase,
        "batch_size": row.batch_size,
        "length": row.cached_tokens if row.phase == "decode" else row.new_tokens,
        "provider": row.provider,
        "measured_ms": 1e3 * row.median_s,
        "predicted_ms": 1e3 * predicted,
        "residual": row.median_s / predicted - 1,
    }


def _ratio(pattern: str, specs: Mapping[str, MixerSpec]) -> str:
    full = {c for c, s in specs.items() if get_mixer(s.mixer).kind == "full"}
    return LayerPattern("".join("F" if c in full else "x" for c in pattern)).ratio_label("F")


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

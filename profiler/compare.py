"""What changed between two sets of points: each workload's time, and where mixers cross.

A change is significant when the bootstrap interval of the ratio of medians leaves 1 and the
change is at least 1 %.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from planner.catalog import load_model, model_ids
from planner.mixers import MixerSpec, get_mixer
from planner.workload import MixerOp, canonical_json

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

    Where a side has a workload of several environments, those of the same one are compared.
    Columns: the workload's, `a_s`, `b_s`, `change`, `low`, `high`, `significant`.
    """
    a, b = a[a["outcome"] == "ok"], b[b["outcome"] == "ok"]
    on = list(WORKLOAD)
    if a.duplicated(on).any() or b.duplicated(on).any():
        on.append("environment_id")
    both = a.merge(b, on=on, suffixes=("_a", "_b"))
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


SHORTEST_STEADY_S = 20e-6
"""Shorter calls are not held to repeat: a tick of the clock is a percent of them."""


def repeatability(found: pd.DataFrame) -> str:
    """By how much points of at least 20 µs differ, in words; empty where there are none.

    Those in graphs and eager ones apart: an eager call's time is the host's, and its jitter.
    """
    long = found[found["a_s"] >= SHORTEST_STEADY_S]
    told = []
    for mode, of_mode in long.groupby("mode", sort=False):
        within = of_mode["change"].abs().quantile([0.5, 0.9, 0.99])
        told.append(
            f"{len(of_mode)} {mode} points of at least 20 µs: half differ by up to "
            f"{100 * within[0.5]:.1f} %, 90 % by up to {100 * within[0.9]:.1f} %, "
            f"99 % by up to {100 * within[0.99]:.1f} %"
        )
    return "; ".join(told)


def measured_in_both(a: pd.DataFrame, b: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The points of each whose workload the other has too, by whatever provider: crossovers of
    other lengths are others, and a provider that is new or gone may move one."""
    keys = [name for name in WORKLOAD if name != "provider"]
    ok_a, ok_b = a[a["outcome"] == "ok"], b[b["outcome"] == "ok"]
    in_a, in_b = (pd.MultiIndex.from_frame(ok[keys]) for ok in (ok_a, ok_b))
    return ok_a[in_a.isin(in_b)], ok_b[in_b.isin(in_a)]


CONDITIONS = ("phase", "batch_size", "dtype", "mode")
"""What both sides of a crossover share; segments are left out."""


def crossovers(points: pd.DataFrame) -> pd.DataFrame:
    """Where each linear mixer becomes cheaper than the full attention it would replace.

    Those pairs count that stand in for each other in a model of the catalog, and windows with full
    attention of the same heads. The fastest provider of each length counts; between lengths,
    straight lines in log-log. `crossover_tokens` is 0 if it is always cheaper, infinite if never
    within the range; `providers` are those that are fastest at some length, "fla; sdpa_cudnn".
    """
    ok = points[
        (points["outcome"] == "ok")
        & (points["cache_state"] == "cold")
        & (points["variant"] == "")
        & ((points["new_tokens"] == 1) | (points["cached_tokens"] == 0))
    ].copy()
    ok["tokens"] = ok["new_tokens"] + ok["cached_tokens"]
    found = []
    for conditions, part in ok.groupby(list(CONDITIONS)):
        best = part.loc[part.groupby(["spec", "tokens"])["median_s"].idxmin()]
        fastest = {
            str(spec): of_spec.set_index("tokens")["median_s"]
            for spec, of_spec in best.groupby("spec")
        }
        by = best.groupby("spec")["provider"].agg(lambda names: ", ".join(sorted(set(names))))
        for linear, full in replaceable(list(fastest)):
            shared = fastest[_text(full)].index.intersection(fastest[_text(linear)].index)
            if len(shared) < 2:
                continue
            shared = shared.sort_values()
            ratio = np.log(
                fastest[_text(linear)][shared].to_numpy() / fastest[_text(full)][shared].to_numpy()
            )
            at = crossing(np.log(shared.to_numpy(dtype=float)), ratio)
            found.append(
                dict(zip(CONDITIONS, conditions, strict=True))
                | {"mixer": linear.mixer, "shape": f"{linear.short()} for {full.short()}"}
                | {"crossover_tokens": at, "longest": int(shared.max())}
                | {"providers": f"{by[_text(linear)]}; {by[_text(full)]}"}
            )
    columns = ["mixer", "shape", *CONDITIONS, "crossover_tokens", "longest", "providers"]
    return pd.DataFrame(found, columns=columns)


def replaceable(measured: Sequence[str]) -> list[tuple[MixerSpec, MixerSpec]]:
    """(linear, full) among the measured specs that stand in for each other; in order."""
    have = {MixerOp(spec).spec for spec in map(_spec, measured) if spec is not None}
    found: set[tuple[MixerSpec, MixerSpec]] = set()
    for full in (spec for spec in have if get_mixer(spec.mixer).kind == "full"):
        windowed = {s for s in have if replace(s, mixer=full.mixer, window=None) == full} - {full}
        found |= {(spec, full) for spec in windowed}
    for architecture in map(load_model, model_ids()):
        names = {spec.mixer for spec in have}
        specs = {MixerOp(architecture.spec_for(name)).spec for name in names} & have
        fulls = {spec for spec in specs if get_mixer(spec.mixer).kind == "full"}
        found |= {(spec, full) for full in fulls for spec in specs - fulls}
    return sorted(found, key=lambda pair: (pair[0].mixer, pair[0].short(), pair[1].short()))


def _spec(text: str) -> MixerSpec | None:
    data = json.loads(text)
    return MixerSpec.from_dict(data) if "mixer" in data else None


def _text(spec: MixerSpec) -> str:
    return canonical_json(spec.to_dict())


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

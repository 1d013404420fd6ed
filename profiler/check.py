"""Do measured points make sense? Each finding says what is wrong with which, and what to do.

Pure functions over the store's points; nothing is measured or changed here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from planner.hardware import Hardware
from planner.units import seconds_text
from planner.workload import format_tokens, operation_from

MAX_SPREAD = 0.05
MAX_STEP = 0.05
FEWEST_OF_A_TURN = 3
HEAVY_METHOD_VERSION = "3"  # measure.timing's; that module needs torch
MIN_GROWTH = 0.95  # a longer call may seem this much shorter before it is a finding
WINDOW_SLACK = 1.05
REPEAT_TOLERANCE = 0.10
AGAIN = "repeat its `attn-profile run` with --retry-doubtful"
BOUND_SLACK = 0.97  # peaks are rounded, clocks above the datasheet's boost are not
CACHES_BEYOND_WARM = 4
SLOW_REFERENCE = 0.9  # of the best reference product seen in the environment
SLOWDOWNS = frozenset({"hw_slowdown", "sw_thermal", "hw_thermal", "hw_power_brake"})
"""Throttle reasons that are a fault of the machine; its power cap is met by any long product."""

SERIES = (
    "environment_id",
    "family",
    "spec",
    "provider",
    "variant",
    "mode",
    "cache_state",
    "method_version",
    "dtype",
    "batch_size",
    "phase",
)
"""Columns that points of one curve share."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that does not look right; `keys` are the points it is about."""

    rule: str
    what: str
    advice: str
    keys: tuple[str, ...]


def check(points: pd.DataFrame, hardware: dict[str, Hardware]) -> list[Finding]:
    """All findings, by rule. `hardware` gives the roofline by environment id, where known."""
    ok = points[points["outcome"] == "ok"]
    steady = _steady(ok)
    return [
        *spread(steady),
        *turns_differ(steady),
        *not_monotone(steady),
        *window_slower_than_full(steady),
        *under_the_bound(ok, hardware),
        *repeats_disagree(steady),
        *slowed_down(ok),
        *slow_spell(ok),
    ]


def doubtful(points: pd.DataFrame) -> set[str]:
    """Keys of points whose times a new measurement may mend: what is found about the call itself,
    its kernel or another environment stays as it is."""
    ok = points[points["outcome"] == "ok"]
    steady = _steady(ok)
    about_steady = (spread(steady), turns_differ(steady), not_monotone(steady))
    found = (*about_steady, slowed_down(ok), slow_spell(ok))
    return {key for rule in found for finding in rule for key in finding.keys}


def _steady(ok: pd.DataFrame) -> pd.DataFrame:
    """Without eager calls on a GPU: they carry the host's jitter, and rules would tell of that."""
    return ok[(ok["mode"] == "graph") | (ok["device_kind"] == "cpu")]


def name(row: Any) -> str:
    cached = f" after {format_tokens(int(row.cached_tokens))}" if row.cached_tokens else ""
    return (
        f"{shape(row.family, row.spec)} {row.provider} {row.phase} b{row.batch_size} "
        f"{format_tokens(int(row.new_tokens))}{cached} {row.mode} {row.cache_state}"
    )


@cache
def shape(family: str, spec: str) -> str:
    """The operation with its dimensions."""
    return operation_from(family, json.loads(spec)).short()


def rows(frame: pd.DataFrame) -> list[Any]:
    return list(frame.itertuples())


def spread(ok: pd.DataFrame) -> Iterator[Finding]:
    """Half the distance from p20 to p80 is over 5 % of the median."""
    for row in rows(ok):
        half = half_spread(row)
        if half > MAX_SPREAD:
            yield Finding(
                rule="spread",
                what=f"{name(row)}: ±{100 * half:.0f} % of {seconds_text(row.median_s)}",
                advice=f"stop other work on the device, then {AGAIN} and a larger --time-cap",
                keys=(row.key,),
            )


def half_spread(row: Any) -> float:
    return float((row.p80_s - row.p20_s) / 2 / row.median_s)


def turns_differ(ok: pd.DataFrame) -> Iterator[Finding]:
    """The later half of the samples, of another turn where there were several providers, is over
    5 % from the earlier one: the median is of neither. A wide spread is a finding of its own, and
    the clock of heavy calls swings by as much within a turn."""
    for row in rows(ok[~ok["method_version"].str.startswith(HEAVY_METHOD_VERSION)]):
        half = len(row.samples_s) // 2
        if half < FEWEST_OF_A_TURN or half_spread(row) > MAX_SPREAD:
            continue
        early, late = np.median(row.samples_s[:half]), np.median(row.samples_s[half:])
        if max(early, late) > (1 + MAX_STEP) * min(early, late):
            yield Finding(
                rule="turns",
                what=f"{name(row)}: {seconds_text(early)}, then {seconds_text(late)}",
                advice=f"something changed in between: {AGAIN}",
                keys=(row.key,),
            )


def not_monotone(ok: pd.DataFrame) -> Iterator[Finding]:
    """A call of the same curve with more new tokens, or as many after more cached ones, takes less
    time, by more than their spreads."""
    for same, along in (("cached_tokens", "new_tokens"), ("new_tokens", "cached_tokens")):
        line = ok.sort_values([*SERIES, same, along])
        curve = line.groupby([*SERIES, same], dropna=False).ngroup()
        falls = (curve == curve.shift()) & (line["p80_s"] < MIN_GROWTH * line["p20_s"].shift())
        at = np.flatnonzero(falls)
        for shorter, longer in zip(rows(line.iloc[at - 1]), rows(line.iloc[at]), strict=True):
            yield Finding(
                rule="monotone",
                what=f"{name(longer)} takes {seconds_text(longer.median_s)}, less than the "
                f"{seconds_text(shorter.median_s)} of the shorter {name(shorter)}",
                advice=f"{AGAIN}; if it stays, the kernel switches its method there",
                keys=(shorter.key, longer.key),
            )


CONDITIONS = [c for c in SERIES if c not in ("family", "spec")] + ["new_tokens", "cached_tokens"]


def window_slower_than_full(ok: pd.DataFrame) -> Iterator[Finding]:
    """Beyond its window, it takes longer than full attention of the same provider and heads."""
    attention = ok[ok["family"].isin(["full_attention", "sliding_window"])].copy()
    attention["heads"] = [_heads(text) for text in attention["spec"]]
    full = attention[attention["family"] == "full_attention"]
    windowed = attention[attention["family"] == "sliding_window"]
    same = [c for c in CONDITIONS if c != "method_version"]  # one is short, the other heavy
    both = windowed.merge(full, on=[*same, "heads"], suffixes=("", "_full"))
    for row in rows(both):
        context = row.new_tokens + row.cached_tokens
        if (
            context > json.loads(row.spec)["window"]
            and row.median_s > WINDOW_SLACK * row.median_s_full
        ):
            yield Finding(
                rule="window",
                what=f"{name(row)} takes {seconds_text(row.median_s)}, full attention "
                f"{seconds_text(row.median_s_full)}",
                advice="a window that skips no tiles: prefer another provider for this window",
                keys=(row.key, row.key_full),
            )


def _heads(spec: str) -> str:
    data = json.loads(spec)
    return json.dumps({k: v for k, v in data.items() if k not in ("mixer", "window")})


def bounds(points: pd.DataFrame, hardware: dict[str, Hardware]) -> list[float]:
    """The roofline's lower bound of each point in seconds; NaN where the device's is not known."""
    found = []
    for row in rows(points):
        device = hardware.get(row.environment_id)
        known = device is not None and row.dtype in device.peak_flops
        found.append(
            float(device.lower_bound_s(row.model_flops, row.min_bytes, row.dtype))
            if device is not None and known
            else float("nan")
        )
    return found


def under_the_bound(ok: pd.DataFrame, hardware: dict[str, Hardware]) -> Iterator[Finding]:
    """A cold call, or one moving over four caches, is faster than the roofline allows."""
    for row, bound in zip(rows(ok), bounds(ok, hardware), strict=True):
        device = hardware.get(row.environment_id)
        large = device is not None and row.min_bytes > CACHES_BEYOND_WARM * device.l2_bytes
        if row.cache_state != "cold" and not large:
            continue
        if row.median_s < BOUND_SLACK * bound:  # false where the bound is not known
            yield Finding(
                rule="bound",
                what=f"{name(row)} takes {seconds_text(row.median_s)}, the roofline allows no "
                f"less than {seconds_text(bound)}",
                advice="the data was in the cache, or work was skipped: do not use this time",
                keys=(row.key,),
            )


def repeats_disagree(ok: pd.DataFrame) -> Iterator[Finding]:
    """The same call on the same device, measured in several environments, differs by over 10 %."""
    same = [c for c in CONDITIONS if c not in ("environment_id", "method_version")]
    same += ["device", "family", "spec"]
    repeated = ok[ok.duplicated(same, keep=False)]
    for _, repeats in repeated.groupby(same, dropna=False):
        times = repeats["median_s"].to_numpy()
        ratio = float(np.max(times) / np.min(times))
        if ratio > 1 + REPEAT_TOLERANCE:
            first = rows(repeats)[0]
            yield Finding(
                rule="repeats",
                what=f"{name(first)}: {len(repeats)} measurements differ by "
                f"{100 * (ratio - 1):.0f} %",
                advice="an upgrade moved it, or one was disturbed: see `attn-profile compare`",
                keys=tuple(repeats["key"]),
            )


def slowed_down(ok: pd.DataFrame) -> Iterator[Finding]:
    """The device throttled for heat or by its hardware while the point was measured."""
    for row in rows(ok):
        seen = json.loads(row.telemetry or "{}")
        reasons = {
            r for when in ("before", "after") for r in seen.get(when, {}).get("throttle", ())
        }
        if reasons & SLOWDOWNS:
            yield Finding(
                rule="throttled",
                what=f"{name(row)}: {', '.join(sorted(reasons & SLOWDOWNS))}",
                advice=f"let the device cool, check fans and power, then {AGAIN}",
                keys=(row.key,),
            )


def slow_spell(ok: pd.DataFrame) -> Iterator[Finding]:
    """The reference product beside the point ran at under 90 % of the best in its environment.

    A spell is one finding: it slowed all points of that half minute.
    """
    read = ok.assign(reference=[_reference_flops(text) for text in ok["telemetry"]])
    for _, part in read.dropna(subset="reference").groupby("environment_id"):
        best = float(part["reference"].max())
        slow = part[part["reference"] < SLOW_REFERENCE * best]
        for _, points in slow.groupby("reference"):
            share = points["reference"].iloc[0] / best
            yield Finding(
                rule="slow spell",
                what=f"{len(points)} points beside a reference product at {100 * share:.0f} % of "
                f"the best: {name(rows(points)[0])}, …",
                advice=f"something else used the device, or its clocks fell: {AGAIN}",
                keys=tuple(points["key"]),
            )


def _reference_flops(telemetry: str) -> float:
    found = json.loads(telemetry or "{}").get("reference")
    return float(found["flops"]) if found else float("nan")

"""Stacks: blocks that were run as one, against sums of their layers and of their kernels.

    sum_of_layers     every block's time is that of a stack of it alone, measured the same way
    less_starts       the same less the start of every timing that a sum counts and a stack does
                      not: learnt from stacks of the *other* mixers, never from the stack judged
    sum_of_kernels    mixer, convolution and projections, each measured alone: norms, gates,
                      position codes and residuals are left out
    cost_model        the same and what the cost model counts for those, by launches and bytes of
                      an engine that fuses them; blocks here are of unfused torch calls

A time taken by events around one replay (`graph_flush`, `graph_plain`) holds a start that is no
layer's: the pair of events, and the write-back of the cache that the flush left dirty, for which a
call that is bound by bandwidth has to wait. A sum over n layers counts it n times, their stack
once. The SM clocks stand beside both: a stack of many milliseconds runs at the power cap, a layer
of a few may be over before the device gets there.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from planner.architecture import LayerPattern
from planner.cost.basis import Basis
from planner.cost.kernel import KernelCost
from planner.cost.observations import observations
from planner.cost.streams import LOG_HALF_WIDTH, seconds_of, stack_streams
from planner.hardware import Hardware
from planner.mixers import MixerSpec, get_mixer
from planner.workload import Op, StackOp, dtype_bytes, operation_from

CONDITIONS = (
    "environment_id", "batch_size", "new_tokens", "cached_tokens", "dtype", "training", "mode",
    "cache_state",
)  # fmt: skip
"""What a stack and its layers have to share."""

COLUMNS = (
    *CONDITIONS, "key", "phase", "length", "pattern", "hidden_size", "mlp_size", "label", "mixer",
    "ratio", "provider", "stack_mhz", "layers_mhz", "stack_s", "sum_s", "extra_starts", "start_s",
    "predicted_s", "residual",
)  # fmt: skip

ONE_REPLAY = ("graph_flush", "graph_plain")
"""Timing methods with one pair of events around one replay of the call."""

SHORT_LAYER_S = 500e-6
"""Layers up to this long tell what a start takes; in longer ones 10 us are lost in the noise."""

MIN_STACK_S = 100e-6

ALL = "all"


class Layer(NamedTuple):
    """One layer's share of a stack of `depth` of it."""

    depth: int
    seconds: float
    starts: float
    clock_mhz: float


def stack_residuals(points: pd.DataFrame) -> pd.DataFrame:
    """One row per timed stack of several layers, each of which was timed in a shallower stack too.

    `residual` is the stack's time over the sum of its layers, less 1. `predicted_s` is the sum
    less `extra_starts` times `start_s`; NaN where no other mixer's stacks tell a start.
    """
    stacks = [(row, op) for row, op in _stacks(points) if len(op.pattern) > 1]
    singles: dict[tuple[Any, ...], Layer] = {}
    for row, op in _stacks(points):
        if len(set(op.pattern)) == 1:
            n = len(op.pattern)
            layer = Layer(n, row.median_s / n, _starts(row) / n, _clock_mhz(row))
            key = _layer_key(row, op, op.pattern[0], row.provider)
            singles[key] = min(layer, singles.get(key, layer))
    found = [_residual(row, op, singles) for row, op in stacks]
    frame = pd.DataFrame([r for r in found if r is not None], columns=list(COLUMNS[:-3]))
    return _with_starts(frame)


def _stacks(points: pd.DataFrame) -> Iterator[tuple[Any, StackOp]]:
    rows: Any = points[(points["family"] == "stack") & (points["outcome"] == "ok")].itertuples()
    for row in rows:
        op = operation_from("stack", json.loads(row.spec))
        assert isinstance(op, StackOp)
        yield row, op


def _layer_key(row: Any, op: StackOp, letter: str, provider: str) -> tuple[Any, ...]:
    conditions = (getattr(row, name) for name in CONDITIONS)
    around = (op.hidden_size, op.mlp_size, op.mlp_gated)
    return (*conditions, *around, dict(op.kinds)[letter], provider)


def _starts(row: Any) -> int:
    return int(row.timing_method in ONE_REPLAY)


def _clock_mhz(row: Any) -> float:
    """The SM clock as the timing ended; NaN where it was not seen."""
    return float(json.loads(row.telemetry or "{}").get("after", {}).get("sm_mhz", math.nan))


def providers_by_letter(op: StackOp, provider: str) -> dict[str, str]:
    """A stack's provider names one per letter that it uses, joined by + in order of letter."""
    used = [letter for letter, _ in op.kinds if letter in op.pattern]
    return dict(zip(used, provider.split("+"), strict=True))


def _residual(
    row: Any, op: StackOp, singles: Mapping[tuple[Any, ...], Layer]
) -> dict[str, Any] | None:
    named, counts = providers_by_letter(op, row.provider), Counter(op.pattern)
    keys = {letter: _layer_key(row, op, letter, named[letter]) for letter in counts}
    if not all(key in singles for key in keys.values()):
        return None
    layers = [(n, singles[keys[letter]]) for letter, n in counts.items()]
    if len(layers) == 1 and layers[0][1].depth == len(op.pattern):
        return None  # it would be compared with itself
    total = sum(n * layer.seconds for n, layer in layers)
    ratio, mixer = ratio_and_mixer(op)
    return {
        **{name: getattr(row, name) for name in (*CONDITIONS, "key", "phase")},
        "length": row.cached_tokens if row.phase == "decode" else row.new_tokens,
        "pattern": op.pattern,
        "hidden_size": op.hidden_size,
        "mlp_size": op.mlp_size,
        "label": f"{ratio} {mixer}",
        "mixer": mixer,
        "ratio": ratio,
        "provider": row.provider,
        "stack_mhz": _clock_mhz(row),
        "layers_mhz": sum(n * layer.seconds * layer.clock_mhz for n, layer in layers) / total,
        "stack_s": row.median_s,
        "sum_s": total,
        "extra_starts": sum(n * layer.starts for n, layer in layers) - _starts(row),
    }


def ratio_and_mixer(op: StackOp) -> tuple[str, str]:
    """ "3:1" and the name of the mixer beside the full layers, or the full layers' own."""
    specs: dict[str, MixerSpec] = {c: spec for c, spec in op.kinds if c in op.pattern}
    full = {c for c, spec in specs.items() if get_mixer(spec.mixer).kind == "full"}
    pattern = LayerPattern("".join("F" if c in full else "x" for c in op.pattern))
    linear = [spec.mixer for c, spec in specs.items() if c not in full]
    return pattern.ratio_label("F"), "+".join(linear) or specs[op.pattern[0]].mixer


def _with_starts(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds the start that the other mixers' stacks of a phase and environment show."""
    counted = frame[(frame["extra_starts"] > 0)]
    layers = counted["pattern"].str.len()
    short = counted[counted["sum_s"] / layers <= SHORT_LAYER_S]
    seen = (short["sum_s"] - short["stack_s"]) / short["extra_starts"]
    starts = []
    rows: Any = frame.itertuples()
    for row in rows:
        others = (
            (short["mixer"] != row.mixer)
            & (short["phase"] == row.phase)
            & (short["environment_id"] == row.environment_id)
        )
        if row.extra_starts == 0:
            starts.append(0.0)
        else:
            starts.append(float(seen[others].median()) if others.any() else math.nan)
    start_s = pd.Series(starts, index=frame.index, dtype=float)
    return frame.assign(
        start_s=start_s,
        predicted_s=frame["sum_s"] - frame["extra_starts"] * start_s,
        residual=frame["stack_s"] / frame["sum_s"] - 1,
    )


# From single kernels


def kernel_sums(points: pd.DataFrame, kernels: Mapping[str, KernelCost]) -> pd.DataFrame:
    """Every timed stack against its kernels: `stack_s`, `predicted_s`, `low_s`, `high_s`, and
    `between_s`, which the cost model adds.

    `kernels` are fits by runtime mode, each of that mode's points alone. A stack is left out where
    a kernel of it was neither measured nor lies between measured points under its providers.
    """
    found = []
    for row, op in _stacks(points):
        if row.mode in kernels and (total := _kernel_sum(row, op, kernels[row.mode])) is not None:
            ratio, mixer = ratio_and_mixer(op)
            seconds, half = total
            found.append(
                {
                    "key": row.key,
                    "phase": row.phase,
                    "mode": row.mode,
                    "dtype": row.dtype,
                    "length": row.cached_tokens if row.phase == "decode" else row.new_tokens,
                    "pattern": op.pattern,
                    "label": f"{ratio} {mixer}",
                    "mixer": mixer,
                    "ratio": ratio,
                    "stack_s": row.median_s,
                    "predicted_s": seconds,
                    "low_s": seconds - half,
                    "high_s": seconds + half,
                    "between_s": _between_s(row, op, kernels[row.mode]),
                }
            )
    columns = ["key", "phase", "mode", "dtype", "length", "pattern", "label", "mixer", "ratio",
               "stack_s", "predicted_s", "low_s", "high_s", "between_s"]  # fmt: skip
    return pd.DataFrame(found, columns=columns)


def _between_s(row: Any, op: StackOp, kernels: KernelCost) -> float:
    return seconds_of(
        stack_streams(op),
        row.batch_size * row.new_tokens,
        row.batch_size,
        launch_s=kernels.shortest_call_s,
        bandwidth=kernels.hardware.bandwidth,
        elem_bytes=dtype_bytes(row.dtype),
    )


def as_the_model(sums: pd.DataFrame) -> pd.DataFrame:
    """`kernel_sums` in CUDA graphs with what runs between, as the cost model predicts blocks."""
    sums = sums[sums["mode"] == "graph"]
    between, half = sums["between_s"], (sums["high_s"] - sums["low_s"]) / 2
    predicted = sums["predicted_s"] + between
    down, up = -math.expm1(-LOG_HALF_WIDTH), math.expm1(LOG_HALF_WIDTH)
    return sums.assign(
        predicted_s=predicted,
        low_s=predicted - np.hypot(half, down * between),
        high_s=predicted + np.hypot(half, up * between),
    )


def _kernel_sum(row: Any, op: StackOp, kernels: KernelCost) -> tuple[float, float] | None:
    """(seconds, 80 % half-width) of a stack's kernels; errors of one kernel add, of others in
    quadrature."""
    named = providers_by_letter(op, row.provider)
    mixers = {dict(op.kinds)[letter].mixer: provider for letter, provider in named.items()}
    seconds, halves = 0.0, defaultdict[str, float](float)
    calls = ((part, int(new)) for part, new in op.calls(row.new_tokens, row.cached_tokens))
    for (part, new_tokens), count in Counter(calls).items():
        provider = mixers.get(part.family)
        if not _is_measured(part, row, provider, kernels):
            return None
        one = kernels.predict_one(
            part, row.batch_size, new_tokens, row.cached_tokens, dtype=row.dtype,
            provider=provider, mode=row.mode,
        )  # fmt: skip
        if one.basis > Basis.INTERPOLATED or one.outcome != "ok":
            return None
        seconds += count * one.latency_s
        halves[one.error_group] += count * (one.high_s - one.low_s) / 2
    return seconds, math.sqrt(sum(half**2 for half in halves.values()))


def _is_measured(part: Op, row: Any, provider: str | None, kernels: KernelCost) -> bool:
    known = kernels.providers(part, phase=row.phase, dtype=row.dtype)
    return provider in known if provider else bool(known)


# The table


def stack_calibration(points: pd.DataFrame, hardware: Hardware) -> list[dict[str, Any]]:
    """`stack_table` of one device's own points, its kernels fitted by runtime mode."""
    own = points[points["device_kind"] != "imported"]
    return stack_table(stack_residuals(own), kernel_sums(own, kernels_by_mode(own, hardware)))


def kernels_by_mode(points: pd.DataFrame, hardware: Hardware) -> dict[str, KernelCost]:
    kernels = points[points["family"] != "stack"]
    return {
        str(mode): KernelCost.fit(observations(rows), hardware)
        for mode, rows in kernels.groupby("mode")
    }


def stack_table(residuals: pd.DataFrame, sums: pd.DataFrame) -> list[dict[str, Any]]:
    """Lines `family, provider, phase, mode, fold, ratio, n, median_ape, p90_ape, coverage80,
    median_error`.

    Of stacks of at least 100 us, per phase, runtime mode and ratio, `ratio` "all" for all of them;
    errors are in percent of the measured time, the last one signed. Sums of kernels have an
    interval, those of layers have none.
    """
    residuals = residuals[residuals["stack_s"] >= MIN_STACK_S]
    mixed = sums[(sums["stack_s"] >= MIN_STACK_S)]
    started = residuals.dropna(subset="predicted_s")
    folds = (
        ("sum_of_layers", residuals.assign(predicted_s=residuals["sum_s"])),
        ("less_starts", started),
        ("sum_of_kernels", mixed),
        ("cost_model", as_the_model(mixed)),
    )
    return [
        line
        for fold, frame in folds
        for (phase, mode), rows in frame.groupby(["phase", "mode"])
        for line in _lines({"phase": phase, "mode": mode, "fold": fold}, rows)
    ]


def _lines(named: Mapping[str, Any], frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for ratio, rows in [(ALL, frame), *frame.groupby("ratio")]:
        signed = 100 * (rows["predicted_s"] / rows["stack_s"] - 1)
        covered = math.nan
        if "low_s" in rows:
            inside = (rows["low_s"] <= rows["stack_s"]) & (rows["stack_s"] <= rows["high_s"])
            covered = float(inside.mean())
        yield {
            "family": "stack",
            "provider": ALL,
            **named,
            "ratio": str(ratio),
            "n": len(rows),
            "median_ape": float(signed.abs().median()),
            "p90_ape": float(np.quantile(signed.abs(), 0.9)),
            "coverage80": covered,
            "median_error": float(signed.median()),
        }

"""Which of other people's times to believe, which to drop, and which to flag.

Repeats must agree; no time may undercut what the device can do; a kernel that is several times
slower than the device's best is true, but nothing to plan with.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from planner.catalog import hardware_for_device
from planner.formats.aiconfigurator.tables import KEY, Dropped, Frame, keep
from planner.hardware import Hardware
from planner.workload import ExpertsOp, Op, dtype_bytes, operation_from

REPEATS_AGREE = 1.10
"""Largest over smallest time of the same call for its repeats to count as agreeing."""

UNTRUSTED = 0.2
"""Share of a kernel's repeated calls that disagree from which its unrepeated ones are dropped too.
One table reaches 0.24 to 0.35 (SGLang 0.5.14's Gated DeltaNet on H200); the next has 0.13."""

TOLERANCE = 0.98
"""A time may undercut the device's bound by this much: clocks boost above the datasheet's."""

SLOW = 3.0
"""Median ratio to the device's best kernel from which a kernel is flagged …"""

SLOW_FROM_S = 100e-6
"""… over calls that take the best kernel at least this long (below it, launches decide)."""

CALL = [column for column in KEY if column != "provider"]


def settle_repeats(rows: Frame, dropped: Dropped) -> Frame:
    """One row per call with its times in `samples_s`; repeats that disagree are dropped.

    A table may hold a call once for each model that makes it. `latency_s` becomes the median.
    Where too many of a kernel's repeats disagree, its calls without repeats go too.
    """
    again = rows.duplicated(KEY, keep=False)
    alone = rows.loc[~again]
    alone = alone.assign(samples_s=alone["latency_s"].map(lambda t: [t]))
    if not again.any():
        return alone
    others = [c for c in rows if c not in (*KEY, "latency_s")]
    groups = rows.loc[again].groupby(KEY, sort=False)
    merged = groups[others].first().assign(samples_s=groups["latency_s"].agg(list)).reset_index()
    agree = merged["samples_s"].map(lambda times: max(times) <= REPEATS_AGREE * min(times))
    lost = int(merged.loc[~agree, "samples_s"].map(len).sum())
    if lost:
        dropped[f"whose repeats differ by more than {REPEATS_AGREE - 1:.0%}"] += lost
    kernel = ["provider", "family"]
    doubtful = (~agree).groupby([merged[c] for c in kernel]).mean()
    untrusted = doubtful.index[doubtful >= UNTRUSTED]
    trusted = ~pd.MultiIndex.from_frame(alone[kernel]).isin(untrusted)
    alone = keep(
        alone, pd.Series(trusted, alone.index), dropped, "of a kernel whose repeats often differ"
    )
    merged = merged.loc[agree].assign(latency_s=merged["samples_s"].map(np.median))
    return pd.concat([alone, merged], ignore_index=True)


def drop_impossible(rows: Frame, dropped: Dropped) -> Frame:
    """Drops times below the device's bound: such a call did not do the work it names.

    It saw no window, or no cache: some tables hold steps over caches larger than the device's
    memory. Arithmetic at the dense peak; traffic beyond what the L2 cache may hold from the last
    replay. Devices the catalog does not have are not checked.
    """
    possible = pd.Series(True, rows.index)
    shapes = rows.groupby(["device", "family", "spec", "dtype", "variant"])
    for names, part in shapes:
        device, family, spec, dtype, variant = map(str, names)
        hardware = hardware_for_device(device)
        if hardware is not None:
            op = operation_from(family, json.loads(spec))
            bound = _bound_s(op, part, dtype, variant, hardware)
            possible[part.index] = part["latency_s"] >= TOLERANCE * bound
    return keep(rows, possible, dropped, "faster than the device can be, or larger than it")


def _bound_s(op: Op, part: Frame, dtype: str, variant: str, hardware: Hardware) -> Any:
    """Least seconds of each call; infinite where the device's memory could not hold it."""
    batch, new, cached = (
        part[c].to_numpy() for c in ("batch_size", "new_tokens", "cached_tokens")
    )
    # A variant may store half as much and multiply in fp8, or route tokens to fewer experts.
    share = 1.0 if not variant else 0.0 if isinstance(op, ExpertsOp) else 0.5
    unit = "fp8" if "kv=fp8" in variant else dtype
    arithmetic = op.model_flops(batch, new, cached) / hardware.peak_flops.get(unit, np.inf)
    moved = share * op.min_bytes(batch, new, cached, dtype_bytes(dtype))
    traffic = (moved - hardware.l2_bytes) / hardware.bandwidth
    return np.where(moved > hardware.memory_bytes, np.inf, np.maximum(arithmetic, traffic))


def mark_slow(rows: Frame) -> Frame:
    """Adds `slow`: how many times slower than the device's best a flagged kernel is, else NaN.

    A kernel is a provider on one shape, phase and dtype. It is flagged if its median ratio to the
    best provider is at least SLOW, over the calls for which the best needs SLOW_FROM_S.
    """
    best = rows.groupby(["device", *CALL])["latency_s"].transform("min")
    ratio = (rows["latency_s"] / best).where(best >= SLOW_FROM_S)
    decode = (rows["new_tokens"] == 1) & (rows["cached_tokens"] > 0)
    kernel = ["device", "provider", "family", "spec", "dtype", "variant", "mode", "decode"]
    kernels = rows.assign(decode=decode, ratio=ratio).groupby(kernel)
    typical = kernels["ratio"].transform("median")
    return rows.assign(slow=typical.where(typical >= SLOW))

"""Crossover: for which contexts and batches one kernel beats another, and how sure that is.

    full = Side("full", (MixerOp(attention),), {"full_attention": "sdpa_cudnn"})
    gdn = Side("GDN", (MixerOp(deltanet), ConvOp(8192, 4)))
    found = crossover(kernels, full, gdn, contexts, batches, phase="prefill")
    found.line.context     # per batch: from here on GDN is the faster one

The answer is a surface, not a number: it moves with the batch and with the provider of each side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cost.curves import Floats, Ints
from planner.cost.kernel import KernelCost, Prediction
from planner.errors import UsageError
from planner.workload import Op


@dataclass(frozen=True)
class Side:
    """One contestant: operations that run one after the other, such as a mixer and its
    convolution. `providers` maps a family to a provider; others take the fastest."""

    name: str
    ops: tuple[Op, ...]
    providers: Mapping[str, str] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Per batch the context from which the second side stays ahead, with its 80 % interval.

    NaN where it never does inside the grid; the grid's first context where it always is.
    """

    context: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """Two sides over batch x context. All surfaces are [batches, contexts].

    `log_ratio` is log(first's seconds / second's): positive where the second is faster, infinite
    where only one of them runs, NaN where neither does. `half` is its 80 % half-width.
    """

    first: Side
    second: Side
    phase: str
    contexts: Ints
    batches: Ints
    first_s: Floats
    second_s: Floats
    log_ratio: Floats
    half: Floats
    basis: NDArray[np.int8]
    first_provider: NDArray[np.object_]
    second_provider: NDArray[np.object_]

    @property
    def speedup(self) -> Floats:
        """How many times faster the second side is."""
        return np.exp(self.log_ratio)

    @property
    def winner(self) -> NDArray[np.int8]:
        """1 or 2 where that side is ahead by more than the interval, 0 where neither is."""
        sure = np.abs(self.log_ratio) > self.half
        return np.where(sure, np.where(self.log_ratio > 0, 2, 1), 0).astype(np.int8)

    @cached_property
    def line(self) -> Line:
        return Line(
            context=stays_positive(self.contexts, self.log_ratio),
            low=stays_positive(self.contexts, self.log_ratio + self.half),
            high=stays_positive(self.contexts, self.log_ratio - self.half),
        )


def crossover(
    kernels: KernelCost,
    first: Side,
    second: Side,
    contexts: ArrayLike,
    batches: ArrayLike,
    *,
    phase: Literal["prefill", "decode"],
    dtype: str = "bf16",
    mode: str = "graph",
) -> Crossover:
    """Both sides' times at every batch and context.

    A prefill is of `context` new tokens; a decode step is one token after `context` cached ones.
    A family that was not measured in runtime `mode` is taken in the one it was measured in.
    """
    lengths, rows = np.atleast_1d(np.asarray(contexts)), np.atleast_1d(np.asarray(batches))
    if (np.diff(lengths) <= 0).any() or (np.diff(rows) <= 0).any():
        raise UsageError("contexts and batches must rise")
    batch, context = np.meshgrid(rows, lengths, indexing="ij")
    new, cached = (context, 0) if phase == "prefill" else (1, context)
    one, two = (
        [_predict(kernels, op, side, (batch, new, cached), phase, dtype, mode) for op in side.ops]
        for side in (first, second)
    )
    first_s, second_s = (_total(parts) for parts in (one, two))
    return Crossover(
        first=first,
        second=second,
        phase=phase,
        contexts=lengths,
        batches=rows,
        first_s=first_s,
        second_s=second_s,
        log_ratio=_log_ratio(first_s, second_s),
        half=_half_width(one, two, first_s, second_s),
        basis=np.maximum.reduce([p.basis for p in (*one, *two)]),
        first_provider=one[0].provider,
        second_provider=two[0].provider,
    )


def _predict(
    kernels: KernelCost, op: Op, side: Side, at: tuple[Any, Any, Any], phase: str, dtype: str,
    mode: str,
) -> Prediction:  # fmt: skip
    provider = side.providers.get(op.family)
    known = kernels.mode_for(op, mode, phase=phase, dtype=dtype, provider=provider)
    return kernels.predict(op, *at, dtype=dtype, provider=provider, mode=known)


def _total(parts: list[Prediction]) -> Floats:
    seconds: Floats = np.sum([p.latency_s for p in parts], axis=0)
    return seconds


def _log_ratio(first: Floats, second: Floats) -> Floats:
    """log(first / second); a side that does not run has lost."""
    ratio = np.log(np.where(np.isnan(first), np.inf, first)) - np.log(
        np.where(np.isnan(second), np.inf, second)
    )
    return np.asarray(np.where(np.isnan(first) & np.isnan(second), np.nan, ratio))


def _half_width(
    one: list[Prediction], two: list[Prediction], first: Floats, second: Floats
) -> Floats:
    """Of the log ratio: shares of a side that err together add, sides of one group cancel,
    groups go in quadrature."""
    groups: dict[str, Floats] = {}
    for sign, parts, total in ((1.0, one, first), (-1.0, two, second)):
        for p in parts:
            half = sign * (p.high_s - p.low_s) / 2 / total
            groups[p.error_group] = groups.get(p.error_group, np.zeros(half.shape)) + half
    squares: Floats = np.sum([np.nan_to_num(half) ** 2 for half in groups.values()], axis=0)
    return np.sqrt(squares)


def stays_positive(contexts: Ints, advantage: Floats) -> Floats:
    """[batches] the context from which `advantage` is positive to the end of the grid.

    Between the last context where it is not and the next one, linear in log context.
    """
    x = np.log(contexts)
    found = np.full(len(advantage), np.nan)
    for i, a in enumerate(advantage):
        behind = np.flatnonzero(~(a > 0))
        if not len(behind):
            found[i] = contexts[0]
        elif behind[-1] < len(a) - 1:
            k = behind[-1]
            part = a[k] / (a[k] - a[k + 1]) if np.isfinite(a[k]) and np.isfinite(a[k + 1]) else 1.0
            found[i] = np.exp(x[k] + part * (x[k + 1] - x[k]))
    return found

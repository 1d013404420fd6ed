"""How wrong the cost model has been: errors and interval coverage on points it was not shown.

One row per mixer, provider, phase and fold:

    leave_one_out          an inner point of a row from the rest: at least 1,000 tokens, 30 us
    leave_one_out_short    the same for shorter calls, which are mostly launches
    leave_row_out          a whole batch size from the ones below and above it
    leave_end_out_2x …8x   a row's last point from lengths 2, 4, 8 times shorter
    leave_shape_out        a whole shape from the nearest other shape

Methods and interval widths are chosen on half of the shapes and scored on the other half, both
ways. Kernels with fewer than four shapes share one choice, and each half of the left-out points
gets the widths of the other half.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.cost.curves import Curve, Floats, Pool
from planner.cost.kernel import KernelCost
from planner.cost.leave_out import choose, leave_end_out, leave_one_out, leave_row_out
from planner.cost.neighbours import Neighbours
from planner.cost.observations import Observation
from planner.cost.provider_kernel import ProviderKernel
from planner.cost.recipe import END_FACTORS, Recipe
from planner.cost.width import MIN_ERRORS, LeftOut, Width, conformal_quantile, interval_score
from planner.hardware import Hardware

SPLIT_SHAPES = 4


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Left-out errors with the half-widths that other points gave them.

    `constant` is the half-width that would cover 80 % of those other points, the same for all:
    the baseline that a width must beat.
    """

    errors: Floats
    half: Floats
    constant: Floats

    @classmethod
    def join(cls, parts: Sequence[Scored]) -> Scored:
        return cls(
            errors=np.concatenate([p.errors for p in parts] or [np.empty(0)]),
            half=np.concatenate([p.half for p in parts] or [np.empty(0)]),
            constant=np.concatenate([p.constant for p in parts] or [np.empty(0)]),
        )

    def row(self) -> dict[str, Any]:
        """n, errors in percent of the measured time, coverage and interval scores."""
        ape = 100 * np.abs(np.expm1(self.errors))
        return {
            "n": len(self.errors),
            "median_ape": float(np.median(ape)),
            "p90_ape": float(np.quantile(ape, 0.9)),
            "coverage80": float(np.mean(np.abs(self.errors) <= self.half)),
            "interval_score": interval_score(self.errors, self.half),
            "constant_width_score": interval_score(self.errors, self.constant),
        }


def kernel_calibration(
    observations: Iterable[Observation], hardware: Hardware
) -> list[dict[str, Any]]:
    """Rows `family, provider, phase, mode, dtype, fold, n, median_ape, p90_ape, coverage80,
    interval_score, constant_width_score`; folds with fewer than eight points are left out."""
    fitted = KernelCost.fit(observations, hardware)
    rows = []
    for kernel in fitted.kernels:
        if kernel.flagged:
            continue
        for fold, scored in _folds(kernel, hardware):
            if len(scored.errors) >= MIN_ERRORS:
                rows.append({**_name(kernel), "fold": fold, **scored.row()})
    return rows


def _name(kernel: ProviderKernel) -> dict[str, str]:
    i = kernel.identity
    return {
        "family": i.family,
        "provider": i.provider,
        "phase": i.phase,
        "mode": i.mode,
        "dtype": i.dtype,
    }


def _folds(kernel: ProviderKernel, hardware: Hardware) -> Iterator[tuple[str, Scored]]:
    curves = [c.measured() for c in kernel.curves.values()]
    if not curves:
        return
    halves = _halves(curves, kernel.recipe)
    yield "leave_one_out", _inside(curves, halves, short=False)
    yield "leave_one_out_short", _inside(curves, halves, short=True)
    yield "leave_row_out", _across(curves, halves)
    for factor in END_FACTORS:
        yield f"leave_end_out_{factor:g}x", _beyond(curves, halves, factor)
    yield "leave_shape_out", _alternate(kernel.scale(hardware).left_out.judged())


@dataclass(frozen=True)
class _Half:
    """The recipe chosen on one half of the shapes, and which curves it is scored on."""

    recipe: Recipe
    scored: NDArray[np.bool_]


def _halves(curves: Sequence[Curve], whole: Recipe) -> list[_Half]:
    """Even and odd shapes; with few shapes one half that is all of them."""
    if len(curves) < SPLIT_SHAPES:
        return [_Half(whole, np.ones(len(curves), bool))]
    even = np.arange(len(curves)) % 2 == 0
    return [
        _Half(choose([c for c, use in zip(curves, ~scored, strict=True) if use], whole), scored)
        for scored in (even, ~even)
    ]


def _inside(curves: Sequence[Curve], halves: Sequence[_Half], *, short: bool) -> Scored:
    """Inner points from their rows and neighbours, of all shapes but the point itself."""
    pool = Pool.of(curves)
    at, _ = pool.leave_one_out()
    curve_of = pool.curve_of[pool.row_of[at]]
    parts = []
    for half in halves:
        if half.recipe.neighbours == "none":
            left_out = leave_one_out(pool, half.recipe)
        else:
            left_out = Neighbours.of(pool, half.recipe).leave_one_out()
        keep = ~left_out.relevant if short else left_out.relevant
        parts.append(_score(left_out, half.scored[curve_of], keep))
    return Scored.join(parts)


def _across(curves: Sequence[Curve], halves: Sequence[_Half]) -> Scored:
    parts = []
    for half in halves:
        found = [leave_row_out(c, half.recipe) for c in curves]
        which = np.repeat(np.arange(len(curves)), [len(f) for f in found])
        left_out = LeftOut.join(found)
        parts.append(_score(left_out, half.scored[which], left_out.relevant))
    return Scored.join(parts)


def _beyond(curves: Sequence[Curve], halves: Sequence[_Half], factor: float) -> Scored:
    parts = []
    for half in halves:
        found = [leave_end_out(Pool.of([c]), half.recipe.end, factor) for c in curves]
        which = np.repeat(np.arange(len(curves)), [len(f) for f in found])
        left_out = LeftOut.join(found)
        parts.append(_score(left_out, half.scored[which], left_out.relevant))
    return Scored.join(parts)


def _score(left_out: LeftOut, scored: NDArray[np.bool_], keep: NDArray[np.bool_]) -> Scored:
    """The `scored` points under widths from the others; alternating if all are scored."""
    if scored.all():
        return _alternate(left_out.select(keep))
    return _under(left_out.select(~scored & keep), left_out.select(scored & keep))


def _alternate(left_out: LeftOut) -> Scored:
    """Each half of the points under the widths of the other half."""
    even = np.arange(len(left_out)) % 2 == 0
    return Scored.join(
        [_under(left_out.select(~part), left_out.select(part)) for part in (even, ~even)]
    )


def _under(others: LeftOut, scored: LeftOut) -> Scored:
    if len(others) < MIN_ERRORS // 2:
        return Scored.join([])
    constant = conformal_quantile(np.abs(others.errors))
    return Scored(
        errors=scored.errors,
        half=Width.of(others).at(scored.doubts),
        constant=np.full(len(scored), constant),
    )

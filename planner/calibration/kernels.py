"""How wrong the cost model has been: errors and interval coverage on points it was not shown.

One row per mixer, provider, phase and fold:

    leave_one_out          an inner point of a row from the rest: at least 1,000 tokens, 30 us
    leave_one_out_short    the same for shorter calls, which are mostly launches
    leave_row_out          a whole batch size from the ones below and above it
    leave_end_out_2x …8x   a row's last point from lengths 2, 4, 8 times shorter
    leave_shape_out        a whole shape from the nearest other shape

A kernel's methods are the few that its own left-out points preferred. Interval widths are learnt
from half of the shapes and scored on the other half, both ways; of kernels with fewer than four
shapes, from every other point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from planner.cost.curves import Curve, Floats, Ints, Pool
from planner.cost.kernel import KernelCost
from planner.cost.leave_out import leave_end_out, leave_one_out, leave_row_out
from planner.cost.neighbours import Neighbours
from planner.cost.observations import Observation
from planner.cost.provider_kernel import ProviderKernel
from planner.cost.recipe import END_FACTORS, EndRule, Recipe
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
    interval_score, constant_width_score`; folds with fewer than eight points are left out, and
    stacks, which are no kernels."""
    fitted = KernelCost.fit((o for o in observations if o.op.family != "stack"), hardware)
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
    recipe, count = kernel.recipe, len(curves)
    inside = _inside(Pool.of(curves), recipe)
    yield "leave_one_out", _score(*inside, count)
    yield "leave_one_out_short", _score(*inside, count, short=True)
    across = _by_curve(curves, lambda c: leave_row_out(c, recipe))
    yield "leave_row_out", _score(*across, count)
    for factor in END_FACTORS:
        beyond = _by_curve(curves, partial(_end, rule=recipe.end, factor=factor))
        yield f"leave_end_out_{factor:g}x", _score(*beyond, count)
    yield "leave_shape_out", _alternate(kernel.scale(hardware).left_out.judged())


def _end(curve: Curve, rule: EndRule, factor: float) -> LeftOut:
    return leave_end_out(Pool.of([curve]), rule, factor)


def _inside(pool: Pool, recipe: Recipe) -> tuple[LeftOut, Ints]:
    """Inner points from their rows and neighbours, and the curve of each."""
    at, _ = pool.leave_one_out()
    curve_of = pool.curve_of[pool.row_of[at]]
    if recipe.neighbours == "none":
        return leave_one_out(pool, recipe), curve_of
    return Neighbours.of(pool, recipe).leave_one_out(), curve_of


def _by_curve(curves: Sequence[Curve], judge: Callable[[Curve], LeftOut]) -> tuple[LeftOut, Ints]:
    found = [judge(c) for c in curves]
    return LeftOut.join(found), np.repeat(np.arange(len(curves)), [len(f) for f in found])


def _score(left_out: LeftOut, curve_of: Ints, num_curves: int, *, short: bool = False) -> Scored:
    """Errors of relevant (or short) points under widths from other shapes."""
    keep = ~left_out.relevant if short else left_out.relevant
    kept, curve_of = left_out.select(keep), curve_of[keep]
    if num_curves < SPLIT_SHAPES:
        return _alternate(kept)
    even = curve_of % 2 == 0
    return Scored.join([_under(kept.select(~part), kept.select(part)) for part in (even, ~even)])


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

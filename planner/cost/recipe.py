"""Recipe: how a kernel's curves are read, chosen and judged by leaving points out.

For each kind of kernel (family, provider, phase) every interpolation method and every way to
extrapolate is tried on points it was not shown; the best is kept, and its errors become the
intervals. Errors are sorted by `doubt`, how far two readings disagree at the point, so that a
smooth stretch gets a narrow interval and a step a wide one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from planner.cost.curves import (
    DRIVERS,
    METHODS,
    Curve,
    Floats,
    Ints,
    Stencil,
    before_start,
    beyond_end,
    log_linear,
)

COVERAGE = 0.8
MIN_ERRORS = 8
"""With fewer left-out points than this a choice is a guess: the coarser pool's is taken."""

END_NODES = (1, 2, 3, 4)
END_FACTORS = (2.0, 4.0, 8.0)

DEFAULT_INSIDE = 0.08
"""Half-width where nothing could be left out: plain linear interpolation of the published H200
prefill tables (aiconfigurator 0.12) misses by 8 % at the ninetieth percentile."""

DEFAULT_PER_DOUBLING = 0.15
"""The same for each doubling beyond the grid: those tables' users see 13 / 33 / 70 % at 2x / 4x
/ 8x with a constant slope."""

DOUBT_FLOOR = 1e-4
MAX_BINS = 6
BIN_ERRORS = 40


def upper_quantile(values: Floats) -> float:
    """The conformal 80 % quantile: rank ceil(0.8 (n + 1)) of n, the largest if n is small."""
    rank = min(math.ceil(COVERAGE * (len(values) + 1)), len(values))
    return float(np.sort(values)[rank - 1])


@dataclass(frozen=True, kw_only=True)
class Width:
    """80 % half-width of the log error, rising with the log of the doubt."""

    log_doubt: Floats
    half_width: Floats
    count: int

    @classmethod
    def of(cls, errors: Floats, doubts: Floats) -> Width:
        """Quantiles of |error| in bins of equal count along doubt, made to rise with it."""
        order = np.argsort(doubts, kind="stable")
        bins = int(np.clip(len(errors) // BIN_ERRORS, 1, MAX_BINS))
        parts = np.array_split(order, bins)
        half = np.array([upper_quantile(np.abs(errors[p])) for p in parts])
        return cls(
            log_doubt=np.array([np.median(np.log(doubts[p])) for p in parts]),
            half_width=np.maximum.accumulate(half),
            count=len(errors),
        )

    def at(self, doubt: Floats) -> Floats:
        return np.interp(np.log(doubt), self.log_doubt, self.half_width)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the curves of one kind of kernel are read.

    `inside` gives the half-width between nodes; `beyond[k]` that at END_FACTORS[k] times the
    last length.
    """

    method: str = "affine"
    driver: str = "executed"
    end_driver: str = "executed"
    end_nodes: int = 2
    inside: Width | None = None
    beyond: tuple[Width | None, ...] = (None, None, None)

    def width_inside(self, doubt: Floats) -> Floats:
        if self.inside is None:
            return np.maximum(DEFAULT_INSIDE, doubt)
        return self.inside.at(doubt)

    def width_beyond(self, doublings: Floats, doubt: Floats) -> Floats:
        """Linear in the number of doublings, between the left-out factors and past them."""
        at, half = [0.0], [self.width_inside(np.full(np.shape(doubt), DOUBT_FLOOR))]
        for factor, width in zip(END_FACTORS, self.beyond, strict=True):
            if width is not None:
                at.append(math.log2(factor))
                half.append(width.at(doubt))
        if len(at) == 1:
            return half[0] + np.maximum(DEFAULT_PER_DOUBLING, doubt) * doublings
        rising = np.maximum.accumulate(np.stack(half), axis=0)
        i = np.clip(np.searchsorted(at, doublings) - 1, 0, len(at) - 2)
        j = np.arange(len(doublings))
        low, high = rising[i, j], rising[i + 1, j]
        step = np.asarray(at)
        return low + (high - low) * (doublings - step[i]) / (step[i + 1] - step[i])


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Rows read at N positions.

    `half_width` is of the log latency; `doublings` how far outside the row, in factors of two;
    `left` and `right` the nodes it rests on.
    """

    log_s: Floats
    half_width: Floats
    doublings: Floats
    at_node: NDArray[np.bool_]
    left: Ints
    right: Ints


def read_rows(curve: Curve, recipe: Recipe, row_index: Ints, axis: Floats) -> Reading:
    """Reads rows, by index, at positions: a node's own value, between nodes, or outside them."""
    x = np.log(axis)
    s = curve.locate(row_index, x)
    value, doubt = _between(curve, recipe, s, curve.rows[row_index], axis, x)
    half = recipe.width_inside(doubt)
    doublings = np.zeros(len(x))
    over, under = x > curve.log_axis[s.right], x < curve.log_axis[s.left]
    if over.any():
        end = s.right[over]
        doublings[over] = (x[over] - curve.log_axis[end]) / math.log(2)
        value[over], doubt = _beyond(curve, recipe, end, row_index[over], axis[over])
        half[over] = recipe.width_beyond(doublings[over], doubt)
    if under.any():
        first = s.left[under]
        doublings[under] = (curve.log_axis[first] - x[under]) / math.log(2)
        value[under], doubt = _before(curve, recipe, s, row_index, axis, under)
        half[under] += doubt
    nearer_left = x - curve.log_axis[s.left] < curve.log_axis[s.right] - x
    nearest = np.where(nearer_left, s.left, s.right)
    at_node = curve.axis[nearest] == axis
    return Reading(
        log_s=np.where(at_node, curve.log_s[nearest], value),
        half_width=half,
        doublings=doublings,
        at_node=at_node & ~curve.filled[nearest],
        left=np.where(at_node, nearest, s.left),
        right=np.where(at_node, nearest, s.right),
    )


def _between(
    curve: Curve, recipe: Recipe, s: Stencil, row: Floats, axis: Floats, x: Floats
) -> tuple[Floats, Floats]:
    """(log latency, doubt): the method's value, and how far a plain power law is from it."""
    d = curve.driver(recipe.driver, row, axis)
    at_nodes = curve.driver_at_nodes(recipe.driver)
    value = METHODS[recipe.method](curve, s, x, d, at_nodes)
    other = METHODS["affine"](curve, s, x, d, at_nodes)
    plain = log_linear(curve, s, x, d, at_nodes)
    return value, np.abs(plain - value) + np.abs(plain - other) + DOUBT_FLOOR


def _beyond(
    curve: Curve, recipe: Recipe, end: Ints, row_index: Ints, axis: Floats
) -> tuple[Floats, Floats]:
    return read_end(curve, recipe.end_driver, recipe.end_nodes, end, curve.start[row_index], axis)


def read_end(
    curve: Curve, driver: str, nodes: int, end: Ints, first: Ints, axis: Floats
) -> tuple[Floats, Floats]:
    """(log latency, doubt) past `end`: doubt is the gap to all cost being proportional."""
    d = curve.driver(driver, curve.rows[curve.row_of[end]], axis)
    at_nodes = curve.driver_at_nodes(driver)
    value = beyond_end(curve, nodes, end, first, d, at_nodes)
    through_two = beyond_end(curve, 2, end, first, d, at_nodes)
    proportional = beyond_end(curve, 1, end, first, d, at_nodes)
    doubt = np.abs(value - proportional) + np.abs(through_two - proportional)
    return value, doubt + DOUBT_FLOOR


def _before(
    curve: Curve,
    recipe: Recipe,
    s: Stencil,
    row_index: Ints,
    axis: Floats,
    under: NDArray[np.bool_],
) -> tuple[Floats, Floats]:
    """(log latency, doubt) short of a row: doubt is half the room between its two bounds."""
    first, second = s.left[under], s.right[under]
    d = curve.driver(recipe.driver, curve.rows[row_index[under]], axis[under])
    at_nodes = curve.driver_at_nodes(recipe.driver)
    value = before_start(curve, first, second, d, at_nodes)
    return value, np.maximum(np.log(at_nodes[first] / d), 0.0) / 2


def read_curve(curve: Curve, recipe: Recipe, row: Floats, axis: Floats) -> Reading:
    """Reads a curve at (row, position) pairs; between rows, affine in the row's quantity."""
    last = len(curve.rows) - 1
    above = np.minimum(np.searchsorted(curve.rows, row), last)
    on_row = curve.rows[above] == row
    if on_row.all():
        return read_rows(curve, recipe, above, axis)
    below = np.clip(above - 1, 0, max(last - 1, 0))
    above = np.where(on_row, above, np.minimum(below + 1, last))
    below = np.where(on_row, above, below)
    low, high = (read_rows(curve, recipe, i, axis) for i in (below, above))
    return _between_rows(curve, recipe, row, below, above, low, high)


def _between_rows(
    curve: Curve,
    recipe: Recipe,
    row: Floats,
    below: Ints,
    above: Ints,
    low: Reading,
    high: Reading,
) -> Reading:
    """Joins two rows' readings: fixed cost plus a rate times the row; beyond them no less than
    the nearer row's time, short of them no less than its share."""
    r0, r1 = curve.rows[below], curve.rows[above]
    y0, y1 = np.exp(low.log_s), np.exp(high.log_s)
    apart = np.where(r1 > r0, r1 - r0, 1.0)
    alone = y0 * row / r0
    value = np.where(r1 > r0, y0 + (row - r0) / apart * (y1 - y0), alone)
    value = np.clip(value, np.where(row < r0, alone, 0.0), np.where(row < r0, y0, np.inf))
    value = np.where(row > r1, np.maximum(value, y1), value)
    log_s = np.log(value)
    power = low.log_s + np.log(row / r0) / np.log(np.where(r1 > r0, r1 / r0, math.e)) * (
        high.log_s - low.log_s
    )
    inside = (row >= r0) & (row <= r1)
    doubt = np.where(inside, np.abs(power - log_s), np.abs(np.log(alone / value))) + DOUBT_FLOOR
    outside = np.maximum(np.log2(row / r1), np.log2(r0 / row)).clip(0)
    half = np.maximum(low.half_width, high.half_width)
    across = np.where(inside, recipe.width_inside(doubt), recipe.width_beyond(outside, doubt))
    same = below == above
    at_node = same & (row == r0) & low.at_node
    return Reading(
        log_s=np.where(same & (row == r0), low.log_s, log_s),
        half_width=np.where(same & (row == r0), low.half_width, np.maximum(half, across)),
        doublings=np.maximum(low.doublings, high.doublings) + outside,
        at_node=at_node,
        left=low.left,
        right=np.where(same, low.right, high.right),
    )


# Choosing by leaving out


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Errors on points that were left out: log(predicted / measured), with each one's doubt."""

    errors: Floats
    doubts: Floats

    @classmethod
    def join(cls, parts: Sequence[LeftOut]) -> LeftOut:
        return cls(
            errors=np.concatenate([p.errors for p in parts] or [np.empty(0)]),
            doubts=np.concatenate([p.doubts for p in parts] or [np.empty(0)]),
        )

    @property
    def score(self) -> float:
        """What a choice minimises: the median error, with a quarter of the ninetieth
        percentile so that rare misses count too."""
        if not len(self.errors):
            return math.inf
        size = np.abs(self.errors)
        return float(np.median(size) + np.quantile(size, 0.9) / 4)


def leave_one_out(curve: Curve, recipe: Recipe) -> LeftOut:
    """Each inner node of each row predicted from the others of its row."""
    at, s = curve.leave_one_out()
    row, axis = curve.rows[curve.row_of[at]], curve.axis[at]
    value, doubt = _between(curve, recipe, s, row, axis, curve.log_axis[at])
    return LeftOut(errors=value - curve.log_s[at], doubts=doubt)


def leave_end_out(curve: Curve, driver: str, nodes: int, factor: float) -> LeftOut:
    """Each row's last node predicted from nodes at most 1/factor as far along."""
    first = curve.start
    last = first + curve.count - 1
    cut = curve.log_axis[last] - math.log(factor) + 1e-9
    key = np.arange(len(first))
    end = curve.locate(key, cut).left
    end = np.where(curve.log_axis[np.minimum(end + 1, last)] <= cut, end + 1, end)
    usable = (end - first >= 1) & (curve.log_axis[end] <= cut)
    usable &= curve.log_axis[end] > cut - math.log(1.3)
    value, doubt = read_end(
        curve, driver, nodes, end[usable], first[usable], curve.axis[last[usable]]
    )
    return LeftOut(errors=value - curve.log_s[last[usable]], doubts=doubt)


def choose(curves: Iterable[Curve], fallback: Recipe) -> Recipe:
    """The recipe with the least left-out error over curves of one kind."""
    pool = list(curves)
    recipe = _choose_inside(pool, fallback)
    return _choose_end(pool, recipe)


def _choose_inside(pool: Sequence[Curve], fallback: Recipe) -> Recipe:
    found: dict[tuple[str, str], LeftOut] = {}
    for method, driver in product(METHODS, DRIVERS):
        trial = replace(fallback, method=method, driver=driver)
        found[method, driver] = LeftOut.join([leave_one_out(c, trial) for c in pool])
    method, driver = min(found, key=lambda k: found[k].score)
    best = found[method, driver]
    if len(best.errors) < MIN_ERRORS:
        return fallback
    width = Width.of(best.errors, best.doubts)
    return replace(fallback, method=method, driver=driver, inside=width)


def _choose_end(pool: Sequence[Curve], recipe: Recipe) -> Recipe:
    found: dict[tuple[str, int], list[LeftOut]] = {}
    for driver, nodes in product(DRIVERS, END_NODES):
        found[driver, nodes] = [
            LeftOut.join([leave_end_out(c, driver, nodes, f) for c in pool]) for f in END_FACTORS
        ]
    counted = [k for k, v in found.items() if len(v[0].errors) >= MIN_ERRORS]
    if not counted:
        return recipe
    driver, nodes = min(counted, key=lambda k: sum(v.score for v in found[k] if len(v.errors)))
    widths = tuple(
        Width.of(v.errors, v.doubts) if len(v.errors) >= MIN_ERRORS else None
        for v in found[driver, nodes]
    )
    return replace(recipe, end_driver=driver, end_nodes=nodes, beyond=widths)

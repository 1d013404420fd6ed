"""Recipe: how a kernel's curves are read, chosen and judged by leaving points out.

For each kind of kernel (family, provider, phase) every interpolation method and every way to
extrapolate is tried on points it was not shown; the best is kept, and its errors become the
intervals. The errors are sorted by `doubt`, how far two methods disagree at the point, so that a
smooth stretch gets a narrow interval and a step a wide one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

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
"""Fewer left-out points than this say too little: the next coarser pool is asked."""

END_NODES = (1, 2, 3, 4)
END_FACTORS = (2.0, 4.0, 8.0)

DEFAULT_INSIDE = 0.08
"""Half-width where nothing could be left out. The published peer's tables leave a p90 error of
about 8 % inside their grid (aiconfigurator 0.12, H200, full prefill by linear interpolation)."""

DEFAULT_BEYOND_PER_DOUBLING = 0.15
"""Half-width per doubling beyond the grid where nothing could be left out: the same tables miss
by 13 / 33 / 70 % at 2x / 4x / 8x with constant-slope extrapolation."""

MAX_BINS = 6
BIN_ERRORS = 40


@dataclass(frozen=True, kw_only=True)
class Width:
    """80 % half-width of the log error against doubt: nodes of a rising step-free line."""

    log_doubt: Floats
    half_width: Floats
    count: int

    @classmethod
    def of(cls, errors: Floats, doubts: Floats) -> Width:
        """Quantiles of |error| in bins of equal count along doubt, made to rise with it."""
        order = np.argsort(doubts, kind="stable")
        bins = int(np.clip(len(errors) // BIN_ERRORS, 1, MAX_BINS))
        parts = np.array_split(order, bins)
        middle = np.array([np.median(np.log(doubts[p])) for p in parts])
        half = np.array([upper_quantile(np.abs(errors[p])) for p in parts])
        return cls(log_doubt=middle, half_width=np.maximum.accumulate(half), count=len(errors))

    def at(self, doubt: Floats) -> Floats:
        if len(self.half_width) == 1:
            return np.broadcast_to(self.half_width, np.shape(doubt))
        return np.interp(np.log(doubt), self.log_doubt, self.half_width)


def upper_quantile(values: Floats) -> float:
    """The conformal 80 % quantile: rank ceil(0.8 (n + 1)) of n, the largest if n is small."""
    rank = min(math.ceil(COVERAGE * (len(values) + 1)), len(values))
    return float(np.sort(values)[rank - 1])


DOUBT_FLOOR = 1e-4


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

    def interpolate(self, curve: Curve, s: Stencil, log_axis: Floats, d: Floats) -> Floats:
        return METHODS[self.method](curve, s, log_axis, d, curve.driver_at_nodes(self.driver))

    def doubt_inside(self, curve: Curve, s: Stencil, log_axis: Floats, value: Floats) -> Floats:
        """How far a plain power law lands from the method, and how steep the stretch is."""
        plain = log_linear(curve, s, log_axis, log_axis, log_axis)
        return np.abs(value - plain) + DOUBT_FLOOR

    def width_inside(self, doubt: Floats) -> Floats:
        if self.inside is None:
            return np.full(np.shape(doubt), DEFAULT_INSIDE)
        return self.inside.at(doubt)

    def width_beyond(self, doublings: Floats, doubt: Floats) -> Floats:
        """Between and beyond the left-out factors: linear in the number of doublings."""
        known = [
            (math.log2(f), w) for f, w in zip(END_FACTORS, self.beyond, strict=True) if w
        ]
        if not known:
            return DEFAULT_BEYOND_PER_DOUBLING * doublings
        at = np.array([0.0, *(k for k, _ in known)])
        base = self.width_inside(np.full(np.shape(doubt), DOUBT_FLOOR))
        half = np.stack([base, *(w.at(doubt) for _, w in known)])
        half = np.maximum.accumulate(half, axis=0)
        i = np.clip(np.searchsorted(at, doublings) - 1, 0, len(at) - 2)
        low = np.take_along_axis(half, i[None], axis=0)[0]
        high = np.take_along_axis(half, i[None] + 1, axis=0)[0]
        return low + (high - low) * (doublings - at[i]) / (at[i + 1] - at[i])


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One row read at N positions. `doublings` is how far beyond the row, in factors of two."""

    log_s: Floats
    half_width: Floats
    doublings: Floats
    at_node: np.ndarray
    left: Ints
    right: Ints


def read_row(curve: Curve, recipe: Recipe, row_index: Ints, axis: Floats) -> Reading:
    """Reads rows by index at positions: a node's own value, between nodes, or beyond them."""
    x = np.log(axis)
    s = curve.locate(row_index, x)
    row = curve.rows[row_index]
    d = curve.driver(recipe.driver, row, axis)
    single = s.left == s.right
    value = recipe.interpolate(curve, s, x, d)
    doubt = recipe.doubt_inside(curve, s, x, value)
    half = recipe.width_inside(doubt)
    doublings = np.zeros(np.shape(axis))
    over, under = x > curve.log_axis[s.right], x < curve.log_axis[s.left]
    nearest = np.where(over | (x > curve.log_axis[s.left]) & (s.right != s.left), s.right, s.left)
    nearest = np.where(
        np.abs(curve.log_axis[s.left] - x) < np.abs(curve.log_axis[s.right] - x), s.left, s.right
    )
    at_node = curve.axis[nearest] == axis
    if over.any():
        value, half, doublings = _read_beyond(
            curve, recipe, s, row_index, axis, x, over, value, half, doublings
        )
    if under.any():
        first, second = s.left[under], s.right[under]
        value = np.where(under, value, value)
        nodes = curve.driver_at_nodes(recipe.driver)
        low = before_start(curve, first, second, d[under], nodes)
        value[under] = low
        doublings[under] = (curve.log_axis[first] - x[under]) / math.log(2)
        gap = curve.log_s[first] - curve.log_s[first] - np.log(d[under] / nodes[first])
        half[under] = np.maximum(half[under], np.maximum(gap, 0.0) / 2)
    del single
    value = np.where(at_node, curve.log_s[nearest], value)
    return Reading(
        log_s=value, half_width=half, doublings=doublings, at_node=at_node,
        left=np.where(at_node, nearest, s.left), right=np.where(at_node, nearest, s.right),
    )

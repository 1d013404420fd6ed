"""Table: a curve read once on a fine grid, so that a prediction is a look-up.

Rows are filled when first asked for. Between grid points, 1/32 of a doubling apart, log time is
linear; at the curve's own nodes their value is returned exactly.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.curves import Curve, Floats, Ints
from planner.cost.recipe import Recipe, join_rows, join_two, read_rows

STEPS = 32
OCTAVES = 31
_GRID = np.exp2(np.arange(OCTAVES * STEPS + 1) / STEPS)
_ROW_STRIDE = float(1 << 40)


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """A curve at N (row, position) pairs.

    `half` is the 80 % half-width of the log; `doublings` how far outside the points, in factors
    of two; `measured` marks nodes that were; `left` and `right` are the nodes either side.
    """

    log_s: Floats
    half: Floats
    doublings: Floats
    measured: NDArray[np.bool_]
    left: Ints
    right: Ints


class Spot(NamedTuple):
    """A `Lookup` at one place."""

    log_s: float
    half: float
    doublings: float
    measured: bool
    left: int
    right: int


class _Row(NamedTuple):
    """One row of a table: its nodes in the curve, log2 of its ends, and the grid's values."""

    first: int
    last: int
    start: float
    end: float
    log_s: list[float]
    half: list[float]


class Table:
    """One curve under one recipe. `read` takes arrays, `at` one place; they agree."""

    def __init__(self, curve: Curve, recipe: Recipe) -> None:
        self.curve = curve
        self.recipe = recipe
        size = (len(curve.rows), len(_GRID))
        self._built = np.zeros(len(curve.rows), bool)
        self._complete = False
        self._log_s = np.empty(size)
        self._half = np.empty(size)
        self._rows: dict[int, _Row] = {}
        self._first = np.log2(curve.axis[curve.start])
        self._last = np.log2(curve.axis[curve.last_of])

    @cached_property
    def _node_key(self) -> Floats:
        return self.curve.row_of * _ROW_STRIDE + self.curve.axis

    def read(self, row: Floats, axis: Floats) -> Lookup:
        """Positions may be any numbers from 1 on, rows any positive ones."""
        rows = self.curve.rows
        above = np.minimum(np.searchsorted(rows, row), len(rows) - 1)
        on_row = rows[above] == row
        if on_row.all():
            return self._on_rows(above, axis)
        below = np.where(on_row, above, np.maximum(above - 1, 0))
        above = np.where(on_row, above, np.minimum(below + 1, len(rows) - 1))
        low, high = self._on_rows(below, axis), self._on_rows(above, axis)
        off = np.flatnonzero(~on_row)
        return self._join(low, high, row, below, above, off)

    def outside(self, row: Floats, axis: Floats) -> tuple[Floats, Floats]:
        """Doublings short of the points, and past them: along the rows, and of the rows. Past a
        single point, or a single row, is like short of them: there is no slope to go on by."""
        rows = self.curve.rows
        above = np.minimum(np.searchsorted(rows, row), len(rows) - 1)
        on_row = rows[above] == row
        below = np.where(on_row, above, np.maximum(above - 1, 0))
        above = np.where(on_row, above, np.minimum(below + 1, len(rows) - 1))
        x = np.log2(axis)
        start = np.maximum(self._first[below], self._first[above])
        end = np.minimum(self._last[below], self._last[above])
        past, over = np.maximum(x - end, 0.0), np.maximum(np.log2(row / rows[-1]), 0.0)
        short = np.maximum(start - x, 0.0) + np.maximum(np.log2(rows[0] / row), 0.0)
        lone = start == end
        short, past = np.where(lone, short + past, short), np.where(lone, 0.0, past)
        return (short + over, past) if len(rows) == 1 else (short, past + over)

    def _on_rows(self, index: Ints, axis: Floats) -> Lookup:
        self._build(index)
        x = np.log2(axis)
        at = x * STEPS
        cell = np.minimum(at.astype(np.int64), len(_GRID) - 2)
        part = np.asarray(at - cell, float)
        cell = cell + index * len(_GRID)
        log_s = _between(self._log_s.ravel(), cell, part)
        half = _between(self._half.ravel(), cell, part)
        first, last = self.curve.start[index], self.curve.last_of[index]
        right = np.searchsorted(self._node_key, index * _ROW_STRIDE + axis)
        right = np.minimum(np.maximum(right, first), last)
        at_node = self.curve.axis[right] == axis
        short = axis < self.curve.axis[right]
        left = np.where(short, np.maximum(right - 1, first), right)
        return Lookup(
            log_s=np.where(at_node, self.curve.log_s[right], log_s),
            half=np.where(at_node, self.curve.half[right], half),
            doublings=np.maximum(np.maximum(x - self._last[index], self._first[index] - x), 0.0),
            measured=at_node & ~self.curve.filled[right],
            left=left,
            right=right,
        )

    def _join(
        self, low: Lookup, high: Lookup, row: Floats, below: Ints, above: Ints, off: Ints
    ) -> Lookup:
        """`low` where the row was measured; elsewhere (`off`) both rows joined."""
        r, r0, r1 = row[off], self.curve.rows[below[off]], self.curve.rows[above[off]]
        if len(self.curve.rows) == 1:
            value, outside = one_row(r, r0, low.log_s[off])
            across = self.recipe.width_beyond(outside, outside)
        else:
            value, doubt = join_rows(self.recipe, r, r0, r1, low.log_s[off], high.log_s[off])
            outside = np.maximum(np.log2(np.maximum(r / r1, r0 / r)), 0.0)
            across = self.recipe.width_across(outside, doubt)
        log_s, half, doublings = low.log_s.copy(), low.half.copy(), low.doublings.copy()
        log_s[off] = value
        half[off] = np.hypot(np.maximum(half[off], high.half[off]), across)
        doublings[off] = np.maximum(doublings[off], high.doublings[off]) + outside
        measured, right = low.measured.copy(), low.right.copy()
        measured[off], right[off] = False, high.right[off]
        return Lookup(
            log_s=log_s, half=half, doublings=doublings, measured=measured, left=low.left,
            right=right,
        )  # fmt: skip

    def at(self, row: float, axis: float) -> Spot:
        """`read` for one place, in a fraction of the time."""
        rows = self._row_list
        above = bisect_left(rows, row)
        if above < len(rows) and rows[above] == row:
            return self._on_row(above, axis)
        below = max(min(above, len(rows) - 1) - 1, 0)
        above = min(below + 1, len(rows) - 1)
        low, high = self._on_row(below, axis), self._on_row(above, axis)
        r0, r1 = rows[below], rows[above]
        if len(rows) == 1:
            value, outside = one_row(np.array([row]), np.array([r0]), np.array([low.log_s]))
            across = self.recipe.width_beyond(outside, outside)
            joined, doublings = float(value[0]), float(outside[0])
        else:
            joined, doubt = join_two(self.recipe, row, r0, r1, low.log_s, high.log_s)
            doublings = max(math.log2(max(row / r1, r0 / row)), 0.0)
            across = self.recipe.width_across(np.array([doublings]), np.array([doubt]))
        return Spot(
            log_s=joined,
            half=math.hypot(max(low.half, high.half), across[0]),
            doublings=max(low.doublings, high.doublings) + doublings,
            measured=False,
            left=low.left,
            right=high.right,
        )

    def outside_one(self, row: float, axis: float) -> tuple[float, float]:
        """`outside` of one place."""
        rows = self._row_list
        below = above = min(bisect_left(rows, row), len(rows) - 1)
        if rows[above] != row:
            below = max(above - 1, 0)
            above = min(below + 1, len(rows) - 1)
        x = math.log2(axis)
        start = float(max(self._first[below], self._first[above]))
        end = float(min(self._last[below], self._last[above]))
        past, over = max(x - end, 0.0), max(math.log2(row / rows[-1]), 0.0)
        short = max(start - x, 0.0) + max(math.log2(rows[0] / row), 0.0)
        if start == end:
            short, past = short + past, 0.0
        return (short + over, past) if len(rows) == 1 else (short, past + over)

    def _on_row(self, index: int, axis: float) -> Spot:
        row = self._row(index)
        right = bisect_left(self._axis_list, axis, row.first, row.last)
        node = self._axis_list[right]
        if node == axis:
            curve = self.curve
            log_s, half = float(curve.log_s[right]), float(curve.half[right])
            return Spot(log_s, half, 0.0, not curve.filled[right], right, right)
        at = math.log2(axis) * STEPS
        cell = min(int(at), len(_GRID) - 2)
        part = at - cell
        low, half_low = row.log_s[cell], row.half[cell]
        return Spot(
            log_s=low + part * (row.log_s[cell + 1] - low),
            half=half_low + part * (row.half[cell + 1] - half_low),
            doublings=max(at / STEPS - row.end, row.start - at / STEPS, 0.0),
            measured=False,
            left=max(right - 1, row.first) if axis < node else right,
            right=right,
        )

    def _row(self, index: int) -> _Row:
        """A row as lists: single numbers are taken from those in a fraction of the time."""
        if index not in self._rows:
            self._build(np.array([index]))
            self._rows[index] = _Row(
                first=int(self.curve.start[index]),
                last=int(self.curve.last_of[index]),
                start=float(self._first[index]),
                end=float(self._last[index]),
                log_s=self._log_s[index].tolist(),
                half=self._half[index].tolist(),
            )
        return self._rows[index]

    @property
    def first_row(self) -> float:
        return self._row_list[0]

    @property
    def last_row(self) -> float:
        return self._row_list[-1]

    @property
    def first_axis(self) -> float:
        return self._axis_list[0]

    @cached_property
    def _row_list(self) -> list[float]:
        rows: list[float] = self.curve.rows.tolist()
        return rows

    @cached_property
    def _axis_list(self) -> list[float]:
        axis: list[float] = self.curve.axis.tolist()
        return axis

    def _build(self, index: Ints) -> None:
        if self._complete or self._built[index].all():
            return
        for r in np.unique(index[~self._built[index]]):
            reading = read_rows(self.curve, self.recipe, np.full(len(_GRID), r), _GRID)
            self._log_s[r], self._half[r] = reading.log_s, reading.half
            self._built[r] = True
        self._complete = bool(self._built.all())


def _between(values: Floats, cell: Ints, part: Floats) -> Floats:
    low = values[cell]
    return low + part * (values[cell + 1] - low)


def one_row(row: Floats, known: Floats, log_s: Floats) -> tuple[Floats, Floats]:
    """(log seconds, doublings away) where only one row was measured.

    More of it costs in proportion, at most; less costs between all and its share: the middle.
    """
    ratio = np.log(row / known)
    return log_s + np.where(ratio > 0, ratio, ratio / 2), np.abs(ratio) / math.log(2)

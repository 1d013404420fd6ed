"""Recipe: how the curves of one kind of kernel are read, and how wide their intervals are.

What stands in a recipe was chosen by leaving points out (`leave_out`); here it is only applied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.cost.curves import Curve, Floats, Ints, Nodes, Stencil
from planner.cost.methods import (
    METHODS,
    SHORTEST_CALL_S,
    before_start,
    line,
    log_linear,
    non_negative_least_squares,
    on_surface,
    surface_problems,
)
from planner.cost.width import DOUBT_FLOOR, Width

END_FACTORS = (2.0, 4.0, 8.0)

DEFAULT_INSIDE = 0.08
"""Half-width where nothing could be left out: plain linear interpolation of the published H200
prefill tables (aiconfigurator 0.12) misses by 8 % at the ninetieth percentile."""

DEFAULT_PER_DOUBLING = 0.15
"""The same for each doubling beyond the grid: those tables' users see 13 / 33 / 70 % at 2x / 4x
/ 8x with a constant slope."""

MOST_PER_DOUBLING = math.log(2)
"""What it is at most: twice the work takes between once and twice the time."""

HANDOVER = 0.3
"""Share of the row's own line that is left after each doubling beyond its last node. Chosen on the
published H200 prefill tables, where 0.2 to 0.6 do as well."""


@dataclass(frozen=True)
class EndRule:
    """How a row goes on: along a line through its last `count` nodes, which may hand over to the
    surface of all rows."""

    kind: Literal["line", "surface"]
    driver: str
    count: int = 2

    def value(
        self, nodes: Nodes, end: Ints, axis: Floats, d: Floats, coefficients: Floats | None
    ) -> Floats:
        """Log seconds at positions past the node `end` of each target's row.

        `d` is the driver there, `coefficients` those of the surface if the rule needs it.
        """
        straight = self._line(nodes, self.count, end, d)
        if coefficients is None:
            return straight
        share = HANDOVER ** np.log2(axis / nodes.axis[end])
        common = on_surface(coefficients, axis, nodes.rows[nodes.row_of[end]], d)
        return np.maximum((1 - share) * common + share * straight, nodes.log_s[end])

    def doubt(self, nodes: Nodes, end: Ints, d: Floats, value: Floats) -> Floats:
        """How far lines through two and three nodes are apart and from the value, and a little
        how far the value is from proportional growth."""
        two, three, proportional = (self._line(nodes, count, end, d) for count in (2, 3, 1))
        apart = np.abs(two - three) + np.abs(value - two) + 0.1 * np.abs(value - proportional)
        return np.asarray(apart + DOUBT_FLOOR)

    def _line(self, nodes: Nodes, count: int, end: Ints, d: Floats) -> Floats:
        first = nodes.start[nodes.row_of[end]]
        return line(nodes, count, end, first, d, nodes.driver_at_nodes(self.driver))

    def read(self, curve: Curve, end: Ints, axis: Floats) -> tuple[Floats, Floats]:
        """(log seconds, doubt) past the ends of a curve's rows, from all its nodes."""
        d = curve.driver(self.driver, curve.rows[curve.row_of[end]], axis)
        coefficients = None
        if self.kind != "line":
            longest = curve.axis.max(keepdims=True)
            coefficients = curve.remember(
                ("surface", self.driver),
                lambda: non_negative_least_squares(*surface_problems(curve, self.driver, longest))[
                    0
                ],
            )
        value = self.value(curve, end, axis, d, coefficients)
        return value, self.doubt(curve, end, d, value)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Choices and widths. `inside` is the width between nodes, `filled` that of nodes estimated
    from neighbours, `beyond[k]` at END_FACTORS[k] times the last length, `across` between rows,
    `shapes` on other shapes."""

    method: str = "affine"
    driver: str = "executed"
    neighbours: Literal["none", "length", "work"] = "none"
    end: EndRule = EndRule("line", "executed")
    join_rows: Literal["affine", "power"] = "affine"
    inside: Width | None = None
    filled: Width | None = None
    beyond: tuple[Width | None, ...] = (None, None, None)
    across: Width | None = None
    shapes: Width | None = None

    def middle(self, nodes: Nodes, s: Stencil, x: Floats, d: Floats) -> Floats:
        """Log seconds at log positions `x` with driver `d`."""
        return METHODS[self.method](nodes, s, x, d, nodes.driver_at_nodes(self.driver))

    def between(self, nodes: Nodes, s: Stencil, x: Floats, d: Floats) -> tuple[Floats, Floats]:
        """`middle` and its doubt: how far two plain methods are from each other and from it."""
        at_nodes = nodes.driver_at_nodes(self.driver)
        value = self.middle(nodes, s, x, d)
        straight = METHODS["affine"](nodes, s, x, d, at_nodes)
        plain = log_linear(nodes, s, x, d, at_nodes)
        return value, np.abs(plain - value) + np.abs(plain - straight) + DOUBT_FLOOR

    def width_inside(self, doubt: Floats) -> Floats:
        if self.inside is None:
            return np.maximum(DEFAULT_INSIDE, doubt)
        return self.inside.at(doubt)

    def width_across(self, outside: Floats, doubt: Floats) -> Floats:
        """Between rows; `outside` of them, in doublings, as past a row's end."""
        if self.across is None:
            between = np.maximum(DEFAULT_INSIDE, doubt)
        else:
            between = self.across.at(doubt)
        if not outside.any():
            return between
        return np.where(outside > 0, self.width_beyond(outside, doubt), between)

    def width_beyond(self, doublings: Floats, doubt: Floats) -> Floats:
        """Linear in the number of doublings, between the left-out factors and past them."""
        at, half = [0.0], [self.width_inside(np.full(np.shape(doubt), DOUBT_FLOOR))]
        for factor, width in zip(END_FACTORS, self.beyond, strict=True):
            if width is not None:
                at.append(math.log2(factor))
                half.append(width.at(doubt))
        if len(at) == 1:
            return half[0] + np.clip(doubt, DEFAULT_PER_DOUBLING, MOST_PER_DOUBLING) * doublings
        rising = np.maximum.accumulate(np.stack(half), axis=0)
        i = np.clip(np.searchsorted(at, doublings) - 1, 0, len(at) - 2)
        j = np.arange(len(doublings))
        low, high = rising[i, j], rising[i + 1, j]
        step = np.asarray(at)
        part = (doublings - step[i]) / (step[i + 1] - step[i])
        return np.asarray(low + (high - low) * part)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Rows read at N positions: log seconds and half-width of their interval."""

    log_s: Floats
    half: Floats


def read_rows(curve: Curve, recipe: Recipe, row_index: Ints, axis: Floats) -> Reading:
    """Reads rows, by index, at positions: between nodes, past their end or short of them."""
    x = np.log(axis)
    s = curve.locate(row_index, x)
    d = curve.driver(recipe.driver, curve.rows[row_index], axis)
    value, doubt = recipe.between(curve, s, x, d)
    excess = curve.excess_noise
    half = np.hypot(recipe.width_inside(doubt), np.maximum(excess[s.left], excess[s.right]))
    over, under = x > curve.log_axis[s.right], x < curve.log_axis[s.left]
    if over.any():
        end = s.right[over]
        doublings = (x[over] - curve.log_axis[end]) / math.log(2)
        value[over], doubt = recipe.end.read(curve, end, axis[over])
        half[over] = recipe.width_beyond(doublings, doubt)
    if under.any():
        first, second = s.left[under], s.right[under]
        at_nodes = curve.driver_at_nodes(recipe.driver)
        value[under] = before_start(curve, first, second, d[under], at_nodes)
        room = curve.log_s[first] - np.minimum(curve.log_s[first], math.log(SHORTEST_CALL_S))
        short_of = np.maximum(np.log(at_nodes[first] / d[under]), 0.0)
        plain = recipe.width_inside(np.full(len(first), DOUBT_FLOOR))
        half[under] = plain + np.minimum(short_of / 2, room)
    return Reading(log_s=value, half=half)


def join_rows(
    recipe: Recipe, row: Floats, r0: Floats, r1: Floats, y0: Floats, y1: Floats
) -> tuple[Floats, Floats]:
    """(log seconds, doubt) at `row` from the log times of rows r0 < r1 at the same position.

    "affine": fixed cost plus a rate times the row; "power": a power law. Outside the two never
    below the upper row's time, nor between the lower row's time and its share.
    """
    t = (row - r0) / (r1 - r0)
    a, b = np.exp(y0), np.exp(y1)
    straight = np.log(np.maximum(a + t * (b - a), 1e-300))
    power = y0 + np.log(row / r0) / np.log(r1 / r0) * (y1 - y0)
    value = straight if recipe.join_rows == "affine" else power
    value = np.where(row > r1, np.maximum(straight, y1), value)
    value = np.where(row < r0, np.clip(straight, y0 + np.log(row / r0), y0), value)
    outside = np.log(np.maximum(row / r1, r0 / row))
    doubt = np.where(outside > 0, outside, np.abs(power - straight))
    return value, doubt + DOUBT_FLOOR


def join_two(
    recipe: Recipe, row: float, r0: float, r1: float, y0: float, y1: float
) -> tuple[float, float]:
    """`join_rows` for one target, without arrays."""
    t = (row - r0) / (r1 - r0)
    a, b = math.exp(y0), math.exp(y1)
    straight = math.log(max(a + t * (b - a), 1e-300))
    power = y0 + math.log(row / r0) / math.log(r1 / r0) * (y1 - y0)
    if row > r1:
        return max(straight, y1), math.log(row / r1) + DOUBT_FLOOR
    if row < r0:
        share = y0 + math.log(row / r0)
        return min(max(straight, share), y0), math.log(r0 / row) + DOUBT_FLOOR
    value = straight if recipe.join_rows == "affine" else power
    return value, abs(power - straight) + DOUBT_FLOOR

"""Leaving points out: how a recipe is chosen, and how wrong it turns out to be.

    leave_one_out   an inner node of a row, from the rest: what interpolation costs
    leave_end_out   a row's last node from lengths 2, 4 or 8 times shorter, in all rows
    leave_row_out   a whole batch size, from the ones below and above it

Nothing is fitted on the point that is being judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from planner.cost.curves import DRIVERS, Curve, Floats, Ints, Nodes, Pool
from planner.cost.methods import METHODS, non_negative_least_squares, surface_problems
from planner.cost.neighbours import Neighbours
from planner.cost.recipe import END_FACTORS, EndRule, Recipe, join_rows, read_rows
from planner.cost.width import MIN_ERRORS, LeftOut, score_of

MAX_CURVES = 48
"""Shapes a choice is made on; more are thinned evenly. The choice has long settled by then."""

MAX_ROW_CURVES = 16

NEIGHBOUR_KINDS: tuple[Literal["length", "work"], ...] = ("length", "work")
ROW_JOINS: tuple[Literal["affine", "power"], ...] = ("affine", "power")

END_RULES = (
    *(EndRule("line", d, n) for d in DRIVERS for n in (1, 2, 3, 4)),
    *(EndRule("surface", d) for d in ("useful", "executed", "bytes")),
)


def leave_one_out(nodes: Nodes, recipe: Recipe) -> LeftOut:
    """Each inner node of each row predicted from the others of its row."""
    at, s = nodes.leave_one_out()
    d = nodes.driver_at_nodes(recipe.driver)[at]
    value, doubt = recipe.between(nodes, s, nodes.log_axis[at], d)
    return LeftOut(errors=value - nodes.log_s[at], doubts=doubt, relevant=nodes.relevant[at])


def _inner_score(nodes: Nodes, recipe: Recipe) -> float:
    """The score of `leave_one_out`."""
    at, s = nodes.leave_one_out()
    d = nodes.driver_at_nodes(recipe.driver)[at]
    value = recipe.middle(nodes, s, nodes.log_axis[at], d)
    return score_of(value - nodes.log_s[at], nodes.relevant[at])


@dataclass(frozen=True)
class Ends:
    """For each row of a pool that has one: its last node, and the last one 1/factor as long.

    Relevant are those with two relevant nodes left in the row: a continuation of launches alone
    says nothing.
    """

    pool: Pool
    factor: float
    end: Ints
    target: Ints
    rows: Ints

    @classmethod
    def of(cls, pool: Pool, factor: float) -> Ends:
        cut = pool.axis[pool.last_of] / factor
        rows = np.arange(len(pool.rows))
        s = pool.locate(rows, np.log(cut) + 1e-9)
        end = np.where(pool.axis[s.right] <= cut * (1 + 1e-9), s.right, s.left)
        usable = (end > pool.start) & (pool.axis[end] <= cut * (1 + 1e-9))
        usable &= pool.axis[end] * 1.3 > cut
        return cls(pool, factor, end[usable], pool.last_of[usable], rows[usable])

    def __len__(self) -> int:
        return len(self.target)

    @property
    def relevant(self) -> NDArray[np.bool_]:
        good = self.pool.relevant
        return good[self.target] & good[self.end] & good[self.end - 1]

    def driver(self, rule: EndRule) -> Floats:
        return self.pool.driver_at_nodes(rule.driver)[self.target]

    def value(self, rule: EndRule) -> Floats:
        """Log seconds of the last nodes, from the shorter ones by a rule."""
        coefficients = None
        if rule.kind != "line":
            coefficients = _surfaces(self.pool, rule.driver, self.factor)[self.rows]
        axis = self.pool.axis[self.target]
        return rule.value(self.pool, self.end, axis, self.driver(rule), coefficients)

    def score(self, rule: EndRule) -> float:
        return score_of(self.value(rule) - self.pool.log_s[self.target], self.relevant)

    def left_out(self, rule: EndRule) -> LeftOut:
        value = self.value(rule)
        return LeftOut(
            errors=value - self.pool.log_s[self.target],
            doubts=rule.doubt(self.pool, self.end, self.driver(rule), value),
            relevant=self.relevant,
        )


def leave_end_out(pool: Pool, rule: EndRule, factor: float) -> LeftOut:
    """Each row's last node predicted from nodes at most 1/factor as long, of any row."""
    return Ends.of(pool, factor).left_out(rule)


def _surfaces(pool: Pool, driver: str, factor: float) -> Floats:
    """[rows, 4] the surface seen by each row's left-out end."""

    def compute() -> Floats:
        problems, which, first = [], [], 0
        for curve in pool.curves:
            longest, place = np.unique(curve.axis[curve.last_of] / factor, return_inverse=True)
            problems.append(surface_problems(curve, driver, longest))
            which.append(place + first)
            first += len(longest)
        grams, targets = (np.concatenate(column) for column in zip(*problems, strict=True))
        return non_negative_least_squares(grams, targets)[np.concatenate(which)]

    return pool.remember(("surfaces", driver, factor), compute)


def leave_row_out(curve: Curve, recipe: Recipe) -> LeftOut:
    """Each inner row predicted from the rows below and above it, where both reach."""
    row = curve.row_of
    inner = np.flatnonzero((row > 0) & (row < len(curve.rows) - 1))
    below, above = row[inner] - 1, row[inner] + 1
    reach = np.minimum(curve.axis[curve.last_of[below]], curve.axis[curve.last_of[above]])
    kept = curve.axis[inner] <= reach
    at, below, above = inner[kept], below[kept], above[kept]
    low, high = (read_rows(curve, recipe, i, curve.axis[at]).log_s for i in (below, above))
    value, doubt = join_rows(
        recipe, curve.rows[row[at]], curve.rows[below], curve.rows[above], low, high
    )
    return LeftOut(errors=value - curve.log_s[at], doubts=doubt, relevant=curve.relevant[at])


def choose(curves: Sequence[Curve], fallback: Recipe) -> Recipe:
    """The recipe with the least left-out errors on curves of one kind; `fallback` where there
    are too few points to tell."""
    if not curves:
        return fallback
    pool = _thinned(curves)
    recipe = _choose_inside(pool, fallback)
    recipe = _choose_end(pool, recipe)
    return _choose_across(pool, recipe)


def can_judge(curves: Sequence[Curve]) -> bool:
    """Whether enough points of these curves can be left out, inside and at the end."""
    if not curves:
        return False
    pool = _thinned(curves)
    inside, ends = len(pool.leave_one_out()[0]), len(Ends.of(pool, END_FACTORS[0]))
    return min(inside, ends) >= MIN_ERRORS


def _thinned(curves: Sequence[Curve]) -> Pool:
    return Pool.of(curves[:: -(-len(curves) // MAX_CURVES)])


def _choose_inside(pool: Pool, fallback: Recipe) -> Recipe:
    """The best driver of each method; then the best two of those with and without neighbours."""
    if len(pool.leave_one_out()[0]) < MIN_ERRORS:
        return fallback
    best: list[tuple[Recipe, LeftOut]] = []
    for method in METHODS:
        trials = [replace(fallback, method=method, driver=d, neighbours="none") for d in DRIVERS]
        trial = min(trials, key=lambda t: _inner_score(pool, t))
        best.append((trial, leave_one_out(pool, trial)))
    best = sorted(best, key=lambda pair: pair[1].score)[:2]
    alone = [(plain.score, trial, plain, None) for trial, plain in best]
    helped = [
        (corrected.score, recipe, plain, corrected)
        for (trial, plain), kind in product(best, NEIGHBOUR_KINDS)
        for recipe in [replace(trial, neighbours=kind)]
        for corrected in [Neighbours.of(pool, recipe).leave_one_out()]
    ]
    _, recipe, plain, corrected = min([*alone, *helped], key=lambda found: found[0])
    filled = None if corrected is None else corrected.width()
    return replace(recipe, inside=plain.width(), filled=filled)


def _choose_end(pool: Pool, recipe: Recipe) -> Recipe:
    ends = [Ends.of(pool, factor) for factor in END_FACTORS]
    if len(ends[0]) < MIN_ERRORS:
        return recipe
    judged = [e for e in ends if len(e) >= MIN_ERRORS]
    rule = min(END_RULES, key=lambda r: sum(e.score(r) for e in judged))
    return replace(recipe, end=rule, beyond=tuple(e.left_out(rule).width() for e in ends))


def _choose_across(pool: Pool, recipe: Recipe) -> Recipe:
    trials = [replace(recipe, join_rows=kind) for kind in ROW_JOINS]
    curves = pool.curves[:MAX_ROW_CURVES]
    judged = [(t, LeftOut.join([leave_row_out(c, t) for c in curves])) for t in trials]
    trial, left_out = min(judged, key=lambda pair: pair[1].score)
    if len(left_out) < MIN_ERRORS:
        return recipe
    return replace(trial, across=left_out.width())

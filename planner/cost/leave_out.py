"""Leaving points out: how a recipe is chosen, and how wrong it turns out to be.

    leave_one_out   an inner node of a row, from the rest: what interpolation costs
    leave_end_out   a row's last node from lengths 2, 4 or 8 times shorter, in all rows
    leave_row_out   a whole batch size, from the ones below and above it

Nothing is fitted on the point that is being judged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np

from planner.cost.curves import DRIVERS, Curve
from planner.cost.methods import METHODS
from planner.cost.neighbours import Neighbours
from planner.cost.recipe import END_FACTORS, EndRule, Recipe, join_rows, read_rows
from planner.cost.width import MIN_ERRORS, LeftOut

MAX_CURVES = 48
"""Shapes a choice is made on; more are thinned evenly. The choice has long settled by then."""

END_RULES = (
    *(EndRule("line", d, n) for d in DRIVERS for n in (1, 2, 3, 4)),
    *(EndRule(k, d) for k in ("surface", "blend") for d in ("useful", "executed", "bytes")),
)


def leave_one_out(curve: Curve, recipe: Recipe) -> LeftOut:
    """Each inner node of each row predicted from the others of its row."""
    at, s = curve.leave_one_out()
    row = curve.rows[curve.row_of[at]]
    value, doubt = recipe.between(curve, s, row, curve.axis[at], curve.log_axis[at])
    return LeftOut(errors=value - curve.log_s[at], doubts=doubt, relevant=curve.relevant[at])


def leave_end_out(curve: Curve, rule: EndRule, factor: float) -> LeftOut:
    """Each row's last node predicted from nodes at most 1/factor as long, of any row.

    Relevant are those with two relevant nodes left in the row: a continuation of launches alone
    says nothing.
    """
    last = curve.last_of
    cut = curve.axis[last] / factor
    end = np.array(
        [s + np.searchsorted(curve.axis[s : e + 1], c * (1 + 1e-9)) - 1
         for s, e, c in zip(curve.start, last, cut, strict=True)]
    )  # fmt: skip
    usable = (end > curve.start) & (curve.axis[np.maximum(end, 0)] * 1.3 > cut)
    parts = []
    for longest in np.unique(cut[usable]):
        rows = usable & (cut == longest)
        target = last[rows]
        value, doubt = rule.read(curve, end[rows], curve.axis[target], longest=float(longest))
        backed = curve.relevant[end[rows]] & curve.relevant[end[rows] - 1]
        parts.append(
            LeftOut(
                errors=value - curve.log_s[target],
                doubts=doubt,
                relevant=curve.relevant[target] & backed,
            )
        )
    return LeftOut.join(parts)


def leave_row_out(curve: Curve, recipe: Recipe) -> LeftOut:
    """Each inner row predicted from the rows below and above it, where both reach."""
    parts = []
    for r in range(1, len(curve.rows) - 1):
        nodes = np.arange(curve.start[r], curve.last_of[r] + 1)
        reach = min(curve.axis[curve.last_of[r - 1]], curve.axis[curve.last_of[r + 1]])
        nodes = nodes[curve.axis[nodes] <= reach]
        axis = curve.axis[nodes]
        low, high = (
            read_rows(curve, recipe, np.full(len(nodes), i), axis).log_s for i in (r - 1, r + 1)
        )
        r0, r, r1 = (np.full(len(nodes), curve.rows[i]) for i in (r - 1, r, r + 1))
        value, doubt = join_rows(recipe, r, r0, r1, low, high)
        parts.append(
            LeftOut(
                errors=value - curve.log_s[nodes], doubts=doubt, relevant=curve.relevant[nodes]
            )
        )
    return LeftOut.join(parts)


def choose(curves: Sequence[Curve], fallback: Recipe) -> Recipe:
    """The recipe with the least left-out errors on curves of one kind; `fallback` where there
    are too few points to tell."""
    step = -(-len(curves) // MAX_CURVES) if curves else 1
    pool = curves[::step]
    recipe = _choose_inside(pool, fallback)
    recipe = _choose_end(pool, recipe)
    return _choose_across(pool, recipe)


def _choose_inside(pool: Sequence[Curve], fallback: Recipe) -> Recipe:
    """The best driver of each method, then the best of those with and without neighbours."""
    best: list[tuple[float, Recipe, LeftOut]] = []
    for method in METHODS:
        trials = [replace(fallback, method=method, driver=d, neighbours="none") for d in DRIVERS]
        found = [(t, LeftOut.join([leave_one_out(c, t) for c in pool])) for t in trials]
        trial, plain = min(found, key=lambda pair: pair[1].score)
        best.append((plain.score, trial, plain))
    if len(best[0][2]) < MIN_ERRORS:
        return fallback
    corrected = []
    for (score, trial, plain), kind in product(best, ("none", "length", "work")):
        if kind == "none":
            corrected.append((score, trial, plain, None))
            continue
        recipe = replace(trial, neighbours=kind)
        filled = Neighbours.of(pool, recipe).leave_one_out()
        corrected.append((filled.score, recipe, plain, filled))
    _, recipe, plain, filled = min(corrected, key=lambda c: c[0])
    return replace(
        recipe, inside=plain.width(), filled=filled.width() if filled is not None else None
    )


def _choose_end(pool: Sequence[Curve], recipe: Recipe) -> Recipe:
    scored = []
    for rule in END_RULES:
        found = [LeftOut.join([leave_end_out(c, rule, f) for c in pool]) for f in END_FACTORS]
        if len(found[0]) >= MIN_ERRORS:
            scored.append((sum(v.score for v in found if len(v) >= MIN_ERRORS), rule, found))
    if not scored:
        return recipe
    _, rule, found = min(scored, key=lambda s: s[0])
    return replace(recipe, end=rule, beyond=tuple(v.width() for v in found))


def _choose_across(pool: Sequence[Curve], recipe: Recipe) -> Recipe:
    found = []
    for kind in ("affine", "power"):
        trial = replace(recipe, join_rows=kind)
        found.append((trial, LeftOut.join([leave_row_out(c, trial) for c in pool])))
    trial, left_out = min(found, key=lambda pair: pair[1].score)
    if len(left_out) < MIN_ERRORS:
        return recipe
    return replace(trial, across=left_out.width())


def doublings_outside(curve: Curve, row_index: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """How far positions are outside their row, in factors of two."""
    first, last = curve.axis[curve.start[row_index]], curve.axis[curve.last_of[row_index]]
    return np.maximum(np.log(np.maximum(axis / last, first / axis)), 0.0) / math.log(2)

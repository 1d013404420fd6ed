"""Neighbours: what other rows and other shapes say about a node that a row does not have.

Kernels step: split-KV decoding changes its number of splits, tiles leave a remainder, a wave of
blocks is half empty. A row alone cannot show a step between two of its nodes, but rows of
neighbouring batch sizes, and shapes with the same head dimensions, step in the same place: at the
same length, or where batch x heads x length is the same. The residual that interpolation leaves
there, a weighted median over the neighbours, is added to the node's own interpolation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.curves import Curve, Floats, Ints, Pool
from planner.cost.recipe import Recipe
from planner.cost.width import DOUBT_FLOOR, LeftOut, Width
from planner.workload import MixerOp

LEAST_REACH, MOST_REACH = 0.25, 1.0
"""Doublings of batch x heads over which a neighbour's weight falls by e: short where many shapes
were measured, longer where a shape has but its own rows."""

CLOSE_NEIGHBOURS = 4
GROUP_SHARE = 0.25
"""What a doubling of heads per KV head counts for, against one of batch x heads. Chosen, as the
reaches, on the published H200 tables; factors of two either way change errors by a twentieth."""

LEAST_WEIGHT = 0.01
KEY_STEPS = 50
"""Positions agree within 1/50 of a doubling: 4,095 cached tokens are near enough to 4,096."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Inner nodes of many curves, and the residual that reading each from its row leaves.

    `residual` is log(measured / read from the row). `cell` numbers groups of nodes that may speak
    for each other: same head dimensions, same place, same nodes on either side. [N] each; `ends`
    is [cells, 5] the key of the gap that a cell's nodes would fill, and `place` [cells] where.
    """

    residual: Floats
    parallel: Floats
    group: Floats
    row_id: Ints
    cell: Ints
    doubt: Floats
    relevant: NDArray[np.bool_]
    ends: Ints
    place: Ints

    @classmethod
    def of(cls, pool: Pool, recipe: Recipe) -> Neighbours:
        at, s = pool.leave_one_out()
        d = pool.driver_at_nodes(recipe.driver)[at]
        value, doubt = recipe.between(pool, s, pool.log_axis[at], d)
        traits = zip(*map(_traits, pool.curves), strict=True)
        parallel, group, kin = (np.concatenate(column) for column in traits)
        place = _place(pool.axis, parallel, recipe)
        keys = np.column_stack([kin[at], place[s.left], place[s.right], place[at]])
        unique, cell = np.unique(keys, axis=0, return_inverse=True)
        return cls(
            residual=pool.log_s[at] - value,
            parallel=parallel[at],
            group=group[at],
            row_id=pool.row_of[at],
            cell=cell.ravel(),
            doubt=doubt,
            relevant=pool.relevant[at],
            ends=unique[:, :-1],
            place=unique[:, -1],
        )

    def leave_one_out(self) -> LeftOut:
        """Each node from its row and from the residuals of its neighbours in other rows."""
        value, doubt = np.zeros(len(self.residual)), self.doubt.copy()
        for members in self._members:
            p, g, r = self.parallel[members], self.group[members], self.row_id[members]
            distance = _distance(p[:, None] - p, g[:, None] - g)
            distance[r[:, None] == r] = np.inf
            value[members], scatter, known = weighted_median(
                self.residual[members], _weights(distance)
            )
            doubt[members] = np.where(known, scatter + DOUBT_FLOOR, doubt[members])
        return LeftOut(errors=value - self.residual, doubts=doubt, relevant=self.relevant)

    def fill(self, curve: Curve, recipe: Recipe) -> Curve:
        """The curve with a node in each gap that a node of its neighbours would split.

        A filled node's noise is its half-width; it is never taken for a measured one.
        """
        if recipe.filled is None:
            return curve
        new = [
            self._node(curve, recipe, recipe.filled, int(left), cell)
            for left, ends in zip(*_gaps(curve, recipe), strict=True)
            if (cell := self._by_ends.get(tuple(ends))) is not None
        ]
        return _with_nodes(curve, new) if new else curve

    @cached_property
    def _members(self) -> list[Ints]:
        if not len(self.cell):  # of nothing, split would make one empty group
            return []
        order = np.argsort(self.cell, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.cell[order])) + 1)

    @cached_property
    def _by_ends(self) -> dict[tuple[int, ...], int]:
        """Gap to the cell that fills it; of several, the one with the most nodes."""
        size = np.bincount(self.cell, minlength=len(self.ends))
        return {tuple(self.ends[c]): int(c) for c in np.argsort(size, kind="stable")}

    def _node(self, curve: Curve, recipe: Recipe, width: Width, left: int, cell: int) -> _NewNode:
        """The node that `cell` puts into the gap to the right of `left`."""
        at = np.array([left])
        parallel, group, _ = _traits(curve)
        place = self.place[cell] / KEY_STEPS
        length = place - (parallel[left] if recipe.neighbours == "work" else 0.0)
        axis = np.rint(np.exp2([length]))
        row_index = curve.row_of[at]
        s = curve.locate(row_index, np.log(axis))
        d = curve.driver(recipe.driver, curve.rows[row_index], axis)
        value, doubt = recipe.between(curve, s, np.log(axis), d)
        members = self._members[cell]
        distance = _distance(
            self.parallel[members] - parallel[left], self.group[members] - group[left]
        )
        step, scatter, known = weighted_median(self.residual[members], _weights(distance[None]))
        if known[0]:
            value, doubt = value + step, scatter + DOUBT_FLOOR
        return _NewNode(
            row=float(curve.rows[row_index][0]),
            axis=float(axis[0]),
            log_s=float(value[0]),
            noise=float(width.at(doubt)[0]),
            key=curve.keys[left],
        )


@dataclass(frozen=True)
class _NewNode:
    row: float
    axis: float
    log_s: float
    noise: float
    key: str


def _gaps(curve: Curve, recipe: Recipe) -> tuple[Ints, Ints]:
    """(index of the node left of each gap, [gaps, 5] key of the gap)."""
    parallel, _, kin = _traits(curve)
    place = _place(curve.axis, parallel, recipe)
    left = np.flatnonzero(np.diff(curve.row_of) == 0)
    return left, np.column_stack([kin[left], place[left], place[left + 1]])


def _with_nodes(curve: Curve, new: Sequence[_NewNode]) -> Curve:
    return curve.with_nodes(
        row=np.concatenate([curve.rows[curve.row_of], [n.row for n in new]]),
        axis=np.concatenate([curve.axis, [n.axis for n in new]]),
        log_s=np.concatenate([curve.log_s, [n.log_s for n in new]]),
        noise=np.concatenate([curve.noise, [n.noise for n in new]]),
        filled=np.concatenate([curve.filled, np.ones(len(new), bool)]),
        keys=(*curve.keys, *(n.key for n in new)),
    )


def _distance(parallel: Floats, group: Floats) -> Floats:
    return np.abs(parallel) + GROUP_SHARE * np.abs(group)


def _weights(distance: Floats) -> Floats:
    """[M, N] falling with distance, over a reach that takes in a few neighbours of each row."""
    few = min(CLOSE_NEIGHBOURS, distance.shape[1]) - 1
    close = np.partition(distance, few, axis=1)[:, few]
    reach = np.clip(close * 0.75, LEAST_REACH, MOST_REACH)
    return np.exp(-distance / reach[:, None])


def weighted_median(values: Floats, weight: Floats) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Medians of `values` [N] under each row of `weight` [M, N]: (median, mean distance to it,
    whether the weights amount to anything); 0 where they do not."""
    order = np.argsort(values)
    running = np.cumsum(weight[:, order], axis=1)
    total = running[:, -1]
    known = total > LEAST_WEIGHT
    median = values[order][np.argmax(running >= total[:, None] / 2, axis=1)]
    scatter = (weight * np.abs(values - median[:, None])).sum(1) / np.maximum(total, LEAST_WEIGHT)
    return np.where(known, median, 0.0), scatter, known


def _place(axis: Floats, parallel: Floats, recipe: Recipe) -> Ints:
    """Where nodes stand, in 1/KEY_STEPS doublings: by length, or by batch x heads x length."""
    place = np.log2(axis)
    if recipe.neighbours == "work":
        place = place + parallel
    keys: Ints = np.rint(place * KEY_STEPS).astype(np.int64)
    return keys


def _traits(curve: Curve) -> tuple[Floats, Floats, Ints]:
    """Of each node: log2 of batch x heads, log2 of query heads per KV head, and [N, 3] what
    kernels that step alike have in common (head dimensions and window).

    Heads are those that read the cache when decoding, else query heads (or value heads, where
    they are more).
    """
    heads, group, kin = 1, 1.0, (hash(curve.op) >> 8, 0, 0)
    if isinstance(curve.op, MixerOp):
        s = curve.op.spec
        heads = s.num_k_heads if curve.layout == "decode" else max(s.num_q_heads, s.num_v_heads)
        group = s.num_q_heads / s.num_k_heads
        kin = (s.k_head_dim, s.v_head_dim, s.window or 0)
    parallel = np.log2(curve.rows[curve.row_of] * heads)
    return parallel, np.full(len(curve), np.log2(group)), np.tile(kin, (len(curve), 1))

"""ShapeScale: a kernel's time on a shape nobody measured, from the nearest one that was.

The donor is read at the batch that gives it the same work at the same length (a device cannot
tell 64 heads at batch 1 from 32 heads at batch 2), as far as its rows go. What is left is scaled
by the ratio of work, but for the kernel's least time: a launch does not shrink with its work, nor
grow with it. A shape that was measured at other lengths only is no donor while there is another.
How wrong this is, by how unlike the shapes are, is learnt by leaving whole shapes out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.analytic import bound_s
from planner.cost.curves import (
    DRIVERS,
    LEAST_SECONDS,
    Curve,
    Floats,
    Identity,
    Ints,
    coordinates,
    workload_at,
)
from planner.cost.methods import SHORTEST_CALL_S
from planner.cost.recipe import Recipe
from planner.cost.table import Spot, Table
from planner.cost.width import DOUBT_FLOOR, LeftOut, Width
from planner.hardware import Hardware
from planner.workload import DenseOp, ExpertsOp, MixerOp, Op, dtype_bytes

DEFAULT_HALF = 0.3
"""Half-width on another shape where no shape could be left out."""

MAX_TARGETS = 24

WORK_SCALED = 4
"""Units of log work that count as much as one of `shape_distance`."""

PAST_THE_END = 4
"""Doublings past a donor's last point that count as much as one of `shape_distance`, or as one
short of its first: long calls go on as they were, short ones become launches."""

NEAR_END = 1.0
"""Doublings outside its points for which a shape or a provider still goes before one scaled from
another shape: at 2x the published tables' kernels are off by some 4 %, scaled ones by more."""

OUT_OF_REACH = 100.0
"""Distance of a donor whose points end farther off than that: taken where no other reaches."""

MOST_FIXED_S = 100e-6
"""What a call costs at most whatever its work. A kernel that was only measured on long calls does
not show it; chosen, as fla's Gated DeltaNet, of many kernels, takes 87 us at 1k tokens (H100)."""

SHAPE_DRIVERS = ("bound", "useful", "bytes")
"""The first is taken where no shape could be left out."""


@dataclass(frozen=True)
class Moved:
    """Where to read the donor, and the log of the work ratio that is left. `beyond` is how much
    of that a donor measured at one batch cannot tell, in doublings."""

    row: Floats
    axis: Floats
    log_ratio: Floats
    beyond: Floats

    def only(self, here: NDArray[np.bool_]) -> Moved:
        return Moved(self.row[here], self.axis[here], self.log_ratio[here], self.beyond[here])


class Carried(NamedTuple):
    """One workload's time from a donor's: its log seconds, and the half-width carrying adds.
    `distance` is how far the donor is, as `ShapeScale.donors` counts; `beyond` as in `Moved`."""

    donor: Op
    spot: Spot
    log_s: float
    half: float
    distance: float
    beyond: float


class Donors(NamedTuple):
    """Shapes to read, with the workloads of each, and how far each workload's is."""

    parts: list[tuple[Op, NDArray[np.bool_]]]
    distance: Floats


@dataclass(frozen=True, kw_only=True)
class ShapeScale:
    """The measured shapes of one kernel, the driver that carries times over, and its errors."""

    ops: tuple[Op, ...]
    tables: Mapping[Op, Table]
    identity: Identity
    hardware: Hardware
    driver: str
    left_out: LeftOut
    _nearest: dict[Op, list[tuple[float, Op]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _distances: dict[tuple[Op, Op], float] = field(default_factory=dict, repr=False, compare=False)
    _starts: dict[Op, float] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def width(self) -> Width | None:
        return self.left_out.width()

    @cached_property
    def least_s(self) -> float:
        """What a call costs whatever its work, at most: the least that one took over its roofline
        bound, of which no more than half its time is believed, as small calls sit in the cache."""
        over = []
        for op, table in self.tables.items():
            curve = table.curve
            b, n, c = workload_at(curve.layout, curve.rows[curve.row_of], curve.axis)
            bound = bound_s(op, b, n, c, dtype=self.identity.dtype, hardware=self.hardware)
            over.append(float(np.min(curve.latency - np.minimum(bound, curve.latency / 2))))
        return min(*over, MOST_FIXED_S)

    def start_s(self, donor: Op) -> float:
        """The part of a call that stays as it is when its work grows: of `least_s` no more than
        the line through the first two calls of the donor's quickest row has at no work. Where all
        calls are long, the least of them tells of no launch."""
        if donor not in self._starts:
            curve = self.tables[donor].curve
            row = curve.row_of[int(np.argmin(curve.latency))]
            first = np.flatnonzero(curve.row_of == row)[:2]
            rows = curve.rows[curve.row_of[first]]
            work = self._work(donor, *workload_at(curve.layout, rows, curve.axis[first]))
            work, seconds = np.broadcast_to(work, first.shape), curve.latency[first]
            start = float(seconds[0])
            if len(first) == 2 and work[1] > work[0] and seconds[1] > seconds[0]:
                start -= float(work[0] * np.diff(seconds)[0] / np.diff(work)[0])
            self._starts[donor] = min(max(start, SHORTEST_CALL_S), self.least_s)
        return self._starts[donor]

    @classmethod
    def learn(
        cls, curves: Mapping[Op, Curve], recipe: Recipe, identity: Identity, hardware: Hardware
    ) -> ShapeScale:
        """Chooses the driver by leaving out each shape (some, if there are many)."""
        tables = {op: Table(curve, recipe) for op, curve in curves.items()}
        trials = [
            cls(
                ops=tuple(curves),
                tables=tables,
                identity=identity,
                hardware=hardware,
                driver=driver,
                left_out=LeftOut.join([]),
            )
            for driver in SHAPE_DRIVERS
        ]
        found = [replace(t, left_out=t.leave_shapes_out()) for t in trials]
        return min(found, key=lambda trial: trial.left_out.score)

    def leave_shapes_out(self) -> LeftOut:
        """Every node of a left-out shape that one of the others reaches, from the nearest. How
        wrong continuing a curve is, is learnt elsewhere."""
        parts = []
        step = -(-len(self.ops) // MAX_TARGETS)
        for op in self.ops[::step] if len(self.ops) > 1 else ():
            curve = self.tables[op].curve
            row = curve.rows[curve.row_of]
            calls = workload_at(curve.layout, row, curve.axis)
            b, n, c = (np.broadcast_to(np.asarray(v, np.int64), row.shape) for v in calls)
            for donor, here in self.donors(op, partial(self.move, op, b=b, n=n, c=c)).parts:
                moved = self.move(op, donor, b[here], n[here], c[here])
                read = self.tables[donor].read(moved.row, moved.axis)
                log_s = read.log_s + self.rest(donor, read.log_s, moved)
                left_out = LeftOut(
                    errors=log_s - curve.log_s[here],
                    doubts=self._doubt(op, donor, moved, log_s),
                    relevant=np.ones(len(log_s), bool),
                )
                reached = (read.doublings == 0) & (moved.beyond <= NEAR_END)
                parts.append(left_out.select(reached))
        return LeftOut.join(parts)

    def donors(self, op: Op, place: Callable[[Op], Moved]) -> Donors:
        """For each workload the nearest measured shape other than `op`, by `place` where to read
        a shape: work to be scaled and doublings outside its points count as distance, and one
        that reaches goes before one that does not."""
        order, which, best = self._by_distance(op), None, np.array(math.inf)
        for i, (distance, donor) in enumerate(order):
            if not (distance < best).any():
                break
            moved = place(donor)
            short, past = self.tables[donor].outside(moved.row, moved.axis)
            short = short + moved.beyond
            scaled = np.abs(moved.log_ratio) / WORK_SCALED
            whole = distance + scaled + short + past / PAST_THE_END
            whole = whole + np.where(short + past > NEAR_END, OUT_OF_REACH, 0.0)
            nearer = whole < best
            which = np.where(nearer, i, 0 if which is None else which)
            best = np.where(nearer, whole, best)
        assert which is not None, "asked for a donor where there is one shape"
        used = np.unique(which) if which.size else [0]  # asked about nothing, one answers
        return Donors([(order[i][1], which == i) for i in used], best)

    def _by_distance(self, op: Op) -> list[tuple[float, Op]]:
        """The other shapes, the nearest first."""
        if op not in self._nearest:
            others = [(self._distance(op, other), other) for other in self.ops if other != op]
            self._nearest[op] = sorted(others, key=lambda other: other[0])
        return self._nearest[op]

    def move(self, op: Op, donor: Op, b: Ints | int, n: Ints | int, c: Ints | int) -> Moved:
        curve = self.tables[donor].curve
        row, axis = (np.asarray(v, float) for v in coordinates(curve.layout, b, n, c))
        ratio = self._work(op, b, n, c) / self._work(donor, b, n, c)
        none = np.zeros(np.shape(ratio))
        if curve.layout == "tokens":
            return Moved(row, axis, np.log(ratio), none)
        if curve.layout == "state":  # batches are its axis, and it may be continued along it
            lone, end = len(curve.axis) == 1, curve.axis[0]
            same_work = np.maximum(axis * ratio, end) if not lone else np.full(axis.shape, end)
            log_left, moved = np.log(axis * ratio / same_work), (row, same_work)
        else:
            lone = len(curve.rows) == 1
            same_work = np.minimum(np.maximum(row * ratio, curve.rows[0]), curve.rows[-1])
            log_left, moved = np.log(row * ratio / same_work), (same_work, axis)
        return Moved(*moved, log_left, np.abs(log_left) / math.log(2) if lone else none)

    def carry(self, op: Op, b: int, n: int, c: int) -> Carried:
        """`donors`, the donor's reading, `rest` and `half` of one workload, without arrays."""
        best, chosen, work = math.inf, None, self._work_of_one(op, b, n, c)
        for distance, shape in self._by_distance(op):
            if not distance < best:
                break
            row, axis, left, beyond = self._move_one(work, shape, b, n, c)
            short, past = self.tables[shape].outside_one(row, axis)
            short += beyond
            scaled = abs(math.log(left)) / WORK_SCALED
            whole = distance + scaled + short + past / PAST_THE_END
            if short + past > NEAR_END:
                whole += OUT_OF_REACH
            if whole < best:
                best, chosen = whole, (shape, row, axis, left, beyond)
        assert chosen is not None, "asked for a donor where there is one shape"
        donor, row, axis, left, beyond = chosen
        spot = self.tables[donor].at(row, axis)
        read_s = math.exp(spot.log_s)
        fixed = min(self.start_s(donor) if left > 1 else self.least_s, read_s)
        log_s = math.log(fixed + (read_s - fixed) * left)
        quick = max(math.log(LEAST_SECONDS) - log_s, 0.0)
        scaled = abs(math.log(left)) / WORK_SCALED
        doubt = self._distance(op, donor) + scaled + quick / 2 + DOUBT_FLOOR
        half = DEFAULT_HALF if self.width is None else self.width.at_one(doubt)
        return Carried(donor, spot, log_s, half, best, beyond)

    def _move_one(
        self, work: float, donor: Op, b: int, n: int, c: int
    ) -> tuple[float, float, float, float]:
        """Row, position, work ratio and `beyond` of `move`, of one workload of that work."""
        table = self.tables[donor]
        layout = table.curve.layout
        row, axis = coordinates(layout, b, n, c)
        ratio = work / self._work_of_one(donor, b, n, c)
        if layout == "tokens":
            return row, axis, ratio, 0.0
        if layout == "state":
            lone = len(table.curve.axis) == 1
            axis_there = table.first_axis if lone else max(axis * ratio, table.first_axis)
            left, row_there, axis = axis * ratio / axis_there, row, axis_there
        else:
            lone = table.first_row == table.last_row
            row_there = min(max(row * ratio, table.first_row), table.last_row)
            left = row * ratio / row_there
        return row_there, axis, left, abs(math.log(left)) / math.log(2) if lone else 0.0

    def _work_of_one(self, op: Op, b: int, n: int, c: int) -> float:
        return float(self._work(op, b, n, c))

    def rest(self, donor: Op, log_s: Floats | float, moved: Moved) -> Floats:
        """What to add to the donor's log time for the work ratio that is left."""
        read_s = np.exp(log_s)
        fixed = np.minimum(
            np.where(moved.log_ratio > 0, self.start_s(donor), self.least_s), read_s
        )
        return np.asarray(np.log(fixed + (read_s - fixed) * np.exp(moved.log_ratio)) - log_s)

    def half(self, op: Op, donor: Op, moved: Moved, log_s: Floats | float) -> Floats:
        """Half-width that carrying a time of `log_s` over adds."""
        if self.width is None:
            return np.full(np.shape(moved.row), DEFAULT_HALF)
        return self.width.at(self._doubt(op, donor, moved, log_s))

    def _doubt(self, op: Op, donor: Op, moved: Moved, log_s: Floats | float) -> Floats:
        """Unlike shapes, work that is scaled, and calls that are hardly more than a launch."""
        quick = np.maximum(math.log(LEAST_SECONDS) - np.asarray(log_s), 0.0)
        scaled = np.abs(moved.log_ratio) / WORK_SCALED
        return np.asarray(self._distance(op, donor) + scaled + quick / 2 + DOUBT_FLOOR)

    def _distance(self, op: Op, donor: Op) -> float:
        if (op, donor) not in self._distances:
            self._distances[op, donor] = shape_distance(op, donor)
        return self._distances[op, donor]

    def _work(self, op: Op, b: Ints | int, n: Ints | int, c: Ints | int) -> Floats:
        elem = dtype_bytes(self.identity.dtype)
        if self.driver == "bound":
            return np.asarray(
                bound_s(op, b, n, c, dtype=self.identity.dtype, hardware=self.hardware)
            )
        return np.asarray(DRIVERS[self.driver](op, b, n, c, elem), float)


def shape_distance(one: Op, other: Op) -> float:
    return float(np.abs(_features(one) - _features(other)).sum())


UNWINDOWED = float(1 << 20)


def _features(op: Op) -> Floats:
    """Log2 dimensions, weighted by how much a kernel's efficiency hangs on them.

    Head dimensions and windows select another tiling; heads per KV head change what is reused;
    the number of heads alone is batch by another name.
    """
    if isinstance(op, MixerOp):
        s = op.spec
        group = s.num_q_heads / s.num_k_heads
        sizes = [s.k_head_dim, s.v_head_dim, s.window or UNWINDOWED, group, s.num_q_heads]
        weights = [2.0, 2.0, 0.5, 0.5, 0.25]
    elif isinstance(op, DenseOp):
        sizes, weights = [op.in_features, op.out_features], [1.0, 1.0]
    elif isinstance(op, ExpertsOp):
        sizes = [op.hidden_size, op.expert_intermediate_size, op.num_experts, op.top_k]
        weights = [1.0, 1.0, 1.0, 1.0]
    else:
        sizes, weights = [float(op.model_flops(1, 2, 0))], [1.0]
    features: Floats = np.array(weights) * np.log2(np.array(sizes, float))
    return features

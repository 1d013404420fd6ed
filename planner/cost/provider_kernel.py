"""ProviderKernel: one provider's way to run a family, on every shape it was measured on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.answer import Answer, OneAnswer
from planner.cost.basis import Basis
from planner.cost.curves import (
    DRIVERS,
    Curve,
    Floats,
    Identity,
    Ints,
    Layout,
    Pool,
    coordinates,
    layout_of,
)
from planner.cost.neighbours import Neighbours
from planner.cost.observations import Observation
from planner.cost.recipe import Recipe
from planner.cost.shapes import NEAR_END, Moved, ShapeScale
from planner.cost.table import Table
from planner.hardware import Hardware
from planner.mixers import get_mixer
from planner.workload import MixerOp, Op, dtype_bytes

SEGMENT_HALF_WIDTH = 0.15
"""Half-width that reading a segment at equal work adds. Not calibrated: the published tables hold
no prefills after cached tokens. Segments that were measured are read as such."""


@dataclass(frozen=True)
class Failure:
    """An outcome other than ok, at a position of a curve and after cached tokens."""

    row: float
    axis: float
    cached: int
    outcome: str


@dataclass(frozen=True, kw_only=True)
class ProviderKernel:
    """The curves of one identity by operation, its failures, and the recipe to read them.

    `segments` are curves of prefills after cached tokens, by operation and new tokens.
    """

    identity: Identity
    curves: Mapping[Op, Curve]
    failures: Mapping[Op, tuple[Failure, ...]]
    segments: Mapping[tuple[Op, int], Curve]
    flagged: bool
    recipe: Recipe = Recipe()
    _tables: dict[Op | tuple[Op, int], Table] = field(
        default_factory=dict, repr=False, compare=False
    )
    _scale: dict[str, ShapeScale] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls, identity: Identity, points: Sequence[Observation], *, cache_state: str, flagged: bool
    ) -> ProviderKernel:
        """From one identity's points; shapes measured in both cache states keep `cache_state`."""
        by_op: dict[Op, list[Observation]] = defaultdict(list)
        for p in points:
            by_op[p.op].append(p)
        curves, failures, segments = {}, {}, {}
        for op, mine in by_op.items():
            states = {p.cache_state for p in mine}
            kept = [p for p in mine if p.cache_state == cache_state or cache_state not in states]
            ok = [p for p in kept if p.outcome == "ok"]
            whole = [p for p in ok if not _is_segment(op, identity, p)]
            if whole:
                curves[op] = Curve.build(whole, identity)
            for new in sorted({p.new_tokens for p in ok if _is_segment(op, identity, p)}):
                alike = [p for p in ok if p.new_tokens == new]
                rows = {p.batch_size for p in alike if p.cached_tokens > 0}
                along = [p for p in alike if p.batch_size in rows]
                segments[op, new] = Curve.build(along, identity, segment=new)
            cut = op in curves and _runs_in_segments(op, identity)
            failures[op] = tuple(
                Failure(*_position(op, identity, p), p.outcome)
                for p in kept
                if p.outcome != "ok" and not (cut and p.outcome == "out_of_memory")
            )
        return cls(
            identity=identity, curves=curves, failures=failures, segments=segments, flagged=flagged
        )

    def ready(self, recipe: Recipe) -> ProviderKernel:
        """With the recipe chosen for it, and its curves' gaps filled from their neighbours."""
        curves = self.curves
        if recipe.filled is not None and curves:
            neighbours = Neighbours.of(Pool.of(list(curves.values())), recipe)
            curves = {op: neighbours.fill(curve, recipe) for op, curve in curves.items()}
        return replace(self, curves=curves, recipe=recipe, _tables={}, _scale={})

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of all measured nodes: what `nearest` counts in."""
        every = (*self.curves.values(), *self.segments.values())
        return tuple(key for curve in every for key in curve.measured_keys)

    @cached_property
    def _number(self) -> dict[Op | tuple[Op, int], Ints]:
        """For each node of each curve the number of its point; a filled node has that of the
        point to its left."""
        numbers: dict[Op | tuple[Op, int], Ints] = {}
        first = 0
        for name, curve in (*self.curves.items(), *self.segments.items()):
            real = np.cumsum(~curve.filled)
            numbers[name] = first + np.maximum(real - 1, 0)
            first += int(real[-1])
        return numbers

    def answer(self, op: Op, b: Ints, n: Ints, c: Ints, hardware: Hardware) -> Answer | None:
        """What this kernel says; None if no point of it bears on the operation."""
        outcome = self._outcome(op, b, n, c)
        if op in self.curves:
            found = self._known(op, b, n, c, hardware)
        elif self._can_scale(op):
            found, _ = self._scaled(op, b, n, c, hardware)
        elif isinstance(outcome, str):
            return None
        else:
            return Answer.none(outcome, self.identity.provider, self.identity.mode)
        return found if isinstance(outcome, str) else replace(found, outcome=outcome)

    def answer_one(self, op: Op, b: int, n: int, c: int, hardware: Hardware) -> OneAnswer | None:
        """`answer` about one workload, in a tenth of the time where it is a mere look-up."""
        layout, known = self._layout(op), op in self.curves
        if (c > 0 and layout == "prefill") or not (known or self._can_scale(op)):
            found = self.answer(op, np.array([b]), np.array([n]), np.array([c]), hardware)
            return None if found is None else found.only()
        row, axis = coordinates(layout, b, n, c)
        if known:
            spot = self._table(op).at(row, axis)
            donor, log_s, half, worst = op, spot.log_s, spot.half, Basis.MEASURED
        beyond = 0.0
        short = self._table(op).outside_one(row, axis)[0] if known else math.inf
        if short > NEAR_END and (not known or len(self.curves) > 1):
            carried = self.scale(hardware).carry(op, b, n, c)
            if carried.distance < short:
                donor, spot, log_s, half, _, beyond = carried
                half, worst = math.hypot(spot.half, half), Basis.SCALED
        basis = Basis.EXTRAPOLATED if spot.doublings > 0 else Basis.INTERPOLATED
        number = self._number[donor]
        return OneAnswer(
            log_s=log_s,
            half=half,
            basis=max(worst, Basis.MEASURED if spot.measured else basis),
            doublings=spot.doublings + beyond,
            carried=worst == Basis.SCALED,
            outcome=self._outcome_one(op, row, axis, c),
            nearest=(int(number[spot.left]), int(number[spot.right])),
            provider=self.identity.provider,
            mode=self.identity.mode,
        )

    # Outcomes

    def _can_scale(self, op: Op) -> bool:
        """Whether other shapes may stand in: not for one that the kernel refused."""
        refused = any(f.outcome == "unsupported" for f in self.failures.get(op, ()))
        return bool(self.curves) and not refused

    def _outcome(self, op: Op, b: Ints, n: Ints, c: Ints) -> NDArray[np.object_] | str:
        """ "ok", or per workload the failure at or below it in batch and length.

        A failure says nothing of workloads that a measured larger one shows to be possible.
        """
        failures = self.failures.get(op, ())
        if not failures:
            return "ok"
        row, axis = coordinates(layout_of(op, self.identity.phase), b, n, c)
        outcome = np.full(len(row), "ok", object)
        for f in failures:
            outcome[(row >= f.row) & (axis >= f.axis) & (c >= f.cached)] = f.outcome
        if op in self.curves:
            outcome[_shown_possible(self.curves[op], row, axis) & (outcome != "ok")] = "ok"
        return outcome

    def _outcome_one(self, op: Op, row: int, axis: int, cached: int) -> str:
        """`_outcome` of one workload."""
        found = "ok"
        for f in self.failures.get(op, ()):
            if row >= f.row and axis >= f.axis and cached >= f.cached:
                found = f.outcome
        if found != "ok" and op in self.curves:
            shown = _shown_possible(self.curves[op], np.array([row]), np.array([axis]))
            return "ok" if shown[0] else found
        return found

    # This shape

    def _direct(self, op: Op, b: Ints, n: Ints, c: Ints) -> Answer:
        row, axis = (np.asarray(v, float) for v in coordinates(self._layout(op), b, n, c))
        if self._layout(op) != "prefill" or not (c > 0).any():
            return self._read(op, row, axis)
        return self._segmented(op, b, n, c)

    def _layout(self, op: Op) -> Layout:
        return layout_of(op, self.identity.phase)

    def _read(self, name: Op | tuple[Op, int], row: Floats, axis: Floats) -> Answer:
        """A curve by operation, or a curve of segments by operation and new tokens."""
        r = self._table(name).read(row, axis)
        basis = np.full(len(row), Basis.INTERPOLATED, np.int8)
        basis[r.doublings > 0] = Basis.EXTRAPOLATED
        basis[r.measured] = Basis.MEASURED
        return Answer(
            log_s=r.log_s,
            half=r.half,
            basis=basis,
            doublings=r.doublings,
            carried=np.zeros(len(row), bool),
            outcome="ok",
            nearest=self._number[name][np.stack([r.left, r.right], axis=-1)],
            provider=self.identity.provider,
            mode=self.identity.mode,
            provider_names=frozenset([self.identity.provider]),
        )

    def _table(self, name: Op | tuple[Op, int]) -> Table:
        if name not in self._tables:
            curve = self.segments[name] if isinstance(name, tuple) else self.curves[name]
            self._tables[name] = Table(curve, self.recipe)
        return self._tables[name]

    def _segmented(self, op: Op, b: Ints, n: Ints, c: Ints) -> Answer:
        """Prefills after cached tokens: along the measured segments of as many new tokens, else
        the prefill from nothing that does as much work.

        A kernel that reads no cache (a recurrent one) does the same work at the same length.
        """
        segment = c > 0
        axis = np.where(segment, self._equal_work(op, b, n, c), n)
        found = self._read(op, b.astype(float), axis)
        moved = segment & (axis != n)
        basis = np.where(segment, np.maximum(found.basis, Basis.INTERPOLATED), found.basis)
        basis = np.where(moved, np.maximum(basis, Basis.SCALED), basis).astype(np.int8)
        half = np.where(moved, np.hypot(found.half, SEGMENT_HALF_WIDTH), found.half)
        found = replace(found, basis=basis, half=half, carried=moved)
        parts = [(~np.zeros(len(b), bool), found)]
        for new in np.unique(n[segment]).tolist():
            if (op, new) in self.segments:
                here = segment & (n == new)
                row, end = b[here].astype(float), (n + c)[here].astype(float)
                parts.append((here, self._read((op, new), row, end)))
        return parts[0][1] if len(parts) == 1 else Answer.merge(parts)

    def _equal_work(self, op: Op, b: Ints, n: Ints, c: Ints) -> Floats:
        """The length of a prefill from nothing that does as much work as `n` after `c`.

        Secant steps in logs: work is close to a power law of the length.
        """
        elem = dtype_bytes(self.identity.dtype)

        def work(length: Floats | Ints, cached: Ints | int) -> Floats:
            done = DRIVERS["useful"](op, b, length, cached, elem)
            logs: Floats = np.log(np.asarray(done, float))
            return logs

        target, x = work(n, c), np.log(n.astype(float))
        for _ in range(6):
            here = work(np.exp(x), 0)
            slope = (work(np.exp(x + 0.01), 0) - here) / 0.01
            x = np.maximum(x + (target - here) / np.maximum(slope, 0.5), 0.0)
        length = np.exp(x)
        whole = np.abs(length - n) < 1e-6 * n
        return np.asarray(np.where(whole, n, np.clip(length, 1.0, n + c)), float)

    # Another shape

    def scale(self, hardware: Hardware) -> ShapeScale:
        """How times carry over between this kernel's shapes; learnt when first needed."""
        if hardware.id not in self._scale:
            self._scale[hardware.id] = ShapeScale.learn(
                self.curves, self.recipe, self.identity, hardware
            )
        return self._scale[hardware.id]

    def _scaled(
        self, op: Op, b: Ints, n: Ints, c: Ints, hardware: Hardware
    ) -> tuple[Answer, Floats]:
        """The nearest measured shapes at the batch that does the same work, as far as their rows
        go; the rest by ratio. Also how far those shapes are."""
        scale = self.scale(hardware)

        def place(donor: Op) -> Moved:
            moved = scale.move(op, donor, b, n, c)
            if self._layout(op) == "prefill" and (c > 0).any():
                length = self._equal_work(donor, b, n, c)
                moved = replace(moved, axis=np.where(c > 0, length, moved.axis))
            return moved

        def carried(donor: Op, moved: Moved) -> Answer:
            found = self._read(donor, moved.row, moved.axis)
            log_ratio = scale.rest(donor, found.log_s, moved)
            found = replace(found, doublings=found.doublings + moved.beyond)
            return found.scaled(log_ratio, scale.half(op, donor, moved, found.log_s + log_ratio))

        donors = scale.donors(op, place)
        parts = [(here, carried(donor, place(donor).only(here))) for donor, here in donors.parts]
        found = parts[0][1] if len(parts) == 1 else Answer.merge(parts)
        return found, donors.distance

    def _known(self, op: Op, b: Ints, n: Ints, c: Ints, hardware: Hardware) -> Answer:
        """This shape's curve, but far short of its points another shape that reaches there."""
        found = self._direct(op, b, n, c)
        if len(self.curves) == 1:
            return found
        row, axis = (np.asarray(v, float) for v in coordinates(self._layout(op), b, n, c))
        short, _ = self._table(op).outside(row, axis)
        if self._layout(op) == "prefill":
            short = np.where(c > 0, 0.0, short)  # segments have curves and a rule of their own
        if not (short > NEAR_END).any():
            return found
        other, distance = self._scaled(op, b, n, c, hardware)
        nearer = (short > NEAR_END) & (distance < short)
        return Answer.pick([found, other], nearer.astype(np.int64)) if nearer.any() else found


def _runs_in_segments(op: Op, identity: Identity) -> bool:
    """Whether a prefill too long for one call is taken as a few shorter ones that are as long
    together: of a mixer that carries a state of fixed size from one to the next, and reads no
    cache. An assumption, until such segments are measured."""
    if identity.phase != "prefill" or not isinstance(op, MixerOp):
        return False
    return bool(get_mixer(op.spec.mixer).kv_cache_bytes(op.spec, 1, 1.0) == 0)


def _position(op: Op, identity: Identity, p: Observation) -> tuple[float, float, int]:
    layout = layout_of(op, identity.phase)
    row, axis = coordinates(layout, p.batch_size, p.new_tokens, p.cached_tokens)
    return float(row), float(axis), p.cached_tokens if layout == "prefill" else 0


def _is_segment(op: Op, identity: Identity, p: Observation) -> bool:
    return layout_of(op, identity.phase) == "prefill" and p.cached_tokens > 0


def _shown_possible(curve: Curve, row: Ints, axis: Ints) -> NDArray[np.bool_]:
    """Workloads for which some measured node is at least as large in both directions."""
    furthest = curve.axis[curve.last_of]
    reach = np.maximum.accumulate(furthest[::-1])[::-1]
    at = np.searchsorted(curve.rows, row)
    inside = at < len(curve.rows)
    return inside & (axis <= reach[np.minimum(at, len(curve.rows) - 1)])

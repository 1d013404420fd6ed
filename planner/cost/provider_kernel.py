"""ProviderKernel: one provider's way to run a family, on every shape it was measured on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.basis import Basis
from planner.cost.curves import (
    DRIVERS,
    REPEATABILITY,
    UNKNOWN_NOISE,
    Curve,
    Floats,
    Identity,
    Ints,
    Layout,
    coordinates,
    layout_of,
)
from planner.cost.observations import Observation
from planner.cost.recipe import Recipe
from planner.cost.table import Table
from planner.hardware import Hardware
from planner.workload import DenseOp, MixerOp, Op, dtype_bytes

SCALED_HALF_WIDTH = 0.25
SEGMENT_HALF_WIDTH = 0.15


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is known of N workloads: log seconds, half-width, basis and where it is from.

    `nearest` is [N, 2] indices into the cost model's list of point keys, -1 for none.
    """

    log_s: Floats
    half: Floats
    basis: NDArray[np.int8]
    doublings: Floats
    outcome: NDArray[np.object_] | str
    nearest: Ints
    provider: NDArray[np.object_] | str
    mode: NDArray[np.object_] | str
    provider_names: set[str]

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.broadcast_to(np.asarray(self.outcome == "ok"), self.log_s.shape)

    @classmethod
    def analytic(cls, log_s: Floats, half: Floats) -> Answer:
        return cls(
            log_s=log_s, half=half, basis=np.full(len(log_s), Basis.ANALYTIC, np.int8),
            doublings=np.zeros(len(log_s)), outcome="ok",
            nearest=np.full((len(log_s), 2), -1), provider="analytic", mode="",
            provider_names={"analytic"},
        )  # fmt: skip

    @classmethod
    def pick(cls, answers: Sequence[Answer], which: Ints) -> Answer:
        """For each workload the answer of that index."""
        j = np.arange(len(which))
        names = [a.provider for a in answers]

        def of(name: str) -> NDArray[np.object_]:
            column = np.empty((len(answers), len(which)), object)
            for i, a in enumerate(answers):
                column[i] = getattr(a, name)
            return column[which, j]

        return cls(
            log_s=np.stack([a.log_s for a in answers])[which, j],
            half=np.stack([a.half for a in answers])[which, j],
            basis=np.stack([a.basis for a in answers])[which, j],
            doublings=np.stack([a.doublings for a in answers])[which, j],
            outcome=of("outcome"),
            nearest=np.stack([a.nearest for a in answers])[which, j],
            provider=of("provider"),
            mode=of("mode"),
            provider_names={str(names[i]) for i in np.unique(which)},
        )

    def scaled(self, log_ratio: Floats) -> Answer:
        """Carried over by a ratio of work: no better than scaled."""
        return replace(
            self,
            log_s=self.log_s + log_ratio,
            half=np.hypot(self.half, SCALED_HALF_WIDTH),
            basis=np.maximum(self.basis, np.int8(Basis.SCALED)),
        )


@dataclass(frozen=True)
class Failure:
    """An outcome other than ok at a position of a curve."""

    row: float
    axis: float
    outcome: str


@dataclass(frozen=True, kw_only=True)
class ProviderKernel:
    """The curves of one identity by operation, its failures, and the recipe to read them.

    `segments` are measured prefills after cached tokens; they are looked up, not curves.
    """

    identity: Identity
    curves: Mapping[Op, Curve]
    failures: Mapping[Op, tuple[Failure, ...]]
    segments: Mapping[Op, Mapping[tuple[int, int, int], tuple[float, float, int]]]
    first_key: Mapping[Op, int]
    keys: tuple[str, ...]
    flagged: bool
    recipe: Recipe = Recipe()
    _tables: dict[Op, Table] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(
        cls,
        identity: Identity,
        points: Sequence[Observation],
        *,
        cache_state: str,
        flagged: bool,
        first_key: int,
    ) -> ProviderKernel:
        by_op: dict[Op, list[Observation]] = defaultdict(list)
        for p in points:
            by_op[p.op].append(p)
        curves: dict[Op, Curve] = {}
        failures: dict[Op, tuple[Failure, ...]] = {}
        first: dict[Op, int] = {}
        segments: dict[Op, dict[tuple[int, int, int], tuple[float, float, int]]] = {}
        keys: list[str] = []
        for op, mine in by_op.items():
            states = {p.cache_state for p in mine}
            kept = [p for p in mine if p.cache_state == cache_state or cache_state not in states]
            failures[op] = tuple(
                Failure(*_position(op, identity, p), p.outcome) for p in kept if p.outcome != "ok"
            )
            ok = [p for p in kept if p.outcome == "ok"]
            whole = [p for p in ok if not _is_segment(op, identity, p)]
            if whole:
                curves[op] = Curve.build(whole, identity)
                first[op] = first_key + len(keys)
                keys += curves[op].keys
            parts = [p for p in ok if _is_segment(op, identity, p)]
            segments[op] = {
                (p.batch_size, p.new_tokens, p.cached_tokens): (
                    math.log(p.latency_s), p.noise, first_key + len(keys) + i,
                )
                for i, p in enumerate(parts)
            }  # fmt: skip
            keys += [p.key for p in parts]
        return cls(
            identity=identity, curves=curves, failures=failures, segments=segments,
            first_key=first, keys=tuple(keys), flagged=flagged,
        )  # fmt: skip

    def with_recipe(self, recipe: Recipe) -> ProviderKernel:
        return replace(self, recipe=recipe, _tables={})

    def answer(self, op: Op, b: Ints, n: Ints, c: Ints, hardware: Hardware) -> Answer | None:
        """What this kernel says; None if no point of it bears on the operation."""
        layout = layout_of(op, self.identity.phase)
        row, axis = coordinates(layout, b, n, c)
        outcome = self._outcome(op, row, axis)
        curve = self.curves.get(op)
        donor = op if curve is not None else self._donor(op)
        if donor is None:
            return None if isinstance(outcome, str) else self._failed(b, outcome)
        if op == donor:
            found = self._direct(op, layout, b, n, c)
        else:
            found = self._scaled(op, donor, layout, b, n, c, hardware)
        return replace(found, outcome=outcome)

    def _failed(self, b: Ints, outcome: NDArray[np.object_]) -> Answer:
        name = self.identity.provider
        blank = Answer.analytic(np.full(len(b), np.nan), np.zeros(len(b)))
        where_ok = np.where(outcome == "ok", "unsupported", outcome)
        return replace(
            blank, outcome=where_ok, provider=name, mode=self.identity.mode, provider_names={name}
        )

    # Outcomes

    def _outcome(self, op: Op, row: Ints, axis: Ints) -> NDArray[np.object_] | str:
        """ "ok", or per workload the failure at or below it in batch and length.

        A failure says nothing of workloads that a measured larger one shows to be possible.
        """
        failures = self.failures.get(op, ())
        if not failures:
            return "ok"
        outcome = np.full(len(row), "ok", object)
        for f in failures:
            outcome[(row >= f.row) & (axis >= f.axis)] = f.outcome
        curve = self.curves.get(op)
        if curve is not None and (outcome != "ok").any():
            outcome[_dominated(curve, row, axis)] = "ok"
        return outcome

    # This shape

    def _direct(self, op: Op, layout: Layout, b: Ints, n: Ints, c: Ints) -> Answer:
        curve = self.curves[op]
        row, axis = (np.asarray(v, float) for v in coordinates(layout, b, n, c))
        segment = (c > 0) if layout == "prefill" else None
        if segment is None or not segment.any():
            return self._read(op, row, axis)
        axis = np.where(segment, self._equal_work(curve, b, n, c), axis)
        found = self._read(op, row, axis)
        moved = segment & (axis != n)
        basis = np.where(moved, np.maximum(found.basis, Basis.SCALED), found.basis)
        basis = np.where(segment, np.maximum(basis, Basis.INTERPOLATED), basis)
        half = np.where(moved, np.hypot(found.half, SEGMENT_HALF_WIDTH), found.half)
        found = replace(found, basis=basis.astype(np.int8), half=half)
        return self._with_measured_segments(op, found, b, n, c)

    def _read(self, op: Op, row: Floats, axis: Floats) -> Answer:
        if op not in self._tables:
            self._tables[op] = Table(self.curves[op], self.recipe)
        r = self._tables[op].read(row, axis)
        beyond = np.where(r.doublings > 0, Basis.EXTRAPOLATED, Basis.INTERPOLATED)
        return Answer(
            log_s=r.log_s,
            half=r.half,
            basis=np.where(r.measured, Basis.MEASURED, beyond).astype(np.int8),
            doublings=r.doublings,
            outcome="ok",
            nearest=np.stack([r.left, r.right], axis=-1) + self.first_key[op],
            provider=self.identity.provider,
            mode=self.identity.mode,
            provider_names={self.identity.provider},
        )

    def _equal_work(self, curve: Curve, b: Ints, n: Ints, c: Ints) -> Floats:
        """The length of a prefill from nothing that does as much work as `n` after `c`.

        Secant steps in logs: work is close to a power law of the length.
        """
        driver, op = DRIVERS[self.recipe.driver], curve.op
        elem = dtype_bytes(self.identity.dtype)

        def work(length: Floats) -> Floats:
            return np.log(np.asarray(driver(op, b, length, 0, elem), float))

        target = np.log(np.asarray(driver(op, b, n, c, elem), float))
        x = np.log(n.astype(float))
        for _ in range(8):
            here = work(np.exp(x))
            slope = (work(np.exp(x + 0.01)) - here) / 0.01
            x = x + (target - here) / np.maximum(slope, 0.5)
        length = np.exp(x)
        whole = np.abs(length - n) < 1e-6 * n
        return np.where(whole, n, np.clip(length, 1.0, n + c))

    def _with_measured_segments(self, op: Op, found: Answer, b: Ints, n: Ints, c: Ints) -> Answer:
        table = self.segments.get(op, {})
        hits = [
            (i, table[key])
            for i, key in enumerate(zip(b.tolist(), n.tolist(), c.tolist(), strict=True))
            if key in table
        ] if table else []  # fmt: skip
        if not hits:
            return found
        log_s, half, basis = found.log_s.copy(), found.half.copy(), found.basis.copy()
        nearest = found.nearest.copy()
        for i, (value, noise, key) in hits:
            log_s[i], basis[i] = value, Basis.MEASURED
            half[i] = max(UNKNOWN_NOISE if math.isnan(noise) else noise, REPEATABILITY)
            nearest[i] = key
        return replace(found, log_s=log_s, half=half, basis=basis, nearest=nearest)

    # Another shape

    def _donor(self, op: Op) -> Op | None:
        """The measured shape nearest to `op`; None if there is none or it failed outright."""
        if any(f.outcome == "unsupported" for f in self.failures.get(op, ())):
            return None
        if not self.curves:
            return None
        wanted = shape_features(op)
        return min(self.curves, key=lambda d: float(np.abs(shape_features(d) - wanted).sum()))

    def _scaled(
        self, op: Op, donor: Op, layout: Layout, b: Ints, n: Ints, c: Ints, hardware: Hardware
    ) -> Answer:
        """The donor at the batch that does the same work, as far as its rows go; then by ratio."""
        curve = self.curves[donor]
        elem = dtype_bytes(self.identity.dtype)
        driver = DRIVERS["bytes" if layout in ("decode", "state") else self.recipe.end_driver]
        ratio = driver(op, b, n, c, elem) / driver(donor, b, n, c, elem)
        if layout == "tokens":
            here, there = (
                hardware.lower_bound_s(
                    o.model_flops(b, n, c), o.min_bytes(b, n, c, elem), self.identity.dtype
                )
                for o in (op, donor)
            )
            found = self._direct(donor, layout, b, n, c)
            return found.scaled(np.log(here / there))
        if layout == "state":
            found = self._read(donor, np.ones(len(b)), b * ratio)
            return found.scaled(np.zeros(len(b)))
        batch = np.clip(b * ratio, curve.rows[0], curve.rows[-1])
        row, axis = (np.asarray(v, float) for v in coordinates(layout, batch, n, c))
        if layout == "prefill" and (c > 0).any():
            axis = np.where(c > 0, self._equal_work(curve, b, n, c), axis)
        found = self._read(donor, row, axis)
        return found.scaled(np.log(b * ratio / batch))


def _position(op: Op, identity: Identity, p: Observation) -> tuple[float, float]:
    layout = layout_of(op, identity.phase)
    row, axis = coordinates(layout, p.batch_size, p.new_tokens, p.cached_tokens)
    return float(row), float(axis)


def _is_segment(op: Op, identity: Identity, p: Observation) -> bool:
    return layout_of(op, identity.phase) == "prefill" and p.cached_tokens > 0


def _dominated(curve: Curve, row: Ints, axis: Ints) -> NDArray[np.bool_]:
    """Workloads for which some measured node is at least as large in both directions."""
    furthest = curve.axis[curve.start + curve.count - 1]
    reach = np.maximum.accumulate(furthest[::-1])[::-1]
    at = np.searchsorted(curve.rows, row)
    inside = at < len(curve.rows)
    return inside & (axis <= reach[np.minimum(at, len(curve.rows) - 1)])


def shape_features(op: Op) -> Floats:
    """Log dimensions, weighted by how much a kernel's efficiency depends on them."""
    if isinstance(op, MixerOp):
        s = op.spec
        group = s.num_q_heads / s.num_v_heads
        window = 1 << 30 if s.window is None else s.window
        weights = np.array([4.0, 4.0, 2.0, 1.0, 0.5])
        return weights * np.log([s.k_head_dim, s.v_head_dim, window, group, s.num_q_heads])
    if isinstance(op, DenseOp):
        return np.log([op.in_features, op.out_features])
    return np.log([float(op.model_flops(1, 1, 0))])

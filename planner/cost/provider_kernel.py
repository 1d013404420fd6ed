"""ProviderKernel: one provider's way to run a family, on every shape it was measured on."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.basis import Basis
from planner.cost.curves import (
    DRIVERS,
    Curve,
    Floats,
    Identity,
    Ints,
    Layout,
    coordinates,
    layout_of,
)
from planner.cost.observations import Observation
from planner.cost.recipe import DOUBT_FLOOR, Reading, Recipe, read_rows
from planner.hardware import Hardware
from planner.workload import DenseOp, MixerOp, Op, dtype_bytes

UNKNOWN_NOISE = 0.02
"""80 % half-width of a time whose source keeps no samples: shapes that the published H200 tables
hold twice differ by 0.2 to 2.3 % at the median, by framework."""

REPEATABILITY = 0.01
"""Least half-width of a measured time: another day's run, clocks not locked."""

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
        return replace(self, recipe=recipe)

    def answer(
        self, op: Op, b: Ints, n: Ints, c: Ints, hardware: Hardware
    ) -> Answer | None:
        """What this kernel says; None if it has no point that bears on the operation."""
        layout = layout_of(op, self.identity.phase)
        row, axis = coordinates(layout, b, n, c)
        outcome = self._outcome(op, row, axis)
        if op in self.curves:
            found = self._direct(op, layout, b, n, c, row, axis)
        else:
            donor = self._donor(op)
            if donor is None:
                return None if isinstance(outcome, str) else self._only_failed(b, outcome)
            found = self._scaled(op, donor, layout, b, n, c, row, axis, hardware)
        return replace(found, outcome=outcome)

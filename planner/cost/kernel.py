"""Kernel cost: how long one kernel call takes on this device, and how sure that is.

    >>> kernels = KernelCost.fit(observations(store.points()), hardware)      # doctest: +SKIP
    >>> found = kernels.predict(op, 4, 1, lengths, dtype="bf16")              # doctest: +SKIP
    >>> found.latency_s, found.low_s, found.high_s, found.basis               # doctest: +SKIP

A time is the measured one of the same call, or read between measured points, or the same
kernel's on another shape scaled by work, or continued beyond the points, or the roofline over a
typical efficiency; its basis says which. Where the profile ran out of memory, so does the
prediction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cost.analytic import analytic_times
from planner.cost.answer import Answer
from planner.cost.basis import Basis
from planner.cost.curves import PHASELESS, Curve, Floats, Identity, Ints, Pool
from planner.cost.leave_out import choose
from planner.cost.neighbours import Neighbours
from planner.cost.observations import BadObservation, Observation, observations
from planner.cost.provider_kernel import ProviderKernel
from planner.cost.recipe import Recipe
from planner.errors import UsageError
from planner.hardware import Hardware
from planner.workload import Op

OK = "ok"

DONOR_HALF_WIDTH = 0.4
"""Half-width that carrying a time to another device by the ratio of rooflines adds. Between the
published H100 and H200 tables the ratio of achieved efficiencies spreads less within a kernel."""

NEAR_END = 1.0
"""Doublings beyond its last point for which a provider may still be taken as the fastest: at 2x
the published tables' kernels are off by some 4 %, less than providers differ."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Times in seconds with an 80 % interval, one per workload; NaN where the outcome is not ok.

    Errors are shared within `error_group` (they add linearly) and independent across groups.
    """

    latency_s: Floats
    low_s: Floats
    high_s: Floats
    basis: NDArray[np.int8]
    provider: NDArray[np.object_]
    mode: NDArray[np.object_]
    outcome: NDArray[np.object_]
    error_group: str
    nearest_index: Ints = field(repr=False)
    point_keys: NDArray[np.object_] = field(repr=False)

    @cached_property
    def nearest(self) -> NDArray[np.object_]:
        """[..., 2]: keys of the measured points on either side; "" where there is none."""
        found: NDArray[np.object_] = self.point_keys[self.nearest_index]
        return found

    @property
    def worst_basis(self) -> Basis:
        return Basis(int(self.basis.max()))


class KernelCost:
    """Every measured kernel of one device."""

    def __init__(
        self,
        hardware: Hardware,
        kernels: Sequence[ProviderKernel],
        donors: Sequence[KernelCost] = (),
    ) -> None:
        self.hardware = hardware
        self.kernels = tuple(kernels)
        self.donors = tuple(donors)
        self._by_use: dict[tuple[str, str, str], list[ProviderKernel]] = defaultdict(list)
        for kernel in self.kernels:
            key = (kernel.identity.family, kernel.identity.dtype, kernel.identity.phase)
            self._by_use[key].append(kernel)
        self._first_key = dict(zip(map(id, self.kernels), _offsets(self.kernels), strict=True))
        self._keys = np.array([key for k in self.kernels for key in k.keys] + [""], dtype=object)

    @classmethod
    def fit(
        cls,
        observations: Iterable[Observation],
        hardware: Hardware,
        *,
        cache_state: str = "cold",
        donors: Sequence[KernelCost] = (),
    ) -> KernelCost:
        """Builds the curves of `hardware`'s points and chooses how to read them.

        Shapes measured both with a cold and a warm cache are read from `cache_state`'s points;
        those measured in one state only, from that. `donors` are other devices' fits: a family
        without a point here is taken from theirs, scaled by the two rooflines.
        """
        groups: dict[Identity, list[Observation]] = defaultdict(list)
        for o in observations:
            groups[Identity.of(o)].append(o)
        kernels = []
        for identity, points in groups.items():
            for flagged in sorted({False, any(p.flagged for p in points)}):
                used = points if flagged else [p for p in points if not p.flagged]
                kernels.append(
                    ProviderKernel.build(identity, used, cache_state=cache_state, flagged=flagged)
                )
        fitted = [_filled(k, r) for k, r in zip(kernels, _recipes(kernels), strict=True)]
        return cls(hardware, fitted, donors)

    # Asking

    def providers(self, op: Op, *, phase: str, dtype: str) -> list[str]:
        """Providers with a time for the operation's family; those that ran this shape first."""
        kernels = [k for k in self._of(op, phase, dtype) if k.curves]
        kernels.sort(key=lambda k: (op not in k.curves, k.identity.provider))
        return list(dict.fromkeys(k.identity.provider for k in kernels))

    def predict(
        self,
        op: Op,
        batch: ArrayLike,
        new: ArrayLike,
        cached: ArrayLike,
        *,
        dtype: str,
        provider: str | None = None,
        mode: str | None = None,
        training: bool = False,
    ) -> Prediction:
        """Times of `op` for batch x (new tokens after cached ones); the arguments broadcast.

        Without a provider the fastest is taken for each workload (flagged ones never), and
        likewise without a mode. What was measured for this shape goes before what is scaled or
        continued far.

        Raises: UsageError if the provider or mode was asked for and has no time here.
        """
        b, n, c = np.broadcast_arrays(
            np.asarray(batch, np.int64), np.asarray(new, np.int64), np.asarray(cached, np.int64)
        )
        shape = b.shape
        b, n, c = b.ravel(), n.ravel(), c.ravel()
        _check_counts(b, n, c)
        found = _Found.empty(len(b), len(self._keys) - 1)
        for phase, where in _phases(op, n, c, training):
            at = (b[where], n[where], c[where]) if where is not None else (b, n, c)
            answer = self._ask(op, phase, *at, dtype=dtype, provider=provider, mode=mode)
            found.put(where, answer)
        return found.prediction(shape, op, self._keys)

    def missing(self, op: Op, *, phase: str, dtype: str) -> str:
        """What to run so that `op` is measured here; "" if it is."""
        if any(op in k.curves for k in self._of(op, phase, dtype)):
            return ""
        return f"attn-profile run --mixers {op.family} --dtype {dtype}"

    def _of(self, op: Op, phase: str, dtype: str) -> list[ProviderKernel]:
        phase = "prefill" if isinstance(op, PHASELESS) and phase == "decode" else phase
        return self._by_use.get((op.family, dtype, phase), [])

    def _ask(
        self, op: Op, phase: str, b: Ints, n: Ints, c: Ints,
        *, dtype: str, provider: str | None, mode: str | None,
    ) -> Answer:  # fmt: skip
        kernels = self._candidates(op, phase, dtype, provider, mode)
        answers = []
        for k in kernels:
            found = k.answer(op, b, n, c, self.hardware)
            if found is not None:
                answers.append(found.with_keys_from(self._first_key[id(k)]))
        if not answers:
            return self._without_points(op, phase, b, n, c, dtype, provider, mode)
        if len(answers) == 1:
            return answers[0]
        return fastest(answers)

    def _candidates(
        self, op: Op, phase: str, dtype: str, provider: str | None, mode: str | None
    ) -> list[ProviderKernel]:
        kernels = self._of(op, phase, dtype)
        if provider is None:
            kernels = [k for k in kernels if not k.flagged]
        else:
            named = [k for k in kernels if k.identity.provider == provider]
            whole = {k.identity for k in named if k.flagged}
            kernels = [k for k in named if k.flagged or k.identity not in whole]
            if not kernels:
                raise UsageError(self._unknown(op, phase, dtype, provider))
        if mode is None or not kernels:
            return kernels
        moded = [k for k in kernels if k.identity.mode == mode]
        if not moded:
            modes = sorted({k.identity.mode for k in kernels})
            raise UsageError(
                f"{op.family} {phase} in {dtype} was not measured in mode {mode!r} on "
                f"{self.hardware.name}; measured: {', '.join(modes)}"
            )
        return moded

    def _unknown(self, op: Op, phase: str, dtype: str, provider: str) -> str:
        known = self.providers(op, phase=phase, dtype=dtype)
        return (
            f"provider {provider!r} has no {op.family} {phase} in {dtype} on "
            f"{self.hardware.name}; measured: {', '.join(known) or 'none'}; to measure it: "
            f"attn-profile run --mixers {op.family} --providers {provider} --dtype {dtype}"
        )

    def _without_points(
        self, op: Op, phase: str, b: Ints, n: Ints, c: Ints, dtype: str,
        provider: str | None, mode: str | None,
    ) -> Answer:  # fmt: skip
        for donor in self.donors:
            if donor.providers(op, phase=phase, dtype=dtype):
                return self._from_donor(donor, op, phase, b, n, c, dtype, mode)
        log_s, half = analytic_times(op, phase, b, n, c, dtype=dtype, hardware=self.hardware)
        return Answer.analytic(log_s, half)

    def _from_donor(
        self, donor: KernelCost, op: Op, phase: str, b: Ints, n: Ints, c: Ints, dtype: str,
        mode: str | None,
    ) -> Answer:  # fmt: skip
        theirs = donor._ask(op, phase, b, n, c, dtype=dtype, provider=None, mode=mode)
        here, _ = analytic_times(op, phase, b, n, c, dtype=dtype, hardware=self.hardware)
        there, _ = analytic_times(op, phase, b, n, c, dtype=dtype, hardware=donor.hardware)
        half = np.full(len(b), DONOR_HALF_WIDTH)
        return replace(theirs.scaled(here - there, half), nearest=np.full((len(b), 2), -1))


def fastest(answers: Sequence[Answer]) -> Answer:
    """Per workload the least time among the best evidence: this shape, not far beyond it."""
    rank = np.stack([_rank(a) for a in answers])
    log_s = np.stack([a.log_s for a in answers])
    log_s = np.where(rank == rank.min(axis=0), log_s, np.inf)
    return Answer.pick(answers, np.argmin(log_s, axis=0))


def _rank(answer: Answer) -> NDArray[np.int8]:
    """0 measured here or near it, 1 scaled from another shape, 2 far beyond, 3 no time."""
    far = answer.doublings > NEAR_END
    rank = np.where(answer.basis == Basis.SCALED, 1, 0)
    rank = np.where(far, 2, rank)
    return np.where(answer.ok, rank, 3).astype(np.int8)


def _phases(
    op: Op, n: Ints, c: Ints, training: bool
) -> list[tuple[str, NDArray[np.bool_] | None]]:
    """Each phase that occurs, with the workloads in it (None: all)."""
    if training:
        return [("training", None)]
    if isinstance(op, PHASELESS):
        return [("prefill", None)]
    decode = (n == 1) & (c > 0)
    if decode.all():
        return [("decode", None)]
    if not decode.any():
        return [("prefill", None)]
    return [("decode", decode), ("prefill", ~decode)]


def _check_counts(b: Ints, n: Ints, c: Ints) -> None:
    if len(b) and (b.min() < 1 or n.min() < 1 or c.min() < 0):
        raise UsageError(
            f"batch and new tokens must be at least 1 and cached tokens at least 0, got "
            f"{b.min()}, {n.min()} and {c.min()}"
        )


@dataclass
class _Found:
    """The answers of a call's phases, put together in the order of its workloads."""

    log_s: Floats
    half: Floats
    basis: NDArray[np.int8]
    provider: NDArray[np.object_]
    mode: NDArray[np.object_]
    outcome: NDArray[np.object_]
    nearest: Ints
    groups: set[str]

    @classmethod
    def empty(cls, size: int, no_key: int) -> _Found:
        return cls(
            np.full(size, np.nan), np.zeros(size), np.zeros(size, np.int8),
            np.full(size, "", object), np.full(size, "", object), np.full(size, OK, object),
            np.full((size, 2), no_key), set(),
        )  # fmt: skip

    def put(self, where: NDArray[np.bool_] | None, answer: Answer) -> None:
        at = slice(None) if where is None else where
        self.log_s[at], self.half[at], self.basis[at] = answer.log_s, answer.half, answer.basis
        self.outcome[at] = answer.outcome
        self.provider[at], self.mode[at] = answer.provider, answer.mode
        known = answer.nearest >= 0
        self.nearest[at] = np.where(known, answer.nearest, self.nearest[at])
        self.groups |= answer.provider_names

    def prediction(self, shape: tuple[int, ...], op: Op, keys: NDArray[np.object_]) -> Prediction:
        ok = self.outcome == OK
        middle = np.where(ok, np.exp(self.log_s), np.nan)
        one = f":{next(iter(self.groups))}" if len(self.groups) == 1 else ""
        return Prediction(
            latency_s=middle.reshape(shape),
            low_s=(middle * np.exp(-self.half)).reshape(shape),
            high_s=(middle * np.exp(self.half)).reshape(shape),
            basis=self.basis.reshape(shape),
            provider=self.provider.reshape(shape),
            mode=self.mode.reshape(shape),
            outcome=self.outcome.reshape(shape),
            error_group=f"{op.family}{one}",
            nearest_index=self.nearest.reshape(*shape, 2),
            point_keys=keys,
        )


def _offsets(kernels: Sequence[ProviderKernel]) -> list[int]:
    """Where each kernel's point keys begin in the list of all."""
    return [0, *np.cumsum([len(k.keys) for k in kernels]).tolist()][: len(kernels)]


def _filled(kernel: ProviderKernel, recipe: Recipe) -> ProviderKernel:
    """Ready to be asked: with its recipe, and its curves' gaps filled from their neighbours."""
    curves = kernel.curves
    if recipe.filled is not None and curves:
        neighbours = Neighbours.of(Pool.of(list(curves.values())), recipe)
        curves = {op: neighbours.fill(curve, recipe) for op, curve in curves.items()}
    return kernel.ready(curves, recipe)


def _recipes(kernels: Sequence[ProviderKernel]) -> list[Recipe]:
    """Each kernel's recipe; one with too few points takes that of its family and phase."""
    coarse: dict[tuple[str, str], Recipe] = {}
    found = []
    for k in kernels:
        recipe = choose(list(k.curves.values()), Recipe())
        if not recipe.is_judged:
            pool = (k.identity.family, k.identity.phase)
            if pool not in coarse:
                coarse[pool] = choose(_curves_of(kernels, pool), Recipe())
            recipe = choose(list(k.curves.values()), coarse[pool])
        found.append(recipe)
    return found


def _curves_of(kernels: Sequence[ProviderKernel], pool: tuple[str, str]) -> list[Curve]:
    return [
        curve
        for k in kernels
        if (k.identity.family, k.identity.phase) == pool and not k.flagged
        for curve in k.curves.values()
    ]


__all__ = [
    "BadObservation",
    "KernelCost",
    "Observation",
    "Prediction",
    "fastest",
    "observations",
]

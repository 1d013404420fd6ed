"""Kernel cost: how long one kernel call takes on this device, and how sure that is.

    >>> kernels = KernelCost.fit(observations(store.points()), hardware)      # doctest: +SKIP
    >>> found = kernels.predict(op, 4, 1, lengths, dtype="bf16")              # doctest: +SKIP
    >>> found.latency_s, found.low_s, found.high_s, found.basis               # doctest: +SKIP

A time is the measured one of the same call, or read between measured points, or the same
kernel's on another shape scaled by work, or continued beyond the points, or the roofline over a
typical efficiency; its basis says which. Where the profile ran out of memory, so does the
prediction, but for the prefill of a mixer with a state: that runs in segments.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.cost.analytic import analytic_times, bound_s
from planner.cost.answer import Answer, OneAnswer
from planner.cost.basis import Basis
from planner.cost.curves import PHASELESS, Curve, Floats, Identity, Ints
from planner.cost.donor import carried_half_width
from planner.cost.launch import HostTimes
from planner.cost.leave_out import can_judge, choose
from planner.cost.observations import BadObservation, Observation, observations
from planner.cost.provider_kernel import ProviderKernel
from planner.cost.recipe import Recipe
from planner.cost.shapes import NEAR_END
from planner.errors import UsageError
from planner.hardware import Hardware
from planner.workload import AllReduceOp, MixerOp, Op, Phase, StackOp

OK = "ok"

Donors = Callable[[], Iterable["KernelCost"]]
"""Fits of other devices, the nearest first; asked for only where a family has no time here."""


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
    key_of: Callable[[int], str] = field(repr=False)

    @cached_property
    def nearest(self) -> NDArray[np.object_]:
        """[..., 2]: keys of the measured points on either side; "" where there is none."""
        index, place = np.unique(self.nearest_index, return_inverse=True)
        keys = np.array([self.key_of(i) for i in index.tolist()], object)
        return keys[place].reshape(self.nearest_index.shape)


class Single(NamedTuple):
    """A `Prediction` of one workload."""

    latency_s: float
    low_s: float
    high_s: float
    basis: Basis
    provider: str
    mode: str
    outcome: str
    error_group: str

    def scaled(self, ratio: float, down: float, up: float) -> Single:
        """Times `ratio`, whose log errs by as much below and above: scaled at best."""
        if self.outcome != OK:
            return self
        up = math.hypot(math.log(self.high_s / self.latency_s), up)
        down = math.hypot(math.log(self.latency_s / self.low_s), down)
        seconds = ratio * self.latency_s
        return self._replace(
            latency_s=seconds,
            low_s=seconds * math.exp(-down),
            high_s=seconds * math.exp(up),
            basis=max(self.basis, Basis.SCALED),
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The points of one identity; their curves are built when first asked for."""

    identity: Identity
    points: Sequence[Observation] = field(repr=False)
    cache_state: str
    flagged: bool

    @cached_property
    def kernel(self) -> ProviderKernel:
        return ProviderKernel.build(
            self.identity, self.points, cache_state=self.cache_state, flagged=self.flagged
        )

    @cached_property
    def timed(self) -> frozenset[Op]:
        """Operations with a time."""
        return frozenset(p.op for p in self.points if p.outcome == OK)

    @cached_property
    def imported(self) -> bool:
        return all(p.imported for p in self.points)


class KernelCost:
    """Every measured kernel of one device. How to read one is chosen when it is first asked."""

    def __init__(
        self,
        hardware: Hardware,
        measured: Sequence[Measured],
        donors: Donors = tuple,
    ) -> None:
        self.hardware = hardware
        self.donors = donors
        self._measured = tuple(measured)
        self._by_use: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for i, one in enumerate(self._measured):
            use = one.identity
            self._by_use[use.family, use.dtype, use.phase].append(i)
        self._chosen: dict[int, ProviderKernel] = {}
        self._asked: dict[tuple[Op, str, str, str | None, str | None], list[int]] = {}
        self._coarse: dict[tuple[str, str], Recipe] = {}
        self._lock = Lock()
        sizes = [len(one.points) for one in self._measured]
        self._first_key: list[int] = np.cumsum([1, *sizes]).tolist()

    @classmethod
    def fit(
        cls,
        observations: Iterable[Observation],
        hardware: Hardware,
        *,
        cache_state: str = "cold",
        donors: Donors = tuple,
    ) -> KernelCost:
        """From `hardware`'s points.

        Shapes measured both with a cold and a warm cache are read from `cache_state`'s points;
        those measured in one state only, from that. `donors` are other devices' fits: a family
        without a point here is taken from theirs, scaled by the two rooflines.
        """
        groups: dict[tuple[str, str, str, str, str], list[Observation]] = defaultdict(list)
        for o in observations:
            groups[Identity.fields_of(o)].append(o)
        measured = []
        for fields, points in groups.items():
            identity = Identity(*fields)
            for flagged in sorted({False, any(p.flagged for p in points)}):
                used = points if flagged else [p for p in points if not p.flagged]
                if used:
                    measured.append(
                        Measured(
                            identity=identity,
                            points=used,
                            cache_state=cache_state,
                            flagged=flagged,
                        )
                    )
        return cls(hardware, measured, donors)

    @property
    def kernels(self) -> tuple[ProviderKernel, ...]:
        """All kernels, each with its recipe."""
        return tuple(self._kernel(i) for i in range(len(self._measured)))

    def _kernel(self, i: int) -> ProviderKernel:
        if i not in self._chosen:
            with self._lock:
                if i not in self._chosen:
                    kernel = self._measured[i].kernel
                    self._chosen[i] = kernel.ready(self._recipe(kernel))
        return self._chosen[i]

    def _recipe(self, kernel: ProviderKernel) -> Recipe:
        """Chosen on the kernel's own points; if they are too few, with those of other providers
        of the same family and phase."""
        curves = list(kernel.curves.values())
        if can_judge(curves) or not curves:
            return choose(curves, Recipe())
        use = (kernel.identity.family, kernel.identity.phase)
        if use not in self._coarse:
            self._coarse[use] = choose(self._curves_of(*use), Recipe())
        return choose(curves, self._coarse[use])

    def _curves_of(self, family: str, phase: str) -> list[Curve]:
        return [
            curve
            for m in self._measured
            if (m.identity.family, m.identity.phase) == (family, phase) and not m.flagged
            for curve in m.kernel.curves.values()
        ]

    def key_of(self, index: int) -> str:
        """The key of a measured point, by its number in `Prediction.nearest_index`."""
        if index == 0:
            return ""
        i = bisect_right(self._first_key, index) - 1
        return self._measured[i].kernel.keys[index - self._first_key[i]]

    # Asking

    def providers(self, op: Op, *, phase: str, dtype: str) -> list[str]:
        """Providers with a time for the operation's family; those that ran this shape first."""
        found = [self._measured[i] for i in self._of(op, phase, dtype)]
        found = [m for m in found if m.timed]
        found.sort(key=lambda m: (op not in m.timed, m.identity.provider))
        return list(dict.fromkeys(m.identity.provider for m in found))

    def mode_for(
        self, op: Op, wanted: str | None, *, phase: str, dtype: str, provider: str | None = None
    ) -> str | None:
        """The wanted runtime mode if the operation's family was measured in it, else None: any."""
        found = self._candidates(op, phase, dtype, provider, None)
        timed = (self._measured[i] for i in found if self._measured[i].timed)
        return wanted if any(m.identity.mode == wanted for m in timed) else None

    @cached_property
    def shortest_call_s(self) -> float | None:
        """The shortest measured call: of cold ones in graphs if there are any, else of those in
        graphs, else of all. None without points, here or at a donor.

        Cold, because between a layer's large kernels the cache holds what those read.
        """
        times: dict[tuple[bool, bool], float] = {}
        for m in self._measured:
            for p in m.points:
                if p.outcome == OK:
                    alike = p.mode == "graph", p.mode == "graph" and p.cache_state == "cold"
                    times[alike] = min(p.latency_s, times.get(alike, math.inf))
        if times:
            return times[max(times)]
        lent = (donor.shortest_call_s for donor in self.donors())
        return next((s for s in lent if s is not None), None)

    @cached_property
    def host_times(self) -> HostTimes:
        """What the host takes to issue calls, of those measured eagerly and in graphs."""
        return HostTimes.of(o for m in self._measured if not m.flagged for o in m.points)

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
        b, n, c = (np.asarray(v, np.int64) for v in (batch, new, cached))
        if not b.shape == n.shape == c.shape:
            b, n, c = np.broadcast_arrays(b, n, c)
        shape = b.shape
        b, n, c = b.ravel(), n.ravel(), c.ravel()
        _check_counts(b, n, c)
        if len(b) == 1:
            one = self._ask_one(
                op, int(b[0]), int(n[0]), int(c[0]), dtype, provider, mode, training
            )
            return self._prediction(op, Answer.of_one(one), shape)
        asked = partial(self._ask, op, dtype=dtype, provider=provider, mode=mode)
        return self._prediction(op, _by_phase(op, b, n, c, training, asked), shape)

    def predict_one(
        self,
        op: Op,
        batch: int,
        new: int,
        cached: int,
        *,
        dtype: str,
        provider: str | None = None,
        mode: str | None = None,
        training: bool = False,
    ) -> Single:
        """`predict` for one workload, without arrays: for models that are sums of a few calls."""
        if batch < 1 or new < 1 or cached < 0:
            _check_counts(*(np.array([v]) for v in (batch, new, cached)))
        one = self._ask_one(op, batch, new, cached, dtype, provider, mode, training)
        seconds = math.exp(one.log_s) if one.outcome == OK else math.nan
        return Single(
            latency_s=seconds,
            low_s=max(seconds * math.exp(-one.half), math.exp(one.log_least)),
            high_s=seconds * math.exp(one.half),
            basis=one.basis,
            provider=one.provider,
            mode=one.mode,
            outcome=one.outcome,
            error_group=f"{op.family}:{one.provider}",
        )

    def _prediction(self, op: Op, answer: Answer, shape: tuple[int, ...]) -> Prediction:
        middle = np.exp(answer.log_s)
        outcome = _spread(answer.outcome, shape)
        if not isinstance(answer.outcome, str):
            middle = np.where(answer.outcome == OK, middle, np.nan)
        factor = np.exp(answer.half)
        names = answer.provider_names
        one = f":{next(iter(names))}" if len(names) == 1 else ""
        return Prediction(
            latency_s=middle.reshape(shape),
            low_s=np.maximum(middle / factor, np.exp(answer.log_least)).reshape(shape),
            high_s=(middle * factor).reshape(shape),
            basis=answer.basis.reshape(shape),
            provider=_spread(answer.provider, shape),
            mode=_spread(answer.mode, shape),
            outcome=outcome,
            error_group=f"{op.family}{one}",
            nearest_index=answer.nearest.reshape(*shape, 2),
            key_of=self.key_of,
        )

    def missing(self, op: Op, *, phase: str, dtype: str) -> str:
        """What to run so that `op` is measured here; "" if it is."""
        if any(op in self._measured[i].timed for i in self._of(op, phase, dtype)):
            return ""
        return _how_to_measure(op, dtype)

    def _of(self, op: Op, phase: str, dtype: str) -> list[int]:
        phase = "prefill" if isinstance(op, PHASELESS) and phase == "decode" else phase
        return self._by_use.get((op.family, dtype, phase), [])

    def _ask(
        self, op: Op, phase: str, b: Ints, n: Ints, c: Ints,
        *, dtype: str, provider: str | None, mode: str | None,
    ) -> Answer:  # fmt: skip
        answers = []
        for i in self._candidates(op, phase, dtype, provider, mode):
            found = self._kernel(i).answer(op, b, n, c, self.hardware)
            if found is not None:
                answers.append(
                    self._possible(op, b, n, c, dtype, found).numbered_from(self._first_key[i])
                )
        if not answers:
            return self._without_points(op, phase, b, n, c, dtype, mode)
        return answers[0] if len(answers) == 1 else fastest(answers)

    def _ask_one(
        self, op: Op, b: int, n: int, c: int, dtype: str, provider: str | None, mode: str | None,
        training: bool,
    ) -> OneAnswer:  # fmt: skip
        phase: Phase = "training" if training else "decode" if n == 1 and c > 0 else "prefill"
        best, least, log_bound = None, (5, math.inf), math.nan
        for i in self._candidates(op, phase, dtype, provider, mode):
            found = self._kernel(i).answer_one(op, b, n, c, self.hardware)
            if found is None:
                continue
            if found.basis >= Basis.SCALED and found.outcome == OK:
                if math.isnan(log_bound):
                    log_bound = self._log_bound_of_one(op, b, n, c, dtype)
                found = found.at_least(log_bound)
            rank = _rank_one(found)
            order = (rank, found.log_s + (found.half if rank >= CARRIED_OVER else 0.0))
            if best is None or order < least:
                first = self._first_key[i]
                left, right = found.nearest
                best, least = found._replace(nearest=(left + first, right + first)), order
        if best is None:
            at = np.array([b]), np.array([n]), np.array([c])
            best = self._without_points(op, phase, *at, dtype, mode).only()
        return best

    def _possible(self, op: Op, b: Ints, n: Ints, c: Ints, dtype: str, answer: Answer) -> Answer:
        """Not faster than the device, where nobody measured it. Stacks and all-reduces keep no
        such bound: what they move is not all in device memory."""
        if isinstance(op, StackOp | AllReduceOp) or not (answer.basis >= Basis.SCALED).any():
            return answer
        return answer.at_least(np.log(bound_s(op, b, n, c, dtype=dtype, hardware=self.hardware)))

    def _log_bound_of_one(self, op: Op, b: int, n: int, c: int, dtype: str) -> float:
        if isinstance(op, StackOp | AllReduceOp):
            return -math.inf
        return math.log(bound_s(op, b, n, c, dtype=dtype, hardware=self.hardware))

    def _candidates(
        self, op: Op, phase: str, dtype: str, provider: str | None, mode: str | None
    ) -> list[int]:
        """Remembered `_find_candidates`."""
        asked = (op, phase, dtype, provider, mode)
        if asked not in self._asked:
            self._asked[asked] = self._find_candidates(*asked)
        return self._asked[asked]

    def _find_candidates(
        self, op: Op, phase: str, dtype: str, provider: str | None, mode: str | None
    ) -> list[int]:
        """Kernels that may answer: unflagged ones, or the named provider's with all its points.

        What was measured here goes before what others measured: theirs answers for a shape that
        nobody measured here, and never by scaling where a kernel of this device's own could.
        """
        found = self._of(op, phase, dtype)
        if provider is None:
            found = self._unnamed(op, [i for i in found if not self._measured[i].flagged])
        else:
            named = [i for i in found if self._measured[i].identity.provider == provider]
            whole = {self._measured[i].identity for i in named if self._measured[i].flagged}
            found = [
                i for i in named
                if self._measured[i].flagged or self._measured[i].identity not in whole
            ]  # fmt: skip
            if not found:
                raise UsageError(self._unknown(op, phase, dtype, provider))
        if mode is None or not found:
            return found
        moded = [i for i in found if self._measured[i].identity.mode == mode]
        if not moded:
            modes = sorted({self._measured[i].identity.mode for i in found})
            raise UsageError(
                f"{op.family} {phase} in {dtype} was not measured in mode {mode!r} on "
                f"{self.hardware.name}; measured: {', '.join(modes)}"
            )
        return moded

    def _unnamed(self, op: Op, found: list[int]) -> list[int]:
        """Of unflagged kernels those of this device's own measurements, and others' of this very
        shape where there is none; all of others' if nothing of the family was measured here."""
        own = [i for i in found if not self._measured[i].imported and self._measured[i].timed]
        if not own:
            return found
        if any(op in self._measured[i].timed for i in own):
            return own
        theirs = [i for i in found if self._measured[i].imported]
        return own + [i for i in theirs if op in self._measured[i].timed]

    def _unknown(self, op: Op, phase: str, dtype: str, provider: str) -> str:
        known = self.providers(op, phase=phase, dtype=dtype)
        return (
            f"provider {provider!r} has no {op.family} {phase} in {dtype} on "
            f"{self.hardware.name}; measured: {', '.join(known) or 'none'}; to measure it: "
            f"{_how_to_measure(op, dtype)} --providers {provider}"
        )

    def _without_points(
        self, op: Op, phase: str, b: Ints, n: Ints, c: Ints, dtype: str, mode: str | None
    ) -> Answer:
        """Of each workload the first donor's time, else the roofline's: what did not run on a
        donor, such as for its memory, may run here."""
        times = analytic_times(op, phase, b, n, c, dtype=dtype, hardware=self.hardware)
        answers, which = [Answer.analytic(times)], np.zeros(len(b), np.int64)
        for donor in self.donors():
            if not donor.providers(op, phase=phase, dtype=dtype):
                continue
            answers.append(self._from_donor(donor, op, phase, b, n, c, dtype, mode))
            which[(which == 0) & answers[-1].ok] = len(answers) - 1
            if which.all():
                break
        return Answer.pick(answers, which)

    def _from_donor(
        self, donor: KernelCost, op: Op, phase: str, b: Ints, n: Ints, c: Ints, dtype: str,
        mode: str | None,
    ) -> Answer:  # fmt: skip
        mode = donor.mode_for(op, mode or "graph", phase=phase, dtype=dtype)
        if len(b) == 1:
            one = donor._ask_one(
                op, int(b[0]), int(n[0]), int(c[0]), dtype, None, mode, phase == "training"
            )
            theirs = Answer.of_one(one)
        else:
            theirs = donor._ask(op, phase, b, n, c, dtype=dtype, provider=None, mode=mode)
        here, there = (
            analytic_times(op, phase, b, n, c, dtype=dtype, hardware=h)
            for h in (self.hardware, donor.hardware)
        )
        half = carried_half_width(op, phase, self.hardware, donor.hardware)
        carried = theirs.scaled(here.log_s - there.log_s, np.full(len(b), half))
        return self._possible(op, b, n, c, dtype, carried).measured_on(donor.hardware.name)


CARRIED_OVER = 2
"""Rank from which on a time is not one between or near this shape's points."""


def _rank_one(answer: OneAnswer) -> int:
    """`_rank` of one workload."""
    if answer.outcome != OK:
        return 4
    if answer.doublings > NEAR_END:
        return 3
    if answer.carried:
        return 2
    return 1 if answer.basis == Basis.EXTRAPOLATED else 0


def _how_to_measure(op: Op, dtype: str) -> str:
    if isinstance(op, MixerOp):
        return f"attn-profile run --mixers {op.family} --dtype {dtype}"
    if isinstance(op, StackOp):
        return f"attn-profile run --ratios 3:1 --dtype {dtype}"
    return f"attn-profile run --dense --dtype {dtype}"


def fastest(answers: Sequence[Answer]) -> Answer:
    """Per workload the least time among the best evidence: this shape, not far beyond it.

    Of times carried over from other shapes, or far, the least upper end: the least of several
    uncertain ones is most likely the one that errs most.
    """
    rank = np.stack([_rank(a) for a in answers])
    half = np.stack([a.half for a in answers])
    log_s = np.stack([a.log_s for a in answers]) + np.where(rank >= CARRIED_OVER, half, 0.0)
    log_s = np.where(rank == rank.min(axis=0), log_s, np.inf)
    return Answer.pick(answers, np.argmin(log_s, axis=0))


def _rank(answer: Answer) -> NDArray[np.int8]:
    """Whose time may be taken: 0 read between points, 1 near beyond them, 2 carried over from
    another shape, 3 far beyond points, 4 none.

    A curve that ends early must not win by what it might do beyond its end.
    """
    rank = np.where(answer.basis == Basis.EXTRAPOLATED, 1, 0)
    rank = np.where(answer.carried, 2, rank)
    rank = np.where(answer.doublings > NEAR_END, 3, rank)
    return np.where(answer.ok, rank, 4).astype(np.int8)


def _by_phase(
    op: Op, b: Ints, n: Ints, c: Ints, training: bool, ask: Callable[..., Answer]
) -> Answer:
    """The answers of each phase that occurs."""
    if training:
        return ask("training", b, n, c)
    decode = (n == 1) & (c > 0)
    if isinstance(op, PHASELESS) or not decode.any():
        return ask("prefill", b, n, c)
    if decode.all():
        return ask("decode", b, n, c)
    parts = (("decode", decode), ("prefill", ~decode))
    return Answer.merge(
        [(where, ask(phase, b[where], n[where], c[where])) for phase, where in parts]
    )


def _check_counts(b: Ints, n: Ints, c: Ints) -> None:
    if len(b) and (b.min() < 1 or n.min() < 1 or c.min() < 0):
        raise UsageError(
            f"batch and new tokens must be at least 1 and cached tokens at least 0, got "
            f"{b.min()}, {n.min()} and {c.min()}"
        )


def _spread(value: NDArray[np.object_] | str, shape: tuple[int, ...]) -> NDArray[np.object_]:
    """One word for all workloads takes no memory for each."""
    if isinstance(value, str):
        return np.broadcast_to(np.array(value, object), shape)
    return value.reshape(shape)


__all__ = [
    "BadObservation",
    "KernelCost",
    "Observation",
    "Prediction",
    "Single",
    "fastest",
    "observations",
]

"""Answer: what one kernel, or the roofline, says about N workloads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.cost.analytic import Analytic
from planner.cost.basis import Basis
from planner.cost.curves import Floats, Ints


class OneAnswer(NamedTuple):
    """An `Answer` about one workload. `nearest` are two numbers of measured points."""

    log_s: float
    half: float
    basis: Basis
    doublings: float
    carried: bool
    outcome: str
    nearest: tuple[int, int]
    provider: str
    mode: str
    log_least: float = -math.inf

    def at_least(self, log_least: float) -> OneAnswer:
        """As `Answer.at_least`."""
        if self.basis < Basis.SCALED:
            return self
        missed = max(log_least - self.log_s, 0.0)
        return self._replace(
            log_s=self.log_s + missed,
            half=self.half + missed,
            log_least=max(self.log_least, log_least),
        )


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Log seconds, half-width of their 80 % interval, basis, and where they are from.

    `doublings` is how far beyond the points a workload is, in factors of two; `carried` whether
    those are of another shape or length, scaled by work. `nearest` is [N, 2] numbers of measured
    points, 0 for none. `log_least` is a floor of the interval, -inf without one. A string stands
    for N of it.
    """

    log_s: Floats
    half: Floats
    basis: NDArray[np.int8]
    doublings: Floats
    carried: NDArray[np.bool_]
    outcome: NDArray[np.object_] | str
    nearest: Ints
    provider: NDArray[np.object_] | str
    mode: NDArray[np.object_] | str
    provider_names: frozenset[str]
    log_least: Floats | float = -math.inf

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.broadcast_to(np.asarray(self.outcome == "ok"), self.log_s.shape)

    @classmethod
    def analytic(cls, times: Analytic) -> Answer:
        size = len(times.log_s)
        return cls(
            log_s=times.log_s,
            half=times.half,
            log_least=times.log_least,
            basis=np.full(size, Basis.ANALYTIC, np.int8),
            doublings=np.zeros(size),
            carried=np.zeros(size, bool),
            outcome="ok",
            nearest=np.zeros((size, 2), np.int64),
            provider="analytic",
            mode="",
            provider_names=frozenset(["analytic"]),
        )

    @classmethod
    def none(cls, outcome: NDArray[np.object_], provider: str, mode: str) -> Answer:
        """No time at all: every workload failed, or nobody tried."""
        size = len(outcome)
        return cls(
            log_s=np.full(size, np.nan),
            half=np.zeros(size),
            basis=np.full(size, Basis.ANALYTIC, np.int8),
            doublings=np.zeros(size),
            carried=np.zeros(size, bool),
            outcome=np.where(outcome == "ok", "unsupported", outcome),
            nearest=np.zeros((size, 2), np.int64),
            provider=provider,
            mode=mode,
            provider_names=frozenset([provider]),
        )

    @classmethod
    def of_one(cls, one: OneAnswer) -> Answer:
        return cls(
            log_s=np.array([one.log_s]),
            half=np.array([one.half]),
            basis=np.array([one.basis], np.int8),
            doublings=np.array([one.doublings]),
            carried=np.array([one.carried]),
            outcome=one.outcome if one.outcome == "ok" else np.array([one.outcome], object),
            nearest=np.array([one.nearest]),
            provider=one.provider,
            mode=one.mode,
            provider_names=frozenset([one.provider]),
            log_least=one.log_least,
        )

    def at_least(self, log_least: Floats) -> Answer:
        """No time carried over or continued, and no end of its interval, is below `log_least`:
        what nobody measured cannot be faster than the device. By how much it would have been, it
        is surely wrong: that widens the interval."""
        guessed = self.basis >= Basis.SCALED
        missed = np.where(guessed, np.maximum(log_least - self.log_s, 0.0), 0.0)
        return replace(
            self,
            log_s=self.log_s + missed,
            half=self.half + missed,
            log_least=np.where(guessed, np.maximum(self.log_least, log_least), self.log_least),
        )

    def only(self) -> OneAnswer:
        """Of one workload."""

        def word(value: NDArray[np.object_] | str) -> str:
            return value if isinstance(value, str) else str(value[0])

        left, right = self.nearest[0].tolist()
        return OneAnswer(
            log_s=float(self.log_s[0]),
            half=float(self.half[0]),
            basis=Basis(int(self.basis[0])),
            doublings=float(self.doublings[0]),
            carried=bool(self.carried[0]),
            outcome=word(self.outcome),
            nearest=(left, right),
            provider=word(self.provider),
            mode=word(self.mode),
            log_least=float(np.broadcast_to(self.log_least, self.log_s.shape)[0]),
        )

    def numbered_from(self, first: int) -> Answer:
        """With its points numbered from `first` on, not from 0."""
        return replace(self, nearest=self.nearest + first)

    def scaled(self, log_ratio: Floats, half: Floats) -> Answer:
        """Carried over by a ratio of work, which adds an error of its own: scaled at best."""
        return replace(
            self,
            log_s=self.log_s + log_ratio,
            log_least=-math.inf,
            half=np.hypot(self.half, half),
            basis=np.maximum(self.basis, np.int8(Basis.SCALED)),
            carried=np.ones(len(self.log_s), bool),
        )

    def measured_on(self, device: str) -> Answer:
        """With providers named as another device's, and without its points."""

        def named(value: NDArray[np.object_] | str) -> NDArray[np.object_] | str:
            return value + f" on {device}"

        return replace(
            self,
            nearest=np.zeros_like(self.nearest),
            provider=named(self.provider),
            provider_names=frozenset(f"{name} on {device}" for name in self.provider_names),
        )

    @classmethod
    def pick(cls, answers: Sequence[Answer], which: Ints) -> Answer:
        """For each workload the answer of that index."""
        j, size = np.arange(len(which)), len(which)

        def words(values: Sequence[NDArray[np.object_] | str]) -> NDArray[np.object_]:
            column = np.empty((len(answers), len(which)), object)
            for i, value in enumerate(values):
                column[i] = value
            return column[which, j]

        chosen = [answers[i] for i in np.unique(which)]
        return cls(
            log_s=np.stack([a.log_s for a in answers])[which, j],
            half=np.stack([a.half for a in answers])[which, j],
            log_least=np.stack([np.broadcast_to(a.log_least, size) for a in answers])[which, j],
            basis=np.stack([a.basis for a in answers])[which, j],
            doublings=np.stack([a.doublings for a in answers])[which, j],
            carried=np.stack([a.carried for a in answers])[which, j],
            outcome=words([a.outcome for a in answers]),
            nearest=np.stack([a.nearest for a in answers])[which, j],
            provider=words([a.provider for a in answers]),
            mode=words([a.mode for a in answers]),
            provider_names=frozenset[str]().union(*(a.provider_names for a in chosen)),
        )

    @classmethod
    def merge(cls, parts: Sequence[tuple[NDArray[np.bool_], Answer]]) -> Answer:
        """Answers for sets of workloads that are together all of them; later ones go before."""
        which = np.zeros(len(parts[0][0]), np.int64)
        for i, (where, _) in enumerate(parts):
            which[where] = i
        return cls.pick([a._over(where) for where, a in parts], which)

    def _over(self, where: NDArray[np.bool_]) -> Answer:
        """The same answer in the places `where`; what is elsewhere has no meaning."""
        at = np.maximum(np.cumsum(where) - 1, 0)

        def words(value: NDArray[np.object_] | str) -> NDArray[np.object_] | str:
            return value if isinstance(value, str) else value[at]

        return replace(
            self,
            log_s=self.log_s[at],
            half=self.half[at],
            log_least=np.broadcast_to(self.log_least, self.log_s.shape)[at],
            basis=self.basis[at],
            doublings=self.doublings[at],
            carried=self.carried[at],
            outcome=words(self.outcome),
            nearest=self.nearest[at],
            provider=words(self.provider),
            mode=words(self.mode),
        )

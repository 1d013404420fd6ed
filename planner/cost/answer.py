"""Answer: what one kernel, or the roofline, says about N workloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from planner.cost.basis import Basis
from planner.cost.curves import Floats, Ints


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Log seconds, half-width of their 80 % interval, basis, and where they are from.

    `doublings` is how far beyond the points a workload is, in factors of two. `nearest` is [N, 2]
    indices into the cost model's list of point keys, -1 for none. A string stands for N of it.
    """

    log_s: Floats
    half: Floats
    basis: NDArray[np.int8]
    doublings: Floats
    outcome: NDArray[np.object_] | str
    nearest: Ints
    provider: NDArray[np.object_] | str
    mode: NDArray[np.object_] | str
    provider_names: frozenset[str]

    @property
    def ok(self) -> NDArray[np.bool_]:
        return np.broadcast_to(np.asarray(self.outcome == "ok"), self.log_s.shape)

    @classmethod
    def analytic(cls, log_s: Floats, half: Floats) -> Answer:
        return cls(
            log_s=log_s,
            half=half,
            basis=np.full(len(log_s), Basis.ANALYTIC, np.int8),
            doublings=np.zeros(len(log_s)),
            outcome="ok",
            nearest=np.full((len(log_s), 2), -1),
            provider="analytic",
            mode="",
            provider_names=frozenset(["analytic"]),
        )

    @classmethod
    def none(cls, outcome: NDArray[np.object_], provider: str, mode: str) -> Answer:
        """No time at all: every workload failed, or nobody tried."""
        size = len(outcome)
        return replace(
            cls.analytic(np.full(size, np.nan), np.zeros(size)),
            outcome=np.where(outcome == "ok", "unsupported", outcome),
            provider=provider,
            mode=mode,
            provider_names=frozenset([provider]),
        )

    def with_keys_from(self, first: int) -> Answer:
        return replace(self, nearest=self.nearest + first) if first else self

    def scaled(self, log_ratio: Floats, half: Floats) -> Answer:
        """Carried over by a ratio of work, which adds an error of its own: scaled at best."""
        return replace(
            self,
            log_s=self.log_s + log_ratio,
            half=np.hypot(self.half, half),
            basis=np.maximum(self.basis, np.int8(Basis.SCALED)),
        )

    @classmethod
    def pick(cls, answers: Sequence[Answer], which: Ints) -> Answer:
        """For each workload the answer of that index."""
        j = np.arange(len(which))

        def words(values: Sequence[NDArray[np.object_] | str]) -> NDArray[np.object_]:
            column = np.empty((len(answers), len(which)), object)
            for i, value in enumerate(values):
                column[i] = value
            return column[which, j]

        chosen = [answers[i] for i in np.unique(which)]
        return cls(
            log_s=np.stack([a.log_s for a in answers])[which, j],
            half=np.stack([a.half for a in answers])[which, j],
            basis=np.stack([a.basis for a in answers])[which, j],
            doublings=np.stack([a.doublings for a in answers])[which, j],
            outcome=words([a.outcome for a in answers]),
            nearest=np.stack([a.nearest for a in answers])[which, j],
            provider=words([a.provider for a in answers]),
            mode=words([a.mode for a in answers]),
            provider_names=frozenset[str]().union(*(a.provider_names for a in chosen)),
        )

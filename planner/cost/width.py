"""Width: how wide an 80 % interval must be, learnt from errors on points that were left out.

Errors are sorted by `doubt`, a number known at prediction time (how far two readings disagree, how
much neighbours scatter, how unlike a shape is): smooth stretches get narrow intervals, steps wide
ones. It is split conformal prediction with bins of doubt (Vovk et al. 2005, ch. 2; Romano et al.
2019, arXiv:1905.03222), so coverage holds whatever the errors' distribution.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from planner.cost.curves import Floats

COVERAGE = 0.8
DOUBT_FLOOR = 1e-4
MIN_ERRORS = 8
"""With fewer left-out points than this a choice is a guess: the coarser pool's is taken."""

MAX_BINS = 6
CLEARLY = 0.02
BIN_ERRORS = 40


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Points predicted without having been shown: log(predicted / measured), and the doubt.

    `relevant` marks those by which a method is chosen.
    """

    errors: Floats
    doubts: Floats
    relevant: NDArray[np.bool_]

    @classmethod
    def join(cls, parts: Sequence[LeftOut]) -> LeftOut:
        if not parts:
            return cls(errors=np.empty(0), doubts=np.empty(0), relevant=np.empty(0, bool))
        return cls(
            errors=np.concatenate([p.errors for p in parts]),
            doubts=np.concatenate([p.doubts for p in parts]),
            relevant=np.concatenate([p.relevant for p in parts]),
        )

    def __len__(self) -> int:
        return len(self.errors)

    def judged(self) -> LeftOut:
        """Only the relevant points, or all if they are too few."""
        if self.relevant.sum() < MIN_ERRORS:
            return self
        return self.select(self.relevant)

    def select(self, keep: NDArray[np.bool_]) -> LeftOut:
        return LeftOut(
            errors=self.errors[keep], doubts=self.doubts[keep], relevant=self.relevant[keep]
        )

    @property
    def score(self) -> float:
        """What a choice minimises: the median error, and a quarter of the ninetieth percentile
        so that rare misses count too."""
        return score_of(self.errors, self.relevant)

    def width(self) -> Width | None:
        return Width.of(self.judged()) if len(self) >= MIN_ERRORS else None


def score_of(errors: Floats, relevant: NDArray[np.bool_]) -> float:
    """`LeftOut.score`, for errors whose doubts nobody has asked for yet."""
    size = np.abs(errors if relevant.sum() < MIN_ERRORS else errors[relevant])
    if not len(size):
        return math.inf
    size = np.sort(size)
    return _quantile(size, 0.5) + _quantile(size, 0.9) / 4


def _quantile(ordered: Floats, q: float) -> float:
    """np.quantile of sorted values, in a tenth of its time: methods are scored by the thousand."""
    at = q * (len(ordered) - 1)
    low = int(at)
    first, second = ordered[low], ordered[min(low + 1, len(ordered) - 1)]
    return float(first + (at - low) * (second - first))


@dataclass(frozen=True, kw_only=True)
class Width:
    """80 % half-width of the log error against the log of the doubt; never falling."""

    log_doubt: Floats
    half_width: Floats
    count: int

    @classmethod
    def of(cls, left_out: LeftOut) -> Width:
        """In as many bins of doubt as give the best interval score on points held back.

        One bin unless more are clearly better: with few points a pattern is easily imagined.
        """
        most = int(np.clip(len(left_out) // BIN_ERRORS, 1, MAX_BINS))
        even = np.arange(len(left_out)) % 2 == 0
        folds = [(left_out.select(~part), left_out.select(part)) for part in (even, ~even)]

        def score(bins: int) -> float:
            widths = [cls._in_bins(shown, bins) for shown, _ in folds]
            held_back = [f[1] for f in folds]
            found = [
                interval_score(h.errors, w.at(h.doubts))
                for h, w in zip(held_back, widths, strict=True)
            ]
            return sum(found) * (1.0 if bins > 1 else 1.0 - CLEARLY)

        return cls._in_bins(left_out, min(range(1, most + 1), key=score) if most > 1 else 1)

    @classmethod
    def _in_bins(cls, left_out: LeftOut, bins: int) -> Width:
        """Quantiles of |error| in bins of about equal count; equal doubts share a bin."""
        order = np.argsort(left_out.doubts, kind="stable")
        size, doubts = np.abs(left_out.errors)[order], left_out.doubts[order]
        edges = np.arange(1, bins) * len(size) // bins
        edges = np.unique(np.searchsorted(doubts, doubts[edges]))
        parts = [p for p in np.split(np.arange(len(size)), edges) if len(p)]
        half = np.array([conformal_quantile(size[p]) for p in parts])
        return cls(
            log_doubt=np.array([np.median(np.log(doubts[p])) for p in parts]),
            half_width=_never_falling(half, np.array([len(p) for p in parts], float)),
            count=len(size),
        )

    def at(self, doubt: Floats) -> Floats:
        return np.interp(np.log(doubt), self.log_doubt, self.half_width)

    def at_one(self, doubt: float) -> float:
        """`at` of one doubt, without arrays."""
        at, half = self._points
        x = math.log(doubt)
        right = bisect_right(at, x)
        if right in (0, len(at)):
            return half[min(right, len(at) - 1)]
        part = (x - at[right - 1]) / (at[right] - at[right - 1])
        return half[right - 1] + part * (half[right] - half[right - 1])

    @cached_property
    def _points(self) -> tuple[list[float], list[float]]:
        return self.log_doubt.tolist(), self.half_width.tolist()


def _never_falling(values: Floats, weight: Floats) -> Floats:
    """The closest rising sequence: neighbours out of order are averaged (pool adjacent violators,
    Barlow et al. 1972)."""
    blocks: list[tuple[float, float, int]] = []
    for value, w in zip(values.tolist(), weight.tolist(), strict=True):
        blocks.append((value, w, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (v0, w0, n0), (v1, w1, n1) = blocks[-2:]
            blocks[-2:] = [((v0 * w0 + v1 * w1) / (w0 + w1), w0 + w1, n0 + n1)]
    return np.repeat([v for v, _, _ in blocks], [n for _, _, n in blocks])


def conformal_quantile(values: Floats) -> float:
    """The value of rank ceil(0.8 (n + 1)) of n; the largest if n is small."""
    rank = min(math.ceil(COVERAGE * (len(values) + 1)), len(values))
    return float(np.sort(values)[rank - 1])


def interval_score(errors: Floats, half: Floats) -> float:
    """Mean width of the 80 % interval of the log, and 10 times the miss of what lies outside.

    Lower is better. Source: Gneiting and Raftery 2007, eq. 43, with alpha = 0.2.
    """
    missed = np.maximum(np.abs(errors) - half, 0.0)
    return float(np.mean(2 * half + 2 / (1 - COVERAGE) * missed))

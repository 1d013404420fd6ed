"""Support: which rows carry an answer, how near they are, and how strong that makes it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from planner.quality.capacity import REFERENCE_LENGTH
from planner.quality.robust import Floats
from planner.quality.split import Rows
from planner.workload import format_tokens

Strength = Literal["strong", "moderate", "weak", "none"]
STRENGTHS: tuple[Strength, ...] = ("none", "weak", "moderate", "strong")

NEAR = 4.0
"""Rows within this factor in length and size are near."""

FARTHEST = 8
"""Contexts up to this many times the longest tested are answered: predicted from rows at shorter
lengths, hybrids trained from scratch were inside their 80 % interval 95 to 100 % of the time at
one to three doublings; no row tests an answer farther (docs/log.md)."""


@dataclass(frozen=True, kw_only=True)
class Support:
    """Which rows carried an answer and how strong they are. `own` are the user's own sources."""

    ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    strength: Strength = "none"
    nearest: str = ""

    @classmethod
    def of(
        cls, rows: Rows, rung: int, task_class: str, params_b: float | None, context: int | None
    ) -> Support:
        """strong: three sources on the mixer near in size and length; moderate: two; else weak.

        Rows of a published source share a recipe that is not the asked one, so it counts once;
        the user's own are of the asked recipe, so each row counts as a source. Rows of unknown
        length are near only for general tasks, where length is no predictor. A size is the total:
        a mixture of 48B is not near an 8B for activating 3B.
        """
        size = _doublings(rows.params_b, params_b)
        if task_class == "general":
            length = np.zeros(len(rows))
        elif context is None:
            length = np.where(np.isfinite(rows.length), 0.0, np.inf)
        else:
            length = _doublings(rows.length, context)
        near = rows.take((size <= math.log2(NEAR)) & (length <= math.log2(NEAR)))
        counted = len(np.unique(near.source[~near.imported])) + int(near.imported.sum())
        strength: Strength = "weak"
        if rung == 0:
            strength = "strong" if counted >= 3 else "moderate" if counted == 2 else "weak"
        distance = np.where(np.isfinite(size), size, 9.0) + np.where(
            np.isfinite(length), length, 9.0
        )
        best = int(np.argmin(distance))
        return cls(
            ids=tuple(str(i) for i in rows.id),
            sources=rows.sources,
            own=rows.take(rows.imported).sources,
            strength=strength,
            nearest=_nearest(rows.params_b[best], rows.length[best], str(rows.source[best])),
        )


def _doublings(known: Floats, asked: float | None) -> Floats:
    """Distance in doublings; infinite where the row does not say, 0 where nothing is asked."""
    if asked is None:
        return np.zeros(len(known))
    distance = np.abs(np.log2(known / asked))
    return np.where(np.isfinite(distance), distance, np.inf)


def _nearest(params_b: float, length: float, source: str) -> str:
    size = f"{params_b:.3g}B" if math.isfinite(params_b) else "a model of unknown size"
    where = f"at {format_tokens(int(length))}" if math.isfinite(length) else "at an unknown length"
    return f"nearest {size} {where} ({source})"


def beyond_near(asked: Floats, *known: Floats) -> Floats:
    """Doublings beyond `NEAR` from the nearest known size; 0 where either is unknown."""
    sizes = np.unique(np.concatenate(known))
    sizes = sizes[np.isfinite(sizes)]
    if not len(sizes):
        return np.zeros(len(asked))
    distance = np.abs(np.log2(asked[:, None] / sizes[None, :])).min(axis=1)
    steps = np.maximum(distance - math.log2(NEAR), 0.0)
    return np.where(np.isfinite(steps), steps, 0.0)


def length_steps(rows: Rows, task_class: str, context: int | None) -> float:
    """Doublings beyond `NEAR` times the longest known length; short inputs are the rule for
    general tasks, where length is no predictor."""
    if context is None or task_class == "general":
        return 0.0
    return max(0.0, math.log2(context / longest_length(rows)) - math.log2(NEAR))


def longest_length(rows: Rows) -> int:
    """The longest that a row states; rows of short inputs state none."""
    lengths = rows.length[np.isfinite(rows.length)]
    return int(lengths.max()) if len(lengths) else REFERENCE_LENGTH


def too_long(longest: int, task_class: str, context: int | None) -> bool:
    """Whether a context lies further beyond the rows than answers were ever tested."""
    if context is None or task_class == "general":
        return False
    return context > FARTHEST * longest

"""Predicting many architectures at once: what they have in common is computed once per cell.

A cell is a mixer, a band of full-layer shares and a placement; window and size are per
architecture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from planner.quality.distribution import split_normal_quantile
from planner.quality.features import MixFeatures, band_of
from planner.quality.robust import Floats, Strings
from planner.store.evidence_rules import MIXER_KINDS

LEVELS = ("mixer × class", "kind × class", "has full layers × class")
PURE_LEVELS = ("mixer × class", "kind × class", "no full layers × class")
NOT_COVERED = "not covered"
WITHIN_WINDOW = "window covers the context"
WINDOW_EDGE = "window edge"
DEFINITION = "definition"
LEVEL_NAMES = tuple(
    dict.fromkeys((NOT_COVERED, *LEVELS, *PURE_LEVELS, WITHIN_WINDOW, WINDOW_EDGE, DEFINITION))
)
LEVEL_CODES = {name: code for code, name in enumerate(LEVEL_NAMES)}


class Cell(NamedTuple):
    """What decides the rows behind an answer. `mixer` is "" for full attention throughout."""

    mixer: str
    band: str
    placement: str

    @property
    def has_full(self) -> bool:
        return self.band not in ("full", "pure")

    @property
    def is_windowed(self) -> bool:
        return self.band != "full" and MIXER_KINDS[self.mixer] == "windowed"


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Many architectures as columns: `cell` indexes `cells`; NaN window, size or number of tokens
    is unknown."""

    cells: tuple[Cell, ...]
    cell: NDArray[np.int64]
    window: Floats
    params_b: Floats
    train_tokens_b: Floats

    @classmethod
    def of(cls, features: Sequence[MixFeatures]) -> FeatureTable:
        codes: dict[Cell, int] = {}
        cell = [codes.setdefault(Cell(f.mixer, f.band, f.placement), len(codes)) for f in features]
        return cls(
            cells=tuple(codes),
            cell=np.array(cell, dtype=np.int64),
            window=np.array([f.window or math.nan for f in features], dtype=float),
            params_b=np.array([f.params_b or math.nan for f in features], dtype=float),
            train_tokens_b=np.array([f.train_tokens_b or math.nan for f in features], dtype=float),
        )

    @classmethod
    def from_columns(
        cls,
        *,
        mixer: Sequence[str],
        full_share: Floats,
        window: Floats,
        params_b: Floats,
        placement: Sequence[str] | None = None,
    ) -> FeatureTable:
        """From one column per property; `mixer` is "" for full attention throughout. Training
        tokens are taken as unknown."""
        codes: dict[Cell, int] = {}
        cell = [
            codes.setdefault(Cell(str(m), band_of(share), str(p)), len(codes))
            for m, share, p in zip(mixer, full_share, placement or [""] * len(mixer), strict=True)
        ]
        return cls(
            cells=tuple(codes),
            cell=np.array(cell, dtype=np.int64),
            window=np.asarray(window, dtype=float),
            params_b=np.asarray(params_b, dtype=float),
            train_tokens_b=np.full(len(cell), math.nan),
        )

    def __len__(self) -> int:
        return len(self.cell)

    def where(self, chosen: Sequence[bool]) -> NDArray[np.bool_]:
        """Which architectures are in the chosen cells."""
        found: NDArray[np.bool_] = np.array(chosen, dtype=bool)[self.cell]
        return found


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Points of many architectures for one class and context, one entry each; NaN where the
    evidence does not cover the question. `reference` is the control's accuracy assumed."""

    median: Floats
    low: Floats
    high: Floats
    reference: Floats
    level_code: NDArray[np.int8]

    @cached_property
    def level(self) -> Strings:
        """The rung of the ladder that answered, by name."""
        return np.array(LEVEL_NAMES)[self.level_code]

    @property
    def covered(self) -> NDArray[np.bool_]:
        return np.asarray(self.level_code != LEVEL_CODES[NOT_COVERED])

    def points_at(self, z: Floats) -> Floats:
        """Points at standard normal scores `z` [n, k], within what accuracies can be."""
        points = split_normal_quantile(z, self.median, self.low, self.high)
        return np.clip(points, -self.reference, 100.0 - self.reference)

    def retention_at(self, z: Floats) -> Floats:
        """Accuracy kept at standard normal scores `z` [n, k]."""
        kept: Floats = 1.0 + self.points_at(z) / self.reference
        return kept


def design_names(features: Sequence[MixFeatures]) -> Strings:
    """One name per design: architectures of one name err alike, in every draw."""
    return np.array([f"{f.mixer} {f.full_indices} {f.n_layers} {f.window}" for f in features])

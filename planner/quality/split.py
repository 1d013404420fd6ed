"""Fitting: the rows of one origin and class, their centres, and how far they miss.

A split holds the rows of one origin (scratch, converted), with or without full layers, of one
class of tasks. See `retention` for the method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from planner.quality.features import band_of
from planner.quality.robust import INFLATION, Floats, Strings, shrunk_median, source_quantiles
from planner.store.evidence_rules import MIXER_KINDS

MIN_SOURCES = 2
PARITY_SOURCES = 1.0
"""Parity with full attention counts as this many sources wherever a centre is formed."""
IMPORTED_SUPPORT = 2
"""The user's own comparison carries a rung by itself."""

BANDS = ("dense", "thin", "sparse")
"""Of stacks with full layers, from many to few."""

FITTED_COLUMNS = (
    "id", "source", "model", "mixer", "kind", "layout", "origin", "full_share", "params_b",
    "active_params_b", "train_tokens_b", "train_length", "eval_length", "task", "task_class",
    "metric", "value", "control_value", "assumed", "imported_file_sha256",
)  # fmt: skip
"""What the fit reads of the comparisons."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The fitted columns of comparisons, one array each, all of one length."""

    id: Strings
    source: Strings
    mixer: Strings
    kind: Strings
    band: Strings
    task: Strings
    model: Strings
    points: Floats
    control: Floats
    params_b: Floats
    active_b: Floats
    tokens_b: Floats
    length: Floats
    weight: Floats
    imported: NDArray[np.bool_]

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Rows:
        imported = frame["imported_file_sha256"].notna().to_numpy()
        published = frame.loc[~imported, "source"].nunique()
        return cls(
            **{name: _text(frame[name]) for name in ("id", "source", "mixer", "kind", "model")},
            task=_text(frame["task"] + "@" + frame["eval_length"].astype(str)),
            band=np.array([band_of(s) for s in frame["full_share"]], dtype=str),
            points=(frame["value"] - frame["control_value"]).to_numpy(float),
            control=frame["control_value"].to_numpy(float),
            params_b=frame["params_b"].to_numpy(float),
            active_b=frame["active_params_b"].to_numpy(float),
            tokens_b=frame["train_tokens_b"].to_numpy(float),
            length=frame["eval_length"].to_numpy(float),
            weight=np.where(imported, float(published + 1), 1.0),
            imported=imported,
        )

    def __len__(self) -> int:
        return len(self.points)

    def take(self, mask: NDArray[np.bool_]) -> Rows:
        return Rows(**{name: value[mask] for name, value in vars(self).items()})

    def joined(self, other: Rows) -> Rows:
        return Rows(
            **{name: np.concatenate([v, getattr(other, name)]) for name, v in vars(self).items()}
        )

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(str(s) for s in np.unique(self.source))

    @property
    def support(self) -> int:
        """Sources, the user's own counting double."""
        return len(np.unique(self.source[~self.imported])) + IMPORTED_SUPPORT * len(
            np.unique(self.source[self.imported])
        )


def _text(column: pd.Series) -> Strings:
    return column.fillna("").to_numpy(dtype=str)


@dataclass(frozen=True, kw_only=True)
class Caution:
    """What rows of a mixer or kind say that are too few to carry a rung."""

    points: float
    sources: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Centres:
    """Expected points of one split: `any`, and by kind and by mixer where they carry a rung.

    `sparse` is what fewer full layers than 1 in 8 add, at most 0. `cautions` are by (mixer or
    kind, band): they may lower an answer at their band and at those with fewer full layers; they
    cannot raise one. One source, or rows whose control is assumed, count here.
    """

    any: float
    by_kind: Mapping[str, float]
    by_mixer: Mapping[str, float]
    sparse: float = 0.0
    cautions: Mapping[tuple[str, str], Caution] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows, assumed: Rows | None = None) -> Centres:
        found = cls._of_dense(rows)
        few = rows.take(rows.band == "sparse")
        drop = shrunk_median(
            few.points - found.at(few), few.source, few.weight, 0.0, PARITY_SOURCES
        )
        found = replace(found, sparse=min(0.0, drop))
        everything = rows if assumed is None else rows.joined(assumed)
        return replace(found, cautions=found._cautions(everything))

    @classmethod
    def _of_dense(cls, rows: Rows) -> Centres:
        """Centres of the rows that are not sparse, rungs by the support of all."""
        dense = rows.take(rows.band != "sparse")
        base = dense if len(dense) else rows
        anything = _centre(base, 0.0)
        by_kind, by_mixer = {}, {}
        for kind in np.unique(rows.kind):
            if rows.take(rows.kind == kind).support >= MIN_SOURCES:
                by_kind[str(kind)] = _centre(base.take(base.kind == kind), anything)
        for mixer in np.unique(rows.mixer):
            if rows.take(rows.mixer == mixer).support >= MIN_SOURCES:
                toward = by_kind.get(MIXER_KINDS[str(mixer)], anything)
                by_mixer[str(mixer)] = _centre(base.take(base.mixer == mixer), toward)
        return cls(any=anything, by_kind=by_kind, by_mixer=by_mixer)

    def _cautions(self, rows: Rows) -> dict[tuple[str, str], Caution]:
        found = {}
        for band in np.unique(rows.band):
            for labels in (rows.mixer, rows.kind):
                for label in np.unique(labels[rows.band == band]):
                    own = rows.take((rows.band == band) & (labels == label))
                    toward = float(np.mean(self.at(own)))
                    found[str(label), str(band)] = Caution(
                        points=_centre(own, toward), sources=own.sources
                    )
        return found

    def rung(self, mixer: str) -> int:
        """The finest rung that carries a mixer: 0 mixer, 1 kind, 2 any."""
        if mixer in self.by_mixer:
            return 0
        return 1 if MIXER_KINDS[mixer] in self.by_kind else 2

    def carried(self, mixer: str, band: str) -> float:
        """What the rung says, without cautions."""
        rungs = (self.by_mixer.get(mixer), self.by_kind.get(MIXER_KINDS[mixer]), self.any)
        centre = next(c for c in rungs if c is not None)
        return centre + (self.sparse if band == "sparse" else 0.0)

    def lowered_by(self, mixer: str, band: str) -> Caution | None:
        """The caution that lowers an answer most, None if none does.

        Where a rung carries the mixer (or its kind), the rung already has the dense rows.
        """
        rung = self.rung(mixer)
        found = []
        for near in BANDS[: BANDS.index(band) + 1] if band in BANDS else (band,):
            for label, needed in ((mixer, 1), (MIXER_KINDS[mixer], 2)):
                if rung >= needed or near in ("thin", "sparse"):
                    found.append(self.cautions.get((label, near)))
        lowest = min((c for c in found if c), key=lambda c: c.points, default=None)
        return lowest if lowest and lowest.points < self.carried(mixer, band) else None

    def value(self, mixer: str, band: str) -> float:
        """The rung's or the caution's; a window sees no more than full attention does."""
        caution = self.lowered_by(mixer, band)
        found = caution.points if caution else self.carried(mixer, band)
        return min(found, 0.0) if MIXER_KINDS[mixer] == "windowed" else found

    def at(self, rows: Rows) -> Floats:
        return np.array(
            [self.value(m, b) for m, b in zip(rows.mixer, rows.band, strict=True)], dtype=float
        )


def _centre(rows: Rows, toward: float) -> float:
    return shrunk_median(rows.points, rows.source, rows.weight, toward, PARITY_SOURCES)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How far the 80 % interval reaches below (<= 0) and above (>= 0) a centre."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Split:
    """Everything fitted for one origin, with or without full layers, and class."""

    origin: str
    rows: Rows
    centres: Centres
    spread: Mapping[str, Spread]
    residuals: Floats
    reference: float

    @classmethod
    def fit(cls, rows: Rows, origin: str = "scratch", *, assumed: Rows | None = None) -> Split:
        """`assumed` are rows whose control is assumed: they can only lower an answer."""
        residuals = left_out_residuals(rows)
        spread = {band: _spread(residuals, rows, band) for band in (*BANDS, "pure")}
        (reference,) = source_quantiles(rows.control, rows.source, (0.5,))
        return cls(
            origin=origin,
            rows=rows,
            centres=Centres.of(rows, assumed),
            spread=spread,
            residuals=residuals,
            reference=float(reference),
        )

    @property
    def covered(self) -> bool:
        return self.rows.support >= MIN_SOURCES

    def at_rung(self, rung: int, mixer: str) -> Rows:
        if rung == 0:
            return self.rows.take(self.rows.mixer == mixer)
        if rung == 1:
            return self.rows.take(self.rows.kind == MIXER_KINDS[mixer])
        return self.rows


def left_out_residuals(rows: Rows) -> Floats:
    """points minus their centre, each source predicted from the other sources alone.

    With one source there is nothing to predict it from: its own centre is used. The user's own
    source is of the recipe they ask about and always in the fit, so it is judged by the whole fit.
    """
    found = np.empty(len(rows))
    for source in rows.sources:
        mine = rows.source == source
        others = rows if rows.imported[mine].any() else rows.take(~mine)
        centres = Centres.of(others if len(others) else rows)
        found[mine] = rows.points[mine] - centres.at(rows.take(mine))
    return found


def _spread(residuals: Floats, rows: Rows, band: str) -> Spread:
    """Of the band's own rows where two sources have some, else of all rows of the split."""
    own = np.isin(rows.band, ("dense", "thin") if band in ("dense", "thin") else (band,))
    if band == "sparse" or len(np.unique(rows.source[own])) < MIN_SOURCES:
        own = np.ones(len(rows), dtype=bool)
    source = rows.source[own]
    low, high = source_quantiles(residuals[own], source, (0.1, 0.9), rows.weight[own])
    widen = 1.0 + INFLATION / len(np.unique(source))
    return Spread(low=widen * min(low, 0.0), high=widen * max(high, 0.0))


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """How alike the errors of two architectures are: in one recipe, and on one task of it."""

    source: float
    task: float

    @classmethod
    def of(cls, splits: Sequence[Split]) -> Correlation:
        """Mean product of normal scores over pairs of rows; every source counts the same."""
        scores = [_normal_scores(s.residuals) for s in splits]
        return_source, return_task = [], []
        for split, z in zip(splits, scores, strict=True):
            for name in split.rows.sources:
                mine = split.rows.source == name
                task = split.rows.task[mine]
                same, across = _pair_products(z[mine], task)
                return_task += [same] if math.isfinite(same) else []
                return_source += [across] if math.isfinite(across) else []
        task_level = float(np.clip(np.mean(return_task), 0.0, 0.9)) if return_task else 0.0
        source_level = float(np.clip(np.mean(return_source), 0.0, 0.9)) if return_source else 0.0
        return cls(source=min(source_level, task_level), task=task_level)


def _normal_scores(values: Floats) -> Floats:
    ranks = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    return np.asarray(ndtri((ranks + 0.5) / max(len(values), 1)), dtype=float)


def _pair_products(z: Floats, task: Strings) -> tuple[float, float]:
    """Mean z_i z_j over pairs of the same task, and over pairs of different tasks."""

    def pairs(x: Floats) -> tuple[float, int]:
        n = len(x)
        return float((x.sum() ** 2 - (x**2).sum()) / 2), n * (n - 1) // 2

    total, count = pairs(z)
    within = [pairs(z[task == t]) for t in np.unique(task)]
    same, n_same = sum(p[0] for p in within), sum(p[1] for p in within)
    across = (total - same) / (count - n_same) if count > n_same else math.nan
    return (same / n_same if n_same else math.nan), across

"""How much accuracy a mixer, ratio and placement keep against full attention, and how sure.

Fitted in points: value minus that of a full-attention control of the same recipe.

    >>> model = QualityModel.fit(store.comparisons())                     # doctest: +SKIP
    >>> model.predict(MixFeatures.of(arch), "retrieval", 32768).points_median   # doctest: +SKIP

The method, small enough to check by hand:

1. Rows are split by origin (scratch, converted), by whether there is a full layer, and by class.
2. The centre of a split is the mean of its sources' medians, with parity counted as one source
   more. The centres of a kind (recurrent, windowed) and of a mixer are shrunk to it the same way.
3. Each source is predicted from the others; the 10 % and 90 % quantiles of what that misses, every
   source counting the same, are the interval, widened by 1 + 1/K for K sources.
4. Support is searched down a ladder, mixer, kind, any with full layers, and two sources are needed
   on the rung used; below that the answer is "not covered".

Effects beyond the centres: fewer full layers than 1 in 8 cost what the rows show (never less than
nothing); one source on a mixer or kind may lower an answer, never raise it; a window at least as
long as the context is full attention; see `capacity` for models without full layers. Size, length
and placement widen, they do not shift: no slope is identifiable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from planner.errors import UnknownName, UsageError
from planner.quality.capacity import REFERENCE_LENGTH, Capacity
from planner.quality.features import MixFeatures, band_of
from planner.quality.robust import INFLATION, Floats, shrunk_median, source_quantiles
from planner.store.evidence_rules import FITTED_METRICS, MIXER_KINDS, TASK_CLASSES
from planner.workload import format_tokens

Strings = NDArray[np.str_]
Strength = Literal["strong", "moderate", "weak", "none"]
STRENGTHS: tuple[Strength, ...] = ("none", "weak", "moderate", "strong")

LEVELS = ("mixer × class", "kind × class", "has full layers × class")
PURE_LEVELS = ("mixer × class", "kind × class", "no full layers × class")
NOT_COVERED = "not covered"
WITHIN_WINDOW = "window covers the context"
WINDOW_EDGE = "window edge"
DEFINITION = "definition"

MIN_SOURCES = 2
PARITY_SOURCES = 1.0
"""Parity with full attention counts as this many sources wherever a centre is formed."""
NEAR = 4.0
"""Rows within this factor in length and size are near."""
WIDEN_PER_DOUBLING = 0.1
"""How much wider an interval gets for each doubling in size or length beyond `NEAR`."""
EDGE = 0.05
"""Half the 80 % interval around what a window's edge says."""
IMPORTED_SUPPORT = 2
"""The user's own comparison carries a rung by itself."""

FITTED_COLUMNS = (
    "id", "source", "model", "mixer", "kind", "layout", "origin", "full_share", "params_b",
    "active_params_b", "train_length", "eval_length", "task", "task_class", "metric", "value",
    "control_value", "assumed", "imported_file_sha256",
)  # fmt: skip
"""What `fit` reads of the comparisons."""

Z80 = float(ndtri(0.9))

UNSEEN_WIDENING = 1.25
"""Only the lower side, for a mixer, or a band of ratios, of which the split has no row at all."""

PLACEMENT_WIDENING = {"start": 1.5, "end": 1.25}
"""Only the lower side: from scratch a start is worse than an end, an end worse than a middle, in
perplexity (Samba, table 5; Mamba-2, footnote 6). There are no controlled accuracy rows."""


@dataclass(frozen=True, kw_only=True)
class Retention:
    """What the evidence says for one architecture, class of tasks and context.

    Points are against full attention of the same recipe. Retentions are for display: they assume
    a control at `reference` points, the middle of the controls behind the rows. Intervals are
    80 %. NaN where the evidence does not cover the question.
    """

    task_class: str
    points_median: float
    points_low: float
    points_high: float
    retention_median: float
    retention_low: float
    retention_high: float
    reference: float
    num_rows: int
    num_sources: int
    row_ids: tuple[str, ...]
    sources: tuple[str, ...]
    level: str
    strength: Strength
    nearest: str
    notes: tuple[str, ...] = ()

    @property
    def covered(self) -> bool:
        return self.level != NOT_COVERED

    def probability_at_least(self, points: float) -> float:
        """P(accuracy - control >= `points`), 0 where nothing is known."""
        if not self.covered:
            return 0.0
        return float(
            1.0 - split_normal_cdf(points, self.points_median, self.points_low, self.points_high)
        )

    def probability_retained(self, retention: float) -> float:
        """P(retention >= `retention`), 0 where nothing is known."""
        return self.probability_at_least((retention - 1.0) * self.reference)


def split_normal_cdf(x: float, median: float, low: float, high: float) -> float:
    """Of a normal whose two halves reach the 10 % and 90 % quantiles `low` and `high`."""
    side = high if x > median else low
    if side == median:
        return float(x >= median)
    return float(ndtr(Z80 * (x - median) / abs(side - median)))


def split_normal_quantile(z: Floats, median: Floats, low: Floats, high: Floats) -> Floats:
    """The same distribution at standard normal scores `z`; all arguments broadcast."""
    return median + z / Z80 * np.where(z > 0, high - median, median - low)


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
            length=frame["eval_length"].to_numpy(float),
            weight=np.where(imported, float(published + 1), 1.0),
            imported=imported,
        )

    def __len__(self) -> int:
        return len(self.points)

    def take(self, mask: NDArray[np.bool_]) -> Rows:
        return Rows(**{name: value[mask] for name, value in vars(self).items()})

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
class Centres:
    """Expected points of one split: `any`, and by kind and by mixer where they carry a rung.

    `sparse` is what fewer full layers than 1 in 8 add, at most 0. `cautions` are by (mixer or
    kind, band): one source alone may lower an answer, it cannot raise one.
    """

    any: float
    by_kind: Mapping[str, float]
    by_mixer: Mapping[str, float]
    sparse: float = 0.0
    cautions: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Rows) -> Centres:
        found = cls._of_dense(rows)
        few = rows.take(rows.band == "sparse")
        drop = shrunk_median(
            few.points - found.at(few), few.source, few.weight, 0.0, PARITY_SOURCES
        )
        found = replace(found, sparse=min(0.0, drop))
        return replace(found, cautions=found._cautions(rows))

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

    def _cautions(self, rows: Rows) -> dict[tuple[str, str], float]:
        found = {}
        for band in np.unique(rows.band):
            for labels in (rows.mixer, rows.kind):
                for label in np.unique(labels[rows.band == band]):
                    own = rows.take((rows.band == band) & (labels == label))
                    toward = float(np.mean(self.at(own)))
                    found[str(label), str(band)] = _centre(own, toward)
        return found

    def rung(self, mixer: str) -> int:
        """The finest rung that carries a mixer: 0 mixer, 1 kind, 2 any."""
        if mixer in self.by_mixer:
            return 0
        return 1 if MIXER_KINDS[mixer] in self.by_kind else 2

    def value(self, mixer: str, band: str) -> float:
        kind = MIXER_KINDS[mixer]
        rung = self.rung(mixer)
        centre = (self.by_mixer.get(mixer, 0.0), self.by_kind.get(kind, 0.0), self.any)[rung]
        if rung:
            centre = min(
                centre,
                self.cautions.get((mixer, _base(band)), centre),
                self.cautions.get((kind, _base(band)), centre) if rung == 2 else centre,
            )
        if band != "sparse":
            return centre
        lowered = centre + self.sparse
        return min(
            lowered,
            self.cautions.get((mixer, band), lowered),
            self.cautions.get((kind, band), lowered),
        )

    def at(self, rows: Rows) -> Floats:
        return np.array(
            [self.value(m, b) for m, b in zip(rows.mixer, rows.band, strict=True)], dtype=float
        )


def _base(band: str) -> str:
    return "dense" if band == "sparse" else band


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

    rows: Rows
    centres: Centres
    spread: Mapping[str, Spread]
    residuals: Floats
    reference: float

    @classmethod
    def fit(cls, rows: Rows) -> Split:
        residuals = left_out_residuals(rows)
        spread = {band: _spread(residuals, rows, band) for band in ("dense", "sparse", "pure")}
        (reference,) = source_quantiles(rows.control, rows.source, (0.5,))
        return cls(
            rows=rows,
            centres=Centres.of(rows),
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

    With one source there is nothing to predict it from: its own centre is used.
    """
    found = np.empty(len(rows))
    for source in rows.sources:
        mine = rows.source == source
        others = rows.take(~mine)
        centres = Centres.of(others if len(others) else rows)
        found[mine] = rows.points[mine] - centres.at(rows.take(mine))
    return found


def _spread(residuals: Floats, rows: Rows, band: str) -> Spread:
    """Of the band's own rows where two sources have some, else of all rows of the split."""
    own = rows.band == band
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


@dataclass(frozen=True, kw_only=True)
class FeatureTable:
    """Many `MixFeatures` as columns: what the vectorised prediction reads."""

    mixer: Strings
    band: Strings
    placement: Strings
    window: Floats
    params_b: Floats
    design: Strings

    @classmethod
    def of(cls, features: Sequence[MixFeatures]) -> FeatureTable:
        return cls(
            mixer=np.array([f.mixer for f in features], dtype=str),
            band=np.array([f.band for f in features], dtype=str),
            placement=np.array([f.placement for f in features], dtype=str),
            window=np.array([f.window or math.nan for f in features], dtype=float),
            params_b=np.array([f.params_b or math.nan for f in features], dtype=float),
            design=np.array(
                [f"{f.mixer} {f.full_indices} {f.n_layers} {f.window}" for f in features],
                dtype=str,
            ),
        )

    def __len__(self) -> int:
        return len(self.mixer)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Points of many architectures for one class and context, one entry each; NaN where the
    evidence does not cover the question. `reference` is the control's accuracy assumed."""

    median: Floats
    low: Floats
    high: Floats
    reference: Floats
    level: Strings

    def points_at(self, z: Floats) -> Floats:
        """Points at standard normal scores `z` [n, k], within what accuracies can be."""
        points = split_normal_quantile(z, self.median, self.low, self.high)
        return np.clip(points, -self.reference, 100.0 - self.reference)

    def retention_at(self, z: Floats) -> Floats:
        """Accuracy kept at standard normal scores `z` [n, k]."""
        kept: Floats = 1.0 + self.points_at(z) / self.reference
        return kept


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """The fitted model. Make it with `fit`; it is cheap, a few milliseconds."""

    splits: Mapping[tuple[str, bool, str], Split]
    capacity: Capacity
    window_rows: tuple[str, ...]
    window_sources: tuple[str, ...]
    correlation: Correlation = field(default=Correlation(source=0.0, task=0.0))

    @classmethod
    def fit(cls, comparisons: pd.DataFrame) -> QualityModel:
        """From the store's comparisons (`Store.comparisons`): those with use evaluate or fit."""
        used = comparisons.loc[comparisons["use"] != "show", list(FITTED_COLUMNS)]
        controlled = used[
            ~used["assumed"]
            & used["metric"].isin(FITTED_METRICS)
            & used["kind"].isin(("recurrent", "windowed"))
            & (used["layout"] == "layers")
            & used["full_share"].notna()
        ]
        splits = {}
        keys = [controlled["origin"], controlled["full_share"] > 0, controlled["task_class"]]
        for (origin, has_full, task_class), frame in controlled.groupby(keys):
            edge = (frame["kind"] == "windowed") & (frame["full_share"] == 0)
            rows = Rows.of(frame[~edge])
            if len(rows):
                splits[str(origin), bool(has_full), str(task_class)] = Split.fit(rows)
        edges = used[(used["kind"] == "windowed") & (used["full_share"] == 0)]
        curves = used[used["assumed"] & (used["kind"] == "recurrent") & (used["full_share"] == 0)]
        return cls(
            splits=splits,
            capacity=Capacity.fit(curves),
            window_rows=tuple(edges["id"]),
            window_sources=tuple(sorted(set(edges["source"]))),
            correlation=Correlation.of([s for s in splits.values() if s.covered]),
        )

    # Many at once

    def predict_many(
        self,
        table: FeatureTable,
        task_class: str,
        context: int | None,
        *,
        origin: str = "scratch",
        train_length: int | None = None,
    ) -> Prediction:
        """Points and 80 % interval of every architecture of `table`, vectorised."""
        _check(task_class, origin, context)
        n = len(table)
        median, low, high = np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
        reference = np.full(n, np.nan)
        level = np.full(n, NOT_COVERED, dtype="U32")
        joined = np.char.add(np.char.add(table.mixer, "|"), table.band)
        codes, inverse = np.unique(joined, return_inverse=True)
        for code, text in enumerate(codes):
            mixer, band = str(text).split("|")
            at = inverse == code
            found = self._cell(mixer, band, task_class, context, origin, train_length)
            if found is None:
                continue
            median[at], low[at], high[at], reference[at], level[at] = found
        self._widen(table, task_class, context, origin, median, low, high)
        self._windows(table, task_class, context, median, low, high, reference, level)
        np.clip(low, -reference, None, out=low)
        np.clip(median, -reference, 100.0 - reference, out=median)
        np.clip(high, None, 100.0 - reference, out=high)
        full = table.band == "full"
        median[full] = low[full] = high[full] = 0.0
        reference[full] = 100.0
        level[full] = DEFINITION
        return Prediction(median=median, low=low, high=high, reference=reference, level=level)

    def _cell(
        self,
        mixer: str,
        band: str,
        task_class: str,
        context: int | None,
        origin: str,
        train_length: int | None,
    ) -> tuple[float, float, float, float, str] | None:
        """(median, low, high, reference, level) without widening; None if not covered here."""
        has_full = band in ("dense", "sparse")
        split = self.splits.get((origin, has_full, task_class))
        if band == "full" or split is None or not split.covered:
            return None
        if not has_full and MIXER_KINDS[mixer] == "windowed":
            return None
        centre = split.centres.value(mixer, band)
        spread = split.spread[band]
        low, high = centre + spread.low, centre + spread.high
        levels = LEVELS if has_full else PURE_LEVELS
        level = levels[split.centres.rung(mixer)]
        if not has_full and task_class == "retrieval":
            factor = self.capacity.log_factor(context, train_length)
            centre, low, high = faded(centre, low, high, split.reference, factor)
        return centre, low, high, split.reference, level

    def _widen(
        self,
        table: FeatureTable,
        task_class: str,
        context: int | None,
        origin: str,
        median: Floats,
        low: Floats,
        high: Floats,
    ) -> None:
        """Widens in place for size, length and placement away from the rows."""
        for has_full in (True, False):
            split = self.splits.get((origin, has_full, task_class))
            at = np.isfinite(median) & (np.isin(table.band, ("dense", "sparse")) == has_full)
            if split is None or not at.any():
                continue
            steps = beyond_near(table.params_b[at], split.rows.params_b, split.rows.active_b)
            steps += length_steps(split.rows, task_class, context)
            widen = 1.0 + WIDEN_PER_DOUBLING * steps
            below = widen.copy()
            below[~np.isin(table.mixer[at], split.rows.mixer)] *= UNSEEN_WIDENING
            below[~np.isin(table.band[at], split.rows.band)] *= UNSEEN_WIDENING
            if has_full and origin == "scratch":
                for placement, factor in PLACEMENT_WIDENING.items():
                    below[table.placement[at] == placement] *= factor
            low[at] = median[at] + below * (low[at] - median[at])
            high[at] = median[at] + widen * (high[at] - median[at])

    def _windows(
        self,
        table: FeatureTable,
        task_class: str,
        context: int | None,
        median: Floats,
        low: Floats,
        high: Floats,
        reference: Floats,
        level: Strings,
    ) -> None:
        """Windows: full attention within the window; beyond it W of n needles, without full
        layers to relay them."""
        if context is None:
            return
        windowed = np.isfinite(table.window) & (table.band != "full")
        windowed &= np.isin(table.mixer, [m for m, k in MIXER_KINDS.items() if k == "windowed"])
        inside = windowed & (table.window >= context)
        median[inside] = low[inside] = high[inside] = 0.0
        reference[inside] = 100.0
        level[inside] = WITHIN_WINDOW
        edge = windowed & ~inside & (table.band == "pure")
        if task_class == "retrieval" and edge.any():
            share = table.window[edge] / context
            reference[edge] = 100.0
            median[edge] = 100.0 * (share - 1.0)
            low[edge] = np.maximum(median[edge] - 100.0 * EDGE, -100.0)
            high[edge] = np.minimum(median[edge] + 100.0 * EDGE, 0.0)
            level[edge] = WINDOW_EDGE

    # One at a time

    def predict(
        self,
        arch: MixFeatures,
        task_class: str,
        context: int | None,
        origin: str | None = None,
        params_b: float | None = None,
        *,
        train_length: int | None = None,
    ) -> Retention:
        """What the evidence says about `arch` for a class of tasks at a context.

        `origin` and `params_b` default to the architecture's own. Without `train_length` the
        model is taken to be trained at `context`; without `context` length plays no part.

        Raises: UnknownName for a task class or origin that does not exist.
        """
        asked = replace(
            arch,
            origin=origin or arch.origin,
            params_b=params_b if params_b is not None else arch.params_b,
        )
        return self.retentions([asked], task_class, context, train_length=train_length)[0]

    def needle(
        self,
        arch: MixFeatures,
        context: int,
        *,
        distance: int | None = None,
        train_length: int | None = None,
    ) -> Retention:
        """Retrieval of one fact, where full attention is taken to find it always (100 points).

        `distance` is how many tokens back it lies; without one it lies anywhere. A stack of
        windows without full layers sees `distance` < window, itself included, and nothing else.
        """
        found = self.predict(arch, "retrieval", context, train_length=train_length)
        edge = found.level in (WINDOW_EDGE, WITHIN_WINDOW)
        if edge and distance is not None and arch.window is not None:
            seen = float(distance < arch.window)
            return _on_100(found, (seen, max(0.0, seen - EDGE), min(1.0, seen + EDGE)))
        kept = (found.retention_median, found.retention_low, found.retention_high)
        return _on_100(found, (kept[0], kept[1], min(kept[2], 1.0)))

    def retentions(
        self,
        architectures: Sequence[MixFeatures],
        task_class: str,
        context: int | None,
        *,
        train_length: int | None = None,
    ) -> list[Retention]:
        """`predict` for many, which share the search for the rows behind the answers."""
        found = self.predict_each(architectures, task_class, context, train_length=train_length)
        kept = np.maximum(
            0.0, 1.0 + np.stack([found.median, found.low, found.high]) / found.reference
        )
        supports: dict[tuple[object, ...], tuple[Support, tuple[str, ...]]] = {}
        results = []
        for i, arch in enumerate(architectures):
            level = str(found.level[i])
            key = (level, arch.mixer, arch.band, arch.placement, arch.origin, arch.params_b)
            if key not in supports:
                supports[key] = self._support(arch, task_class, context, level)
            support, notes = supports[key]
            results.append(
                Retention(
                    task_class=task_class,
                    points_median=float(found.median[i]),
                    points_low=float(found.low[i]),
                    points_high=float(found.high[i]),
                    retention_median=float(kept[0, i]),
                    retention_low=float(kept[1, i]),
                    retention_high=float(kept[2, i]),
                    reference=float(found.reference[i]),
                    num_rows=len(support.ids),
                    num_sources=len(support.sources),
                    row_ids=support.ids,
                    sources=support.sources,
                    level=level,
                    strength=support.strength,
                    nearest=support.nearest,
                    notes=notes,
                )
            )
        return results

    def _support(
        self,
        arch: MixFeatures,
        task_class: str,
        context: int | None,
        level: str,
    ) -> tuple[Support, tuple[str, ...]]:
        """The rows that carried an answer, and what to say about them."""
        if level == DEFINITION:
            return Support(strength="strong"), ("full attention is the control itself",)
        if level == WITHIN_WINDOW:
            return Support(strength="strong"), (
                "the window sees all of the context: full attention",
            )
        if level == WINDOW_EDGE:
            support = Support(ids=self.window_rows, sources=self.window_sources, strength="weak")
            return support, ("needles at uniform depth: a window of W sees W/n of them",)
        split = self.splits.get((arch.origin, arch.n_full > 0, task_class))
        if level == NOT_COVERED:
            return Support(), (self._why_not(split, arch, task_class),)
        assert split is not None
        rung = (LEVELS if arch.n_full else PURE_LEVELS).index(level)
        rows = split.at_rung(rung, arch.mixer)
        support = Support.of(rows, rung, task_class, arch.params_b, context)
        return support, self._notes(split, arch, task_class, context, rung)

    def _why_not(self, split: Split | None, arch: MixFeatures, task_class: str) -> str:
        kind = "with full layers" if arch.n_full else f"of pure {arch.mixer}"
        if split is None or (not arch.n_full and arch.kind == "windowed"):
            return f"no controlled {task_class} row {kind}"
        return (
            f"one source only ({split.rows.sources[0]}, {len(split.rows)} rows) on {task_class} "
            f"{kind}: two are needed"
        )

    def _notes(
        self, split: Split, arch: MixFeatures, task_class: str, context: int | None, rung: int
    ) -> tuple[str, ...]:
        notes = []
        if rung:
            notes.append(f"fewer than two sources on {arch.mixer}: the rung below is used")
        if arch.mixer not in split.rows.mixer:
            notes.append(f"no row of {arch.mixer}: widens downwards")
        if arch.band not in split.rows.band:
            notes.append("no row with so few full layers: widens downwards")
        if arch.placement in PLACEMENT_WIDENING:
            notes.append(f"placement {arch.placement}: worse in perplexity, widens downwards")
        if (
            not arch.n_full
            and task_class == "retrieval"
            and context
            and context > REFERENCE_LENGTH
        ):
            notes.append(
                f"faded from {format_tokens(REFERENCE_LENGTH)} to {format_tokens(context)} as in "
                f"{self.capacity.inside.num_curves} curves of "
                f"{len(self.capacity.inside.sources)} sources"
            )
        return tuple(notes)

    def has_rows_of(self, arch: MixFeatures) -> bool:
        """Whether a fitted row has this kind of mixer in the same band of full layers."""
        if arch.band == "full":
            return True
        return any(
            bool(np.any((split.rows.kind == arch.kind) & (split.rows.band == arch.band)))
            for (origin, has_full, _), split in self.splits.items()
            if origin == arch.origin and has_full == (arch.n_full > 0)
        )

    # Jointly

    def predict_each(
        self,
        architectures: Sequence[MixFeatures],
        task_class: str,
        context: int | None,
        *,
        train_length: int | None = None,
    ) -> Prediction:
        """`predict_many` for architectures of any origin."""
        table = FeatureTable.of(architectures)
        origins = np.array([a.origin for a in architectures], dtype=str)
        parts = {
            str(o): self.predict_many(
                table, task_class, context, origin=str(o), train_length=train_length
            )
            for o in np.unique(origins)
        }
        if len(parts) == 1:
            return next(iter(parts.values()))
        return Prediction(
            **{
                name: np.select(
                    [origins == o for o in parts], [getattr(p, name) for p in parts.values()]
                )
                for name in vars(next(iter(parts.values())))
            }
        )

    def joint_scores(
        self,
        designs: Strings,
        n: int,
        rng: np.random.Generator,
        recipe: Floats | None = None,
    ) -> Floats:
        """[n, k] standard normal scores of the errors of k designs on one task.

        Designs share the effects of recipe and task; equal designs share everything. `recipe`
        [n] are standard normal scores to share between classes.
        """
        rho = self.correlation
        unique, index = np.unique(designs, return_inverse=True)
        shared = rng.standard_normal(n) if recipe is None else recipe
        task = rng.standard_normal(n)
        own = rng.standard_normal((n, len(unique)))[:, index]
        scores: Floats = (
            math.sqrt(rho.source) * shared[:, None]
            + math.sqrt(rho.task - rho.source) * task[:, None]
            + math.sqrt(1.0 - rho.task) * own
        )
        return scores

    def draws(
        self,
        architectures: Sequence[MixFeatures],
        task_class: str,
        context: int | None,
        n: int,
        rng: np.random.Generator,
    ) -> Floats:
        """[n, k] joint samples of points, NaN where not covered.

        A contrast of two architectures is narrower than their marginals suggest.
        """
        designs = FeatureTable.of(architectures).design
        found = self.predict_each(architectures, task_class, context)
        return found.points_at(self.joint_scores(designs, n, rng))


def _on_100(found: Retention, kept: tuple[float, float, float]) -> Retention:
    """The same answer against a control of 100 points."""
    median, low, high = kept
    return replace(
        found,
        points_median=100.0 * (median - 1.0),
        points_low=100.0 * (low - 1.0),
        points_high=100.0 * (high - 1.0),
        retention_median=median,
        retention_low=low,
        retention_high=high,
        reference=100.0,
    )


def faded(
    centre: float, low: float, high: float, reference: float, factor: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Points at a length that leaves exp(factor) of the accuracy; spreads add in logarithms."""
    kept = [max(1.0 + p / reference, 0.01) for p in (centre, low, high)]
    below = math.hypot(math.log(kept[0] / kept[1]), factor[1])
    above = math.hypot(math.log(kept[2] / kept[0]), factor[2])
    middle = math.log(kept[0]) + factor[0]
    faded_to = (middle, middle - below, min(middle + above, math.log(kept[2])))
    median, low, high = (reference * (math.exp(level) - 1.0) for level in faded_to)
    return median, low, max(high, median)


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
    lengths = rows.length[np.isfinite(rows.length)]
    longest = lengths.max() if len(lengths) else float(REFERENCE_LENGTH)
    return max(0.0, math.log2(context / longest) - math.log2(NEAR))


@dataclass(frozen=True, kw_only=True)
class Support:
    """Which rows carried an answer and how strong they are."""

    ids: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    strength: Strength = "none"
    nearest: str = ""

    @classmethod
    def of(
        cls, rows: Rows, rung: int, task_class: str, params_b: float | None, context: int | None
    ) -> Support:
        """strong: three sources on the mixer near in size and length; moderate: two; else weak."""
        size = np.fmin(_doublings(rows.params_b, params_b), _doublings(rows.active_b, params_b))
        length = _doublings(rows.length, None if task_class == "general" else context)
        near = rows.take((size <= math.log2(NEAR)) & (length <= math.log2(NEAR)))
        strength: Strength = "weak"
        if rung == 0:
            strength = {0: "weak", 1: "weak", 2: "moderate"}.get(near.support, "strong")  # type: ignore[assignment]
        distance = np.where(np.isfinite(size), size, 9.0) + np.where(
            np.isfinite(length), length, 9.0
        )
        best = int(np.argmin(distance))
        return cls(
            ids=tuple(str(i) for i in rows.id),
            sources=rows.sources,
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
    size = f"{params_b:g}B" if math.isfinite(params_b) else "a model of unknown size"
    where = f"at {format_tokens(int(length))}" if math.isfinite(length) else "at an unknown length"
    return f"nearest {size} {where} ({source})"


def _check(task_class: str, origin: str, context: int | None) -> None:
    if task_class not in TASK_CLASSES:
        raise UnknownName("task class", task_class, TASK_CLASSES)
    if origin not in ("scratch", "converted"):
        raise UnknownName("origin", origin, ("scratch", "converted"))
    if context is not None and context < 1:
        raise UsageError(f"context must be at least 1 token, got {context}")

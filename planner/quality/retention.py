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
nothing). One source on a mixer or kind, or rows whose control is assumed, may lower an answer,
not its upper end; they never raise one. A window at least as long as the context is full
attention, so a shorter one is at parity at best. `capacity` treats models without full layers.
Size, training tokens, length and placement widen, they do not shift: no slope is identifiable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from planner.errors import UnknownName, UsageError
from planner.quality.capacity import REFERENCE_LENGTH, Capacity
from planner.quality.distribution import split_normal_cdf
from planner.quality.features import MixFeatures
from planner.quality.prediction import (
    DEFINITION,
    LEVEL_CODES,
    LEVELS,
    NOT_COVERED,
    PURE_LEVELS,
    WINDOW_EDGE,
    WITHIN_WINDOW,
    Cell,
    FeatureTable,
    Prediction,
    design_names,
)
from planner.quality.robust import Floats, Strings
from planner.quality.split import FITTED_COLUMNS, Correlation, Rows, Split
from planner.quality.support import (
    FARTHEST,
    STRENGTHS,
    Strength,
    Support,
    beyond_near,
    length_steps,
    longest_length,
    too_long,
)
from planner.store.evidence_rules import FITTED_METRICS, ORIGINS, TASK_CLASSES
from planner.workload import format_tokens

__all__ = [
    "DEFINITION",
    "NOT_COVERED",
    "STRENGTHS",
    "FeatureTable",
    "Prediction",
    "QualityModel",
    "Retention",
    "Strength",
]

WIDEN_PER_DOUBLING = 0.1
"""How much wider an interval gets for each doubling in size, training tokens or length beyond what
is near."""
EDGE = 0.05
"""Half the 80 % interval around what a window's edge says."""
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
    own_sources: tuple[str, ...] = ()
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


class _Answer:
    """Columns that the steps of a prediction fill in place; NaN and not covered at first."""

    def __init__(self, n: int) -> None:
        self.median, self.low, self.high, self.reference = np.full((4, n), np.nan)
        self.level = np.zeros(n, dtype=np.int8)

    def put(
        self,
        at: NDArray[np.bool_],
        points: tuple[Floats | float, Floats | float, Floats | float],
        reference: float,
        level: str,
    ) -> None:
        self.median[at], self.low[at], self.high[at] = points
        self.reference[at] = reference
        self.level[at] = LEVEL_CODES[level]

    def prediction(self) -> Prediction:
        """Within what accuracies can be: between losing all and 100."""
        top = 100.0 - self.reference
        return Prediction(
            median=np.clip(self.median, -self.reference, top),
            low=np.maximum(self.low, -self.reference),
            high=np.minimum(self.high, top),
            reference=self.reference,
            level_code=self.level,
        )


@dataclass(frozen=True, kw_only=True)
class QualityModel:
    """The fitted model. Make it with `fit`; it is cheap, a fraction of a second."""

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
        hybrid = (used["full_share"] > 0) & (used["full_share"] < 1)
        assumed = used[used["assumed"] & hybrid]
        curves = used[used["assumed"] & (used["kind"] == "recurrent") & (used["full_share"] == 0)]
        capacity = Capacity.fit(curves)
        splits = {}
        keys = [controlled["origin"], controlled["full_share"] > 0, controlled["task_class"]]
        for (origin, has_full, task_class), frame in controlled.groupby(keys):
            edge = (frame["kind"] == "windowed") & (frame["full_share"] == 0)
            own = frame[~edge]
            if not has_full and task_class == "retrieval":
                own = at_reference(own, capacity)
            rows = Rows.of(own)
            if len(rows):
                level = assumed[
                    (assumed["origin"] == origin) & (assumed["task_class"] == task_class)
                ]
                splits[str(origin), bool(has_full), str(task_class)] = Split.fit(
                    rows, str(origin), assumed=Rows.of(level) if has_full and len(level) else None
                )
        edges = used[(used["kind"] == "windowed") & (used["full_share"] == 0)]
        return cls(
            splits=splits,
            capacity=capacity,
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
        answer = _Answer(len(table))
        for has_full in (True, False):
            split = self.splits.get((origin, has_full, task_class))
            if split is None or self._too_long(split, has_full, task_class, context):
                continue
            if split.covered:
                self._from_split(answer, split, table, has_full, task_class, context, train_length)
        if context is not None:
            _windows(answer, table, task_class, context)
        full = table.where([c.band == "full" for c in table.cells])
        answer.put(full, (0.0, 0.0, 0.0), 100.0, DEFINITION)
        return answer.prediction()

    def _from_split(
        self,
        answer: _Answer,
        split: Split,
        table: FeatureTable,
        has_full: bool,
        task_class: str,
        context: int | None,
        train_length: int | None,
    ) -> None:
        """Answers for the cells of one split, per cell, then widened by each one's size."""
        asked = [
            c.band != "full" and c.has_full == has_full and (has_full or not c.is_windowed)
            for c in table.cells
        ]
        at = table.where(asked)
        if not at.any():
            return
        factor = None
        if not has_full and task_class == "retrieval":
            factor = self.capacity.log_factor(context, train_length)
        values = np.full((4, len(table.cells)), np.nan)
        for code, cell in enumerate(table.cells):
            if asked[code]:
                values[:3, code], level = _cell_points(split, cell, factor)
                values[3, code] = LEVEL_CODES[level]
        median, low, high, level_code = values[:, table.cell[at]]
        rows = split.rows
        steps = beyond_near(table.params_b[at], rows.params_b)
        steps = steps + beyond_near(table.train_tokens_b[at], rows.tokens_b)
        widen = 1.0 + WIDEN_PER_DOUBLING * (steps + length_steps(rows, task_class, context))
        answer.median[at] = median
        answer.low[at] = median - widen * (median - low)
        answer.high[at] = median + widen * (high - median)
        answer.reference[at] = split.reference
        answer.level[at] = level_code

    def _longest(self, split: Split, has_full: bool, task_class: str) -> int:
        """Tokens; without full layers retrieval is also known from needle curves."""
        longest = longest_length(split.rows)
        pure = not has_full and task_class == "retrieval"
        return max(longest, self.capacity.longest) if pure else longest

    def _too_long(
        self, split: Split, has_full: bool, task_class: str, context: int | None
    ) -> bool:
        return too_long(self._longest(split, has_full, task_class), task_class, context)

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
                    own_sources=support.own,
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
            return Support(), (self._why_not(split, arch, task_class, context),)
        assert split is not None
        rung = (LEVELS if arch.n_full else PURE_LEVELS).index(level)
        rows = split.at_rung(rung, arch.mixer)
        support = Support.of(rows, rung, task_class, arch.params_b, context)
        return support, self._notes(split, arch, task_class, context, rung)

    def _why_not(
        self, split: Split | None, arch: MixFeatures, task_class: str, context: int | None
    ) -> str:
        kind = "with full layers" if arch.n_full else f"of pure {arch.mixer}"
        if split is None or (not arch.n_full and arch.kind == "windowed"):
            return f"no controlled {task_class} row {kind}"
        if self._too_long(split, arch.n_full > 0, task_class, context):
            longest = self._longest(split, arch.n_full > 0, task_class)
            return (
                f"controlled {task_class} rows {kind} end at {format_tokens(longest)}, and up to "
                f"{FARTHEST} times that is answered: import scores at your length "
                f"(attn-plan evidence import)"
            )
        return (
            f"one source only ({split.rows.sources[0]}, {len(split.rows)} rows) on {task_class} "
            f"{kind}: two are needed"
        )

    def _notes(
        self, split: Split, arch: MixFeatures, task_class: str, context: int | None, rung: int
    ) -> tuple[str, ...]:
        notes = []
        own = split.at_rung(rung, arch.mixer)
        if own.imported.any():
            names = ", ".join(own.take(own.imported).sources)
            notes.append(f"your own {names} counts as {own.weight.max():g} published sources")
        if rung:
            notes.append(f"fewer than two sources on {arch.mixer}: the rung below is used")
        if arch.mixer not in split.rows.mixer:
            notes.append(f"no row of {arch.mixer}: widens downwards")
        lowered = split.centres.lowered_by(arch.mixer, arch.band)
        if lowered:
            notes.append(f"lowered by {', '.join(lowered.sources)}, too few to carry a rung")
        if arch.band not in split.rows.band:
            notes.append("no row with so few full layers: widens downwards")
        if arch.placement in PLACEMENT_WIDENING:
            notes.append(f"placement {arch.placement}: worse in perplexity, widens downwards")
        if arch.origin == "converted" and arch.n_full:
            notes.append(
                "converting: layers chosen by search beat uniform ones by 5 to 10 points of MMLU "
                "(Jet-Nemotron, figure 5b)"
            )
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
        """Whether a fitted row has this kind of mixer in the same band of full layers; 7:1 counts
        with the ratios below it."""
        if arch.band == "full":
            return True
        bands = ("dense", "thin") if arch.band in ("dense", "thin") else (arch.band,)
        return any(
            bool(np.any((split.rows.kind == arch.kind) & np.isin(split.rows.band, bands)))
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
        answer = _Answer(len(architectures))
        for origin in {a.origin for a in architectures}:
            mine = [i for i, a in enumerate(architectures) if a.origin == origin]
            found = self.predict_many(
                FeatureTable.of([architectures[i] for i in mine]),
                task_class,
                context,
                origin=origin,
                train_length=train_length,
            )
            answer.median[mine], answer.low[mine] = found.median, found.low
            answer.high[mine], answer.reference[mine] = found.high, found.reference
            answer.level[mine] = found.level_code
        return answer.prediction()

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
        found = self.predict_each(architectures, task_class, context)
        return found.points_at(self.joint_scores(design_names(architectures), n, rng))


def _cell_points(
    split: Split, cell: Cell, factor: tuple[float, float, float] | None
) -> tuple[tuple[float, float, float], str]:
    """(median, low, high) and the level of one cell, before size and length widen it."""
    centre = split.centres.value(cell.mixer, cell.band)
    spread = split.spread[cell.band]
    low = centre + spread.low
    high = split.centres.carried(cell.mixer, cell.band) + spread.high
    if factor is not None:
        centre, low, high = faded(centre, low, high, split.reference, factor)
    below = 1.0
    if cell.mixer not in split.rows.mixer:
        below *= UNSEEN_WIDENING
    if cell.band not in split.rows.band:
        below *= UNSEEN_WIDENING
    if cell.has_full and split.origin == "scratch":
        below *= PLACEMENT_WIDENING.get(cell.placement, 1.0)
    levels = LEVELS if cell.has_full else PURE_LEVELS
    return (centre, centre - below * (centre - low), high), levels[split.centres.rung(cell.mixer)]


def _windows(answer: _Answer, table: FeatureTable, task_class: str, context: int) -> None:
    """Windows: full attention within the window; beyond it W of n needles, without full layers to
    relay them."""
    windowed = table.where([c.is_windowed for c in table.cells])
    inside = windowed & (table.window >= context)
    answer.put(inside, (0.0, 0.0, 0.0), 100.0, WITHIN_WINDOW)
    if task_class != "retrieval":
        return
    pure = table.where([c.band == "pure" for c in table.cells])
    edge = windowed & pure & (table.window < context)
    lost = 100.0 * (table.window[edge] / context - 1.0)
    around = (lost, np.maximum(lost - 100.0 * EDGE, -100.0), np.minimum(lost + 100.0 * EDGE, 0.0))
    answer.put(edge, around, 100.0, WINDOW_EDGE)


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


def at_reference(rows: pd.DataFrame, capacity: Capacity) -> pd.DataFrame:
    """Rows of pure stacks with their values as they would be at 2K, at most the control's: a row
    at a longer length is not faded a second time when it answers for that length."""
    values = []
    for value, control, length, trained in zip(
        rows["value"],
        rows["control_value"],
        rows["eval_length"],
        rows["train_length"],
        strict=True,
    ):
        context = None if pd.isna(length) else int(length)
        faded_by = capacity.log_factor(context, None if pd.isna(trained) else int(trained))[0]
        values.append(min(value / math.exp(faded_by), max(value, control)))
    return rows.assign(value=values)


def _check(task_class: str, origin: str, context: int | None) -> None:
    if task_class not in TASK_CLASSES:
        raise UnknownName("task class", task_class, TASK_CLASSES)
    if origin not in ORIGINS:
        raise UnknownName("origin", origin, ORIGINS)
    if context is not None and context < 1:
        raise UsageError(f"context must be at least 1 token, got {context}")

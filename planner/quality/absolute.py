"""Absolute levels: what models of a kind really scored on a named benchmark at a length.

No control, no retention: published and imported scores as they are. They answer floors such as
"RULER >= 85 at 128K", or refuse.

    >>> floor = absolute_level(store.evidence(), "RULER", 131072, arch)   # doctest: +SKIP
    >>> floor.probability_at_least(85)                                    # doctest: +SKIP

A length that a model can use is told by RULER's own rule: a score of at least 85.6, what
Llama-2-7B has at 4K (Hsieh et al. 2024, section 4).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from planner.errors import UnknownName, UsageError
from planner.quality.features import MixFeatures, band_of
from planner.quality.robust import Floats, Strings, source_quantiles, source_weights
from planner.store.evidence_rules import PERCENT_METRICS

EFFECTIVE_THRESHOLD = 85.6

BENCHMARKS: Mapping[str, str] = {
    "RULER": r"RULER( avg.*| \(1M version\)| total\(\d+\))?",
    "MRCR": r"MRCR",
    "MMLU": r"MMLU",
    "HELMET": r"HELMET Avg",
    "LongBench": r"LongBench avg.*",
    "LongBench V2": r"LongBench V2.*",
}
"""Benchmarks by name, with the tasks that are the benchmark as a whole."""

NEAR_LENGTH, NEAR_SIZE = 2.0, 4.0
"""How far a row's length and size may be from what is asked."""
MIN_SOURCES = 2


@dataclass(frozen=True, kw_only=True)
class AbsoluteLevel:
    """Scores of the models of one kind and band near a length and size; sources count the same.

    Not covered (NaN) below two sources.
    """

    benchmark: str
    context: int
    median: float
    low: float
    high: float
    row_ids: tuple[str, ...]
    sources: tuple[str, ...]
    scores: Floats
    weights: Floats

    @property
    def covered(self) -> bool:
        return len(self.sources) >= MIN_SOURCES

    def probability_at_least(self, score: float) -> float:
        """The weighted share of models that reach `score`; 0 where not covered."""
        if not self.covered:
            return 0.0
        return float(self.weights[self.scores >= score].sum() / self.weights.sum())


def absolute_level(
    evidence: pd.DataFrame,
    benchmark: str,
    context: int,
    arch: MixFeatures,
) -> AbsoluteLevel:
    """What models like `arch` scored: same mixer kind and band of full layers, length within
    2 times, size within 4 times where both are known.

    Raises: UnknownName for a benchmark without a name here.
    """
    if context < 1:
        raise UsageError(f"context must be at least 1 token, got {context}")
    rows = benchmark_rows(evidence, benchmark)
    band = np.array([band_of(s) if math.isfinite(s) else "" for s in rows["full_share"]])
    alike = (rows["kind"] == arch.kind).to_numpy() & (band == arch.band)
    alike &= near(rows["eval_length"], context, NEAR_LENGTH) == 1
    alike &= near_size(rows, arch.params_b)
    found = rows[alike]
    return _level(benchmark, context, found)


def _level(benchmark: str, context: int, rows: pd.DataFrame) -> AbsoluteLevel:
    source: Strings = rows["source"].to_numpy(dtype=str)
    scores: Floats = rows["value"].to_numpy(float)
    sources = tuple(str(s) for s in np.unique(source))
    low, median, high = (
        source_quantiles(scores, source, (0.1, 0.5, 0.9))
        if len(sources) >= MIN_SOURCES
        else (math.nan,) * 3
    )
    return AbsoluteLevel(
        benchmark=benchmark,
        context=context,
        median=float(median),
        low=float(low),
        high=float(high),
        row_ids=tuple(rows["id"]),
        sources=sources,
        scores=scores,
        weights=source_weights(source) if len(rows) else np.empty(0),
    )


def benchmark_rows(evidence: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """All percent scores on a benchmark as a whole, repeated rows left out."""
    if benchmark not in BENCHMARKS:
        raise UnknownName("benchmark", benchmark, BENCHMARKS)
    pattern = re.compile(BENCHMARKS[benchmark])
    named = evidence["task"].map(lambda task: pattern.fullmatch(task) is not None)
    percent = evidence["metric"].isin(PERCENT_METRICS)
    return evidence[named & percent & (evidence["duplicate_of"] == "")]


def near(known: pd.Series, asked: float | None, factor: float) -> Floats:
    """1 within the factor, 0 outside, NaN where either is unknown."""
    if asked is None:
        return np.full(len(known), np.nan)
    values = known.to_numpy(float)
    ratio = np.maximum(values / asked, asked / values)
    return np.where(np.isnan(values), np.nan, (ratio <= factor).astype(float))


def near_size(rows: pd.DataFrame, params_b: float | None) -> Floats:
    """Whether total or active parameters are near; unknown sizes count as near."""
    total = near(rows["params_b"], params_b, NEAR_SIZE)
    active = near(rows["active_params_b"], params_b, NEAR_SIZE)
    found: Floats = np.fmax(total, active) != 0
    return found


def effective_contexts(evidence: pd.DataFrame) -> pd.DataFrame:
    """The longest length at which each model's RULER score reaches 85.6, and the longest tried.

    Columns: source, model, mixer, kind, full_share, effective, longest, score_at_longest.
    `effective` is 0 where no length reaches it. Lengths have to reach it without a gap.
    """
    rows = benchmark_rows(evidence, "RULER").dropna(subset=["eval_length"])
    found = []
    keys = ["source", "model", "mixer", "kind", "full_share"]
    for values, own in rows.groupby(keys, dropna=False, sort=True):
        curve = own.groupby("eval_length")["value"].max().sort_index()
        good = (curve >= EFFECTIVE_THRESHOLD).to_numpy(bool)
        until = int(np.argmin(good)) if not good.all() else len(good)
        found.append(
            (
                *values,
                int(curve.index[until - 1]) if until else 0,
                int(curve.index[-1]),
                float(curve.iloc[-1]),
            )
        )
    return pd.DataFrame(found, columns=[*keys, "effective", "longest", "score_at_longest"])

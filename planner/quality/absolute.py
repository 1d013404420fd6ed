"""Absolute levels: what models of a kind really scored on a named benchmark at a length.

No control, no retention: published and imported scores as they are. They answer floors such as
"RULER >= 85 at 128k", or refuse.

    >>> floor = ScoreFloor.parse("RULER>=85@128k")
    >>> str(floor)
    'RULER >= 85 at 128k'
    >>> floor.level_of(store.evidence(), arch).probability_at_least(85)   # doctest: +SKIP

A length that a model can use is told by RULER's own rule: a score of at least 85.6, what
Llama-2-7B has at 4K (Hsieh et al. 2024, section 4).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from planner.errors import UnknownName, UsageError
from planner.quality.features import MixFeatures, band_of
from planner.quality.robust import Floats, Strings, source_quantiles, source_weights
from planner.store.evidence_rules import PERCENT_METRICS
from planner.workload import format_tokens, parse_tokens

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

FURTHEST, NEAR_SIZE = 2.0, 4.0
"""How much longer a row's inputs, and how far its size, may be than what is asked. A score at a
longer length holds at a shorter one, not the other way round."""
MIN_SOURCES = 2

_FLOOR = re.compile(r"([^<>=@]+)>=\s*(\d{1,3}(?:\.\d+)?)\s*(?:@\s*(\w+))?")


@dataclass(frozen=True)
class ScoreFloor:
    """A score to reach on a benchmark, in percent. `context` is None for benchmarks of short
    inputs, whose lengths nobody states (MMLU)."""

    benchmark: str
    score: float
    context: int | None = None

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise UnknownName("benchmark", self.benchmark, BENCHMARKS)
        if not 0 < self.score <= 100:
            raise UsageError(f"a score floor must be above 0 and at most 100, got {self.score:g}")
        if self.context is not None and self.context < 1:
            raise UsageError(f"context must be at least 1 token, got {self.context}")

    @classmethod
    def parse(cls, text: str) -> ScoreFloor:
        """Reads "RULER>=85@128k". Raises UsageError, or UnknownName for the benchmark."""
        match = _FLOOR.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"a score floor must be BENCHMARK>=SCORE@LENGTH, such as RULER>=85@128k, "
                f"got {text!r}"
            )
        name, score, length = match.groups()
        return cls(name.strip(), float(score), parse_tokens(length) if length else None)

    @property
    def spelled(self) -> str:
        """As `parse` reads it."""
        where = f"@{format_tokens(self.context)}" if self.context else ""
        return f"{self.benchmark}>={self.score:g}{where}"

    def __str__(self) -> str:
        where = f" at {format_tokens(self.context)}" if self.context else ""
        return f"{self.benchmark} >= {self.score:g}{where}"

    def level_of(self, evidence: pd.DataFrame, arch: MixFeatures) -> AbsoluteLevel:
        return absolute_level(evidence, self.benchmark, self.context, arch)


@dataclass(frozen=True, kw_only=True)
class AbsoluteLevel:
    """Scores of models alike near a length and size; sources count the same. Not covered (NaN)
    below two sources, unless they are the user's own.

    `alike` says in what: the mixer, or only its kind; always the band of full layers and origin.
    `params_b` is the asked total size and `sizes_b` the scores', in 10⁹, NaN where unknown;
    `ratios` are the scores', linear layers to full ones.
    """

    benchmark: str
    context: int | None
    alike: str
    median: float
    low: float
    high: float
    row_ids: tuple[str, ...]
    sources: tuple[str, ...]
    own_sources: tuple[str, ...]
    scores: Floats
    weights: Floats
    params_b: float | None
    sizes_b: Floats
    ratios: Floats

    @property
    def covered(self) -> bool:
        return math.isfinite(self.median)

    @property
    def is_weak(self) -> bool:
        """Whether no score is of a model within 4 times in total size: active parameters alone
        let a mixture of experts in, they do not make it a model of that size."""
        total = near(pd.Series(self.sizes_b), self.params_b, NEAR_SIZE)
        return self.params_b is not None and not bool((total == 1).any())

    def meets(self, score: float, probability: float, evidence: str) -> bool:
        """Whether `score` is reached with `probability`, by evidence of at least that strength:
        a weak answer meets no floor that asks for moderate evidence or more."""
        enough = not self.is_weak or evidence in ("none", "weak")
        return enough and self.probability_at_least(score) >= probability

    def probability_at_least(self, score: float) -> float:
        """The weighted share of models that reach `score`; 0 where not covered."""
        if not self.covered:
            return 0.0
        return float(self.weights[self.scores >= score].sum() / self.weights.sum())

    def __str__(self) -> str:
        names = [f"{s} (your own)" if s in self.own_sources else s for s in self.sources]
        of = f"of {', '.join(names) or 'no source'}"
        if not self.covered:
            return (
                f"not covered: {len(self.scores)} scores {of} for models alike, two sources are "
                f"needed"
            )
        weak = (
            f"; weak evidence: none within {NEAR_SIZE:g} times of {self.params_b:.3g}B in size"
            if self.is_weak
            else ""
        )
        return (
            f"models of this {self.alike} score {self.median:.1f} (80 %: {self.low:.1f} to "
            f"{self.high:.1f}; {self._which()} {of}){weak}"
        )

    def _which(self) -> str:
        """ "5 scores at 48B to 122B, all 3:1"."""
        count = "1 score" if len(self.scores) == 1 else f"{len(self.scores)} scores"
        known = self.sizes_b[np.isfinite(self.sizes_b)]
        sizes = _span([f"{size:.3g}B" for size in np.sort(known)]) or "an unknown size"
        ratios = [_ratio_text(ratio) for ratio in np.sort(self.ratios)]
        every = "all " if len(ratios) > 1 and len(set(ratios)) == 1 else ""
        return f"{count} at {sizes}, {every}{_span(ratios)}"


def _span(texts: Sequence[str]) -> str:
    """First to last of what is sorted; one alone where they are the same."""
    return " to ".join(dict.fromkeys((texts[0], texts[-1]))) if texts else ""


def _ratio_text(ratio: float) -> str:
    """Linear layers to each full one, whole from 1 on: "3:1" of 20 to 7; "1:0" without full."""
    if math.isinf(ratio):
        return "1:0"
    return f"{ratio:.0f}:1" if ratio >= 1 else f"{ratio:.2g}:1" if ratio > 0 else "0:1"


def absolute_level(
    evidence: pd.DataFrame,
    benchmark: str,
    context: int | None,
    arch: MixFeatures,
) -> AbsoluteLevel:
    """What models like `arch` scored: the user's own of its mixer where there are some, since data
    and training decide a level; else all of its mixer if two sources have some, else of its kind.

    Alike is: the same band of full layers and origin, inputs as long as asked or up to twice that
    and inside the trained length, total or active size within 4 times where it is known. Where no
    score's total size is, the answer is weak.

    Raises: UnknownName for a benchmark without a name here.
    """
    if context is not None and context < 1:
        raise UsageError(f"context must be at least 1 token, got {context}")
    rows = benchmark_rows(evidence, benchmark)
    band = np.array([band_of(s) if math.isfinite(s) else "" for s in rows["full_share"]])
    alike = (rows["kind"] == arch.kind).to_numpy() & (band == arch.band)
    alike &= (rows["origin"] == arch.origin).to_numpy()
    alike &= _long_enough(rows, context) & near_size(rows, arch.params_b)
    of_kind = rows[alike]
    of_mixer = of_kind[of_kind["mixer"] == arch.mixer]
    own = of_mixer[of_mixer["imported_file_sha256"].notna()]
    if len(own):
        return _level(benchmark, context, arch.params_b, own, "mixer", least=1)
    if of_mixer["source"].nunique() >= MIN_SOURCES:
        return _level(benchmark, context, arch.params_b, of_mixer, "mixer")
    return _level(benchmark, context, arch.params_b, of_kind, "kind")


def _level(
    benchmark: str,
    context: int | None,
    params_b: float | None,
    rows: pd.DataFrame,
    alike: str,
    *,
    least: int = MIN_SOURCES,
) -> AbsoluteLevel:
    source: Strings = rows["source"].to_numpy(dtype=str)
    scores: Floats = rows["value"].to_numpy(float)
    imported = rows["imported_file_sha256"].notna().to_numpy(bool)
    sources = tuple(str(s) for s in np.unique(source))
    low, median, high = (
        source_quantiles(scores, source, (0.1, 0.5, 0.9))
        if len(sources) >= least
        else (math.nan,) * 3
    )
    return AbsoluteLevel(
        benchmark=benchmark,
        context=context,
        alike=alike,
        median=float(median),
        low=float(low),
        high=float(high),
        row_ids=tuple(rows["id"]),
        sources=sources,
        own_sources=tuple(str(s) for s in np.unique(source[imported])),
        scores=scores,
        weights=source_weights(source) if len(rows) else np.empty(0),
        params_b=params_b,
        sizes_b=rows["params_b"].to_numpy(float),
        ratios=_linear_to_full(rows["full_share"].to_numpy(float)),
    )


def _linear_to_full(full_share: Floats) -> Floats:
    """Linear layers to each full one; infinite without full layers."""
    with np.errstate(divide="ignore"):
        ratios: Floats = 1.0 / full_share - 1.0
    return ratios


def benchmark_rows(evidence: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """All percent scores on a benchmark as a whole, repeated rows left out."""
    if benchmark not in BENCHMARKS:
        raise UnknownName("benchmark", benchmark, BENCHMARKS)
    pattern = re.compile(BENCHMARKS[benchmark])
    named = evidence["task"].map(lambda task: pattern.fullmatch(task) is not None)
    percent = evidence["metric"].isin(PERCENT_METRICS)
    return evidence[named & percent & (evidence["duplicate_of"] == "")]


def _long_enough(rows: pd.DataFrame, context: int | None) -> NDArray[np.bool_]:
    """Inputs from the asked length to twice that, inside the trained length where it is known."""
    length, trained = rows["eval_length"].to_numpy(float), rows["train_length"].to_numpy(float)
    inside: NDArray[np.bool_] = ~(length > trained)
    if context is None:
        return inside
    return inside & (length >= context) & (length <= FURTHEST * context)


def near(known: pd.Series, asked: float | None, factor: float) -> Floats:
    """1 within the factor, 0 outside, NaN where either is unknown."""
    if asked is None:
        return np.full(len(known), np.nan)
    values = known.to_numpy(float)
    ratio = np.maximum(values / asked, asked / values)
    return np.where(np.isnan(values), np.nan, (ratio <= factor).astype(float))


def near_size(rows: pd.DataFrame, params_b: float | None) -> NDArray[np.bool_]:
    """Whether total or active parameters are near; unknown sizes count as near."""
    total = near(rows["params_b"], params_b, NEAR_SIZE)
    active = near(rows["active_params_b"], params_b, NEAR_SIZE)
    found: NDArray[np.bool_] = np.fmax(total, active) != 0
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

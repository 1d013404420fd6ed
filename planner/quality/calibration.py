"""How wrong the retention model has been, against what it has to reach: one table.

    >>> print(quality_calibration(store.comparisons()).to_string())       # doctest: +SKIP

Leave-one-source-out over the evaluation rows, next to the best baseline; the same with labels
dealt out again; coverage with its interval over sources; and what it does beyond the lengths and
sizes it was fitted on. A line says the figure, the limit if there is one, and whether it holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from planner.quality.evaluation import (
    contest,
    coverage_interval,
    evaluation_rows,
    forecast,
    interval_score,
    leave_one_source_out,
    shuffled,
    summary,
)
from planner.quality.features import MixFeatures
from planner.quality.prediction import NOT_COVERED
from planner.quality.retention import QualityModel
from planner.quality.rivals import METHODS

MAX_HYBRID_RATIO = 0.85
MAX_PURE_RATIO = 1.10
POOLED_COVERAGE = (0.70, 0.92)
STRATUM_COVERAGE = (0.65, 0.95)
MIN_STRATUM_SOURCES, MIN_STRATUM_ROWS = 4, 30
MAX_NEEDLE_WIDTH = 0.60
LONG, LARGE = 32768, 7.0
SHUFFLES = 3
SEED = 20261123

STRATA = ("hybrid retrieval", "hybrid other", "pure")


def quality_calibration(comparisons: pd.DataFrame, *, shuffles: int = SHUFFLES) -> pd.DataFrame:
    """One line per bar: bar, what, figure, low, high, limit, met (None where only reported).

    The bars are on published evidence alone; the user's own sources, which are weighted for their
    recipe, come last: how well the published ones predict them.
    """
    everything, comparisons = comparisons, _published(comparisons)
    lines = leave_one_source_out(comparisons, with_rivals=True)
    found = [
        *_hybrid(lines),
        *_shuffled(comparisons, shuffles),
        *_pure(lines),
        *_coverage(lines),
        *_beyond(comparisons),
        *_converted(comparisons),
        *_needles(comparisons),
        *_own(everything),
    ]
    columns = ("bar", "what", "figure", "low", "high", "limit", "met")
    return pd.DataFrame([{c: line.get(c) for c in columns} for line in found], columns=columns)


def misses(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Evaluation rows outside their 80 % interval, the farthest first."""
    lines = leave_one_source_out(_published(comparisons))
    own = lines[(lines["forecast"] == "model") & ~lines["refused"] & ~lines["inside"]]
    beyond = np.maximum(own["low"] - own["actual"], own["actual"] - own["high"])
    kept = ["id", "source", "stratum", "mixer", "actual", "median", "low", "high", "level"]
    return own.assign(beyond=beyond).sort_values("beyond", ascending=False)[[*kept, "beyond"]]


def _published(comparisons: pd.DataFrame) -> pd.DataFrame:
    return comparisons[comparisons["imported_file_sha256"].isna()]


def _own(comparisons: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each of the user's own sources, predicted from the published ones."""
    own = comparisons[comparisons["imported_file_sha256"].notna() & (comparisons["use"] != "show")]
    model = QualityModel.fit(_published(comparisons))
    for (source, origin), rows in own.groupby(["source", "origin"]):
        found = forecast(model, rows, origin=str(origin))
        yield from _scores("own", f"your own {source}, from published sources", rows, found)


def _line(
    bar: str,
    what: str,
    figure: float,
    *,
    limit: str = "",
    met: bool | None = None,
    low: float = math.nan,
    high: float = math.nan,
) -> dict[str, Any]:
    return {"bar": bar, "what": what, "figure": figure, "low": low, "high": high,
            "limit": limit, "met": met}  # fmt: skip


def _hybrid(lines: pd.DataFrame) -> Iterator[dict[str, Any]]:
    dense = lines[lines["band"] == "dense"]
    found = contest(dense)
    yield _line(
        "a", f"hybrids up to 7:1: interval score over the best baseline ({found.best_baseline})",
        found.ratio, limit=f"<= {MAX_HYBRID_RATIO}", met=found.ratio <= MAX_HYBRID_RATIO,
    )  # fmt: skip
    excess = found.model_error - found.baseline_error
    yield _line(
        "a", "hybrids up to 7:1: median error over the best baseline, points", excess,
        limit="<= 0, or by how much", met=True if excess <= 0 else None,
    )  # fmt: skip
    yield from _plainer("a", "hybrids up to 7:1", dense)
    yield _line("a", "hybrids up to 7:1: interval score, points", found.model_score)
    yield _line("a", "hybrids up to 7:1: median error, points", found.model_error)


def _shuffled(comparisons: pd.DataFrame, shuffles: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(SEED)
    ratios = []
    for _ in range(shuffles):
        lines = leave_one_source_out(shuffled(comparisons, rng))
        ratios.append(contest(lines[lines["band"] == "dense"]).ratio)
    if ratios:
        yield _line(
            "a", f"the same with labels shuffled, best of {shuffles}", min(ratios),
            limit=f"> {MAX_HYBRID_RATIO}", met=min(ratios) > MAX_HYBRID_RATIO,
        )  # fmt: skip


def _pure(lines: pd.DataFrame) -> Iterator[dict[str, Any]]:
    pure = lines[lines["band"] == "pure"]
    found = contest(pure)
    yield _line(
        "b", f"pure recurrent: interval score over the best baseline ({found.best_baseline})",
        found.ratio, limit=f"<= {MAX_PURE_RATIO}", met=found.ratio <= MAX_PURE_RATIO,
    )  # fmt: skip
    yield from _plainer("b", "pure recurrent", pure)
    yield _line("b", "pure recurrent: median error, points", found.model_error)
    yield _line("b", "pure recurrent: median error of the best baseline", found.baseline_error)


def _plainer(bar: str, what: str, lines: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Interval scores over those of the plainer methods."""
    score = summary(lines)["interval_score"]
    for name in METHODS:
        ratio = float(score["model"] / score[name])
        text = f"{what}: interval score over {name.replace('_', ' ')}"
        yield _line(bar, text, ratio, limit="< 1", met=ratio < 1)


def _coverage(lines: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for name in ("pooled", *STRATA):
        own = lines if name == "pooled" else lines[lines["stratum"] == name]
        table = summary(own)
        rows, sources = (int(table.loc["model", k]) for k in ("rows", "sources"))  # type: ignore[arg-type]
        coverage, low, high = coverage_interval(own)
        wanted = POOLED_COVERAGE if name == "pooled" else STRATUM_COVERAGE
        enough = sources >= MIN_STRATUM_SOURCES and rows >= MIN_STRATUM_ROWS
        binding = enough or name == "pooled"
        yield _line(
            "c", f"coverage, {name} ({rows} rows, {sources} sources)", coverage,
            low=low, high=high,
            limit=f"{wanted[0]} to {wanted[1]}" if binding else "fewer than 4 sources or 30 rows",
            met=wanted[0] <= coverage <= wanted[1] if binding else None,
        )  # fmt: skip
        yield _line("c", f"median width, {name}, points", float(table["median_width"]["model"]))
        yield _line("c", f"share refused, {name}", float(table["refused"]["model"]))


def _beyond(comparisons: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Fitted on short or small rows only, asked about long or large ones."""
    long = comparisons["eval_length"] >= LONG
    large = comparisons["params_b"] >= LARGE
    for what, far in (("at 32k and longer", long), ("at 7B and larger", large)):
        yield from _held_out("d", f"asked {what}, fitted below", comparisons, far)


def _held_out(
    bar: str, what: str, comparisons: pd.DataFrame, held: pd.Series[bool]
) -> Iterator[dict[str, Any]]:
    asked = evaluation_rows(comparisons[held])
    found = forecast(QualityModel.fit(comparisons[~held]), asked)
    yield from _scores(bar, what, asked, found)


def _scores(
    bar: str, what: str, asked: pd.DataFrame, found: pd.DataFrame
) -> Iterator[dict[str, Any]]:
    known = (found["level"] != NOT_COVERED).to_numpy(bool)
    actual = asked["points"].to_numpy(float)[known]
    median, low, high = (found[c].to_numpy(float)[known] for c in ("median", "low", "high"))
    inside = (low <= actual) & (actual <= high)
    sources = asked["source"][known].nunique()
    for name, values in (
        (f"coverage ({known.sum()} rows, {sources} sources)", inside),
        ("interval score, points", interval_score(actual, low, high)),
        ("median error, points", np.abs(actual - median)),
    ):
        yield _line(bar, f"{what}: {name}", float(np.mean(values)) if len(values) else math.nan)
    yield _line(bar, f"{what}: share refused", float(1 - known.mean()) if len(known) else math.nan)


def _converted(comparisons: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Converted models, each source from the others."""
    rows = comparisons[
        (comparisons["use"] == "fit")
        & ~comparisons["assumed"]
        & (comparisons["origin"] == "converted")
        & comparisons["imported_file_sha256"].isna()
        & (comparisons["full_share"] > 0)
    ]
    asked, found = [], []
    for source in sorted(rows["source"].unique()):
        own = rows[rows["source"] == source]
        model = QualityModel.fit(comparisons[comparisons["source"] != source])
        asked.append(own)
        found.append(forecast(model, own, origin="converted"))
    if asked:
        yield from _scores("d", "converted, a source left out", pd.concat(asked), pd.concat(found))


def _needles(comparisons: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """S-NIAH-2 at 8K of two models, fitted without the table it stands in."""
    table = (comparisons["source"] == "gdn_iclr25") & comparisons["assumed"]
    model = QualityModel.fit(comparisons[~table])
    asked = comparisons[
        table & (comparisons["task"] == "S-NIAH-2") & (comparisons["eval_length"] == 8192)
    ]
    for row in asked[asked["mixer"].isin(("gated_deltanet", "mamba2"))].itertuples():
        arch = MixFeatures(
            mixer=str(row.mixer),
            kind="recurrent",
            n_layers=24,
            n_full=0,
            full_indices=(),
            placement="",
            params_b=float(row.params_b),  # type: ignore[arg-type]
        )
        found = model.needle(arch, 8192, train_length=int(row.train_length))  # type: ignore[arg-type]
        actual = float(row.value) / 100.0  # type: ignore[arg-type]
        low, high = found.retention_low, found.retention_high
        yield _line(
            "needle", f"S-NIAH-2 at 8k, {row.mixer}: actual, in its interval", actual,
            low=low, high=high, limit=f"inside, width <= {MAX_NEEDLE_WIDTH:.2f}",
            met=low <= actual <= high and high - low <= MAX_NEEDLE_WIDTH,
        )  # fmt: skip

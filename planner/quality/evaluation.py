"""Leave-one-source-out: how wrong the retention model has been, next to baselines.

Each source's evaluation rows are predicted from all other sources. Sources count the same. Rows
the model refuses are counted apart and score for nobody. A baseline's interval is the 10 % and
90 % quantiles of its training residuals, and it trains on the rows most like the ones it is
asked for: those with full layers at up to 7:1 for such hybrids, those without for pure stacks.
`planner.quality.rivals` are two plainer methods beside them.

    >>> table = leave_one_source_out(store.comparisons())                 # doctest: +SKIP
    >>> summary(table[table["band"] == "dense"]).loc["model", "interval_score"]   # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from planner.errors import UsageError
from planner.quality.features import band_of
from planner.quality.prediction import NOT_COVERED, FeatureTable
from planner.quality.retention import QualityModel
from planner.quality.rivals import METHODS, rivals
from planner.quality.robust import Floats
from planner.quality.split import FITTED_COLUMNS

MISS_RATE = 0.2
"""Of an 80 % interval."""

BASELINES = ("parity", "median", "median_by_class", "nearest_row")
FORECASTS = ("model", *BASELINES, *METHODS)

Fit = Callable[[pd.DataFrame], QualityModel]


def evaluation_rows(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows the model is tested on, with `band` (dense up to 7:1 here) and `stratum`."""
    rows = comparisons[comparisons["use"] == "evaluate"].reset_index(drop=True)
    bands = np.array([band_of(share) for share in rows["full_share"]], dtype=object)
    bands[bands == "thin"] = "dense"
    return rows.assign(band=bands, stratum=strata(bands, rows["task_class"].to_numpy(object)))


def strata(bands: NDArray[np.object_], classes: NDArray[np.object_]) -> NDArray[np.object_]:
    """hybrid retrieval, hybrid other or pure."""
    hybrid = np.where(classes == "retrieval", "hybrid retrieval", "hybrid other")
    return np.where(bands == "pure", "pure", hybrid)


def interval_score(actual: Floats, low: Floats, high: Floats) -> Floats:
    """Width plus 2/α times the miss (Gneiting and Raftery 2007, eq. 43); lower is better."""
    below, above = np.maximum(low - actual, 0.0), np.maximum(actual - high, 0.0)
    return high - low + 2.0 / MISS_RATE * (below + above)


def leave_one_source_out(
    comparisons: pd.DataFrame, *, fit: Fit = QualityModel.fit, with_rivals: bool = False
) -> pd.DataFrame:
    """One line per evaluation row and forecast: actual, median, low, high, refused.

    `with_rivals` adds the plainer methods of `rivals`, which take longer than all the rest.
    """
    comparisons = comparisons[[*FITTED_COLUMNS, "points", "use", "window"]]
    rows = evaluation_rows(comparisons)
    if rows["source"].nunique() < 2:
        raise UsageError("the store has too little evidence to leave a source out of")
    parts = []
    for source in sorted(rows["source"].unique()):
        model = fit(comparisons[comparisons["source"] != source])
        asked = rows[rows["source"] == source]
        forecasts = {"model": forecast(model, asked)}
        for band, like in asked.groupby("band"):
            others = _alike(rows[rows["source"] != source], str(band))
            more = rivals(others, like) if with_rivals else {}
            for name, found in {**baselines(others, like), **more}.items():
                forecasts[name] = _join(forecasts.get(name), found)
        parts += [_lines(name, asked, found.loc[asked.index]) for name, found in forecasts.items()]
    return with_scores(pd.concat(parts, ignore_index=True))


def _alike(rows: pd.DataFrame, band: str) -> pd.DataFrame:
    """Training rows of a baseline: pure ones for pure, dense hybrids for dense hybrids, all
    hybrids for sparse ones."""
    if band == "sparse":
        return rows[rows["band"] != "pure"]
    return rows[rows["band"] == band]


def _join(before: pd.DataFrame | None, more: pd.DataFrame) -> pd.DataFrame:
    return more if before is None else pd.concat([before, more])


def forecast(model: QualityModel, rows: pd.DataFrame, *, origin: str = "scratch") -> pd.DataFrame:
    """The model's median, low, high and level for each row, at the row's own length."""
    found = pd.DataFrame(index=rows.index, columns=["median", "low", "high", "level"])
    lengths = rows["eval_length"].fillna(-1).astype(int)
    for key, same in rows.groupby([lengths, "task_class"]):
        length, task_class = cast(tuple[int, str], key)
        context = length if length > 0 else None
        p = model.predict_many(table_of(same), task_class, context, origin=origin)
        found.loc[same.index, ["median", "low", "high", "level"]] = np.column_stack(
            [p.median, p.low, p.high, p.level.astype(object)]
        )
    return found


def table_of(rows: pd.DataFrame) -> FeatureTable:
    """Evidence rows as the columns that the model predicts from."""
    return FeatureTable.from_columns(
        mixer=list(rows["mixer"]),
        full_share=rows["full_share"].to_numpy(float),
        window=rows["window"].to_numpy(float),
        params_b=rows["params_b"].to_numpy(float),
    )


def baselines(train: pd.DataFrame, asked: pd.DataFrame) -> Mapping[str, pd.DataFrame]:
    """Each baseline's forecast of `asked` from `train`."""
    points = train["points"].to_numpy(float)
    middle = float(np.median(points))
    by_class = train.groupby("task_class")["points"].median()

    def of_class(rows: pd.DataFrame) -> Floats:
        return rows["task_class"].map(by_class).fillna(middle).to_numpy(float)

    n = len(asked)
    forecasts = {
        "parity": (np.zeros(n), points),
        "median": (np.full(n, middle), points - middle),
        "median_by_class": (of_class(asked), points - of_class(train)),
        "nearest_row": (_nearest(train, asked), points - _nearest(train, None)),
    }
    return {
        name: _with_interval(asked, median, residuals)
        for name, (median, residuals) in forecasts.items()
    }


def _with_interval(asked: pd.DataFrame, median: Floats, residuals: Floats) -> pd.DataFrame:
    low, high = np.quantile(residuals, (0.1, 0.9))
    return pd.DataFrame(
        {"median": median, "low": median + low, "high": median + high, "level": ""},
        index=asked.index,
    )


def _nearest(train: pd.DataFrame, asked: pd.DataFrame | None) -> Floats:
    """Points of the training row most like each asked one; of itself left out if None."""
    rows = train if asked is None else asked

    def differs(name: str) -> Floats:
        mine, theirs = rows[name].to_numpy(object), train[name].to_numpy(object)
        return np.asarray(mine[:, None] != theirs[None, :], dtype=float)

    def doublings(name: str) -> Floats:
        mine, theirs = np.log2(rows[name].to_numpy(float)), np.log2(train[name].to_numpy(float))
        return np.asarray(np.nan_to_num(np.abs(mine[:, None] - theirs[None, :]), nan=2.0))

    distance = (
        5.0 * differs("task_class")
        + 2.0 * differs("mixer")
        + 2.0 * np.abs(
            rows["full_share"].to_numpy(float)[:, None]
            - train["full_share"].to_numpy(float)[None, :]
        )
        + 0.3 * doublings("eval_length")
        + 0.3 * doublings("params_b")
    )  # fmt: skip
    if asked is None:
        np.fill_diagonal(distance, np.inf)
    nearest: Floats = train["points"].to_numpy(float)[distance.argmin(axis=1)]
    return nearest


_KEPT = ("id", "source", "band", "stratum", "task_class", "mixer", "params_b", "eval_length")


def _lines(name: str, asked: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    return asked[list(_KEPT)].assign(
        forecast=name,
        actual=asked["points"].astype(float),
        level=found["level"],
        median=found["median"].astype(float),
        low=found["low"].astype(float),
        high=found["high"].astype(float),
    )


def with_scores(lines: pd.DataFrame) -> pd.DataFrame:
    """Adds `refused` (the model's, for every forecast of the row), `score`, `error`, `inside`,
    `width`."""
    refused = lines.loc[lines["forecast"] == "model"].set_index("id")["level"] == NOT_COVERED
    actual, low, high = (lines[c].to_numpy(float) for c in ("actual", "low", "high"))
    return lines.assign(
        refused=lines["id"].map(refused).to_numpy(bool),
        score=interval_score(actual, low, high),
        error=np.abs(actual - lines["median"].to_numpy(float)),
        inside=(low <= actual) & (actual <= high),
        width=high - low,
    )


def summary(lines: pd.DataFrame) -> pd.DataFrame:
    """Per forecast, sources counting the same: interval_score, error, coverage, width; and how
    many rows and sources answered, and the share refused."""
    answered = lines[~lines["refused"]]
    by_source = answered.groupby(["forecast", "source"])[["score", "error", "inside", "width"]]
    found = by_source.mean().groupby("forecast").mean()
    found.columns = ["interval_score", "error", "coverage", "width"]
    own = lines[lines["forecast"] == "model"]
    return found.assign(
        median_width=answered.groupby("forecast")["width"].median(),
        rows=int((~own["refused"]).sum()),
        sources=own.loc[~own["refused"], "source"].nunique(),
        refused=float(own["refused"].mean()),
    ).reindex([f for f in FORECASTS if f in found.index])


@dataclass(frozen=True, kw_only=True)
class Contest:
    """The model against the best baseline on some rows."""

    model_score: float
    baseline_score: float
    best_baseline: str
    model_error: float
    baseline_error: float

    @property
    def ratio(self) -> float:
        return self.model_score / self.baseline_score


def contest(lines: pd.DataFrame) -> Contest:
    """Interval score and median error against the best baseline of each."""
    found = summary(lines)
    score, error = found["interval_score"], found["error"]
    against = list(BASELINES)
    return Contest(
        model_score=float(score["model"]),
        baseline_score=float(score[against].min()),
        best_baseline=str(score[against].idxmin()),
        model_error=float(error["model"]),
        baseline_error=float(error[against].min()),
    )


def coverage_interval(
    lines: pd.DataFrame, *, n: int = 2000, seed: int = 20261123
) -> tuple[float, float, float]:
    """Coverage of the model, and its 80 % interval when sources are drawn again."""
    own = lines[(lines["forecast"] == "model") & ~lines["refused"]]
    by_source = own.groupby("source")["inside"].mean().to_numpy(float)
    rng = np.random.default_rng(seed)
    again = rng.choice(by_source, size=(n, len(by_source))).mean(axis=1)
    low, high = np.quantile(again, (0.1, 0.9))
    return float(by_source.mean()), float(low), float(high)


def shuffled(comparisons: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """The same comparisons with the points of evaluation rows dealt out again across
    architectures, pure ones among pure ones."""
    found = comparisons.copy()
    at = found["use"] == "evaluate"
    for pure in (True, False):
        index = found.index[at & ((found["full_share"] == 0) == pure)]
        dealt = rng.permutation(found.loc[index, "points"].to_numpy(float))
        found.loc[index, "points"] = dealt
        found.loc[index, "value"] = found.loc[index, "control_value"] + dealt
    return found

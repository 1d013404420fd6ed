"""The bars of the retention model, on the shipped evidence, left one source out at a time."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.quality import calibration
from planner.quality.calibration import misses, quality_calibration
from planner.quality.evaluation import (
    BASELINES,
    contest,
    coverage_interval,
    evaluation_rows,
    interval_score,
    leave_one_source_out,
    shuffled,
    summary,
)
from planner.quality.rivals import METHODS, rivals


@pytest.fixture(scope="module")
def lines(comparisons: pd.DataFrame) -> pd.DataFrame:
    return leave_one_source_out(comparisons)


def test_hybrids_beat_the_best_baseline_by_15_percent(lines: pd.DataFrame) -> None:
    dense = lines[lines["band"] == "dense"]
    found = contest(dense)
    print(f"\nhybrids up to 7:1: {found}")
    assert found.ratio <= calibration.MAX_HYBRID_RATIO
    assert found.model_error <= found.baseline_error + 0.05
    assert summary(dense).loc["model", "sources"] >= 4


def test_pure_recurrent_is_no_worse_than_the_best_baseline(lines: pd.DataFrame) -> None:
    found = contest(lines[lines["band"] == "pure"])
    print(f"\npure recurrent: {found}")
    assert found.ratio <= calibration.MAX_PURE_RATIO


@pytest.mark.parametrize("stratum", ["pooled", *calibration.STRATA])
def test_intervals_cover_what_they_say(lines: pd.DataFrame, stratum: str) -> None:
    own = lines if stratum == "pooled" else lines[lines["stratum"] == stratum]
    coverage, low, high = coverage_interval(own)
    print(f"\ncoverage {stratum}: {coverage:.2f} ({low:.2f} to {high:.2f} over sources)")
    wanted = calibration.POOLED_COVERAGE if stratum == "pooled" else calibration.STRATUM_COVERAGE
    assert wanted[0] <= coverage <= wanted[1]
    assert low <= coverage <= high


@pytest.mark.slow
@pytest.mark.parametrize("band", ["dense", "pure"])
def test_plainer_methods_are_beaten(comparisons: pd.DataFrame, band: str) -> None:
    lines = leave_one_source_out(comparisons, with_rivals=True)
    score = summary(lines[lines["band"] == band])["interval_score"]
    print(f"\n{band}: {score.round(1).to_dict()}")
    assert score["model"] < min(score[name] for name in METHODS)


def rows(*points: tuple[str, str, str, float]) -> pd.DataFrame:
    """(source, class, mixer, points)."""
    return pd.DataFrame(points, columns=["source", "task_class", "mixer", "points"])


def test_plainer_methods_on_hand_computed_rows() -> None:
    train = rows(
        *(("a", "icl", "kda", p) for p in (-4.0, -2.0, -3.0)),
        *(("b", "icl", "gla", p) for p in (-9.0, -9.0, -9.0)),
    )
    asked = rows(("c", "icl", "kda", 0.0), ("c", "general", "s4", 0.0))
    found = rivals(train, asked)
    # Sources' medians -3 and -9, parity as one more: all rows (-3 - 9 + 0) / 3 = -4, and the
    # class shrunk to it (-3 - 9 - 4) / 3; a class without rows is at -4.
    assert found["shrunk_medians"]["median"].tolist() == pytest.approx([-16 / 3, -4.0])
    mixed = found["mixed_model"]
    # The best guess for a class is its mean over balanced sources, pulled to the mixer's own.
    assert -6.0 < mixed["median"].iloc[0] < -3.0
    assert mixed["median"].iloc[1] == pytest.approx(-6.0)
    for name in METHODS:
        assert (found[name]["low"] <= found[name]["median"]).all()
        assert (found[name]["median"] <= found[name]["high"]).all()


@pytest.mark.slow
def test_labels_dealt_out_again_fail_the_bar(comparisons: pd.DataFrame) -> None:
    again = shuffled(comparisons, np.random.default_rng(3))
    lines = leave_one_source_out(again)
    assert contest(lines[lines["band"] == "dense"]).ratio > calibration.MAX_HYBRID_RATIO


def test_dealing_keeps_every_label(comparisons: pd.DataFrame) -> None:
    again = shuffled(comparisons, np.random.default_rng(1))
    before, after = comparisons["points"].round(6), again["points"].round(6)
    assert sorted(before) == sorted(after)
    assert (before == after)[comparisons["use"] != "evaluate"].all()
    assert (before != after).sum() > 100


def test_refused_rows_score_for_nobody(lines: pd.DataFrame) -> None:
    refused = lines[lines["refused"]]
    assert set(refused["forecast"]) == {"model", *BASELINES}
    assert refused.loc[refused["forecast"] == "model", "median"].isna().all()
    table = summary(lines)
    answered = lines[(lines["forecast"] == "model") & ~lines["refused"]]
    assert table.loc["model", "rows"] == len(answered)
    assert 0 < table.loc["model", "refused"] < 0.2


def test_the_left_out_source_is_not_among_the_rows(comparisons: pd.DataFrame) -> None:
    """Changing a source's own numbers cannot change how it is predicted."""
    rows = comparisons.copy()
    at = (rows["source"] == "kimi_linear") & (rows["use"] == "evaluate")
    rows.loc[at, ["value", "points"]] += 3.0
    before, after = (
        leave_one_source_out(c).query("forecast == 'model' and source == 'kimi_linear'")
        for c in (comparisons, rows)
    )
    np.testing.assert_allclose(before[["median", "low", "high"]], after[["median", "low", "high"]])


@pytest.mark.slow
def test_the_table_of_bars_holds(comparisons: pd.DataFrame) -> None:
    table = quality_calibration(comparisons, shuffles=1)
    with pd.option_context("display.width", 200, "display.max_colwidth", 90):
        print("\n" + table.round(3).to_string())
    broken = table[table["met"].map(lambda met: met is False)]
    assert broken.empty, broken.to_string()
    assert {"a", "b", "c", "d", "needle"} == set(table["bar"])
    assert table["figure"].map(math.isfinite).all()


@pytest.mark.slow
def test_the_users_own_sources_come_apart(comparisons: pd.DataFrame) -> None:
    """They are not held against the bars: without them every published line is the same."""
    rows = comparisons[comparisons["use"] == "evaluate"].head(3)
    own = rows.assign(
        id=[f"mine-{i}" for i in range(3)], source="mine", imported_file_sha256="0" * 64,
        value=rows["control_value"] - 50.0, points=-50.0, use="fit",
    )  # fmt: skip
    alone = quality_calibration(comparisons, shuffles=0)
    both = quality_calibration(pd.concat([comparisons, own]), shuffles=0)
    pd.testing.assert_frame_equal(both[both["bar"] != "own"].reset_index(drop=True), alone)
    mine = both[both["bar"] == "own"].set_index("what")["figure"]
    assert mine.filter(like="median error").iloc[0] > 20
    assert len(misses(pd.concat([comparisons, own]))) == len(misses(comparisons))


def test_misses_are_outside_their_interval(comparisons: pd.DataFrame) -> None:
    found = misses(comparisons)
    outside = (found["actual"] < found["low"]) | (found["actual"] > found["high"])
    assert len(found) and outside.all() and found["beyond"].is_monotonic_decreasing


def test_evaluation_rows_have_controls_worth_comparing(comparisons: pd.DataFrame) -> None:
    rows = evaluation_rows(comparisons)
    assert (rows["control_value"] >= 20).all()
    chance = rows["chance"].fillna(0)
    assert (rows["control_value"] >= chance + 10).all()
    assert set(rows["origin"]) == {"scratch"} and not rows["assumed"].any()
    size = rows["params_b"] / rows["control_params_b"]
    assert size.dropna().between(0.8, 1.25).all()


@given(
    actual=st.floats(-100, 100), low=st.floats(-100, 100), width=st.floats(0, 100),
    wider=st.floats(0, 50),
)  # fmt: skip
def test_interval_score_is_width_plus_ten_times_the_miss(
    actual: float, low: float, width: float, wider: float
) -> None:
    high = low + width
    miss = max(low - actual, actual - high, 0.0)
    score = interval_score(np.array(actual), np.array(low), np.array(high))
    assert float(score) == pytest.approx(width + 10 * miss)
    # Widening by one on each side costs 2 and saves at most 10: a miss makes it worth it.
    wide = float(interval_score(np.array(actual), np.array(low - wider), np.array(high + wider)))
    assert wide <= float(score) + 2 * wider + 1e-9

"""What the retention model promises, whatever the evidence says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import Architecture
from planner.errors import UnknownName, UsageError
from planner.quality.distribution import split_normal_cdf, split_normal_quantile
from planner.quality.evidence import is_class, is_hybrid, is_pure, with_retention
from planner.quality.features import MixFeatures
from planner.quality.prediction import LEVELS, NOT_COVERED, FeatureTable
from planner.quality.retention import QualityModel
from planner.quality.robust import shrunk_median, source_quantiles
from planner.quality.support import FARTHEST, STRENGTHS, Support
from planner.store.evidence_rules import TASK_CLASSES
from planner.store.layer_facts import placement_of

Build = Callable[..., Architecture]
MIXERS = ("gated_deltanet", "kda", "mamba2", "lightning", "linear_attention", "sliding_window")
RECURRENT = MIXERS[:-1]


def features(
    mixer: str = "gated_deltanet", n_full: int = 8, n_layers: int = 32, **changes: object
) -> MixFeatures:
    at = tuple((i + 1) * n_layers // n_full - 1 for i in range(n_full)) if n_full else ()
    made = MixFeatures(
        mixer=mixer,
        kind="windowed" if mixer == "sliding_window" else "recurrent",
        n_layers=n_layers,
        n_full=n_full,
        full_indices=at,
        placement=placement_of(n_layers, at),
        window=1024 if mixer == "sliding_window" else None,
        params_b=7.0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("task_class", TASK_CLASSES)
def test_full_attention_is_its_own_control(
    quality_model: QualityModel, build: Build, task_class: str
) -> None:
    found = quality_model.predict(
        MixFeatures.of(build("full_attention", "0:1")), task_class, 131072
    )
    assert (found.points_low, found.points_median, found.points_high) == (0, 0, 0)
    assert found.retention_median == 1.0 and found.covered and found.strength == "strong"


@given(
    mixer=st.sampled_from(MIXERS),
    task_class=st.sampled_from(TASK_CLASSES),
    context=st.integers(256, 1 << 20),
    n_layers=st.integers(2, 96),
    data=st.data(),
)
def test_more_full_layers_never_cost_accuracy(
    quality_model: QualityModel,
    mixer: str,
    task_class: str,
    context: int,
    n_layers: int,
    data: st.DataObject,
) -> None:
    few = data.draw(st.integers(1, n_layers - 1))
    more = data.draw(st.integers(few, n_layers - 1))
    a, b = (
        quality_model.predict(
            features(mixer, n, n_layers, placement="uniform"), task_class, context
        )
        for n in (few, more)
    )
    assert a.covered == b.covered
    if a.covered:
        assert a.points_median <= b.points_median + 1e-9


@given(
    mixer=st.sampled_from(MIXERS),
    task_class=st.sampled_from(TASK_CLASSES),
    n_full=st.sampled_from((0, 1, 2, 4, 8, 16)),
    origin=st.sampled_from(("scratch", "converted")),
    lengths=st.tuples(st.integers(1024, 1 << 20), st.integers(1024, 1 << 20)),
)
def test_longer_contexts_never_gain_accuracy(
    quality_model: QualityModel,
    mixer: str,
    task_class: str,
    n_full: int,
    origin: str,
    lengths: tuple[int, int],
) -> None:
    arch = features(mixer, n_full, origin=origin)
    short, long = (quality_model.predict(arch, task_class, n) for n in sorted(lengths))
    if short.covered and long.covered:
        assert long.points_median <= short.points_median + 1e-9
        assert long.retention_median <= short.retention_median + 1e-9


@given(
    windows=st.tuples(st.integers(1, 1 << 17), st.integers(1, 1 << 17)),
    context=st.integers(1024, 1 << 18),
)
def test_a_wider_window_never_sees_less(
    quality_model: QualityModel, windows: tuple[int, int], context: int
) -> None:
    narrow, wide = (
        quality_model.predict(features("sliding_window", 0, window=w), "retrieval", context)
        for w in sorted(windows)
    )
    assert narrow.retention_median <= wide.retention_median + 1e-9
    expected = min(1.0, min(windows) / context)
    assert narrow.retention_median == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("distance", [1025, 4096, 100_000])
def test_a_needle_beyond_the_window_is_invisible(
    quality_model: QualityModel, distance: int
) -> None:
    pure = features("sliding_window", 0, window=1024)
    assert quality_model.needle(pure, distance + 1, distance=distance).retention_high <= 0.05
    assert quality_model.needle(pure, distance + 1, distance=1023).retention_median >= 0.95


def test_a_window_as_long_as_the_context_is_full_attention(quality_model: QualityModel) -> None:
    for n_full in (0, 8):
        found = quality_model.predict(
            features("sliding_window", n_full, window=4096), "multi_hop", 4096
        )
        assert (found.points_low, found.points_high) == (0, 0)


@pytest.mark.parametrize("mixer", RECURRENT)
def test_pure_linear_retrieval_is_worse_than_a_hybrid(
    quality_model: QualityModel, build: Build, mixer: str
) -> None:
    pure, hybrid = (
        quality_model.predict(MixFeatures.of(build(mixer, r)), "retrieval", 32768)
        for r in ("1:0", "3:1")
    )
    assert pure.points_median < hybrid.points_median - 5
    assert pure.probability_retained(0.95) < 0.3


def test_what_is_not_covered_says_so_and_promises_nothing(
    quality_model: QualityModel,
) -> None:
    found = quality_model.predict(features(n_full=0), "multi_hop", 32768)
    assert not found.covered and found.level == NOT_COVERED and found.strength == "none"
    assert math.isnan(found.points_median) and math.isnan(found.retention_low)
    assert found.probability_at_least(-100) == 0.0
    assert found.row_ids == () and found.notes


def test_one_source_is_not_enough(comparisons: pd.DataFrame) -> None:
    only = comparisons[comparisons["source"] == "kimi_linear"]
    model = QualityModel.fit(only)
    found = model.predict(features("kda"), "general", None)
    assert not found.covered
    assert "one source only (kimi_linear" in found.notes[0]


def test_a_store_without_evidence_covers_nothing(comparisons: pd.DataFrame) -> None:
    model = QualityModel.fit(comparisons.iloc[:0])
    for task_class in TASK_CLASSES:
        assert not model.predict(features(), task_class, 4096).covered


def test_support_walks_down_the_ladder(quality_model: QualityModel) -> None:
    levels = {
        m: quality_model.predict(features(m), "retrieval", 32768).level
        for m in ("gated_deltanet", "kda", "sliding_window")
    }
    assert levels == dict(zip(levels, LEVELS, strict=True))
    by_fallback = quality_model.predict(features("kda"), "retrieval", 32768)
    assert by_fallback.strength == "weak"


def test_the_rows_behind_an_answer_are_of_its_rung(
    quality_model: QualityModel, comparisons: pd.DataFrame
) -> None:
    found = quality_model.predict(features("gated_deltanet"), "retrieval", 32768)
    rows = comparisons.set_index("id").loc[list(found.row_ids)]
    assert set(rows["mixer"]) == {"gated_deltanet"} and set(rows["task_class"]) == {"retrieval"}
    assert (rows["full_share"] > 0).all() and set(rows["origin"]) == {"scratch"}
    assert found.num_sources == rows["source"].nunique() >= 2
    assert "nearest" in found.nearest and "B at" in found.nearest


def test_converted_and_scratch_are_never_mixed(
    quality_model: QualityModel, comparisons: pd.DataFrame
) -> None:
    found = quality_model.predict(features(origin="converted"), "general", None)
    rows = comparisons.set_index("id").loc[list(found.row_ids)]
    assert set(rows["origin"]) == {"converted"}
    without = QualityModel.fit(comparisons[comparisons["origin"] == "converted"])
    assert not without.predict(features(), "general", None).covered


def test_perplexity_never_enters(comparisons: pd.DataFrame) -> None:
    spoiled = comparisons.copy()
    at = spoiled["metric"] == "perplexity"
    spoiled.loc[at, "value"] = 1e6
    a, b = (
        QualityModel.fit(c).predict(features(), "general", None) for c in (comparisons, spoiled)
    )
    assert a == b


def test_distance_from_the_rows_widens_and_does_not_shift(quality_model: QualityModel) -> None:
    near = quality_model.predict(features(params_b=7.0), "retrieval", 32768)
    big = quality_model.predict(features(params_b=2000.0), "retrieval", 32768)
    far = quality_model.predict(features(params_b=7.0), "retrieval", 1 << 20)
    young = quality_model.predict(
        features(params_b=7.0, train_tokens_b=100_000.0), "retrieval", 32768
    )
    for other in (big, far, young):
        assert other.points_median == near.points_median
        assert other.points_low < near.points_low and other.points_high > near.points_high


def test_beyond_what_was_ever_tested_there_is_no_answer(quality_model: QualityModel) -> None:
    """The longest row with full layers is at 128k; general tasks do not depend on length."""
    last, beyond = (
        quality_model.predict(features(), "retrieval", FARTHEST * 131072 + more) for more in (0, 1)
    )
    assert last.covered and not beyond.covered
    assert beyond.strength == "none" and math.isnan(beyond.retention_median)
    assert "end at 128k" in beyond.notes[0] and "evidence import" in beyond.notes[0]
    assert quality_model.predict(features(), "general", 1 << 40).covered


def test_a_mixture_of_experts_is_near_by_its_total_size(quality_model: QualityModel) -> None:
    """Kimi Linear's 48B activate 3B: they speak for 48B and not for 7B."""
    small, large = (
        quality_model.predict(features("kda", params_b=size), "retrieval", 131072)
        for size in (7.0, 48.0)
    )
    assert small.row_ids == large.row_ids and "48B" in small.nearest
    assert STRENGTHS.index(small.strength) <= STRENGTHS.index(large.strength)
    rows = quality_model.splits["scratch", True, "retrieval"].rows
    mixture = rows.take(rows.params_b == 48.0)
    own = replace(mixture, imported=np.ones(len(mixture), bool))
    said = [Support.of(own, 0, "retrieval", size, 131072).strength for size in (7.0, 48.0)]
    assert said == ["weak", "strong"]


def test_a_bad_placement_widens_only_downwards(quality_model: QualityModel, build: Build) -> None:
    uniform, middle, end, start = (
        quality_model.predict(
            MixFeatures.of(build("gated_deltanet", "3:1", placement=p)), "retrieval", 32768
        )
        for p in ("uniform", "middle", "end", "start")
    )
    assert middle.points_low == uniform.points_low
    assert start.points_low < end.points_low < uniform.points_low
    assert start.points_high == uniform.points_high
    assert start.points_median == uniform.points_median


def test_the_users_own_comparison_outweighs_the_published(comparisons: pd.DataFrame) -> None:
    kda = comparisons[(comparisons["mixer"] == "kda") & (comparisons["task"] == "RULER")]
    own = kda.head(1).assign(
        id="mine-1", source="mine", imported_file_sha256="0" * 64, control_value=80.0, value=60.0,
        points=-20.0, use="evaluate", task_class="retrieval", eval_length=32768.0, params_b=7.0,
    )  # fmt: skip
    before = QualityModel.fit(comparisons).predict(features("kda"), "retrieval", 32768)
    after = QualityModel.fit(pd.concat([comparisons, own])).predict(
        features("kda"), "retrieval", 32768
    )
    assert after.points_median < (before.points_median - 20) / 2
    assert after.level == LEVELS[0] and "mine" in after.sources


def test_an_own_row_at_a_long_length_is_not_faded_twice(comparisons: pd.DataFrame) -> None:
    """Half of the control at 32k: the answer moves towards a half at 32k, and is milder at 2k."""
    row = comparisons[
        (comparisons["mixer"] == "gated_deltanet") & (comparisons["full_share"] == 0)
        & (comparisons["task_class"] == "retrieval") & (comparisons["use"] == "evaluate")
    ].head(1).assign(
        id="mine-1", source="mine", imported_file_sha256="0" * 64, control_value=90.0, value=45.0,
        points=-45.0, eval_length=32768.0, train_length=32768.0, use="fit", params_b=7.0,
    )  # fmt: skip
    before, after = (QualityModel.fit(c) for c in (comparisons, pd.concat([comparisons, row])))
    asked = features(n_full=0)
    long = [m.predict(asked, "retrieval", 32768).retention_median for m in (before, after)]
    assert abs(long[1] - 0.5) < abs(long[0] - 0.5)
    assert after.predict(asked, "retrieval", 2048).retention_median > long[1] + 0.2


def test_contrasts_are_narrower_than_marginals(quality_model: QualityModel) -> None:
    rng = np.random.default_rng(1)
    a, b = features("gated_deltanet", 8), features("gated_deltanet", 4)
    drawn = quality_model.draws([a, b, a], "retrieval", 32768, 20_000, rng)
    assert drawn.shape == (20_000, 3)
    apart = np.std(drawn[:, 0] - drawn[:, 1])
    independent = np.hypot(np.std(drawn[:, 0]), np.std(drawn[:, 1]))
    assert apart < 0.97 * independent
    assert np.array_equal(drawn[:, 0], drawn[:, 2])


def test_draws_have_the_predicted_marginals(quality_model: QualityModel) -> None:
    arch = features("kda")
    drawn = quality_model.draws([arch], "retrieval", 32768, 50_000, np.random.default_rng(2))
    found = quality_model.predict(arch, "retrieval", 32768)
    low, median, high = np.quantile(drawn, (0.1, 0.5, 0.9))
    width = found.points_high - found.points_low
    assert median == pytest.approx(found.points_median, abs=0.02 * width)
    assert low == pytest.approx(found.points_low, abs=0.02 * width)
    assert high == pytest.approx(found.points_high, abs=0.02 * width)
    assert np.mean(drawn >= -3) == pytest.approx(found.probability_at_least(-3), abs=0.01)


@given(
    median=st.floats(-50, 50), below=st.floats(0.1, 50), above=st.floats(0.1, 50),
    z=st.floats(-3, 3),
)  # fmt: skip
def test_split_normal_quantile_inverts_its_cdf(
    median: float, below: float, above: float, z: float
) -> None:
    low, high = median - below, median + above
    x = float(split_normal_quantile(np.array(z), np.array(median), np.array(low), np.array(high)))
    assert split_normal_cdf(low, median, low, high) == pytest.approx(0.1)
    assert split_normal_cdf(high, median, low, high) == pytest.approx(0.9)
    p = split_normal_cdf(x, median, low, high)
    assert p == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=1e-9)


def test_many_at_once_equals_one_by_one(quality_model: QualityModel) -> None:
    asked = [
        features(m, n, params_b=p, placement=q)
        for m in MIXERS
        for n in (0, 1, 8)
        for p in (0.5, 7.0, 500.0)
        for q in ("uniform", "start")
    ]
    for task_class in TASK_CLASSES:
        many = quality_model.predict_many(FeatureTable.of(asked), task_class, 65536)
        for i, arch in enumerate(asked):
            one = quality_model.predict(arch, task_class, 65536)
            assert one.level == many.level[i]
            np.testing.assert_equal(
                [one.points_low, one.points_median, one.points_high],
                [many.low[i], many.median[i], many.high[i]],
            )


def test_every_source_counts_the_same() -> None:
    values = np.array([0.0] * 99 + [10.0])
    source = np.array(["a"] * 99 + ["b"])
    # medians 0 and 10, parity as one source more: (0 + 10 + 0) / 3
    assert shrunk_median(values, source, np.ones(100), 0.0, 1.0) == pytest.approx(10 / 3)
    assert source_quantiles(values, source, (0.9,))[0] > 5.0


def test_with_retention_changes_only_the_masked_rows(comparisons: pd.DataFrame) -> None:
    mask = is_pure(comparisons) & is_class(comparisons, "retrieval")
    perfect = with_retention(comparisons, mask, 1.0)
    assert (perfect.loc[mask, "points"] == 0).all()
    pd.testing.assert_frame_equal(perfect[~mask], comparisons[~mask])
    assert not (is_pure(comparisons) & is_hybrid(comparisons)).any()


@pytest.mark.parametrize(
    ("task_class", "context", "origin", "error"),
    [
        ("needles", 4096, None, UnknownName),
        ("icl", 0, None, UsageError),
        ("icl", 4096, "grown", UnknownName),
    ],
)
def test_wrong_questions_are_refused(
    quality_model: QualityModel,
    task_class: str,
    context: int,
    origin: str | None,
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        quality_model.predict(features(), task_class, context, origin)


@pytest.mark.parametrize(
    ("n_layers", "at", "name"),
    [
        (8, (3, 7), "uniform"),
        (27, (3, 7, 11, 15, 19, 23, 26), "uniform"),
        (8, (0, 1), "start"),
        (8, (6, 7), "end"),
        (8, (3, 4), "middle"),
        (9, (0, 4, 8), "first_last"),
        (28, (15, 20), "explicit"),
        (12, (5,), "middle"),
        (12, (0,), "start"),
        (12, (11,), "end"),
        (4, (), ""),
        (2, (0, 1), ""),
        (8, (1, 3, 5, 7), "uniform"),
    ],
)
def test_placement_is_told_from_the_layer_list(
    n_layers: int, at: tuple[int, ...], name: str
) -> None:
    assert placement_of(n_layers, at) == name


def test_one_source_may_lower_an_answer_and_not_raise_it(
    comparisons: pd.DataFrame,
) -> None:
    """Sliding windows with full layers from scratch: one source, and it speaks of 5 in 49."""
    at = (comparisons["source"] == "hysparse") & (comparisons["mixer"] == "sliding_window")
    at &= comparisons["use"] == "evaluate"
    asked = [features("sliding_window", n, 48, placement="uniform") for n in (12, 3)]

    def medians(shift: float) -> list[float]:
        frame = comparisons.copy()
        frame.loc[at, "value"] = frame.loc[at, "control_value"] + shift
        model = QualityModel.fit(frame)
        return [model.predict(a, "general", None).points_median for a in asked]

    without = QualityModel.fit(comparisons[~at])
    plain = [without.predict(a, "general", None).points_median for a in asked]
    worse = medians(-20)
    assert worse[0] < plain[0] - 5 and worse[1] < plain[1] - 5
    recurrent = QualityModel.fit(comparisons).predict(features("kda"), "general", None)
    assert medians(20)[0] <= recurrent.points_median + 6

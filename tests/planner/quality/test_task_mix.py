"""Task mixes: weights carry intervals through, and absence never helps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import Architecture
from planner.errors import UnknownName, UsageError
from planner.quality.evidence import is_class, is_pure, with_retention
from planner.quality.retention import QualityModel
from planner.quality.task_mix import TaskMix, normalised
from planner.store import Store

Build = Callable[..., Architecture]
RAG = {"retrieval": 0.7, "multi_hop": 0.2, "general": 0.1}


@pytest.fixture(scope="module")
def mix(quality_model: QualityModel) -> TaskMix:
    return TaskMix(model=quality_model)


def test_full_attention_scores_one(mix: TaskMix, build: Build) -> None:
    (score,) = mix.score([build("full_attention", "0:1")], RAG, 32768)
    assert (score.low, score.median, score.high) == (1.0, 1.0, 1.0)
    assert score.coverage == 1.0 and score.strength == "strong"
    assert score.probability_at_least(1.0) == 1.0


def test_one_class_is_its_retention(mix: TaskMix, build: Build) -> None:
    arch = build("gated_deltanet", "3:1")
    (score,) = mix.score([arch], {"retrieval": 1.0}, 32768, 20_000)
    found = score.per_class["retrieval"]
    assert score.median == pytest.approx(found.retention_median, abs=0.01)
    assert score.low == pytest.approx(found.retention_low, abs=0.02)
    assert score.probability_at_least(0.95) == pytest.approx(
        found.probability_retained(0.95), abs=0.02
    )


def test_strength_is_what_half_of_the_weight_reaches(mix: TaskMix, build: Build) -> None:
    pure = build("gated_deltanet", "1:0")
    (score,) = mix.score([pure], RAG, 32768)
    assert not score.per_class["multi_hop"].covered
    assert score.strength == "weak" and score.coverage == pytest.approx(0.8)
    (other,) = mix.score([pure], {"multi_hop": 0.6, "general": 0.4}, 32768)
    assert other.strength == "none"


def test_less_than_half_covered_is_not_covered(mix: TaskMix, build: Build) -> None:
    (score,) = mix.score([build("kda", "1:0")], {"icl": 0.6, "general": 0.4}, 4096)
    assert not score.covered and score.probability_at_least(0.0) == 0.0


def test_equal_evidence_gives_equal_figures(mix: TaskMix, build: Build) -> None:
    """5:1 and 1:1 are in one band: only noise could tell them apart, and it does not."""
    a, b = mix.score([build("gated_deltanet", r) for r in ("1:1", "5:1")], RAG, 32768)
    assert (a.low, a.median, a.high) == (b.low, b.median, b.high)
    assert not np.array_equal(a.draws, b.draws)


def test_the_same_seed_gives_the_same_draws(mix: TaskMix, build: Build) -> None:
    archs = [build("kda", r) for r in ("3:1", "1:0")]
    a, b = (mix.score(archs, RAG, 32768, seed=7) for _ in range(2))
    assert all(np.array_equal(x.draws, y.draws) for x, y in zip(a, b, strict=True))


def test_the_evidence_decides_and_not_a_rule(
    comparisons: pd.DataFrame, mix: TaskMix, build: Build
) -> None:
    """Pure linear is ruled out for RAG by its retrieval rows: with others it would be in."""
    perfect = with_retention(
        comparisons, is_pure(comparisons) & is_class(comparisons, "retrieval"), 1.0
    )
    archs = [build(m, "1:0") for m in ("gated_deltanet", "kda", "mamba2", "lightning")]
    real = mix.score(archs, RAG, 32768)
    changed = TaskMix(model=QualityModel.fit(perfect)).score(archs, RAG, 32768)
    assert all(s.probability_at_least(0.95) < 0.5 for s in real)
    assert all(s.probability_at_least(0.95) >= 0.8 for s in changed)
    assert all(s.covered for s in (*real, *changed))


def test_a_deployed_hybrid_is_its_own_control(mix: TaskMix, build: Build) -> None:
    archs = [build("gated_deltanet", "3:1"), build("full_attention", "0:1")]
    hybrid, full = mix.scores(archs, RAG, context=32768, baseline=0)
    assert (hybrid.low, hybrid.median, hybrid.high) == (1.0, 1.0, 1.0)
    assert full.low < 1.0 < full.high


def test_ratio_rows_are_of_kind_and_band(mix: TaskMix, build: Build) -> None:
    assert mix.has_ratio_rows(build("gated_deltanet", "3:1"))
    assert mix.has_ratio_rows(build("gated_deltanet", "1:0"))
    assert mix.has_ratio_rows(build("sliding_window", "3:1"))
    assert not mix.has_ratio_rows(build("sliding_window", "1:0"))


def test_from_store_reads_the_shipped_evidence(store: Store, build: Build) -> None:
    (score,) = TaskMix.from_store(store).score([build("kda", "3:1")], RAG, 32768)
    assert score.covered and score.num_sources >= 3 and score.num_rows >= 30


@given(st.dictionaries(st.sampled_from(tuple(RAG)), st.floats(0, 5), min_size=1))
def test_weights_add_up_to_one(weights: dict[str, float]) -> None:
    if sum(weights.values()) <= 0:
        with pytest.raises(UsageError):
            normalised(weights)
    else:
        assert sum(normalised(weights).values()) == pytest.approx(1.0)


def test_unknown_class_is_refused(mix: TaskMix, build: Build) -> None:
    with pytest.raises(UnknownName, match="unknown task class 'chat'"):
        mix.score([build("kda", "3:1")], {"chat": 1.0}, 4096)

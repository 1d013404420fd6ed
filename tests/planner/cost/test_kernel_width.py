"""Width: 80 % intervals cover 80 % of what they were not shown."""

from __future__ import annotations

import numpy as np
import pytest

from planner.cost.width import LeftOut, Width, conformal_quantile, interval_score


def noisy(count: int, seed: int) -> LeftOut:
    """Errors whose scale is the doubt itself, over two decades of it."""
    rng = np.random.default_rng(seed)
    doubts = np.exp(rng.uniform(np.log(0.002), np.log(0.2), count))
    errors = rng.laplace(0.0, doubts)
    return LeftOut(errors=errors, doubts=doubts, relevant=np.ones(count, bool))


def test_intervals_cover_at_small_and_at_large_doubt() -> None:
    width, fresh = Width.of(noisy(2000, 0)), noisy(20_000, 1)
    covered = np.abs(fresh.errors) <= width.at(fresh.doubts)
    for part in (fresh.doubts < 0.01, fresh.doubts > 0.05, fresh.doubts > 0):
        assert covered[part].mean() == pytest.approx(0.8, abs=0.08)


def test_they_beat_a_constant_width() -> None:
    shown, fresh = noisy(2000, 0), noisy(20_000, 1)
    constant = np.full(len(fresh), conformal_quantile(np.abs(shown.errors)))
    mine = interval_score(fresh.errors, Width.of(shown).at(fresh.doubts))
    assert mine < 0.8 * interval_score(fresh.errors, constant)


def test_without_a_pattern_the_width_is_nearly_constant() -> None:
    rng = np.random.default_rng(2)
    left_out = LeftOut(
        errors=rng.normal(0, 0.05, 3000),
        doubts=np.exp(rng.uniform(-6, -2, 3000)),
        relevant=np.ones(3000, bool),
    )
    half = Width.of(left_out).half_width
    assert half == pytest.approx(np.full(len(half), 1.2816 * 0.05), rel=0.15)


def test_width_never_falls_with_doubt() -> None:
    assert (np.diff(Width.of(noisy(900, 4)).half_width) >= 0).all()


def test_few_errors_give_the_largest() -> None:
    # rank ceil(0.8 x 4) = 4 of 3: beyond the last, so the largest
    assert conformal_quantile(np.array([0.1, 0.3, 0.2])) == 0.3
    # rank ceil(0.8 x 10) = 8 of 9
    assert conformal_quantile(np.arange(1.0, 10.0)) == 8.0


def test_the_interval_score_by_hand() -> None:
    # width 2 x 0.1; the second misses by 0.2, times 2 / 0.2
    assert interval_score(np.array([0.0, 0.3]), np.array([0.1, 0.1])) == pytest.approx(
        ((0.2) + (0.2 + 10 * 0.2)) / 2
    )

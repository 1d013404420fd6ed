"""Decay of a recurrent state's recall with length: hand-computed curves."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.quality.capacity import Capacity


def curves(*rows: tuple[str, str, int, float]) -> pd.DataFrame:
    """(source, task, length, value), all trained at 4096."""
    return pd.DataFrame(
        [
            {"id": f"{s}-{i}", "source": s, "model": "m", "task": t, "eval_length": float(n),
             "train_length": 4096.0, "value": v}
            for i, (s, t, n, v) in enumerate(rows)
        ]
    )  # fmt: skip


def test_factors_are_per_doubling_inside_and_beyond_training() -> None:
    """80 to 20 over two doublings halves each time; 20 to 5 in one quarters."""
    found = Capacity.fit(
        curves(*(("a", "t", n, v) for n, v in ((1024, 80), (2048, 44), (4096, 20), (8192, 5))))
    )
    assert found.inside.median == pytest.approx(math.log(0.5))
    assert found.beyond.median == pytest.approx(math.log(0.25))
    assert found.inside.sources == ("a",) and found.inside.num_curves == 1
    # 2K to 4K is one doubling inside; 8K is one more beyond the trained 4K.
    median, _, _ = found.log_factor(8192, train_length=4096)
    assert math.exp(median) == pytest.approx(0.5 * 0.25)
    # Trained at 8K it is two doublings inside.
    assert math.exp(found.log_factor(8192)[0]) == pytest.approx(0.25)


def test_sources_count_the_same() -> None:
    many = [("a", f"t{i}", n, v) for i in range(9) for n, v in ((2048, 100.0), (4096, 100.0))]
    one = [("b", "t", n, v) for n, v in ((2048, 100.0), (4096, 25.0))]
    found = Capacity.fit(curves(*many, *one)).inside
    assert found.low < math.log(0.25) * 0.9 and found.high == 0.0


@given(
    lengths=st.tuples(st.integers(1, 1 << 22), st.integers(1, 1 << 22)),
    trained=st.none() | st.integers(1, 1 << 20),
)
def test_never_rises_with_length(lengths: tuple[int, int], trained: int | None) -> None:
    found = Capacity.fit(
        curves(("a", "t", 2048, 90.0), ("a", "t", 4096, 60.0), ("a", "t", 8192, 20.0))
    )
    short, long = (found.log_factor(n, trained)[0] for n in sorted(lengths))
    assert long <= short <= 0.0


def test_short_inputs_and_unknown_lengths_do_not_fade() -> None:
    found = Capacity.fit(curves(("a", "t", 2048, 90.0), ("a", "t", 4096, 60.0)))
    assert found.log_factor(None) == found.log_factor(2048) == (0.0, 0.0, 0.0)


def test_rising_curves_count_as_flat_and_no_curve_as_nothing_known() -> None:
    rising = Capacity.fit(curves(("a", "t", 2048, 50.0), ("a", "t", 4096, 90.0)))
    assert rising.inside.median == 0.0
    nothing = Capacity.fit(curves(("a", "t", 2048, 50.0)).iloc[:0])
    assert not nothing.inside.known and not nothing.beyond.known

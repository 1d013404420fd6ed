"""Methods: reading between nodes and past their end, against other people's code and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator
from scipy.optimize import nnls

from planner.cost.curves import Curve, Identity, Pool
from planner.cost.leave_out import choose, leave_end_out, leave_one_out, leave_row_out
from planner.cost.methods import (
    METHODS,
    line,
    non_negative_least_squares,
    on_surface,
    surface_problems,
)
from planner.cost.neighbours import Neighbours, weighted_median
from planner.cost.recipe import EndRule, Recipe, join_rows, join_two, read_rows
from planner.cost.table import Table
from planner.mixers import MixerSpec
from planner.workload import MixerOp

IDENTITY = Identity("full_attention", "flash", "bf16", "graph", "prefill")


def attention(heads: int) -> MixerOp:
    return MixerOp(
        MixerSpec(
            mixer="full_attention",
            num_q_heads=heads,
            num_k_heads=heads,
            num_v_heads=heads,
            k_head_dim=64,
            v_head_dim=64,
        )
    )


def curve(seconds: dict[tuple[int, int], float], op: MixerOp | None = None) -> Curve:
    """A prefill curve from {(batch, tokens): seconds}."""
    blank = Curve(
        op=op or attention(8), identity=IDENTITY, layout="prefill", keys=(),
        rows=np.empty(0), start=np.empty(0, int), count=np.empty(0, int), axis=np.empty(0),
        log_s=np.empty(0), noise=np.empty(0), filled=np.empty(0, bool), long=np.empty(0, bool),
    )  # fmt: skip
    return blank.with_nodes(
        row=np.array([b for b, _ in seconds], float),
        axis=np.array([t for _, t in seconds], float),
        log_s=np.log(list(seconds.values())),
        noise=np.full(len(seconds), 0.01),
        filled=np.zeros(len(seconds), bool),
        keys=tuple(f"{b}-{t}" for b, t in seconds),
    )


def law(c0: float, c1: float, c2: float, c3: float) -> dict[tuple[int, int], float]:
    """Seconds from c0 + c1 T + b (c2 T + c3 T (T + 1) / 2)."""
    return {
        (b, t): c0 + c1 * t + b * (c2 * t + c3 * t * (t + 1) / 2)
        for b in (1, 2, 4, 8)
        for t in (1024, 2048, 4096, 8192, 16384)
    }


LAW = law(1e-5, 1e-9, 4e-9, 3e-12)


def test_monotone_cubic_is_pchip() -> None:
    rng = np.random.default_rng(3)
    x = np.sort(rng.uniform(7, 12, 9))
    one = curve(
        {(1, int(np.exp(v))): float(s) for v, s in zip(x, rng.uniform(1, 3, 9), strict=True)}
    )
    constant = np.ones(9)
    inside = np.linspace(one.log_axis[1], one.log_axis[-2], 50)
    stencil = one.locate(np.zeros(50, int), inside)
    found = METHODS["monotone_cubic"](one, stencil, inside, np.ones(50), constant)
    assert found == pytest.approx(PchipInterpolator(one.log_axis, one.log_s)(inside))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_through_the_nodes(method: str) -> None:
    one = curve(LAW)
    d = one.driver_at_nodes("useful")
    stencil = one.locate(one.row_of, one.log_axis)
    found = METHODS[method](one, stencil, one.log_axis, d, d)
    assert found == pytest.approx(one.log_s)


def test_a_line_continues_an_affine_row_exactly() -> None:
    # 1e-5 s + 2e-13 s per pair-head: exact at any distance, through two nodes or four
    one = curve({(1, t): 1e-5 + 1e-12 * t * (t + 1) / 2 for t in (1024, 2048, 4096, 8192)})
    d = one.driver_at_nodes("useful")
    target = one.driver("useful", 1.0, np.array([65536.0]))
    for count in (2, 3, 4):
        found = line(one, count, np.array([3]), np.array([0]), target, d)
        assert np.exp(found) == pytest.approx(1e-5 + 1e-12 * 65536 * 65537 / 2)


def test_the_surface_finds_the_law_it_was_made_of() -> None:
    one = curve(LAW)
    problem = surface_problems(one, "useful", np.array([16384.0]))
    (found,) = non_negative_least_squares(*problem)
    row, length = np.array([1.0, 8.0]), np.array([131072.0, 131072.0])
    expected = [
        1e-5 + 1e-9 * t + b * (4e-9 * t + 3e-12 * t * (t + 1) / 2)
        for b, t in zip(row, length, strict=True)
    ]
    d = one.driver("useful", row, length)
    assert np.exp(on_surface(found, length, row, d)) == pytest.approx(expected, rel=1e-4)


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 10_000), columns=st.integers(1, 4))
def test_non_negative_least_squares_is_scipys(seed: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    a, y = rng.normal(size=(12, columns)), rng.normal(size=12)
    (found,) = non_negative_least_squares((a.T @ a)[None], (a.T @ y)[None])
    assert found == pytest.approx(nnls(a, y)[0], abs=1e-8)


def test_leave_end_out_never_sees_longer_nodes() -> None:
    told = curve(LAW)
    spoiled = curve({k: s * (50.0 if k[1] > 4096 else 1.0) for k, s in LAW.items()})
    for rule in (EndRule("line", "useful"), EndRule("surface", "useful")):
        honest = leave_end_out(Pool.of([told]), rule, 4.0).errors
        shifted = leave_end_out(Pool.of([spoiled]), rule, 4.0).errors
        assert shifted == pytest.approx(honest - np.log(50.0))


def test_a_row_goes_on_without_a_jump() -> None:
    one = curve({k: s * (1.1 if k == (2, 16384) else 1.0) for k, s in LAW.items()})
    for rule in (EndRule("line", "useful"), EndRule("surface", "useful")):
        (node,) = np.flatnonzero((one.axis == 16384) & (one.rows[one.row_of] == 2))
        value, _ = rule.read(one, np.array([node]), np.array([16385.0]))
        assert value[0] == pytest.approx(one.log_s[node], abs=2e-3)


def test_leave_one_out_never_sees_the_point() -> None:
    told = curve(LAW)
    spoiled = curve({k: s * (50.0 if k == (2, 4096) else 1.0) for k, s in LAW.items()})
    recipe = Recipe(method="monotone_cubic", driver="useful")
    at, _ = told.leave_one_out()
    (point,) = np.flatnonzero((told.axis[at] == 4096) & (told.rows[told.row_of[at]] == 2))
    honest = leave_one_out(told, recipe).errors[point]
    assert leave_one_out(spoiled, recipe).errors[point] == pytest.approx(honest - np.log(50.0))


def test_rows_of_an_affine_kernel_are_joined_exactly() -> None:
    errors = leave_row_out(curve(LAW), Recipe(driver="useful", join_rows="affine")).errors
    assert len(errors) == 2 * 5 and np.abs(errors).max() < 1e-9


@settings(max_examples=80, deadline=None)
@given(row=st.floats(0.25, 64), y0=st.floats(-12, -5), up=st.floats(0, 3))
def test_joining_two_rows_is_joining_rows(row: float, y0: float, up: float) -> None:
    recipe = Recipe()
    one = join_two(recipe, row, 2.0, 8.0, y0, y0 + up)
    many = join_rows(recipe, *(np.array([v]) for v in (row, 2.0, 8.0, y0, y0 + up)))
    assert one == pytest.approx((many[0][0], many[1][0]))


def test_a_table_is_the_recipe_on_a_grid() -> None:
    one = curve(LAW)
    recipe = choose([one], Recipe())
    table = Table(one, recipe)
    axis = np.geomspace(600, 100_000, 300)
    row = np.zeros(300, int)
    exact = read_rows(one, recipe, row, axis).log_s
    assert table.read(np.ones(300), axis).log_s == pytest.approx(exact, abs=1e-3)


# Neighbours


def stepped(heads: int, skip: int | None = None) -> Curve:
    """All rows step up by 30 % at 4,096 tokens: one row cannot know from its other nodes."""
    return curve(
        {
            (b, t): b * heads * t**2 * 1e-13 * (1.3 if t == 4096 else 1.0)
            for b in (1, 2, 4, 8)
            for t in (1024, 2048, 4096, 8192, 16384)
            if (b, t) != (2, skip)
        },
        attention(heads),
    )


def test_neighbours_know_a_step_that_a_row_cannot() -> None:
    curves = [stepped(8), stepped(16)]
    alone = Recipe(driver="useful")
    recipe = Recipe(driver="useful", neighbours="length")
    pool = Pool.of(curves)
    at, _ = pool.leave_one_out()
    stepping = pool.axis[at] == 4096
    assert np.abs(leave_one_out(pool, alone).errors[stepping]).min() > 0.2
    errors = Neighbours.of(pool, recipe).leave_one_out().errors
    assert np.abs(errors[stepping]).max() < 0.01


def test_curves_without_an_inner_point_leave_none_out() -> None:
    ends = [curve({(1, 1024): 1e-5, (1, 8192): 1e-4}, attention(heads)) for heads in (8, 16)]
    recipe = Recipe(driver="useful", neighbours="length")
    assert len(Neighbours.of(Pool.of(ends), recipe).leave_one_out()) == 0


def test_a_gap_is_filled_from_the_neighbours_and_marked() -> None:
    holed = stepped(8, skip=4096)
    recipe = choose([holed, stepped(16), stepped(32)], Recipe())
    assert recipe.neighbours != "none"
    neighbours = Neighbours.of(Pool.of([holed, stepped(16), stepped(32)]), recipe)
    filled = neighbours.fill(holed, recipe)
    (node,) = np.flatnonzero(filled.filled)
    assert (filled.rows[filled.row_of[node]], filled.axis[node]) == (2, 4096)
    assert np.exp(filled.log_s[node]) == pytest.approx(2 * 8 * 4096**2 * 1.3e-13, rel=0.02)
    lookup = Table(filled, recipe).read(np.array([2.0]), np.array([4096.0]))
    assert not lookup.measured[0]
    assert filled.measured_keys == holed.keys
    assert len(filled.measured()) == len(holed)


def test_the_weighted_median_by_hand() -> None:
    values = np.array([5.0, 1.0, 3.0])
    weight = np.array([[1.0, 1.0, 1.0], [9.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    median, scatter, known = weighted_median(values, weight)
    assert median.tolist() == [3.0, 5.0, 0.0]
    assert known.tolist() == [True, True, False]
    assert scatter[0] == pytest.approx((2 + 2 + 0) / 3)

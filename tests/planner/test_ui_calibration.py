"""The Calibration and Crossover pages without a browser: frames by hand, pages on shipped data."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from planner.cost.crossover import Crossover, Side
from planner.store import Store
from planner.ui import calibration_charts, calibration_frames, crossover_charts, surface

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120
INF, NAN = np.inf, np.nan


# Frames


def crossing(first: list[list[float]], second: list[list[float]], half: float) -> Crossover:
    """Two sides over contexts 1k, 2k, 4k and batches 1, 2; times in seconds."""
    one, two = np.array(first), np.array(second)
    with np.errstate(invalid="ignore"):
        ratio = np.log(np.nan_to_num(one, nan=INF)) - np.log(np.nan_to_num(two, nan=INF))
    named = np.full(one.shape, "p", object)
    return Crossover(
        first=Side("full_attention", ()), second=Side("kda", ()), phase="prefill",
        contexts=np.array([1024, 2048, 4096]), batches=np.array([1, 2]), first_s=one,
        second_s=two, log_ratio=ratio, half=np.full(one.shape, half),
        basis=np.array([[0, 1, 3], [1, 1, 4]], np.int8), first_provider=named,
        second_provider=named,
    )  # fmt: skip


FOUND = crossing(
    [[10e-6, 40e-6, 160e-6], [20e-6, 80e-6, NAN]],
    [[20e-6, 41e-6, 80e-6], [20e-6, 80e-6, 160e-6]],
    half=0.1,
)


def test_cells_say_who_is_ahead_and_on_what_basis() -> None:
    cells = surface.cells(FOUND)
    assert list(cells["verdict"]) == [
        "full_attention, 2.00x", "no clear winner", "kda, 2.00x",
        "no clear winner", "no clear winner", "kda alone runs",
    ]  # fmt: skip
    assert list(cells["basis"][:3]) == ["measured", "interpolated", "extrapolated"]
    assert list(cells["sure"]) == [1, 0, 1, 0, 0, 1]
    assert cells["doublings"].iloc[0] == pytest.approx(-1)
    assert np.isfinite(cells["doublings"]).all()


def test_cells_meet_half_way_and_cover_every_context_and_batch() -> None:
    cells = surface.cells(FOUND)
    first = cells[cells["batch_size"] == 1]
    assert list(first["context_low"][1:]) == pytest.approx(list(first["context_high"][:-1]))
    assert (cells["context_low"] < cells["context"]).all()
    assert (cells["context"] < cells["context_high"]).all()
    assert first["context_high"].iloc[0] == pytest.approx(1024 * 2**0.5)


def test_the_line_and_where_launches_decide() -> None:
    line = surface.line(FOUND)
    assert line["launch_bound"].tolist() == [1024.0, 1024.0]
    assert (line["low"] <= line["context"]).all() and (line["context"] <= line["high"]).all()
    assert surface.launch_bound_share(FOUND) == pytest.approx(2 / 6)


def residuals() -> pd.DataFrame:
    base = {"phase": "decode", "mode": "graph", "label": "3:1 kda", "length": 1024}
    return pd.DataFrame(
        [
            {**base, "ratio": "3:1", "stack_s": 2e-4, "sum_s": 2.2e-4, "predicted_s": 2e-4},
            {**base, "ratio": "1:1", "stack_s": 2e-4, "sum_s": 2.1e-4, "predicted_s": NAN},
            {**base, "ratio": "1:1", "stack_s": 9e-5, "sum_s": 1e-4, "predicted_s": 9e-5},
            {**base, "mode": "eager", "ratio": "1:1", "stack_s": 1e-3, "sum_s": 2e-3,
             "predicted_s": 1e-3},
        ]
    )  # fmt: skip


def sums() -> pd.DataFrame:
    base = {"phase": "decode", "mode": "graph", "label": "3:1 kda", "length": 1024}
    return pd.DataFrame(
        [{**base, "ratio": "3:1", "stack_s": 2e-4, "predicted_s": 1.5e-4, "low_s": 1.4e-4,
          "high_s": 1.6e-4, "between_s": 4e-5}]
    )  # fmt: skip


def test_stacks_by_way_leave_short_and_eager_ones_out() -> None:
    frame = calibration_frames.stacks(residuals(), sums())
    assert frame.groupby("way").size().to_dict() == {
        calibration_frames.FROM_LAYERS: 2,
        calibration_frames.LESS_STARTS: 1,
        calibration_frames.FROM_KERNELS: 1,
        calibration_frames.AS_MODEL: 1,
    }
    kernels = frame[frame["way"] == calibration_frames.FROM_KERNELS].iloc[0]
    assert kernels["percent"] == pytest.approx(-25) and not kernels["inside"]
    model = frame[frame["way"] == calibration_frames.AS_MODEL].iloc[0]
    assert model["percent"] == pytest.approx(-5) and model["inside"]  # 150 + 40 of 200 us
    table = calibration_frames.stack_errors(frame)
    layers = table[(table["way"] == calibration_frames.FROM_LAYERS) & (table["ratio"] == "all")]
    assert layers["median_ape"].iloc[0] == pytest.approx(7.5)


@pytest.mark.parametrize(("ratio", "share"), [("0:1", 0.0), ("3:1", 0.75), ("1:0", 1.0)])
def test_ratios_are_ordered_by_their_linear_share(ratio: str, share: float) -> None:
    assert calibration_frames.linear_share(ratio) == share


def imported_rows() -> pd.DataFrame:
    base = {"family": "kda", "phase": "decode", "shape": "32x128", "batch_size": 1, "length": 1,
            "ours": "fla", "theirs": "x@1", "versions": "", "ours_s": 2e-5, "theirs_s": 1e-5,
            "causes": ""}  # fmt: skip
    return pd.DataFrame(
        [
            {**base, "ratio": 1.1, "left": 1.0, "outside": False},
            {**base, "ratio": 2.0, "left": 1.0, "outside": True},
            {**base, "ratio": 3.0, "left": 2.0, "outside": True},
        ]
    )


def test_ratios_get_a_verdict_and_the_farthest_comes_first() -> None:
    judged = calibration_frames.ratios(imported_rows())
    assert list(judged["verdict"]) == [
        calibration_frames.INSIDE, calibration_frames.SIZED, calibration_frames.OTHER,
    ]  # fmt: skip
    assert list(calibration_frames.outside(imported_rows())["ratio"]) == [3.0, 2.0]


# Charts


def kernel_rows() -> pd.DataFrame:
    return calibration_frames.kernels(
        pd.DataFrame(
            [
                {"family": "kda", "provider": p, "phase": "decode", "mode": "graph",
                 "fold": "leave_one_out", "n": 10, "median_ape": 1.0, "p90_ape": 2.0,
                 "coverage80": 0.8}
                for p in ("fla", "x@1")
            ]
        )
    )  # fmt: skip


def charts() -> Iterator[Any]:
    order = list(calibration_frames.FOLDS.values())
    yield calibration_charts.fold_chart(kernel_rows(), order=order)
    yield calibration_charts.coverage_chart(kernel_rows(), order=order)
    frame = calibration_frames.stacks(residuals(), sums())
    yield calibration_charts.stack_chart(frame, order=["1:1", "3:1"])
    yield calibration_charts.ratio_chart(calibration_frames.ratios(imported_rows()))
    claims = pd.DataFrame(
        [{"phase": "decode", "context": 1024, "published": 1.0, "predicted": 1.1, "low": 1.0,
          "high": 1.2, "basis": "measured", "where": "figure 1"}]
    )  # fmt: skip
    yield calibration_charts.claim_chart(calibration_frames.claims(claims), title="Times faster")
    curve = pd.DataFrame({"batch_size": [1, 2], "equal": [2.0, 3.0], "against_one": [2.0, 4.0]})
    yield calibration_charts.batch_chart(curve, headline=6.0, ceiling=3.9)
    misses = pd.DataFrame(
        [{"id": "a", "source": "s", "stratum": "pure", "mixer": "kda", "actual": -30.0,
          "median": 0.0, "low": -5.0, "high": 5.0, "beyond": 25.0, "level": "kind"}]
    )  # fmt: skip
    yield calibration_charts.miss_chart(calibration_frames.misses(misses))
    cells, line = surface.cells(FOUND), surface.line(FOUND)
    yield crossover_charts.surface_chart(
        cells, line, first="full_attention", second="kda", length_title="Context", ink="#000000"
    )
    measured = pd.DataFrame({"context": [1024], "batch_size": [1]})
    yield crossover_charts.basis_chart(cells, measured, length_title="Context")


@pytest.mark.parametrize("chart", list(charts()), ids=lambda chart: type(chart).__name__)
def test_charts_are_valid_and_titled(chart: Any) -> None:
    spec = json.dumps(chart.to_dict())
    assert '"title": "' in spec and "tooltip" in spec


# Pages


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("store") / "store.db")
    Store.open(path).close()
    return path


@pytest.fixture
def shipped(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTN_STORE", store)


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store without the shipped data, and nothing cached before or after."""
    monkeypatch.setattr("planner.store.shipped.load_shipped", lambda store: [])
    monkeypatch.setenv("ATTN_STORE", str(tmp_path / "store.db"))
    st.cache_data.clear()
    st.cache_resource.clear()
    yield
    st.cache_data.clear()
    st.cache_resource.clear()


def opened(page: str, **parameters: str) -> AppTest:
    app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=TIMEOUT_S)
    app.query_params.update(parameters)
    app.switch_page(f"planner/ui/views/{page}.py").run()
    assert not app.exception and not app.error
    return app


def texts(app: AppTest) -> str:
    return "\n".join(e.value for e in [*app.markdown, *app.caption, *app.header, *app.subheader])


@pytest.mark.usefixtures("shipped")
def test_calibration_shows_its_misses_before_its_tables() -> None:
    app = opened("calibration")
    page = texts(app)
    assert "How wrong has it been?" in page
    assert "Where it fails" in page and "Published figures" in page
    labels = {m.label: m.value for m in app.metric}
    assert labels["Blocks of layers"].startswith("-")
    assert "Why 6.3x needs large batches" in page
    assert "are outside 0.75 to 1.33" in page.replace("**", "")


@pytest.mark.usefixtures("shipped")
def test_accuracy_shows_the_rows_that_it_missed() -> None:
    app = opened("calibration", subject="accuracy")
    assert "lie outside the 80 % interval that the *other* sources" in texts(app)
    assert {m.label for m in app.metric} >= {"Inside 80 % intervals", "Median error, hybrids"}


@pytest.mark.usefixtures("shipped")
def test_crossover_answers_by_batch_and_names_its_basis() -> None:
    app = opened("crossover")
    page = texts(app)
    assert "beat" in app.header[0].value
    for batch in (1, 8, 32, 128):
        assert f"**Batch {batch}**" in page
    assert "interpolated" in page and "extrapolated" in page
    told = re.findall(r"At 1m it is ([\d.,]+)x as fast \(80 %: ([\d.,]+)x to ([\d.,]+)x; ", page)
    assert len(told) == 4
    for figures in told:
        value, low, high = (float(f.replace(",", "")) for f in figures)
        assert low < value < high


@pytest.mark.usefixtures("shipped")
def test_the_line_moves_with_the_provider() -> None:
    app = opened("crossover", step="prefill", hardware="h200-sxm")
    before = texts(app)
    app.selectbox(key="first_by").set_value("sdpa_flash").run()
    assert not app.exception
    assert texts(app) != before


@pytest.mark.usefixtures("shipped")
def test_a_device_without_points_says_so_and_shows_nothing_as_measured() -> None:
    """Its times are another device's, scaled, or the datasheet's."""
    page = texts(opened("crossover", hardware="rtx-4090"))
    assert "Nothing was measured on" in page
    bases = page.partition("Share of the surface by basis:")[2].partition("\n")[0]
    assert ("scaled" in bases) or ("analytic" in bases)
    assert "measured" not in bases and "interpolated" not in bases


@pytest.mark.usefixtures("shipped")
def test_a_link_that_cannot_be_meant_is_named() -> None:
    app = opened("crossover", first="attention", scope="kernel", speed="high")
    (warning,) = app.warning
    assert "2 parameters" in warning.value
    assert "first=attention" in warning.value and "speed" in warning.value


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("page", ["calibration", "crossover"])
def test_pages_open_on_an_empty_store(page: str) -> None:
    assert opened(page).header

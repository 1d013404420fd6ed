"""Specs: the pages' charts as Vega-Lite, kept from rerun to rerun.

Building and validating one takes Altair up to 0.2 s of CPU, drawing it again from a kept spec
none; every move of a widget reruns the whole page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import streamlit as st

from planner.report.charts import frontier_chart, frontier_frame, layers_chart, layers_frame
from planner.ui import calibration_charts, charts, crossover_charts, data
from planner.ui.scenario import Scenario

Spec = dict[str, Any]

FRONTIER_HEIGHT = 460
PADDING = 24
"""Pixels that the page's chart theme takes from a chart's height."""


@st.cache_data(max_entries=128, show_spinner=False)
def frontier(scenario: Scenario, ink: str) -> Spec | None:
    """The frontier of a scenario; None where no design has a cost."""
    model = data.report(scenario)
    frame = frontier_frame(model.designs)
    if frame.empty:
        return None
    baseline = next(d.label for d in model.designs if d.is_baseline)
    floor = 100 * model.floor
    return _spec(
        frontier_chart(frame, floor=floor, baseline=baseline, ink=ink, height=FRONTIER_HEIGHT)
    )


@st.cache_data(max_entries=128, show_spinner=False)
def strip(scenario: Scenario) -> Spec:
    """The layers of a scenario's answer."""
    return _spec(layers_chart(layers_frame(data.report(scenario).layers), extra_height=PADDING))


@st.cache_data(max_entries=64, show_spinner=False)
def latency(frame: pd.DataFrame, by: str, length_title: str) -> Spec:
    return _spec(charts.latency_chart(frame, by=by, length_title=length_title))


@st.cache_data(max_entries=64, show_spinner=False)
def residuals(frame: pd.DataFrame) -> Spec:
    return _spec(charts.residual_chart(frame))


@st.cache_data(max_entries=64, show_spinner=False)
def retention(rows: pd.DataFrame, bands: pd.DataFrame, order: Sequence[str]) -> Spec:
    return _spec(charts.retention_chart(rows, bands, order=order))


# Calibration and crossover


@st.cache_data(max_entries=64, show_spinner=False)
def folds(frame: pd.DataFrame, order: Sequence[str]) -> Spec:
    return _spec(calibration_charts.fold_chart(frame, order=order))


@st.cache_data(max_entries=64, show_spinner=False)
def coverage(frame: pd.DataFrame, order: Sequence[str]) -> Spec:
    return _spec(calibration_charts.coverage_chart(frame, order=order))


@st.cache_data(max_entries=64, show_spinner=False)
def stack_errors(frame: pd.DataFrame, order: Sequence[str]) -> Spec:
    return _spec(calibration_charts.stack_chart(frame, order=order))


@st.cache_data(max_entries=64, show_spinner=False)
def ratios(frame: pd.DataFrame) -> Spec:
    return _spec(calibration_charts.ratio_chart(frame))


@st.cache_data(max_entries=64, show_spinner=False)
def claims(frame: pd.DataFrame, title: str) -> Spec:
    return _spec(calibration_charts.claim_chart(frame, title=title))


@st.cache_data(max_entries=64, show_spinner=False)
def by_batch(frame: pd.DataFrame, headline: float, ceiling: float) -> Spec:
    return _spec(calibration_charts.batch_chart(frame, headline=headline, ceiling=ceiling))


@st.cache_data(max_entries=64, show_spinner=False)
def misses(frame: pd.DataFrame) -> Spec:
    return _spec(calibration_charts.miss_chart(frame))


@st.cache_data(max_entries=64, show_spinner=False)
def surface(
    cells: pd.DataFrame, line: pd.DataFrame, first: str, second: str, length_title: str, ink: str
) -> Spec:
    return _spec(
        crossover_charts.surface_chart(
            cells, line, first=first, second=second, length_title=length_title, ink=ink
        )
    )


@st.cache_data(max_entries=64, show_spinner=False)
def basis(cells: pd.DataFrame, measured: pd.DataFrame, length_title: str) -> Spec:
    return _spec(crossover_charts.basis_chart(cells, measured, length_title=length_title))


def _spec(chart: charts.Chart) -> Spec:
    """Not validated here: the tests validate every chart."""
    spec: Spec = chart.to_dict(validate=False)
    return spec

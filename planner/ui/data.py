"""Cached loaders: the store, the advisor and what they compute. The dashboard's only way to data.

The store is opened once per server; its frames and the recommendations are kept until somebody
asks for new measurements (`forget`).
"""

from __future__ import annotations

from typing import cast

import pandas as pd
import streamlit as st

from planner.decision.advisor import Advisor, Device
from planner.decision.recommend import Recommendation
from planner.report import ReportModel
from planner.store import Environment, Store
from planner.ui.scenario import Scenario


@st.cache_resource(show_spinner="Opening the store …")
def advisor() -> Advisor:
    """The advisor over the store that ATTN_STORE names, or the user's own.

    Raises: PlannerError if that store cannot be used; nothing is cached then.
    """
    return Advisor(Store.open())


@st.cache_resource(max_entries=128, show_spinner="Costing the candidates …")
def recommendation(scenario: Scenario) -> Recommendation:
    """Raises: PlannerError for a scenario that cannot be."""
    return advisor().recommend(
        scenario.to_use_case(),
        intent=scenario.intent,
        model_id=scenario.model,
        device_id=scenario.hardware,
        weights_dtype=scenario.weights_dtype,
        kv_dtype=scenario.kv_dtype,
    )


@st.cache_resource(max_entries=128, show_spinner=False)
def report(scenario: Scenario) -> ReportModel:
    return ReportModel.of(recommendation(scenario), advisor=advisor())


@st.cache_data(show_spinner=False)
def points() -> pd.DataFrame:
    """All kernel points with `device_id`; without the raw samples, which pages do not draw."""
    return advisor().points.drop(columns="samples_s")


@st.cache_data(show_spinner=False)
def comparisons() -> pd.DataFrame:
    return advisor().store.comparisons()


@st.cache_data(show_spinner=False)
def evidence() -> pd.DataFrame:
    return advisor().store.evidence()


@st.cache_data(show_spinner=False)
def sources() -> pd.DataFrame:
    return advisor().store.sources()


def devices() -> dict[str, Device]:
    return advisor().devices


def environments() -> dict[str, Environment]:
    return cast(dict[str, Environment], _environments())


@st.cache_resource(show_spinner=False)
def _environments() -> dict[str, Environment]:
    return advisor().store.environments()


def forget() -> None:
    """Drops everything cached, so that the next run reads the store again."""
    st.cache_data.clear()
    st.cache_resource.clear()

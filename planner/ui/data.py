"""Cached loaders: the store, the advisor and what they compute. The dashboard's only way to data.

The store is opened once per server; its frames and the recommendations are kept until somebody
asks for new measurements (`forget`).
"""

from __future__ import annotations

import pandas as pd
import streamlit as st

from planner import catalog
from planner.decision.advisor import Advisor, Device
from planner.decision.recommend import Recommendation
from planner.quality import absolute
from planner.quality.claims import Claim, check_claims
from planner.report import ReportModel
from planner.store import Environment, Store
from planner.ui import frames
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
def described_points() -> pd.DataFrame:
    """`points` with lengths, shapes, milliseconds and the roofline of their device."""
    hardware = {id: device.hardware for id, device in devices().items()}
    return frames.describe(points(), hardware)


@st.cache_data(show_spinner=False)
def comparisons() -> pd.DataFrame:
    return advisor().comparisons


@st.cache_data(show_spinner=False)
def evidence() -> pd.DataFrame:
    return advisor().store.evidence()


@st.cache_data(show_spinner=False)
def sources() -> pd.DataFrame:
    return advisor().sources


@st.cache_data(show_spinner="Checking the claims …")
def claims() -> list[Claim]:
    return check_claims(advisor().store)


@st.cache_data(show_spinner=False)
def effective_contexts() -> pd.DataFrame:
    return absolute.effective_contexts(evidence())


@st.cache_data(show_spinner=False)
def published_changes() -> str:
    """What was mended in the published numbers, as Markdown; "" if nothing is written about it."""
    path = catalog.data_dir() / "published" / "CHANGES.md"
    if not path.is_file():
        return ""
    return path.read_text(encoding="utf-8").partition("\n")[2]


@st.cache_resource(show_spinner=False)
def environments() -> dict[str, Environment]:
    return advisor().store.environments()


def devices() -> dict[str, Device]:
    return advisor().devices


def forget() -> None:
    """Drops everything cached, so that the next run reads the store again."""
    st.cache_data.clear()
    st.cache_resource.clear()

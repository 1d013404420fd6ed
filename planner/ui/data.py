"""Cached loaders: the store, the advisor and what they compute. The dashboard's only way to data.

The store is opened once per server; its frames and the recommendations are kept until somebody
asks for new measurements (`forget`).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
import streamlit as st

from planner import calibration, catalog
from planner.cost.crossover import Crossover, Side
from planner.cost.crossover import crossover as cross
from planner.cost.observations import observations
from planner.decision.advisor import Advisor, Device
from planner.decision.recommendation import Recommendation
from planner.quality import absolute
from planner.quality import calibration as quality
from planner.quality.claims import Claim, check_claims
from planner.report import ReportModel
from planner.report.cost import CostReport
from planner.store import Environment, Store
from planner.ui import frames, models
from planner.ui.cost_scenario import CostScenario
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
        model=models.load(scenario.model),
        device_id=scenario.hardware,
        weights_dtype=scenario.weights_dtype,
        kv_dtype=scenario.kv_dtype,
        tensor_parallel=scenario.tensor_parallel,
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


# How wrong it has been


def _device_points(device_id: str) -> pd.DataFrame:
    points = advisor().points
    return calibration.current(points[points["device_id"] == device_id])


@st.cache_data(show_spinner="Leaving kernels' points out …")
def kernel_calibration(device_id: str) -> pd.DataFrame:
    hardware = advisor().device(device_id).hardware
    seen = observations(_device_points(device_id))
    return pd.DataFrame(calibration.kernel_calibration(seen, hardware))


@st.cache_data(show_spinner="Adding layers up …")
def stack_residuals(device_id: str) -> pd.DataFrame:
    points = _device_points(device_id)
    return calibration.stack_residuals(points[points["device_kind"] != "imported"])


@st.cache_data(show_spinner="Adding kernels up …")
def stack_kernel_sums(device_id: str) -> pd.DataFrame:
    points = _device_points(device_id)
    own = points[points["device_kind"] != "imported"]
    hardware = advisor().device(device_id).hardware
    return calibration.kernel_sums(own, calibration.kernels_by_mode(own, hardware))


@st.cache_data(show_spinner="Reading imported times at our lengths …")
def beside_imported(device_id: str) -> pd.DataFrame:
    hardware = advisor().device(device_id).hardware
    return calibration.beside_imported(_device_points(device_id), hardware, environments())


@st.cache_data(show_spinner="Costing published models …")
def end_to_end(device_id: str) -> pd.DataFrame:
    return calibration.end_to_end(device_id, advisor().cost_model)


@st.cache_data(show_spinner=False)
def headlines(device_id: str) -> list[tuple[calibration.Published, pd.DataFrame]]:
    """Published headlines without a batch, each with its curve over batches."""
    return [
        (p, calibration.batch_curve(p, advisor().cost_model(p.hardware or device_id)))
        for p in calibration.load_published()
        if p.headline
    ]


@st.cache_data(show_spinner="Leaving sources out …")
def quality_calibration() -> pd.DataFrame:
    """Without the control by shuffled labels, which takes three times as long."""
    return quality.quality_calibration(comparisons(), shuffles=0)


@st.cache_data(show_spinner="Leaving sources out …")
def quality_misses() -> pd.DataFrame:
    return quality.misses(comparisons())


# Crossover


@st.cache_resource(max_entries=64, show_spinner="Costing both sides …")
def crossover(
    device_id: str, first: Side, second: Side, contexts: tuple[int, ...],
    batches: tuple[int, ...], phase: Literal["prefill", "decode"],
) -> Crossover:  # fmt: skip
    device = advisor().device(device_id)
    return cross(
        advisor().kernels(device),
        first,
        second,
        np.array(contexts),
        np.array(batches),
        phase=phase,
        dtype=compute_dtype(device),
    )


def compute_dtype(device: Device) -> str:
    """What a device's models compute in: bf16, a CPU's fp32."""
    return "bf16" if "bf16" in device.hardware.peak_flops else "fp32"


# Cost

COST_LENGTHS = tuple(1024 * 2**k for k in range(9))


@st.cache_resource(max_entries=128, show_spinner="Costing the models …")
def cost_report(scenario: CostScenario) -> CostReport:
    """Raises: PlannerError for a scenario that cannot be."""
    return CostReport.of(
        advisor(),
        scenario.architectures(),
        scenario.traffic(),
        device_id=scenario.hardware,
        weights_dtype=scenario.weights_dtype,
        kv_dtype=scenario.kv_dtype,
        tensor_parallel=scenario.tensor_parallel,
        engine=scenario.engine,
        mode=scenario.mode,
        price=scenario.price(),
        contexts=COST_LENGTHS,
    )


def forget() -> None:
    """Drops everything cached, so that the next run reads the store again."""
    st.cache_data.clear()
    st.cache_resource.clear()

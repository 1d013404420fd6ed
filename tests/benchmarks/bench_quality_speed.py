"""How fast the quality half answers: printed, and held to its limits on two cores."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from planner.catalog import load_model
from planner.quality.calibration import quality_calibration
from planner.quality.prediction import FeatureTable
from planner.quality.retention import QualityModel
from planner.quality.task_mix import TaskMix
from planner.store import Store
from planner.store.evidence import load_published
from planner.store.evidence_rules import TASK_CLASSES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("store") / "store.db"
    store = Store.open(f"sqlite:///{path}", shipped=False)
    load_published(store)
    store.close()
    return f"sqlite:///{path}"


def test_load_and_predict_within_2_s(url: str) -> None:
    start = time.perf_counter()
    mix = TaskMix.from_store(Store.open(url, shipped=False))
    arch = load_model("llama-3.1-8b").with_mixer("gated_deltanet", "3:1")
    (score,) = mix.score([arch], {"retrieval": 0.7, "general": 0.3}, 32768)
    took = time.perf_counter() - start
    print(f"\nopen a store, fit and predict: {took:.2f} s (limit 2 s)")
    assert score.covered and took <= 2.0


def test_refit_with_calibration_within_60_s(url: str) -> None:
    comparisons: pd.DataFrame = Store.open(url, shipped=False).comparisons()
    start = time.perf_counter()
    table = quality_calibration(comparisons)
    took = time.perf_counter() - start
    print(f"\nrefit with calibration: {took:.1f} s (limit 60 s)")
    assert len(table) and took <= 60.0


def test_100000_architectures_by_5_classes_within_1_s(url: str) -> None:
    model = QualityModel.fit(Store.open(url, shipped=False).comparisons())
    rng = np.random.default_rng(0)
    n = 100_000
    full = rng.integers(0, 49, n)
    layers = full + rng.integers(0, 49, n) + 1
    share = full / layers
    names = np.array(("gated_deltanet", "kda", "mamba2", "lightning", "sliding_window"))
    mixer = rng.choice(names, n).tolist()
    window = rng.permutation(np.arange(64, 64 + n)).astype(float)
    size = 10 ** rng.uniform(-1, 3, n)
    placement = rng.choice(("uniform", "start", "middle", "end"), n).tolist()
    start = time.perf_counter()
    table = FeatureTable.from_columns(
        mixer=mixer, full_share=share, window=window, params_b=size, placement=placement
    )
    found = [model.predict_many(table, task_class, 32768) for task_class in TASK_CLASSES]
    took = time.perf_counter() - start
    print(f"\n{n:,} architectures x {len(TASK_CLASSES)} classes: {took:.2f} s (limit 1 s)")
    assert sum(int(p.covered.sum()) for p in found) > n and took <= 1.0

"""The shipped evidence, loaded once, and architectures over one skeleton."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from planner.architecture import Architecture
from planner.catalog import load_model
from planner.quality.retention import QualityModel
from planner.store import Store
from planner.store.evidence import load_published


@pytest.fixture(scope="session")
def store() -> Store:
    opened = Store.open("sqlite:///:memory:", shipped=False)
    load_published(opened)
    return opened


@pytest.fixture(scope="session")
def comparisons(store: Store) -> pd.DataFrame:
    return store.comparisons()


@pytest.fixture(scope="session")
def quality_model(comparisons: pd.DataFrame) -> QualityModel:
    return QualityModel.fit(comparisons)


@pytest.fixture(scope="session")
def build() -> Callable[..., Architecture]:
    """build("gated_deltanet", "3:1", placement="uniform") over Llama-3.1-8B's widths."""
    return load_model("llama-3.1-8b").with_mixer

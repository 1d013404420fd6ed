"""Measured tables for the tests of the cost model: times that others measured on an H200."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from planner.catalog import data_dir
from planner.cost.observations import Observation, observations
from planner.mixers import MixerSpec
from planner.store import Store
from planner.workload import MixerOp

DATA = Path(__file__).parent / "data"
SHAPE = ("num_q_heads", "num_kv_heads", "head_dim", "window", "batch_size")


@cache
def _shipped(system: str) -> list[Observation]:
    store = Store.open("sqlite:///:memory:", shipped=False)
    store.import_csv(data_dir() / "measurements" / "imported" / f"aiconfigurator_{system}.csv")
    return observations(store.points())


@pytest.fixture(scope="session")
def imported() -> Callable[[str], list[Observation]]:
    """The shipped observations of a system, such as "h200_sxm"."""
    return _shipped


@pytest.fixture(scope="session")
def fa3_tables() -> list[Observation]:
    """Every shape of FlashAttention 3 in vLLM 0.24.0 on an H200, full and windowed."""
    return [o for phase in ("prefill", "decode") for o in _table(phase)]


def _table(phase: str) -> Iterator[Observation]:
    with (DATA / f"vllm_fa3_h200_{phase}.csv").open() as file:
        for row in csv.DictReader(file):
            q, kv, dim, window, batch = (int(row.pop(name)) for name in SHAPE)
            op = MixerOp(
                MixerSpec(
                    mixer="sliding_window" if window else "full_attention",
                    num_q_heads=q,
                    num_k_heads=kv,
                    num_v_heads=kv,
                    k_head_dim=dim,
                    v_head_dim=dim,
                    window=window or None,
                )
            )
            for tokens, us in row.items():
                if us:
                    yield _observation(op, phase, batch, int(tokens), float(us))


def _observation(op: MixerOp, phase: str, batch: int, tokens: int, us: float) -> Observation:
    return Observation(
        op=op,
        provider="vllm_fa3@0.24",
        mode="graph",
        cache_state="warm",
        dtype="bf16",
        training=False,
        batch_size=batch,
        new_tokens=tokens if phase == "prefill" else 1,
        cached_tokens=tokens if phase == "decode" else 0,
        outcome="ok",
        latency_s=us * 1e-6,
        noise=math.nan,
        device="NVIDIA H200",
        imported=True,
        key=f"{phase} {op.short()} {batch} {tokens}",
    )

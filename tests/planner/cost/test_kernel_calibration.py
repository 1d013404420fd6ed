"""The calibration table of kernels: what a line holds, judged on points it was not shown."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from planner.calibration import Scored, kernel_calibration
from planner.catalog import load_hardware
from planner.cost.observations import Observation
from planner.mixers import MixerSpec
from planner.workload import MixerOp

H200 = load_hardware("h200-sxm")
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
BATCHES = (1, 2, 4, 8)


def attention(heads: int) -> MixerOp:
    return MixerOp(
        MixerSpec(
            mixer="full_attention",
            num_q_heads=heads,
            num_k_heads=8,
            num_v_heads=8,
            k_head_dim=128,
            v_head_dim=128,
        )
    )


def table(noise: float, *, flagged: bool = False) -> list[Observation]:
    """Six shapes of a kernel that launches in 20 us and then runs at 600 TFLOP/s, with noise."""
    rng = np.random.default_rng(0)
    found = []
    for heads in (8, 16, 24, 32, 48, 64):
        op = attention(heads)
        for b in BATCHES:
            for t in LENGTHS:
                seconds = 20e-6 + float(op.model_flops(b, t, 0)) / 6e14
                found.append(
                    Observation(
                        op=op, provider="flash", mode="graph", cache_state="cold", dtype="bf16",
                        training=False, batch_size=b, new_tokens=t, cached_tokens=0,
                        outcome="ok", latency_s=seconds * math.exp(rng.normal(0, noise)),
                        noise=noise, device="NVIDIA H200", flagged=flagged, key=f"{heads}-{b}-{t}",
                    )
                )  # fmt: skip
    return found


def test_a_kernel_that_follows_its_work_is_predicted_to_its_noise() -> None:
    rows = {r["fold"]: r for r in kernel_calibration(table(0.01), H200)}
    inside = rows["leave_one_out"]
    # the point's own noise and that of its two neighbours: 0.67 x 1 % x sqrt(1 + 1/2) and more
    assert 0.5 < inside["median_ape"] < 1.5
    assert rows["leave_end_out_2x"]["median_ape"] < 4
    assert rows["leave_shape_out"]["median_ape"] < 4
    for row in rows.values():
        assert 0.6 <= row["coverage80"] <= 0.95
    assert inside["n"] == 6 * len(BATCHES) * (len(LENGTHS) - 2)


def test_lines_are_json_and_name_their_kernel() -> None:
    rows = kernel_calibration(table(0.01), H200)
    again = json.loads(json.dumps(rows))
    assert again[0]["family"] == "full_attention" and again[0]["provider"] == "flash"
    assert {r["fold"] for r in again} >= {"leave_one_out", "leave_row_out", "leave_end_out_8x"}


def test_slow_imports_and_too_few_points_have_no_line() -> None:
    assert kernel_calibration(table(0.01, flagged=True), H200) == []
    assert kernel_calibration(table(0.01)[:4], H200) == []
    assert kernel_calibration([], H200) == []


def test_a_row_by_hand() -> None:
    scored = Scored(
        errors=np.log([1.1, 0.9, 1.0, 1.0]),
        half=np.full(4, 0.06),
        constant=np.full(4, 0.2),
    )
    row = scored.row()
    assert row["n"] == 4 and row["coverage80"] == 0.5
    # |1.1 - 1|, |0.9 - 1|, 0, 0 in percent: the median is half way from 0 to 10
    assert row["median_ape"] == pytest.approx(5.0)
    misses = (math.log(1.1) - 0.06) + (-math.log(0.9) - 0.06)
    assert row["interval_score"] == pytest.approx(0.12 + 10 * misses / 4)
    assert row["constant_width_score"] == pytest.approx(0.4)

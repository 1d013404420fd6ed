"""Observations: a store's rows without importing what the store is built on."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from planner.cost.observations import median_noise, observations
from planner.mixers import MixerSpec
from planner.store import Environment, Outcome, Point, Store
from planner.workload import MixerOp, Workload

OP = MixerOp(
    MixerSpec(
        mixer="full_attention",
        num_q_heads=8,
        num_k_heads=2,
        num_v_heads=2,
        k_head_dim=64,
        v_head_dim=64,
    )
)


def noise_of(samples: list[float]) -> float:
    median, p20, p80 = np.quantile(samples, (0.5, 0.2, 0.8))
    return median_noise(len(samples), float(median), float(p20), float(p80))


def test_noise_is_the_half_width_of_the_median() -> None:
    rng = np.random.default_rng(0)
    medians = [np.median(rng.normal(1.0, 0.05, 25)) for _ in range(4000)]
    noises = [noise_of(rng.normal(1.0, 0.05, 25).tolist()) for _ in range(400)]
    covered = np.mean(np.abs(np.array(medians) - 1.0) <= np.median(noises))
    assert covered == pytest.approx(0.8, abs=0.04)


def test_one_outlier_hardly_moves_the_noise() -> None:
    quiet = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.99]
    assert noise_of([*quiet, 50.0]) < 2 * noise_of(quiet)


def test_noise_of_one_sample_is_not_known() -> None:
    assert math.isnan(noise_of([1.0]))


def test_rows_of_a_store_become_observations() -> None:
    store = Store.open("sqlite:///:memory:", shipped=False)
    environment = Environment(device="NVIDIA H200", device_kind="cuda", versions={"torch": "2.11"})
    workload = Workload(op=OP, batch_size=2, new_tokens=1, cached_tokens=4096)
    points = [
        Point(
            workload=workload,
            provider="sdpa_flash",
            environment_id=environment.id,
            outcome=Outcome.OK,
            mode="graph",
            samples_s=(1.0e-5, 1.2e-5, 1.1e-5),
        ),
        Point(
            workload=workload,
            provider="sdpa_flash",
            variant="splits=4",
            environment_id=environment.id,
            outcome=Outcome.OUT_OF_MEMORY,
            reason="too large",
            telemetry={"slow": 30.0},
        ),
    ]
    store.add_environment(environment)
    for point in points:
        store.record(point)
    found = {o.provider: o for o in observations(store.points())}
    ok, failed = found["sdpa_flash"], found["sdpa_flash[splits=4]"]
    assert (ok.op, ok.phase, ok.mode, ok.batch_size) == (OP, "decode", "graph", 2)
    assert ok.latency_s == pytest.approx(1.1e-5) and ok.noise > 0 and not ok.flagged
    assert failed.outcome == "out_of_memory" and math.isnan(failed.latency_s) and failed.flagged
    assert {o.key for o in found.values()} == {p.key for p in points}


def test_points_between_those_of_a_newer_kernel_are_left_out() -> None:
    """A curve of two kernels has steps that neither has. Beyond the newer points the older stay,
    and another batch, provider or phase is another curve."""
    store = Store.open("sqlite:///:memory:", shipped=False)
    environment = Environment(device="NVIDIA H200", device_kind="cuda", versions={"torch": "2.11"})
    store.add_environment(environment)

    def record(cached: int, method: str, *, batch: int = 2, provider: str = "triton") -> None:
        store.record(
            Point(
                workload=Workload(op=OP, batch_size=batch, new_tokens=1, cached_tokens=cached),
                provider=provider,
                method_version=method,
                environment_id=environment.id,
                outcome=Outcome.OK,
                mode="graph",
                samples_s=(1e-5, 1e-5, 1e-5),
            )
        )

    for cached, method in ((1024, "2"), (2048, "2+2"), (4096, "2"), (8192, "2+10"), (16384, "2+2"),
                           (32768, "2+10"), (65536, "2")):  # fmt: skip
        record(cached, method)
    for cached, method in ((2048, "2"), (4096, "2")):
        record(cached, method, batch=8)
        record(cached, method, provider="sdpa_flash")
    found = observations(store.points())
    left = [(o.provider, o.batch_size, o.cached_tokens) for o in found]
    # of the newest, 10, are 8192 and 32768; between them lies 16384
    assert sorted(left) == [
        ("sdpa_flash", 2, 2048),
        ("sdpa_flash", 2, 4096),
        *(("triton", 2, n) for n in (1024, 2048, 4096, 8192, 32768, 65536)),
        ("triton", 8, 2048),
        ("triton", 8, 4096),
    ]


def test_the_cost_model_imports_numpy_only() -> None:
    code = (
        "import sys, planner.cost.kernel, planner.cost.crossover, json;"
        "print(json.dumps([m for m in ('pandas', 'scipy', 'sqlalchemy', 'torch')"
        " if m in sys.modules]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == []

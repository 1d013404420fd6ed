"""How fast the cost model answers, on the shipped H200 points: kernels and whole models.

    python tests/benchmarks/bench_kernel_cost.py

Prints one line per figure with its bar; exits with 1 if one is missed. Times are CPU seconds of
one core, the best of five. `attn-plan recommend` is timed whole, from a store made before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np

from planner.catalog import data_dir, load_hardware, load_model
from planner.cost.crossover import Side, crossover
from planner.cost.kernel import KernelCost
from planner.cost.model import CostModel, Deployment
from planner.cost.observations import Observation, observations
from planner.mixers import MixerSpec
from planner.store import Store
from planner.workload import MixerOp, Traffic

REPEATS = 5
MILLION = 1_000_000

FULL = MixerOp(
    MixerSpec(
        mixer="full_attention",
        num_q_heads=16,
        num_k_heads=2,
        num_v_heads=2,
        k_head_dim=256,
        v_head_dim=256,
    )
)
GDN = MixerOp(
    MixerSpec(
        mixer="gated_deltanet",
        num_q_heads=16,
        num_k_heads=16,
        num_v_heads=32,
        k_head_dim=128,
        v_head_dim=128,
    )
)


def best_of(call: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, after one that warms up."""
    call()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return min(times)


def h200_observations() -> list[Observation]:
    store = Store.open("sqlite:///:memory:", shipped=False)
    for name in ("h200-sxm.csv", "imported/aiconfigurator_h200_sxm.csv"):
        store.import_csv(data_dir() / "measurements" / name)
    return observations(store.points())


def seconds_of(code: str) -> float:
    """Wall seconds of code in a fresh interpreter, its start not counted; bytecode is there, as
    in an installed package."""
    timed = f"import time; t = time.perf_counter()\n{code}\nprint(time.perf_counter() - t)"
    run = [sys.executable, "-c", timed]
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        found = [
            subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
            for _ in range(4)
        ]
    return min(float(f.stdout.splitlines()[-1]) for f in found)


def recommend_seconds() -> tuple[float, float]:
    """Of `attn-plan recommend`: with an empty store, and again."""
    with tempfile.TemporaryDirectory() as folder:
        code = (
            "from contextlib import redirect_stdout; from io import StringIO; import sys\n"
            f"sys.argv = ['attn-plan', 'recommend', '--store', r'{folder}/store.db']\n"
            "from planner.cli import app\n"
            "with redirect_stdout(StringIO()): app(standalone_mode=False)"
        )
        start = time.perf_counter()
        run = [sys.executable, "-c", code]
        subprocess.run(run, check=True)
        first = time.perf_counter() - start
        start = time.perf_counter()
        subprocess.run(run, check=True)
        return first, time.perf_counter() - start


def estimates(cost: CostModel, model: str) -> Callable[[], object]:
    """A hundred estimates of a model, each at another length and concurrency."""
    arch, first = load_model(model), iter(range(10_000))

    def run() -> None:
        start = next(first) * 1000
        for i in range(start, start + 100):
            load = Traffic(prompt_tokens=2000 + i, output_tokens=128 + i, concurrency=1 + i % 7)
            cost.estimate(arch, load)

    return run


def main() -> int:
    points, hardware = h200_observations(), load_hardware("h200-sxm")
    kernels = KernelCost.fit(points, hardware)
    cost = CostModel(kernels, Deployment(hardware=hardware, mode="graph"))
    first, again = recommend_seconds()
    rng = np.random.default_rng(0)
    batch, context = rng.integers(1, 64, MILLION), rng.integers(1000, 60_000, MILLION)
    contexts = np.unique(np.geomspace(1024, 131_072, 60).astype(int))
    sides = (
        Side("full", (FULL,), {"full_attention": "vllm_fa3@0.24"}),
        Side("GDN", (GDN,), {"gated_deltanet": "vllm_flashinfer@0.24"}),
    )

    def many(new: object, cached: object) -> Callable[[], object]:
        return lambda: kernels.predict(
            FULL, batch, new, cached, dtype="bf16", provider="vllm_fa3@0.24"  # type: ignore[arg-type]
        )  # fmt: skip

    def one() -> object:
        return kernels.predict_one(FULL, 3, 1, 8191, dtype="bf16", provider="vllm_fa3@0.24")

    figures = [
        ("a million decode predictions", best_of(many(1, context)), 1.0, "s", 1),
        ("a million prefill predictions", best_of(many(context, 0)), 1.0, "s", 1),
        (f"a {len(contexts)} x 40 crossover surface", best_of(
            lambda: crossover(kernels, *sides, contexts, np.arange(1, 41), phase="prefill")
        ), 0.050, "ms", 1e3),
        *((f"one estimate of {name}", best_of(estimates(cost, name)) / 100, 1e-3, "ms", 1e3)
          for name in ("llama-3.1-8b", "gemma-3-27b", "qwen3-next-80b-a3b")),
        ("importing planner.cost", seconds_of("import planner.cost.model"), 0.2, "s", 1),
        ("one prediction", best_of(lambda: [one() for _ in range(100)]) / 100, None, "us", 1e6),
        ("attn-plan recommend, new store, wall", first, 6.0, "s", 1),
        ("attn-plan recommend, again, wall", again, 3.0, "s", 1),
    ]  # fmt: skip
    missed = 0
    for name, seconds, bar, unit, scale in figures:
        note = "" if bar is None else f"  (bar {bar * scale:g} {unit})"
        missed += bar is not None and seconds > bar
        print(f"{name:40s} {seconds * scale:8.2f} {unit}{note}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

"""Energy of a call: the GPU's energy counter over a window long enough for it to move.

The counter updates every 20 to 100 ms (Yang et al. 2023, arXiv:2312.02741, on sampling), so the
call is repeated for seconds and the idle draw, read just before, is taken off. Calls are repeated
in a CUDA graph: a GPU that waits for launches draws power for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from profiler.measure.nvml import Nvml

WINDOW_S = 2.0
IDLE_S = 0.5


def measure_energy(
    run: Callable[[], object], calls_per_run: int, device: torch.device, nvml: Nvml
) -> float | None:
    """Joules per call above idle; None where the GPU has no energy counter."""
    torch.cuda.synchronize(device)
    idle_from, start = nvml.energy_j(), time.perf_counter()
    time.sleep(IDLE_S)
    idle_to, middle = nvml.energy_j(), time.perf_counter()
    if idle_from is None or idle_to is None:
        return None
    idle_w = (idle_to - idle_from) / (middle - start)
    runs, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < WINDOW_S:
        run()
        torch.cuda.synchronize(device)
        runs += 1
    after, end = nvml.energy_j(), time.perf_counter()
    assert after is not None
    spent = after - idle_to - idle_w * (end - begin)
    return max(0.0, spent) / (runs * calls_per_run)

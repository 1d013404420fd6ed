"""What a kernel that nobody measured may take: its roofline bound over a typical efficiency.

The bound itself is certain; how far kernels stay from it is not. The quantiles below are those of
bound / measured time over NVIDIA's published H200 tables (aiconfigurator-core 0.12.0, Apache-2.0,
https://pypi.org/project/aiconfigurator-core/0.12.0/; bf16, calls of at least 30 microseconds and
1,000 tokens), with the datasheet's dense peak and bandwidth as the bound.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.curves import Floats, Ints
from planner.hardware import Hardware
from planner.mixers import get_mixer
from planner.workload import BACKWARD_OVER_FORWARD, MixerOp, Op, dtype_bytes

LAUNCH_FLOOR_S = 5e-6
"""Least time of a kernel call: the fastest in those tables take 2 to 12 microseconds."""


@dataclass(frozen=True)
class Efficiency:
    """Quantiles of bound over measured time: 10 %, 50 %, 90 % of calls are below."""

    low: float
    typical: float
    high: float


EFFICIENCY = {
    ("full", "prefill"): Efficiency(0.25, 0.52, 0.67),
    ("full", "decode"): Efficiency(0.25, 0.60, 0.85),
    ("windowed", "prefill"): Efficiency(0.05, 0.12, 0.45),
    ("windowed", "decode"): Efficiency(0.10, 0.35, 0.75),
    ("recurrent", "prefill"): Efficiency(0.04, 0.15, 0.40),
    ("recurrent", "decode"): Efficiency(0.30, 0.65, 0.85),
    ("dense", "prefill"): Efficiency(0.25, 0.60, 0.80),
}


def efficiency_of(op: Op, phase: str) -> Efficiency:
    """The typical efficiency of an operation's kind; training is taken as prefill."""
    kind = get_mixer(op.spec.mixer).kind if isinstance(op, MixerOp) else "dense"
    when = "decode" if phase == "decode" and kind != "dense" else "prefill"
    return EFFICIENCY[kind, when]


def analytic_times(
    op: Op, phase: str, b: Ints, n: Ints, c: Ints, *, dtype: str, hardware: Hardware
) -> tuple[Floats, Floats]:
    """(log seconds, half-width) at typical efficiency; the interval reaches its quantiles."""
    passes = 1 + BACKWARD_OVER_FORWARD if phase == "training" else 1.0
    bound = passes * hardware.lower_bound_s(
        op.model_flops(b, n, c), op.min_bytes(b, n, c, dtype_bytes(dtype)), dtype
    )
    e = efficiency_of(op, phase)
    half = max(np.log(e.typical / e.low), np.log(e.high / e.typical))
    seconds = np.maximum(np.broadcast_to(bound, b.shape) / e.typical, LAUNCH_FLOOR_S)
    return np.log(seconds), np.full(b.shape, half)

"""What a kernel that nobody measured may take: its roofline bound over a typical efficiency.

The bound itself is certain; how far kernels stay from it is not. The quantiles below are those of
bound over measured time in the imported tables of four NVIDIA devices (A100, H100, H200, B200;
aiconfigurator-core 0.12.0, see data/measurements/imported/README.md): calls of at least 30
microseconds in CUDA graphs, bf16, with the datasheet's dense peak and bandwidths as the bound.
`tests/planner/cost/test_kernel_analytic.py` makes them again from those files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from planner.cost.curves import Floats, Ints
from planner.errors import UsageError
from planner.hardware import Hardware
from planner.mixers import get_mixer
from planner.workload import BACKWARD_OVER_FORWARD, AllReduceOp, MixerOp, Op, StackOp, dtype_bytes

LAUNCH_FLOOR_S = 5e-6
"""Least time of a kernel call: in those tables one in ten short calls takes 2 to 15 us."""


@dataclass(frozen=True)
class Efficiency:
    """Bound over measured time: below `low` are 10 % of calls, below `high` 90 %."""

    low: float
    typical: float
    high: float


EFFICIENCY = {
    ("full", "prefill"): Efficiency(0.17, 0.36, 0.57),
    ("full", "decode"): Efficiency(0.25, 0.63, 0.88),
    ("windowed", "prefill"): Efficiency(0.14, 0.26, 0.48),
    ("windowed", "decode"): Efficiency(0.11, 0.45, 0.77),
    ("recurrent", "prefill"): Efficiency(0.08, 0.27, 0.42),
    ("recurrent", "decode"): Efficiency(0.69, 0.82, 0.89),
    ("dense", "prefill"): Efficiency(0.63, 0.75, 0.85),
    ("experts", "prefill"): Efficiency(0.47, 0.72, 0.86),
    ("short_convolution", "prefill"): Efficiency(0.35, 0.50, 0.66),
    ("short_convolution", "decode"): Efficiency(0.51, 0.62, 0.70),
    ("all_reduce", "prefill"): Efficiency(0.43, 0.64, 0.79),
}


def kind_of(op: Op) -> str:
    """A mixer's kind, else the family. A stack is taken as a full mixer, the widest of its
    parts."""
    if isinstance(op, MixerOp):
        return get_mixer(op.spec.mixer).kind
    return "full" if isinstance(op, StackOp) else op.family


def efficiency_of(op: Op, phase: str) -> Efficiency:
    """The typical efficiency of an operation's kind; of training, which is not in the tables,
    that of prefill."""
    kind = kind_of(op)
    return EFFICIENCY.get((kind, phase), EFFICIENCY[kind, "prefill"])


@dataclass(frozen=True)
class Analytic:
    """Log seconds at typical efficiency, half-width of the log, and the log of the least time."""

    log_s: Floats
    half: Floats
    log_least: Floats


def bound_s(op: Op, b: Any, n: Any, c: Any, *, dtype: str, hardware: Hardware) -> Any:
    """The roofline bound of calls, in seconds; of an all-reduce the ring's time on the links.

    In a ring each of d devices sends 2 (d - 1) / d of the message to the next one. Sums inside the
    switch (NVLS) can halve that; the imported tables' kernels do not use them.

    Raises: UsageError for an all-reduce between devices whose links are not known.
    """
    flops, num_bytes = op.model_flops(b, n, c), op.min_bytes(b, n, c, dtype_bytes(dtype))
    bound = hardware.lower_bound_s(flops, num_bytes, dtype)
    if not isinstance(op, AllReduceOp):
        return bound
    if not hardware.link_bandwidth:
        raise UsageError(
            f"an all-reduce on {hardware.name} was not measured and its link_bandwidth is not "
            f"known: use tensor_parallel 1, or add link_bandwidth to data/hardware/{hardware.id}"
        )
    sent = 2 * (op.num_devices - 1) / op.num_devices * (b * n) * dtype_bytes(dtype)
    return np.maximum(bound, sent / hardware.link_bandwidth)


def analytic_times(
    op: Op, phase: str, b: Ints, n: Ints, c: Ints, *, dtype: str, hardware: Hardware
) -> Analytic:
    """Times by roofline. The half-width reaches the farther of the two quantiles; the least time
    is the bound over the higher one."""
    passes = 1 + BACKWARD_OVER_FORWARD if phase == "training" else 1.0
    bound = bound_s(op, b, n, c, dtype=dtype, hardware=hardware)
    bound = np.broadcast_to(passes * bound, b.shape)
    e = efficiency_of(op, phase)
    half = max(np.log(e.typical / e.low), np.log(e.high / e.typical))
    return Analytic(
        log_s=np.log(np.maximum(bound / e.typical, LAUNCH_FLOOR_S)),
        half=np.full(b.shape, half),
        log_least=np.log(bound / e.high),
    )

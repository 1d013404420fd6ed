"""Hardware: a device's dense peaks, bandwidth and memory, and the roofline that follows.

The roofline is a lower bound: no kernel runs faster than its FLOPs over the peak or its bytes
over the bandwidth. It is not an estimate of what a kernel takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planner.errors import UsageError
from planner.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One device. Peaks are dense FLOP/s per dtype; `basis` says if they are from a datasheet
    or measured on the machine.

    `bandwidth` is that of its memory, `link_bandwidth` that to other devices of the host, one way,
    in bytes per second; 0 where it is not known.
    """

    id: str
    name: str
    peak_flops: Mapping[str, float] = field(hash=False)
    bandwidth: float
    memory_bytes: int
    link_bandwidth: float = 0.0
    l2_bytes: int = 0
    compute_units: int = 0
    compute_capability: str = ""
    tdp_w: float = 0.0
    device_names: tuple[str, ...] = ()
    basis: str = "datasheet"
    source: str = ""
    read_on: str = ""

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s. A dtype without a unit is an error, never another dtype's rate."""
        try:
            return self.peak_flops[dtype]
        except KeyError:
            raise UsageError(
                f"{self.name} has no {dtype} peak; it lists: {', '.join(sorted(self.peak_flops))}"
            ) from None

    def compute_dtype(self, dtype: str) -> str:
        """The dtype whose unit multiplies values stored as `dtype`: int4 weights run as bf16."""
        if dtype in self.peak_flops:
            return dtype
        return "bf16" if "bf16" in self.peak_flops else "fp32"

    def lower_bound_s(self, flops: Any, num_bytes: Any, dtype: str) -> Any:
        """The larger of arithmetic and traffic time, in seconds; vectorised."""
        peak = self.peak(self.compute_dtype(dtype))
        if isinstance(flops, int | float) and isinstance(num_bytes, int | float):
            return max(flops / peak, num_bytes / self.bandwidth)
        return np.maximum(np.asarray(flops) / peak, np.asarray(num_bytes) / self.bandwidth)[()]

    def lower_bound_of(self, workload: Workload) -> float:
        return float(self.lower_bound_s(workload.model_flops, workload.min_bytes, workload.dtype))

"""What this device reaches at best: a large matrix product and a large copy.

Measured before a sweep and between its batches of points, so that a slow spell shows. On a CPU,
for which no datasheet gives a peak, they are the roofline's peaks, with basis "measured".
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from planner.hardware import Hardware
from planner.store.records import Environment
from profiler.device import Device
from profiler.measure.timing import CpuTimer, CudaTimer, Limits
from profiler.providers.spec import TORCH_DTYPES, Output

GEMM_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
QUICK = Limits(min_samples=5, time_cap_s=0.5)


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """FLOP/s of an n³ product of random matrices in `dtype`; bytes/s of a copy, both ways."""

    dtype: str
    flops: float
    bandwidth: float

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of each; one taken in another dtype does not compare."""
        if other.dtype != self.dtype:
            return self
        return Ceilings(
            dtype=self.dtype,
            flops=max(self.flops, other.flops),
            bandwidth=max(self.bandwidth, other.bandwidth),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def measure_ceilings(device: Device, dtype: str, limits: Limits = QUICK) -> Ceilings:
    """The fastest sample counts: a ceiling is what the device can do, not what it usually does."""
    n = GEMM_SIZE[device.kind]
    a, b = (torch.randn(n, n, device=device.torch, dtype=TORCH_DTYPES[dtype]) for _ in range(2))
    product = torch.empty_like(a)
    gemm_s = _fastest(device, lambda: Output(o=torch.mm(a, b, out=product)), limits)
    source = torch.ones(COPY_BYTES[device.kind] // 4, device=device.torch)
    target = torch.empty_like(source)
    copy_s = _fastest(device, lambda: Output(o=target.copy_(source)), limits)
    return Ceilings(
        dtype=dtype, flops=2 * n**3 / gemm_s, bandwidth=2 * COPY_BYTES[device.kind] / copy_s
    )


def _fastest(device: Device, call: Any, limits: Limits) -> float:
    call()
    if device.kind == "cpu":
        return min(CpuTimer(device.cache_bytes).time(call, "warm", limits).samples_s)
    timer = CudaTimer(device.torch, device.cache_bytes)
    timed = timer.time(
        call,
        lambda n: [call] * n,
        mode="eager",  # a captured copy runs on the copy engines, at two thirds of the bandwidth
        cache="warm",
        touched_bytes=0,
        copies_bytes=lambda n: 0,
        heavy=False,
        limits=limits,
    )
    return min(timed.samples_s)


def hardware_of(environment: Environment) -> Hardware | None:
    """The roofline of an environment whose ceilings were measured, from its stored facts."""
    facts = environment.facts
    ceilings = facts.get("ceilings")
    if not ceilings:
        return None
    return Hardware(
        id=f"local-{environment.device_kind}",
        name=environment.device,
        peak_flops={ceilings["dtype"]: ceilings["flops"]},
        bandwidth=ceilings["bandwidth"],
        memory_bytes=facts["memory_bytes"],
        l2_bytes=facts["cache_bytes"],
        compute_units=facts["compute_units"],
        device_names=(environment.device,),
        basis="measured",
        source="matrix product and copy, measured on the machine",
    )


def measured_hardware(device: Device, ceilings: Ceilings) -> Hardware:
    """This device as the roofline knows one, its peaks as measured here."""
    environment = Environment(
        device=device.name,
        device_kind=device.kind,
        versions={},
        facts={
            "memory_bytes": device.memory_bytes,
            "cache_bytes": device.cache_bytes,
            "compute_units": device.compute_units,
            "ceilings": ceilings.to_dict(),
        },
    )
    hardware = hardware_of(environment)
    assert hardware is not None
    return hardware

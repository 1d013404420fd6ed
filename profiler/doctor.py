"""What is here to measure with, what is missing and how to get it, and what disturbs."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any, Literal

import torch

from planner.units import bytes_text
from profiler.device import Device, cpu_device, cuda_device
from profiler.measure.nvml import Nvml
from profiler.providers import families
from profiler.providers.spec import distribution_version

Status = Literal["ok", "missing", "warning"]
BUSY_LOAD = 0.3
"""Load per core above which other processes share the CPU with a measurement."""

POWER_CAP_SHARE = 0.99


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; `advice` says what to do about what is not ok."""

    what: str
    status: Status
    value: str
    advice: str = ""


def examine() -> list[Finding]:
    return [*software(), *cpu(), *gpus(), *providers()]


def software() -> list[Finding]:
    found = [
        Finding(what="Python", status="ok", value=platform.python_version()),
        Finding(what="torch", status="ok", value=str(torch.__version__)),
    ]
    for name in ("triton", "fla-core", "einops", "nvidia-ml-py", "mamba-ssm"):
        version = distribution_version(name)
        extra = "mamba" if name == "mamba-ssm" else "gpu"
        found.append(
            Finding(what=name, status="ok", value=version)
            if version
            else Finding(
                what=name,
                status="missing",
                value="not installed",
                advice=f"pip install 'attention-planner[{extra}]'",
            )
        )
    return found


def cpu() -> list[Finding]:
    device = cpu_device()
    found = [
        Finding(
            what="CPU",
            status="ok",
            value=f"{device.name}, {bytes_text(device.memory_bytes)} memory, "
            f"{bytes_text(device.cache_bytes)} last-level cache",
        )
    ]
    load = os.getloadavg()[0]
    if load > BUSY_LOAD * device.compute_units:
        found.append(
            Finding(
                what="CPU load",
                status="warning",
                value=f"{load:.1f} on {device.compute_units} cores",
                advice="stop other work: CPU times will be too long",
            )
        )
    return found


def gpus() -> list[Finding]:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "no NVIDIA driver or no GPU" if built else "this torch is a CPU build"
        return [
            Finding(
                what="GPU",
                status="missing",
                value=f"none: {why}",
                advice="sweeps run on the CPU; GPU figures stay analytic or imported",
            )
        ]
    return [f for i in range(torch.cuda.device_count()) for f in gpu(cuda_device(i))]


def gpu(device: Device) -> list[Finding]:
    name = f"cuda:{device.index}"
    found = [
        Finding(
            what=name,
            status="ok",
            value=f"{device.name}, {bytes_text(device.memory_bytes)}, "
            f"L2 {bytes_text(device.cache_bytes)}, {device.compute_units} multiprocessors",
        )
    ]
    nvml = Nvml.open(device.index)
    if nvml is None:
        advice = "pip install nvidia-ml-py: clocks, power and other processes stay unknown"
        return [*found, Finding(what=f"{name} NVML", status="missing", value="", advice=advice)]
    return [*found, *disturbances(name, nvml.facts(), nvml.other_processes(), nvml.telemetry())]


def disturbances(
    name: str, facts: dict[str, Any], others: list[int], now: dict[str, Any]
) -> list[Finding]:
    """What makes a GPU's times not its own."""
    found = []
    if others:
        found.append(
            Finding(
                what=f"{name} processes",
                status="warning",
                value=f"{len(others)} other: " + ", ".join(map(str, others[:8])),
                advice="stop them: they share memory, clocks and time",
            )
        )
    limit, full = facts.get("power_limit_w"), facts.get("power_default_w")
    if limit and full and limit < POWER_CAP_SHARE * full:
        found.append(
            Finding(
                what=f"{name} power",
                status="warning",
                value=f"capped at {limit:.0f} W of {full:.0f} W",
                advice="ask for the cap to be lifted: clocks drop under load",
            )
        )
    if facts.get("mig"):
        found.append(
            Finding(
                what=f"{name} MIG",
                status="warning",
                value="on",
                advice="this is a slice of a GPU: its times are not the whole GPU's",
            )
        )
    if now.get("throttle"):
        found.append(
            Finding(
                what=f"{name} throttling",
                status="warning",
                value=", ".join(now["throttle"]),
                advice="let it cool, check power and fans",
            )
        )
    return found


def providers() -> list[Finding]:
    """Providers that could run on a device of this machine but lack a package."""
    kinds = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    found = []
    for family in families().values():
        for p in family.providers:
            if kinds & set(p.devices) and (why := p.missing()) is not None:
                what = f"{family.name} {p.name}"
                found.append(Finding(what=what, status="missing", value="not usable", advice=why))
    return found

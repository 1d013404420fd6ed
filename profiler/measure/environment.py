"""The environment a time depends on: device, versions, switches; and what `doctor` reports.

Identity is what changes numbers: the device's name, the driver, torch, triton, CUDA, the
providers' packages and the switches below. Clocks, limits and peaks are facts: they may change
without making a new environment. No host name, user or path is kept.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from planner.store.records import Environment
from profiler.compile_cache import TRITON, cache_dirs
from profiler.device import Device
from profiler.measure.nvml import Nvml
from profiler.providers.spec import distribution_version

PACKAGES = ("triton", "fla-core", "mamba-ssm", "numpy")
"""Distributions whose version is part of the identity, where installed."""

SWITCHES = {
    "FLA_DISABLE_BACKEND_DISPATCH": "1",  # or "fla" means whatever else happens to be installed
    "FLA_CACHE_RESULTS": "1",  # keep chosen configurations beside the compile cache
    "TRITON_CACHE_AUTOTUNING": "1",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # compile in the worker, which dies as one process
}
"""Set in every worker; a user's own setting of the same name wins and is recorded."""

RECORDED = ("FLA_USE_TMA", "FLA_TRIL_PRECISION", "TORCH_CUDNN_SDPA_DEPRIORITIZED")
"""Recorded where set, because they change what runs."""


def switches(device: Device) -> dict[str, str]:
    """What is set in a worker for this device and changes its numbers."""
    found = {name: os.environ.get(name, value) for name, value in SWITCHES.items()}
    if device.kind == "cpu":
        found = {"threads": str(torch.get_num_threads())}
    return found | {name: os.environ[name] for name in RECORDED if name in os.environ}


def versions(device: Device) -> dict[str, str]:
    found = {"torch": str(torch.__version__)}
    if device.kind == "cuda":
        nvml = Nvml.open(device.index)
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {
            "cuda": torch.version.cuda or "",
            "cudnn": str(cudnn) if cudnn else "",
            "driver": nvml.driver_version() if nvml else "",
        }
        for name in PACKAGES:
            if (version := distribution_version(name)) is not None:
                found[name] = version
    return found


def fingerprint(device: Device, facts: dict[str, Any] | None = None) -> Environment:
    """The environment of points measured here and now."""
    return Environment(
        device=device.name,
        device_kind=device.kind,
        versions=versions(device),
        switches=switches(device),
        facts=device_facts(device) | (facts or {}),
    )


def device_facts(device: Device) -> dict[str, Any]:
    found: dict[str, Any] = {
        "memory_bytes": device.memory_bytes,
        "cache_bytes": device.cache_bytes,
        "compute_units": device.compute_units,
    }
    if device.kind == "cuda":
        found["capability"] = ".".join(map(str, device.capability))
        nvml = Nvml.open(device.index)
        found |= nvml.facts() if nvml else {}
    return found


def worker_environment() -> dict[str, str]:
    """The process environment of a worker: ours, with the switches where not set."""
    return SWITCHES | {"TRITON_CACHE_DIR": str(cache_dirs()[TRITON])} | os.environ

"""Device: where kernels run, by the name a person types ("auto", "cpu", "cuda", "cuda:1").

>>> resolve_device("cpu").kind
'cpu'
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from planner.errors import EnvironmentProblem, UsageError

_NAME = re.compile(r"auto|cpu|cuda(?::(\d+))?")


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a provider's limits and the timing method need to know of the device.

    `cache_bytes` is the last cache level before device memory: L2 on a GPU, L3 on a CPU.
    """

    kind: Literal["cpu", "cuda"]
    name: str
    memory_bytes: int
    cache_bytes: int
    compute_units: int
    index: int = 0
    capability: tuple[int, int] = (0, 0)

    @property
    def torch(self) -> torch.device:
        return torch.device(self.kind, self.index) if self.kind == "cuda" else torch.device("cpu")

    @property
    def default_dtype(self) -> str:
        return "bf16" if self.kind == "cuda" else "fp32"


def resolve_device(text: str) -> Device:
    """The device a person named. "auto" is the first GPU if torch sees one, else the CPU.

    Raises:
        UsageError: not a device name.
        EnvironmentProblem: no such device here.
    """
    match = _NAME.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"device must be auto, cpu, cuda or cuda:N, got {text!r}")
    wanted = match[0]
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return cpu_device() if wanted == "cpu" else cuda_device(int(match[1] or 0))


def cuda_device(index: int) -> Device:
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: this torch is a CPU build"
        raise EnvironmentProblem(
            f"no CUDA device: torch {torch.__version__} sees no GPU (CUDA {built}); "
            f"use --device cpu, or see `attn-profile doctor`"
        )
    count = torch.cuda.device_count()
    if index >= count:
        raise EnvironmentProblem(
            f"no such GPU: cuda:{index}; this machine has cuda:0"
            + (f" to cuda:{count - 1}" if count > 1 else " only")
        )
    found = torch.cuda.get_device_properties(index)
    return Device(
        kind="cuda",
        name=found.name,
        memory_bytes=found.total_memory,
        cache_bytes=found.L2_cache_size,
        compute_units=found.multi_processor_count,
        index=index,
        capability=(found.major, found.minor),
    )


def cpu_device() -> Device:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Device(
        kind="cpu",
        name=f"{cpu_model()}, {cores} core{'s' if cores != 1 else ''}",
        memory_bytes=host_memory_bytes(),
        cache_bytes=last_level_cache_bytes(),
        compute_units=cores or 1,
    )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The model name the kernel reports, with family and model where it is generic."""
    fields: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return "unknown CPU"
    name = re.sub(r"\s+", " ", fields.get("model name", "unknown CPU"))
    if not any(ch.isdigit() for ch in name) and "cpu family" in fields:
        name += f" (family {fields['cpu family']} model {fields.get('model', '?')})"
    return name


def host_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Total memory, or what the control group allows if that is less."""
    try:
        text = meminfo.read_text()
    except OSError:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    match = re.search(r"MemTotal:\s+(\d+) kB", text)
    total = int(match[1]) * 1024 if match else 0
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (value := limit.read_text().strip()).isdigit():
        total = min(total, int(value))
    return total


_SIZE = re.compile(r"(\d+)([KMG]?)")
DEFAULT_CPU_CACHE_BYTES = 32 << 20


def last_level_cache_bytes(root: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """The largest cache of the first core; 32 MiB where the system does not tell."""
    sizes = []
    for path in root.glob("index*/size"):
        match = _SIZE.fullmatch(path.read_text().strip())
        if match:
            sizes.append(int(match[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[match[2]])
    return max(sizes, default=DEFAULT_CPU_CACHE_BYTES)

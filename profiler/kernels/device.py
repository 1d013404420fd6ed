"""Where a kernel will run: the GPU of a tensor, or Triton's interpreter on the CPU.

Configurations are plain functions of shape and of this record, so nothing here is tuned at run
time. The interpreter is on when `TRITON_INTERPRET=1` stood in the environment before Triton was
imported; it executes the same kernels with numpy, in fp32 and fp16 (it cannot multiply bf16).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import triton

from planner.errors import EnvironmentProblem, UsageError

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "on", "yes"}

DTYPES = (torch.bfloat16, torch.float16, torch.float32)

ASSEMBLER = "TRITON_PTXAS_PATH"  # what turns PTX into machine code; read whenever Triton compiles
NEWEST_ASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas-blackwell"


@dataclass(frozen=True, kw_only=True)
class Device:
    """What a configuration depends on: CUDA compute capability and multiprocessors."""

    capability: tuple[int, int]
    num_sms: int


INTERPRETER = Device(capability=(0, 0), num_sms=4)


@contextmanager
def newest_assembler(device: Device) -> Iterator[str]:
    """Launches within are assembled, on Hopper, by the newest assembler in Triton's package.

    For GPUs before Blackwell, Triton 3.6 and 3.7 take ptxas 12.8.93. In code with many of Hopper's
    matrix products it gives some the address of another tile: `linear_attention_kernel` wrote a
    wrong last chunk at ragged lengths (docs/log.md). The ptxas they bring for Blackwell assembles
    the same PTX right. An assembler that the user has set stays.

    Gives a name for what assembles, empty for Triton's own choice, to be a constant of the kernels
    with matrix products launched within. Triton's key of a compiled kernel holds the assembler's
    version as it was at a process's first compilation, so without that constant a binary by the
    wrong one could be found in the cache under the right one's key.
    """
    if device.capability[0] != 9 or ASSEMBLER in os.environ or not NEWEST_ASSEMBLER.exists():
        yield os.environ.get(ASSEMBLER, "")
        return
    os.environ[ASSEMBLER] = str(NEWEST_ASSEMBLER)
    try:
        yield NEWEST_ASSEMBLER.name  # without its folder: compiled kernels travel between machines
    finally:
        del os.environ[ASSEMBLER]


@cache
def _cuda_device(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(
        capability=(properties.major, properties.minor),
        num_sms=properties.multi_processor_count,
    )


def device_of(*tensors: torch.Tensor) -> Device:
    """The one device that all tensors are on.

    Raises:
        UsageError: tensors on several devices, or of a dtype the kernels do not serve.
        EnvironmentProblem: tensors that are not on a GPU while the interpreter is off.
    """
    places = {tensor.device for tensor in tensors}
    if len(places) != 1:
        raise UsageError(f"all tensors must be on one device, got {sorted(map(str, places))}")
    for tensor in tensors:
        if tensor.dtype not in DTYPES:
            raise UsageError(f"dtype must be bfloat16, float16 or float32, got {tensor.dtype}")
    place = places.pop()
    if INTERPRETED:
        return INTERPRETER
    if place.type != "cuda":
        raise EnvironmentProblem(
            f"the triton kernels need CUDA tensors, got {place.type}; move them to a GPU, or set "
            "TRITON_INTERPRET=1 before Python starts to run them on the CPU, slowly"
        )
    return _cuda_device(place.index)


def dot_precision(dtype: torch.dtype) -> str:
    """fp32 products keep fp32 accuracy: three tf32 products each, instead of one (~3e-4 off).

    Ignored for 16-bit operands, which the matrix units multiply exactly.
    """
    return "tf32x3" if dtype == torch.float32 else "tf32"

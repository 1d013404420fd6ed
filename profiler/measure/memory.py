"""Peak and workspace memory of one call, measured apart from its timing.

On CUDA by the allocator's high-water mark; memory that others allocate past it (cuDNN's own) is
not seen. On a CPU by the process's resident high-water mark, where the kernel lets it be reset:
whole pages, and blind to freed memory that the C library kept and used again, so it can only be
too low.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from profiler.providers.spec import Call, Output


@dataclass(frozen=True, kw_only=True)
class Memory:
    """`peak_bytes`: inputs, outputs and workspace together; `workspace_bytes`: the last alone."""

    peak_bytes: int
    workspace_bytes: int


def output_bytes(output: Output) -> int:
    tensors = (output.o, output.state, *output.grads)
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def measure_memory(
    call: Call, input_bytes: int, device: torch.device
) -> tuple[Output, Memory | None]:
    """Calls once: the output, and the call's memory where the machine tells."""
    output, grown = _cuda(call, device) if device.type == "cuda" else _resident(call)
    if grown is None:
        return output, None
    out = output_bytes(output)
    return output, Memory(
        peak_bytes=input_bytes + max(grown, out), workspace_bytes=max(0, grown - out)
    )


def _cuda(call: Call, device: torch.device) -> tuple[Output, int | None]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    output = call()
    torch.cuda.synchronize(device)
    return output, torch.cuda.max_memory_allocated(device) - before


_PROC = Path("/proc/self")
_RESET_PEAK = "5"  # proc_pid_clear_refs(5): reset the resident set's high-water mark


def _resident(call: Call, proc: Path = _PROC) -> tuple[Output, int | None]:
    try:
        (proc / "clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return call(), None
    before = _status_bytes(proc, "VmRSS")
    output = call()
    peak = _status_bytes(proc, "VmHWM")
    if before is None or peak is None:
        return output, None
    return output, max(0, peak - before)


def _status_bytes(proc: Path, field: str) -> int | None:
    match = re.search(rf"{field}:\s+(\d+) kB", (proc / "status").read_text())
    return int(match[1]) * 1024 if match else None

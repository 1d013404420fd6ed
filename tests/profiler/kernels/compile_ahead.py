"""Compiles, without a GPU, the kernels that the wrappers would launch. Run as a script.

    python compile_ahead.py '[["flash_attention", {...}, 90], ...]'

Each case is a wrapper's name, its shapes and options, and a compute capability. The wrapper runs
on meta tensors with its kernels replaced by recorders, so configuration, grid and constants are
exactly those of a real call; every recorded launch is then compiled by `triton.compile` and its
machine code read with the disassembler in Triton's package. Prints one JSON list of results.
Needs TRITON_INTERPRET unset: interpreted functions cannot be compiled.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from profiler.kernels import (
    flash_attention,
    flash_decode,
    latent_decode,
    linear_attention,
    short_convolution,
)
from profiler.kernels.device import ASSEMBLER, NEWEST_ASSEMBLER, Device, newest_assembler

NUM_SMS = {80: 108, 90: 132}
MODULES = (flash_attention, flash_decode, latent_decode, linear_attention, short_convolution)
OPTIONS = ("num_warps", "num_stages", "maxnreg")
COUNTED = ("HGMMA", "HMMA", "UTMALDG", "WARPGROUP.DEPBAR", "LDG.E.64", "LDG.E.128")
TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int32: "i32"}


class Recorder:
    """Stands for a kernel: `recorder[grid](*args, **kwargs)` notes the launch."""

    def __init__(self, kernel: Any, launches: list[dict[str, Any]]) -> None:
        self.kernel = kernel
        self.launches = launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._record

    def _record(self, *args: Any, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name) for name in OPTIONS if kwargs.get(name) is not None}
        kwargs = {name: value for name, value in kwargs.items() if name not in OPTIONS}
        signature, constants, attributes = {}, {}, {}
        for position, name in enumerate(self.kernel.arg_names):
            if name in kwargs:
                signature[name], constants[(position,)] = "constexpr", kwargs[name]
                continue
            signature[name], aligned = _argument(args[position])
            if aligned and not self.kernel.params[position].do_not_specialize:
                attributes[(position,)] = [["tt.divisibility", 16]]
        self.launches.append(
            {
                "kernel": self.kernel,
                "source": (signature, constants, attributes),
                "options": options,
                "arguments": args,
                "newest": os.environ.get(ASSEMBLER) == str(NEWEST_ASSEMBLER),
            }
        )


def _argument(value: Any) -> tuple[str, bool]:
    """Triton's type of a runtime argument, and whether it counts as divisible by 16."""
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}", True
    if isinstance(value, float):
        return "fp32", False
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0
    block = ",".join(map(str, value.block_shape))
    return f"tensordesc<{TYPES[value.base.dtype]}[{block}]>", False


def device_for(capability: int) -> Device:
    return Device(capability=divmod(capability, 10), num_sms=NUM_SMS[capability])


def record(wrapper: str, options: dict[str, Any], capability: int) -> list[dict[str, Any]]:
    """The launches of one call of `wrapper` on a device of that capability."""
    device = device_for(capability)
    launches: list[dict[str, Any]] = []
    for module in MODULES:
        module.device_of = lambda *tensors: device
        for name, value in list(vars(module).items()):
            if name.endswith("_kernel"):
                kernel = value.kernel if isinstance(value, Recorder) else value
                setattr(module, name, Recorder(kernel, launches))
    CALLS[wrapper](**options)
    return launches


def _meta(dtype: str, *shape: int) -> torch.Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta")


def _attention(
    B=1, Tq=4096, T=4096, HQ=32, HKV=8, D=128, DV=None, window=None, dtype="bfloat16", **config
):
    q, k = _meta(dtype, B, Tq, HQ, D), _meta(dtype, B, T, HKV, D)
    v = _meta(dtype, B, T, HKV, DV or D)
    chosen = flash_attention.AttentionConfig(**config) if config else None
    flash_attention.flash_attention(q, k, v, window=window, config=chosen)


def _latent(B=1, S=32768, H=32, lora=512, rope=64, dtype="bfloat16", **config):
    q, cache = _meta(dtype, B, 1, H, lora + rope), _meta(dtype, B, S, 1, lora + rope)
    chosen = latent_decode.LatentConfig(**config) if config else None
    latent_decode.latent_decode(q, cache, lora=lora, config=chosen)


def _decode(
    B=1, T=4096, HQ=32, HKV=8, D=128, window=None, splits=None, dtype="bfloat16", **config
):
    q, kv = _meta(dtype, B, 1, HQ, D), _meta(dtype, B, T, HKV, D)
    chosen = flash_decode.DecodeConfig(**config) if config else None
    flash_decode.flash_decode(q, kv, kv, window=window, num_splits=splits, config=chosen)


def _gate(decay: str, B: int, T: int, HV: int) -> torch.Tensor | None:
    shapes = {"none": None, "constant": (HV,), "token": (B, T, HV)}
    shape = shapes[decay]
    return None if shape is None else _meta("float32", *shape)


def _linear(
    B=1, T=32768, HK=32, HV=32, K=128, V=128, decay="token", packed=0, dtype="bfloat16", **config
):
    q, v = _meta(dtype, B, T, HK, K), _meta(dtype, B, T, HV, V)
    states = packed or B
    chosen = linear_attention.LinearConfig(**config) if config else None
    linear_attention.chunked_linear_attention(
        q, q, v,
        log_decay=_gate(decay, B, T, HV),
        initial_state=_meta("float32", states, HV, K, V),
        output_final_state=True,
        cu_seqlens=_meta("int32", packed + 1) if packed else None,
        config=chosen,
    )  # fmt: skip


def _step(B=64, HK=32, HV=32, K=128, V=128, decay="token", dtype="bfloat16"):
    q, v = _meta(dtype, B, 1, HK, K), _meta(dtype, B, 1, HV, V)
    state = _meta("float32", B, HV, K, V)
    linear_attention.linear_attention_step(q, q, v, state=state, log_decay=_gate(decay, B, 1, HV))


def _convolution(B=1, T=8192, C=8192, W=4, tailed=False, dtype="bfloat16"):
    tail = _meta(dtype, B, W, C) if tailed else None
    short_convolution.short_convolution(_meta(dtype, B, T, C), _meta(dtype, W, C).T, tail=tail)


def _convolution_step(B=64, C=8192, W=4, dtype="bfloat16"):
    x, tail = _meta(dtype, B, 1, C), _meta(dtype, B, W, C)
    short_convolution.short_convolution_step(x, _meta(dtype, W, C).T, tail=tail)


CALLS = {
    "convolution": _convolution,
    "convolution_step": _convolution_step,
    "attention": _attention,
    "decode": _decode,
    "latent": _latent,
    "linear": _linear,
    "step": _step,
}


def compile_launch(launch: dict[str, Any], capability: int) -> dict[str, Any]:
    """Registers, stack (where spilled registers go) and shared memory of the machine code."""
    kernel, (signature, constants, attributes) = launch["kernel"], launch["source"]
    scope = newest_assembler(device_for(capability)) if launch["newest"] else nullcontext()
    with scope:
        compiled = triton.compile(
            ASTSource(kernel, signature, constants, attributes),
            target=GPUTarget("cuda", capability, 32),
            options=launch["options"],
        )
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        dump = subprocess.run(
            [tools / "cuobjdump", "--dump-resource-usage", "--dump-sass", cubin.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    usage = re.search(r"REG:(\d+) STACK:(\d+)", dump)
    assert usage, f"no resource usage in the output of cuobjdump: {dump[:200]}"
    return {
        "kernel": kernel.__name__,
        "constants": {kernel.arg_names[at]: value for (at,), value in constants.items()},
        "registers": int(usage[1]),
        "stack_bytes": int(usage[2]),
        "shared_bytes": compiled.metadata.shared,
        "num_warps": compiled.metadata.num_warps,
        "overwritten": overwritten_operands(dump),
        "instructions": {name: len(re.findall(rf"\b{name}\b", dump)) for name in COUNTED},
    }


def overwritten_operands(machine_code: str) -> list[str]:
    """Instructions that write registers a matrix product still reads or accumulates in.

    Hopper's products run beside the program until it waits for them; an assembler that gives one
    of their registers away before corrupts them, and nothing but timing shows it.
    """
    busy: set[int] = set()
    found = []
    for line in machine_code.splitlines():
        if not (match := re.match(r"\s*/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\w+ )?([^;]*);", line)):
            continue
        instruction = match[1]
        if "WARPGROUP.DEPBAR" in instruction:
            busy.clear()
        elif product := re.match(r"HGMMA\.64x(\d+)x\S+ R(\d+), (?:R(\d+))?", instruction):
            columns, out, operand = (int(group or -1) for group in product.groups())
            busy |= set(range(out, out + columns // 2))
            busy |= set(range(operand, operand + 4)) if operand >= 0 else set()
        elif written(instruction) & busy:
            found.append(instruction)
    return found


def written(instruction: str) -> set[int]:
    """The registers that one instruction of the machine code writes, as far as its text tells."""
    if instruction.startswith(("ST", "RED", "LDGSTS", "BAR", "SYNCS")):
        return set()
    if not (first := re.match(r"\S+ (?:U?P\w, )?R(\d+)\b", instruction)):
        return set()
    name = instruction.split()[0]
    wide = (
        4 if ".128" in name or name.startswith("LDSM") else 1 + (".64" in name or ".WIDE" in name)
    )
    return set(range(int(first[1]), int(first[1]) + wide))


def main(cases: list[list[Any]]) -> list[dict[str, Any]]:
    """Results of all cases: one per launch, with the case it belongs to."""
    results = []
    for wrapper, options, capability in cases:
        for launch in record(wrapper, options, capability):
            case = {"wrapper": wrapper, "options": options, "capability": capability}
            results.append(case | compile_launch(launch, capability))
    return results


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))

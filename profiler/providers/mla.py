"""Multi-head latent attention on silicon: expanded for prefill, absorbed for decode.

Prefill attends with per-head keys of K + rope and values of V. A decode step attends in the
latent space: each head is a query row of width lora + rope against one shared key per token,
whose first `kv_lora_rank` entries are also the value.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch.nn.functional import pad

from planner.workload import MixerOp, Workload
from profiler.device import Device
from profiler.providers.full_attention import ANY, HALF
from profiler.providers.recurrence import randn
from profiler.providers.softmax import (
    AttentionInputs,
    prepare_sdpa,
    prepare_triton,
    probe,
    reference,
    sdpa_limits,
)
from profiler.providers.spec import NEEDS_TRITON, TORCH_DTYPES, Family, Kernel, Output, Provider

CUDNN_MAX_HEAD_DIM = 256  # torch 2.11 on an H100: a wider one fails with "Invalid backend"


def make_inputs(workload: Workload, device: torch.device, seed: int) -> AttentionInputs:
    assert isinstance(workload.op, MixerOp)
    spec, B, T = workload.op.spec, workload.batch_size, workload.new_tokens
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    H, total, width = spec.num_q_heads, workload.context, spec.k_head_dim + spec.rope_head_dim
    scale = width**-0.5
    if workload.phase == "decode":
        latent = draw(B, total, 1, spec.kv_lora_rank + spec.rope_head_dim)
        q = draw(B, T, H, spec.kv_lora_rank + spec.rope_head_dim)
        return AttentionInputs(q=q, k=latent, v=latent[..., : spec.kv_lora_rank], scale=scale)
    return AttentionInputs(
        q=draw(B, T, H, width),
        k=draw(B, total, H, width),
        v=draw(B, total, H, spec.v_head_dim),
        scale=scale,
    )


def absorbed(inputs: AttentionInputs) -> bool:
    """Whether all heads share one latent, as in decode. A first token alone is expanded."""
    return inputs.k.shape[2] == 1 and inputs.q.shape[2] > 1


def prepare(backend: str, inputs: AttentionInputs) -> Kernel:
    """Decode folds the heads into query rows of the one latent head: no grouped queries needed."""
    if not absorbed(inputs):
        return prepare_sdpa(backend, inputs)
    folded = prepare_sdpa(backend, replace(inputs, q=inputs.q[:, :, :1]))

    def kernel(x: AttentionInputs) -> Output:
        rows = replace(x, q=x.q.transpose(1, 2), v=x.k[..., : x.v.shape[-1]])
        o = folded(rows).o
        return Output(o=o.transpose(1, 2))

    return kernel


def widths(workload: Workload) -> tuple[int, int]:
    """Key and value dims that the kernel sees."""
    assert isinstance(workload.op, MixerOp)
    spec = workload.op.spec
    if workload.phase == "decode":
        return spec.kv_lora_rank + spec.rope_head_dim, spec.kv_lora_rank
    return spec.k_head_dim + spec.rope_head_dim, spec.v_head_dim


def limits(backend: str, workload: Workload, device: Device) -> str | None:
    K, V = widths(workload)
    if backend == "flash" and device.kind == "cuda" and K != V:
        return f"flash takes equally wide keys and values, got {K} and {V}; see the padded variant"
    if backend == "cudnn" and K > CUDNN_MAX_HEAD_DIM:
        return f"cuDNN through SDPA takes heads of at most {CUDNN_MAX_HEAD_DIM}, got {K}"
    return sdpa_limits(backend, workload, device)


def prepare_padded(backend: str, inputs: AttentionInputs) -> Kernel:
    """Values padded with zeros to the keys' width, for backends that want them equally wide.

    As engines do it: the copy, and the products with the zeros, are part of the call.
    """
    V = inputs.v.shape[-1]
    missing = inputs.k.shape[-1] - V
    equal = prepare_sdpa(backend, replace(inputs, v=pad(inputs.v, (0, missing))))
    return lambda x: Output(o=equal(replace(x, v=pad(x.v, (0, missing)))).o[..., :V])


def prepare_own(inputs: AttentionInputs) -> Kernel:
    """Our Triton kernels: expanded like any attention; absorbed, split over the latents."""
    if not absorbed(inputs):
        return prepare_triton(inputs)
    from profiler.kernels.latent_decode import latent_decode

    def kernel(x: AttentionInputs) -> Output:
        return Output(o=latent_decode(x.q, x.k, lora=x.v.shape[-1], scale=x.scale))

    return kernel


def _sdpa(name: str, backend: str, dtypes: tuple[str, ...], device: str = "cuda") -> Provider:
    return Provider(
        name=name,
        prepare=partial(prepare, backend),
        devices=(device,),  # type: ignore[arg-type]
        dtypes=dtypes,
        phases=("prefill", "decode", "training"),
        limits=partial(limits, backend),
    )


def _padded(backend: str, device: str = "cuda") -> Provider:
    return Provider(
        name=f"sdpa_{backend}_padded" + ("_cpu" if device == "cpu" else ""),
        prepare=partial(prepare_padded, backend),
        devices=(device,),  # type: ignore[arg-type]
        dtypes=HALF if device == "cuda" else ("fp64", *ANY),
        phases=("prefill", "training"),
        limits=partial(sdpa_limits, backend),
    )


MLA = Family(
    name="mla",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        _padded("cudnn"),
        _padded("flash"),
        Provider(
            name="triton",
            prepare=prepare_own,
            devices=("cuda",),
            dtypes=("bf16", "fp16"),
            requires=(NEEDS_TRITON,),
            versions={"decode": "2"},  # 2: more keys under way, fewer splits
        ),
        _sdpa("sdpa_cudnn", "cudnn", HALF),
        _sdpa("sdpa_flash", "flash", HALF),
        _sdpa("sdpa_efficient", "efficient", ANY),
        _sdpa("sdpa_math", "math", ANY),
        _sdpa("sdpa_math_cpu", "math", ("fp64", *ANY), "cpu"),
        _padded("flash", "cpu"),
    ),
)

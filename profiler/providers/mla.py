"""Multi-head latent attention on silicon: expanded for prefill, absorbed for decode.

Prefill attends with per-head keys of K + rope and values of V. A decode step attends in the
latent space: each head is a query row of width lora + rope against one shared key per token,
whose first `kv_lora_rank` entries are also the value.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from planner.workload import MixerOp, Workload
from profiler.providers.full_attention import ANY, HALF
from profiler.providers.recurrence import randn
from profiler.providers.softmax import AttentionInputs, prepare_sdpa, probe, reference, sdpa_limits
from profiler.providers.spec import TORCH_DTYPES, Family, Kernel, Output, Provider


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


def prepare(backend: str, inputs: AttentionInputs) -> Kernel:
    """Decode folds the heads into query rows of the one latent head: no grouped queries needed."""
    if inputs.num_queries > 1:
        return prepare_sdpa(backend, inputs)
    folded = prepare_sdpa(backend, replace(inputs, q=inputs.q[:, :, :1]))

    def kernel(x: AttentionInputs) -> Output:
        rows = replace(x, q=x.q.transpose(1, 2), v=x.k[..., : x.v.shape[-1]])
        o = folded(rows).o
        return Output(o=o.transpose(1, 2))

    return kernel


def _sdpa(name: str, backend: str, dtypes: tuple[str, ...], device: str = "cuda") -> Provider:
    return Provider(
        name=name,
        prepare=partial(prepare, backend),
        devices=(device,),  # type: ignore[arg-type]
        dtypes=dtypes,
        limits=partial(sdpa_limits, backend),
    )


MLA = Family(
    name="mla",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        _sdpa("sdpa_cudnn", "cudnn", HALF),
        _sdpa("sdpa_flash", "flash", HALF),
        _sdpa("sdpa_efficient", "efficient", ANY),
        _sdpa("sdpa_math", "math", ANY),
        _sdpa("sdpa_math_cpu", "math", ("fp64", *ANY), "cpu"),
    ),
)

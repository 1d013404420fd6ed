"""Linear attention and lightning attention on silicon: additive state, no or constant decay.

No feature map and no normaliser, as in the models that still use it: those are elementwise and
belong to the projections.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from planner.workload import MixerOp, Workload
from profiler.device import Device
from profiler.providers.recurrence import (
    OWN_TRITON,
    RecurrentInputs,
    carried_state,
    prepare_chunked,
    prepare_step,
    probe,
    randn,
    reference,
)
from profiler.providers.spec import (
    NEEDS_FLA,
    TORCH_DTYPES,
    Family,
    Kernel,
    Output,
    Provider,
    tuned,
)

HALF = ("bf16", "fp16")
EXACT = ("fp64", "fp32")


def make_inputs(workload: Workload, device: torch.device, seed: int) -> RecurrentInputs:
    """Standard normal q, k, v; the state of normal size where tokens came before."""
    assert isinstance(workload.op, MixerOp)
    spec, B, T = workload.op.spec, workload.batch_size, workload.new_tokens
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    K, V, Hv = spec.k_head_dim, spec.v_head_dim, spec.num_v_heads
    return RecurrentInputs(
        q=draw(B, T, spec.num_q_heads, K),
        k=draw(B, T, spec.num_k_heads, K),
        v=draw(B, T, Hv, V),
        scale=K**-0.5,
        log_decay=alibi_log_decay(Hv, device) if spec.mixer == "lightning" else None,
        state=carried_state(draw, workload.cached_tokens, B, Hv, K, V),
    )


def alibi_log_decay(heads: int, device: torch.device) -> Tensor:
    """Log decay [H] of the first layer, -2^(-8(h+1)/H), as MiniMax-Text-01 builds it."""
    steps = torch.arange(1, heads + 1, dtype=torch.float32, device=device)
    return -torch.exp2(-8 * steps / heads)


def prepare_fla(inputs: RecurrentInputs) -> Kernel:
    """fla's chunked kernel for several tokens, its fused recurrent one for a single token."""
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    run = fused_recurrent_simple_gla if inputs.num_tokens == 1 else chunk_simple_gla

    def kernel(x: RecurrentInputs) -> Output:
        o, state = run(
            x.q,
            x.k,
            x.v,
            g_gamma=x.log_decay,
            scale=x.scale,
            initial_state=x.state,
            output_final_state=True,
        )
        return Output(o=o, state=state)

    return kernel


def equal_heads(workload: Workload, device: Device) -> str | None:
    assert isinstance(workload.op, MixerOp)
    spec = workload.op.spec
    if not spec.num_q_heads == spec.num_k_heads == spec.num_v_heads:
        return "fla's simple_gla takes as many query and key heads as value heads"
    return None


def _family(name: str, prepare: Callable[[RecurrentInputs], Kernel]) -> Family:
    return Family(
        name=name,
        make_inputs=make_inputs,
        reference=reference,
        probe=probe,
        providers=(
            Provider(
                name="fla",
                prepare=prepare,
                devices=("cuda",),
                dtypes=HALF,
                phases=("prefill", "decode", "training"),
                requires=(NEEDS_FLA,),
                versions=tuned("prefill", "decode", "training"),
                limits=equal_heads,
            ),
            OWN_TRITON,
            Provider(
                name="chunked",
                prepare=prepare_chunked,
                devices=("cpu",),
                dtypes=EXACT,
                phases=("prefill", "training"),
            ),
            Provider(
                name="step",
                prepare=prepare_step,
                devices=("cpu",),
                dtypes=EXACT,
                phases=("decode",),
            ),
        ),
    )


LINEAR_ATTENTION = _family("linear_attention", prepare_fla)
LIGHTNING = _family("lightning", prepare_fla)

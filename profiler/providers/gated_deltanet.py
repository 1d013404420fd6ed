"""Gated DeltaNet and KDA on silicon: the delta rule with a decay per head or per key channel."""

from __future__ import annotations

from dataclasses import replace

import torch

from planner.workload import MixerOp, Workload
from profiler.device import Device
from profiler.providers.recurrence import (
    RecurrentInputs,
    carried_state,
    decay_rates,
    prepare_chunked,
    prepare_step,
    probe,
    randn,
    reference,
    step_sizes,
    unit,
)
from profiler.providers.spec import (
    NEEDS_FLA,
    TORCH_DTYPES,
    Family,
    Kernel,
    Output,
    Provider,
    distribution_version,
    release,
    tuned,
)

HALF = ("bf16", "fp16")
EXACT = ("fp64", "fp32")


def make_inputs(workload: Workload, device: torch.device, seed: int) -> RecurrentInputs:
    """Unit q and k, log decay A Δ as the models start out, β = sigmoid(normal).

    The normalisation and the gates' activations are the layer's, not the kernel's: every provider
    is handed the same activated values.
    """
    assert isinstance(workload.op, MixerOp)
    spec, B, T = workload.op.spec, workload.batch_size, workload.new_tokens
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    K, V, Hv = spec.k_head_dim, spec.v_head_dim, spec.num_v_heads
    per_channel = spec.mixer == "kda"
    rates = decay_rates(draw, Hv)
    if per_channel:
        log_decay = rates[:, None] * step_sizes(draw, B, T, Hv, K)
    else:
        log_decay = rates * step_sizes(draw, B, T, Hv)
    return RecurrentInputs(
        q=unit(draw(B, T, spec.num_q_heads, K)),
        k=unit(draw(B, T, spec.num_k_heads, K)),
        v=draw(B, T, Hv, V),
        scale=K**-0.5,
        log_decay=log_decay,
        beta=draw(B, T, Hv).sigmoid(),
        state=carried_state(draw, workload.cached_tokens, B, Hv, K, V),
    )


def prepare_fla_gdn(inputs: RecurrentInputs) -> Kernel:
    """fla's chunked kernels for several tokens, the fused recurrent one for a single token."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    run = fused_recurrent_gated_delta_rule if inputs.num_tokens == 1 else chunk_gated_delta_rule

    def kernel(x: RecurrentInputs) -> Output:
        o, state = run(
            x.q,
            x.k,
            x.v,
            g=x.log_decay,
            beta=x.beta,
            scale=x.scale,
            initial_state=x.state,
            output_final_state=True,
        )
        return Output(o=o, state=state)

    return kernel


def prepare_fla_kda(inputs: RecurrentInputs) -> Kernel:
    from fla.ops.kda import chunk_kda, fused_recurrent_kda

    run = fused_recurrent_kda if inputs.num_tokens == 1 else chunk_kda

    def kernel(x: RecurrentInputs) -> Output:
        o, state = run(
            x.q,
            x.k,
            x.v,
            g=x.log_decay,
            beta=x.beta,
            scale=x.scale,
            initial_state=x.state,
            output_final_state=True,
        )
        return Output(o=o, state=state)

    return kernel


def fla_limits(workload: Workload, device: Device) -> str | None:
    """fla refuses the gated backward where Triton miscompiles it (fla#640), and so do we."""
    version = release(distribution_version("triton") or "")
    hopper = device.capability == (9, 0)
    if workload.training and hopper and (3, 4) <= version < (3, 7, 1):
        return (
            "fla's gated backward is wrong on Hopper with triton >= 3.4 and < 3.7.1 "
            "(flash-linear-attention issue 640): needs triton >= 3.7.1"
        )
    return None


def same_heads_for_kda(workload: Workload, device: Device) -> str | None:
    assert isinstance(workload.op, MixerOp)
    if workload.op.spec.num_q_heads != workload.op.spec.num_k_heads:
        return "fla's KDA takes as many query as key heads"
    return fla_limits(workload, device)


CPU_PROVIDERS = (
    Provider(
        name="chunked",
        prepare=prepare_chunked,
        devices=("cpu",),
        dtypes=EXACT,
        phases=("prefill", "training"),
    ),
    Provider(
        name="step", prepare=prepare_step, devices=("cpu",), dtypes=EXACT, phases=("decode",)
    ),
)

FLA_GDN = Provider(
    name="fla",
    prepare=prepare_fla_gdn,
    devices=("cuda",),
    dtypes=HALF,
    phases=("prefill", "decode", "training"),
    requires=(NEEDS_FLA,),
    versions=tuned("prefill", "training"),
    limits=fla_limits,
)

GATED_DELTANET = Family(
    name="gated_deltanet",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(FLA_GDN, *CPU_PROVIDERS),
)

KDA = Family(
    name="kda",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        replace(FLA_GDN, prepare=prepare_fla_kda, limits=same_heads_for_kda),
        *CPU_PROVIDERS,
    ),
)

"""Mamba-2 (SSD) on silicon: C, B, x and Δ go in; the skip D x and the gate z are the layer's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from dataclasses import replace

import torch

from planner.workload import MixerOp, Workload
from profiler.providers.gated_deltanet import CPU_PROVIDERS, fla_limits
from profiler.providers.recurrence import (
    OWN_TRITON,
    RecurrentInputs,
    additive_terms,
    carried_state,
    decay_rates,
    probe,
    randn,
    reference,
    repeat_heads,
    step_sizes,
)
from profiler.providers.spec import (
    NEEDS_FLA,
    NEEDS_MAMBA,
    NEEDS_TRITON,
    TORCH_DTYPES,
    Family,
    Kernel,
    Output,
    Provider,
    tuned,
)

HALF = ("bf16", "fp16")
MAMBA_CHUNK = 256  # mamba_ssm's default chunk_size


def make_inputs(workload: Workload, device: torch.device, seed: int) -> RecurrentInputs:
    """q, k, v are C, B, x: normal; Δ and A as Mamba-2 starts out."""
    assert isinstance(workload.op, MixerOp)
    spec, B, T = workload.op.spec, workload.batch_size, workload.new_tokens
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    N, P, H = spec.k_head_dim, spec.v_head_dim, spec.num_v_heads
    return RecurrentInputs(
        q=draw(B, T, spec.num_q_heads, N),
        k=draw(B, T, spec.num_k_heads, N),
        v=draw(B, T, H, P),
        scale=1.0,
        dt=step_sizes(draw, B, T, H),
        A=decay_rates(draw, H),
        state=carried_state(draw, workload.cached_tokens, B, H, N, P),
    )


def prepare_fla(inputs: RecurrentInputs) -> Kernel:
    """SSD as simple gated linear attention: q = C, k = B, v = x Δ, g = Δ A.

    simple_gla has no head groups, so B and C are repeated to every head; that copy and the
    products with Δ are part of the call.
    """
    from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla

    run = fused_recurrent_simple_gla if inputs.num_tokens == 1 else chunk_simple_gla
    heads = inputs.v.shape[2]

    def kernel(x: RecurrentInputs) -> Output:
        v, g = additive_terms(x)
        o, state = run(
            repeat_heads(x.q, heads),
            repeat_heads(x.k, heads),
            v,
            g=g,
            scale=x.scale,
            initial_state=x.state,
            output_final_state=True,
        )
        return Output(o=o, state=state)

    return kernel


def mamba_module(name: str) -> types.ModuleType:
    """A module below mamba_ssm without its `__init__`, which imports compiled extensions."""
    if "mamba_ssm" not in sys.modules:
        spec = importlib.util.find_spec("mamba_ssm")
        assert spec is not None and spec.submodule_search_locations is not None
        bare = types.ModuleType("mamba_ssm")
        bare.__path__ = list(spec.submodule_search_locations)
        sys.modules["mamba_ssm"] = bare
    return importlib.import_module(f"mamba_ssm.{name}")


def values_first(inputs: RecurrentInputs) -> RecurrentInputs:
    """The same state [B, H, N, P] with P outermost in memory, as mamba_ssm keeps it."""
    if inputs.state is None:
        return inputs
    return replace(inputs, state=inputs.state.mT.contiguous().mT)


def prepare_mamba_ssm(inputs: RecurrentInputs) -> Kernel:
    """The authors' Triton kernels: the chunked scan, or the state update for a single token."""
    return _mamba_step(inputs) if inputs.num_tokens == 1 else _mamba_scan(inputs)


def _mamba_scan(inputs: RecurrentInputs) -> Kernel:
    scan = mamba_module("ops.triton.ssd_combined").mamba_chunk_scan_combined

    def kernel(x: RecurrentInputs) -> Output:
        o, state = scan(
            x.v,
            x.dt,
            x.A,
            x.k,
            x.q,
            chunk_size=MAMBA_CHUNK,
            initial_states=None if x.state is None else x.state.mT,
            return_final_states=True,
        )
        return Output(o=o, state=state.mT)

    return kernel


def _mamba_step(inputs: RecurrentInputs) -> Kernel:
    """`selective_state_update` overwrites its state [B, H, P, N], as in use.

    It takes A, Δ, its bias and D expanded over P (and N) with stride 0. D and the bias must be
    given: without them its launch unpacks a number.
    """
    update = mamba_module("ops.triton.selective_state_update").selective_state_update
    H, P, N = inputs.v.shape[2], inputs.v.shape[3], inputs.q.shape[3]
    zeros = torch.zeros(H, 1, device=inputs.v.device).expand(H, P)

    def kernel(x: RecurrentInputs) -> Output:
        assert x.dt is not None and x.A is not None and x.state is not None
        o = update(
            x.state.mT,
            x.v[:, 0],
            x.dt[:, 0, :, None].expand(-1, H, P),
            x.A[:, None, None].expand(H, P, N),
            x.k[:, 0],
            x.q[:, 0],
            D=zeros,
            dt_bias=zeros,
        )
        return Output(o=o[:, None], state=x.state)

    return kernel


MAMBA2 = Family(
    name="mamba2",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        Provider(
            name="mamba_ssm",
            prepare=prepare_mamba_ssm,
            devices=("cuda",),
            dtypes=HALF,
            requires=(NEEDS_MAMBA, NEEDS_TRITON),
            versions=tuned("prefill"),
            lay_out=values_first,
            in_place=True,
        ),
        Provider(
            name="fla",
            prepare=prepare_fla,
            devices=("cuda",),
            dtypes=HALF,
            phases=("prefill", "decode", "training"),
            requires=(NEEDS_FLA,),
            versions=tuned("prefill", "decode", "training"),
            limits=fla_limits,
        ),
        OWN_TRITON,
        *CPU_PROVIDERS,
    ),
)

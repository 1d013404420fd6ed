"""The causal short convolution on silicon, with the SiLU that follows it in every mixer."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import conv1d, pad, silu

from planner.workload import ConvOp, Workload
from profiler.providers.recurrence import PROBE_TOKENS, randn
from profiler.providers.spec import (
    NEEDS_FLA,
    NEEDS_TRITON,
    TORCH_DTYPES,
    Family,
    Inputs,
    Kernel,
    Output,
    Provider,
    tuned,
)


@dataclass(frozen=True, kw_only=True)
class ConvInputs(Inputs):
    """x [B, T, C], w [C, W]; `tail` [B, W, C] are the last W inputs, None at the start."""

    x: Tensor
    w: Tensor
    tail: Tensor | None = None


def make_inputs(workload: Workload, device: torch.device, seed: int) -> ConvInputs:
    assert isinstance(workload.op, ConvOp)
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    B, T, C, W = workload.batch_size, workload.new_tokens, workload.op.channels, workload.op.size
    return ConvInputs(
        x=draw(B, T, C),
        w=draw(C, W).mul_(W**-0.5),
        tail=draw(B, W, C) if workload.cached_tokens else None,
    )


def reference(inputs: ConvInputs) -> Output:
    """y_t = silu(Σ_i w_i x_{t - W + 1 + i}), one shifted product per weight."""
    T, W = inputs.x.shape[1], inputs.w.shape[1]
    x = with_tail(inputs)
    return Output(
        o=silu(sum((x[:, i : i + T] * inputs.w[:, i] for i in range(W)), start=0 * x[:, :T]))
    )


def with_tail(inputs: ConvInputs) -> Tensor:
    """[B, W - 1 + T, C]: what came before, or zeros, and the new inputs."""
    if inputs.tail is None:
        return pad(inputs.x, (0, 0, inputs.w.shape[1] - 1, 0))
    return torch.cat([inputs.tail[:, 1:], inputs.x], dim=1)


def probe(
    inputs: ConvInputs, output: Output, random: torch.Generator
) -> tuple[ConvInputs, Output]:
    """The last 128 tokens of one random sequence, with the inputs before them as their tail."""
    B, T, W = inputs.x.shape[0], inputs.x.shape[1], inputs.w.shape[1]
    b = int(torch.randint(B, (1,), generator=random))
    start = max(0, T - PROBE_TOKENS)
    before = pad(with_tail(inputs)[b : b + 1, start : start + W - 1], (0, 0, 1, 0))
    part = ConvInputs(x=inputs.x[b : b + 1, start:], w=inputs.w, tail=before)
    return part, Output(o=output.o[b : b + 1, start:])


def prepare_torch(inputs: ConvInputs) -> Kernel:
    """Depthwise conv1d; a single token is a product and a sum."""
    if inputs.x.shape[1] == 1:
        return lambda x: Output(o=silu((with_tail(x) * x.w.T).sum(1, keepdim=True)))

    def kernel(x: ConvInputs) -> Output:
        y = conv1d(with_tail(x).transpose(1, 2), x.w[:, None], groups=x.w.shape[0])
        return Output(o=silu(y).transpose(1, 2))

    return kernel


def prepare_fla(inputs: ConvInputs) -> Kernel:
    """fla's Triton convolution; a single token updates its tail in place."""
    from fla.modules.causal_conv1d import causal_conv1d, causal_conv1d_update

    def step(x: ConvInputs) -> Output:
        assert x.tail is not None
        y, _ = causal_conv1d_update(x.x, x.tail.transpose(1, 2), weight=x.w, activation="silu")
        return Output(o=y)

    def whole(x: ConvInputs) -> Output:
        tail = None if x.tail is None else x.tail.transpose(1, 2)
        y, _ = causal_conv1d(x.x, x.w, initial_state=tail, activation="silu")
        return Output(o=y)

    return step if inputs.x.shape[1] == 1 and inputs.tail is not None else whole


def prepare_triton(inputs: ConvInputs) -> Kernel:
    """`profiler.kernels`: one pass over the tokens; a single token moves its tail up in place."""
    from profiler.kernels.short_convolution import short_convolution, short_convolution_step

    def step(x: ConvInputs) -> Output:
        assert x.tail is not None
        return Output(o=short_convolution_step(x.x, x.w, tail=x.tail))

    def whole(x: ConvInputs) -> Output:
        return Output(o=short_convolution(x.x, x.w, tail=x.tail))

    return step if inputs.x.shape[1] == 1 and inputs.tail is not None else whole


def channels_first(inputs: ConvInputs) -> ConvInputs:
    """The same tail [B, W, C] with C outermost in memory, as fla keeps it."""
    if inputs.tail is None:
        return inputs
    return replace(inputs, tail=inputs.tail.transpose(1, 2).contiguous().transpose(1, 2))


def taps_apart(inputs: ConvInputs) -> ConvInputs:
    """The same weights [C, W] with the channels of a tap side by side in memory."""
    return replace(inputs, w=inputs.w.T.contiguous().T)


SHORT_CONVOLUTION = Family(
    name="short_convolution",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        Provider(
            name="fla",
            prepare=prepare_fla,
            devices=("cuda",),
            dtypes=("bf16", "fp16", "fp32"),
            requires=(NEEDS_FLA,),
            versions=tuned("prefill", "decode"),
            lay_out=channels_first,
            in_place=True,
        ),
        Provider(
            name="triton",
            prepare=prepare_triton,
            devices=("cuda",),
            dtypes=("bf16", "fp16", "fp32"),
            requires=(NEEDS_TRITON,),
            lay_out=taps_apart,
            in_place=True,
            versions={"prefill": "2", "decode": "2"},  # 2: wide reads of weights, loads first
        ),
        Provider(name="torch", prepare=prepare_torch, devices=("cpu",), dtypes=("fp64", "fp32")),
    ),
)

"""A mixture's routed experts on silicon: from the router's choice to each token's weighted sum.

A call gathers tokens by expert, multiplies them with that expert's two matrices, the activation
between, and sums each token's results by its weights. The router and its softmax come before, a
shared expert beside it; both are dense layers. Tokens choose distinct experts evenly, which reads
more weights at small batch than a trained router's skew does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from planner.workload import ExpertsOp, Workload
from profiler.device import Device
from profiler.providers.recurrence import randn
from profiler.providers.spec import TORCH_DTYPES, Family, Inputs, Kernel, Output, Provider

PROBE_TOKENS = 16
"""Each brings its own experts' weights to the float64 check."""


@dataclass(frozen=True, kw_only=True)
class ExpertsInputs(Inputs):
    """x [N, D]; up [E, I, D], or [E, 2 I, D] with the gate's half first; down [E, D, I].

    `choice` [N, k] are each token's experts, `weight` [N, k] in fp32 what each counts.
    """

    x: Tensor
    up: Tensor
    down: Tensor
    choice: Tensor
    weight: Tensor

    @property
    def gated(self) -> bool:
        return self.up.shape[1] == 2 * self.down.shape[2]

    def to(self, dtype: torch.dtype) -> Self:
        """x alone: the reference follows it with one expert's weights at a time, as all of them
        in float64 may not fit."""
        return replace(self, x=self.x.to(dtype))


def make_inputs(workload: Workload, device: torch.device, seed: int) -> ExpertsInputs:
    """Weights of variance 1 over fan-in; k distinct experts a token, counting for 1 together."""
    op = workload.op
    assert isinstance(op, ExpertsOp)
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    E, D, I = op.num_experts, op.hidden_size, op.expert_intermediate_size
    tokens = workload.batch_size * workload.new_tokens
    scores, choice = draw(tokens, E, dtype=torch.float32).topk(op.top_k)
    return ExpertsInputs(
        x=draw(tokens, D),
        up=draw(E, 2 * I if op.gated else I, D).mul_(D**-0.5),
        down=draw(E, D, I).mul_(I**-0.5),
        choice=choice,
        weight=scores.softmax(-1),
    )


def activate(h: Tensor, *, gated: bool) -> Tensor:
    """SwiGLU, or the squared ReLU of experts without a gate."""
    if not gated:
        return h.relu().square()
    gate, value = h.chunk(2, dim=-1)
    return silu(gate) * value


def reference(inputs: ExpertsInputs) -> Output:
    """One expert after the other, each on the tokens that chose it."""
    o = torch.zeros_like(inputs.x)
    for expert in range(inputs.up.shape[0]):
        token, slot = (inputs.choice == expert).nonzero(as_tuple=True)
        if token.numel():
            up, down = (w[expert].to(o.dtype) for w in (inputs.up, inputs.down))
            y = linear(activate(linear(inputs.x[token], up), gated=inputs.gated), down)
            o.index_add_(0, token, y * inputs.weight[token, slot, None].to(y.dtype))
    return Output(o=o)


def probe(
    inputs: ExpertsInputs, output: Output, random: torch.Generator
) -> tuple[ExpertsInputs, Output]:
    """16 random tokens with the experts they chose."""
    rows = torch.randperm(inputs.x.shape[0], generator=random)[:PROBE_TOKENS].to(inputs.x.device)
    experts, choice = torch.unique(inputs.choice[rows], return_inverse=True)
    part = replace(
        inputs,
        x=inputs.x[rows],
        up=inputs.up[experts],
        down=inputs.down[experts],
        choice=choice,
        weight=inputs.weight[rows],
    )
    return part, Output(o=output.o[rows])


def by_expert(inputs: ExpertsInputs) -> tuple[Tensor, Tensor]:
    """The choices' order by expert, and where each expert's end; nothing waits for the host."""
    chosen, order = inputs.choice.flatten().sort()
    experts = torch.arange(inputs.up.shape[0], device=chosen.device)
    return order, torch.searchsorted(chosen, experts, right=True, out_int32=True)


def summed(inputs: ExpertsInputs, y: Tensor, order: Tensor) -> Output:
    """Each token's results, back in its own order, summed by its weights."""
    N, k = inputs.choice.shape
    back = torch.empty_like(order).scatter_(0, order, torch.arange(N * k, device=order.device))
    weight = inputs.weight.to(y.dtype)
    return Output(o=torch.bmm(weight[:, None], y[back].view(N, k, -1))[:, 0])


def prepare_sorted(inputs: ExpertsInputs) -> Kernel:
    """Tokens sorted by expert, then one product after the other: for a CPU."""

    def kernel(x: ExpertsInputs) -> Output:
        order, ends = by_expert(x)
        rows = x.x[order // x.choice.shape[1]]
        pieces = rows.tensor_split(ends[:-1].long())
        products = [
            linear(activate(linear(piece, up), gated=x.gated), down)
            for piece, up, down in zip(pieces, x.up, x.down, strict=True)
        ]
        return summed(x, torch.cat(products), order)

    return kernel


def prepare_grouped(inputs: ExpertsInputs) -> Kernel:
    """torch's `grouped_mm`: the products of all experts in one launch, and so in a CUDA graph."""
    from torch.nn.functional import grouped_mm

    def kernel(x: ExpertsInputs) -> Output:
        order, ends = by_expert(x)
        h = grouped_mm(x.x[order // x.choice.shape[1]], x.up.mT, offs=ends)
        y = grouped_mm(activate(h, gated=x.gated), x.down.mT, offs=ends)
        return summed(x, y, order)

    return kernel


def grouped_limits(workload: Workload, device: Device) -> str | None:
    if device.kind == "cuda" and device.capability < (8, 0):
        return "grouped_mm needs compute capability 8.0"
    return None


EXPERTS = Family(
    name="experts",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        Provider(
            name="grouped_mm",
            prepare=prepare_grouped,
            devices=("cuda",),
            dtypes=("bf16",),
            limits=grouped_limits,
        ),
        Provider(
            name="grouped_mm_cpu", prepare=prepare_grouped, devices=("cpu",), dtypes=("fp32",)
        ),
        Provider(name="sorted", prepare=prepare_sorted, devices=("cpu",), dtypes=("fp64", "fp32")),
    ),
)

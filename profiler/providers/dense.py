"""Dense layers on silicon: a weight matrix [out, in] times rows of activations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from planner.workload import DenseOp, Workload
from profiler.providers.recurrence import randn
from profiler.providers.softmax import PROBE_ROWS
from profiler.providers.spec import TORCH_DTYPES, Family, Inputs, Kernel, Output, Provider


@dataclass(frozen=True, kw_only=True)
class DenseInputs(Inputs):
    """x [rows, in], w [out, in]: rows are batch_size x new_tokens."""

    x: Tensor
    w: Tensor


def make_inputs(workload: Workload, device: torch.device, seed: int) -> DenseInputs:
    assert isinstance(workload.op, DenseOp)
    draw = randn(device, seed, TORCH_DTYPES[workload.dtype])
    rows, width = workload.batch_size * workload.new_tokens, workload.op.in_features
    return DenseInputs(
        x=draw(rows, width), w=draw(workload.op.out_features, width).mul_(width**-0.5)
    )


def reference(inputs: DenseInputs) -> Output:
    return Output(o=inputs.x @ inputs.w.T)


def probe(
    inputs: DenseInputs, output: Output, random: torch.Generator
) -> tuple[DenseInputs, Output]:
    """64 random rows."""
    rows = torch.randperm(inputs.x.shape[0], generator=random)[:PROBE_ROWS].to(inputs.x.device)
    return DenseInputs(x=inputs.x[rows], w=inputs.w), Output(o=output.o[rows])


def prepare_torch(inputs: DenseInputs) -> Kernel:
    return lambda x: Output(o=linear(x.x, x.w))


DENSE = Family(
    name="dense",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        Provider(
            name="torch",
            prepare=prepare_torch,
            devices=("cpu", "cuda"),
            dtypes=("fp64", "fp32", "bf16", "fp16"),
            phases=("prefill", "decode", "training"),
        ),
    ),
)

"""The correctness gate: nothing is timed that does not agree with the reference.

Two checks. Once per provider, operation and dtype (of stacks, once per set of blocks), the whole
output at a ragged length. And for each timed call a part of its output: 64 random query rows, or
the last tokens from a state carried there independently. In fp32 and fp64 the relative RMS error
against the reference in fp64 is at most 1e-4; in low precision at most twice the error of the
reference itself computed in that dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from planner.workload import Op, StackOp, Workload
from profiler.providers.spec import Call, Family, Kernel, Output, Provider
from profiler.segments import bind_segments

RAGGED_TOKENS = 1000
RAGGED_COSTLY_TOKENS = 200  # training: the token loop keeps every state; stacks: many loops
RAGGED_SEGMENT = 300
EXACT_TOLERANCE = 1e-4
LOW_PRECISION_FACTOR = 2.0
EXACT_DTYPES = (torch.float32, torch.float64)
SEED = 20


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Relative RMS error, what was allowed, and which tensor came closest to it or broke it."""

    error: float
    allowed: float
    what: str

    @property
    def passed(self) -> bool:
        return self.error <= self.allowed  # false for NaN

    def reason(self) -> str:
        return f"{self.what}: relative RMS error {self.error:.2e}, allowed {self.allowed:.2e}"


class Mismatch(Exception):
    """A provider's output is not the reference's; the message is the verdict's reason.

    `whole` tells the comparison at the ragged length, which speaks for every length, from that of
    a timed call's part.
    """

    def __init__(self, verdict: Verdict, *, whole: bool) -> None:
        super().__init__(verdict.reason())
        self.whole = whole


def relative_rms(got: Tensor, wanted: Tensor) -> float:
    """‖got - wanted‖ / ‖wanted‖ in float64."""
    wanted = wanted.double()
    scale = torch.linalg.vector_norm(wanted)
    return float(torch.linalg.vector_norm(got.double() - wanted) / scale.clamp_min(1e-30))


def compare(family: Family, inputs: Any, output: Output, *, training: bool = False) -> Verdict:
    """The worst of the output's tensors against the reference on the same inputs.

    In low precision each may be off by twice what the reference computed in that dtype is off. A
    state that is carried in a wider dtype than the output may be off by as much as the output: a
    kernel may round the products that it adds to it, where the reference rounds what it reads.
    """
    dtype = output.o.dtype
    reference = bind_training(family.reference) if training else family.reference
    exact = named_tensors(reference(inputs.to(torch.float64)))
    rough = {} if dtype in EXACT_DTYPES else named_tensors(reference(inputs.to(dtype)))
    verdicts = []
    for name, got in named_tensors(output).items():
        allowed = EXACT_TOLERANCE
        if rough:
            wider = name == "state" and rough["state"].dtype != rough["output"].dtype
            like = ("state", "output") if wider else (name,)
            allowed = LOW_PRECISION_FACTOR * max(relative_rms(rough[n], exact[n]) for n in like)
        error = relative_rms(got, exact[name])
        verdicts.append(Verdict(error=error, allowed=allowed, what=name))
    return max(verdicts, key=lambda v: (not v.passed, v.error / max(v.allowed, 1e-30)))


def named_tensors(output: Output) -> dict[str, Tensor]:
    found = {"output": output.o}
    if output.state is not None:
        found["state"] = output.state
    found |= {f"gradient {i}": g for i, g in enumerate(output.grads) if g is not None}
    return found


def bind_training(kernel: Kernel) -> Kernel:
    """The kernel with its backward: gradients of a fixed random cotangent."""

    def with_backward(inputs: Any) -> Output:
        leaves = inputs.map(lambda t: t.detach().requires_grad_(t.is_floating_point()))
        with torch.enable_grad():
            output = kernel(leaves)
        source = torch.Generator(device=output.o.device).manual_seed(SEED)
        cotangent = torch.randn(
            output.o.shape, generator=source, device=output.o.device, dtype=torch.float32
        ).to(output.o.dtype)
        wanted = [t for t in leaves.tensors().values() if t.requires_grad]
        grads = torch.autograd.grad(output.o, wanted, cotangent, allow_unused=True)
        return Output(o=output.o.detach(), grads=grads)

    return with_backward


def bind(provider: Provider, inputs: Any, *, training: bool) -> Call:
    """The call that is timed: the provider's kernel on these inputs, laid out as it keeps them."""
    laid_out = provider.lay_out(inputs)
    kernel = provider.prepare(laid_out)
    kernel = bind_training(kernel) if training else kernel
    return lambda: kernel(laid_out)


def copies(provider: Provider, inputs: Any, n: int, *, training: bool) -> list[Call]:
    """n such calls, each on its own tensors; prepared once."""
    laid_out = provider.lay_out(inputs)
    kernel = provider.prepare(laid_out)
    kernel = bind_training(kernel) if training else kernel
    return [partial(kernel, copied) for copied in laid_out.copies(n)]


def compared(op: Op) -> Op:
    """The operation whose comparison holds for this one: of a stack, a block of each kind.

    A deeper stack runs the same blocks again. By itself it would be compared with an error that
    twelve random layers have blown up to a tenth of the output, in both computations.
    """
    if not isinstance(op, StackOp):
        return op
    return replace(op, pattern="".join(sorted(set(op.pattern))))


def ragged(workload: Workload) -> Workload:
    """This workload at the gate's length: same operation, dtype, kind of phase and few sequences.

    A prefill becomes 1000 tokens, a segment their last 300, a decode step the 1000th (200, 60 and
    the 200th for training and stacks).
    """
    costly = workload.training or isinstance(workload.op, StackOp)
    total = RAGGED_COSTLY_TOKENS if costly else RAGGED_TOKENS
    total = min(total, workload.context)
    new = workload.new_tokens
    if workload.cached_tokens and new > 1:
        new = min(new, max(2, 3 * total // 10))
    elif new > 1:
        new = total
    return replace(
        workload,
        op=compared(workload.op),
        batch_size=min(2, workload.batch_size),
        new_tokens=new,
        cached_tokens=max(total - new, 0) if workload.cached_tokens else 0,
    )


def check_ragged(
    family: Family,
    provider: Provider,
    workload: Workload,
    device: torch.device,
    *,
    segmented: bool = False,
) -> Verdict:
    """The whole output at a ragged length, in one call or in segments. Raises Mismatch."""
    short = ragged(workload)
    inputs = family.make_inputs(short, device, SEED)
    if segmented:
        call = bind_segments(provider, inputs.clone(), RAGGED_SEGMENT, whole_output=True)
    else:
        call = bind(provider, inputs.clone(), training=workload.training)
    output = call()
    return _accepted(compare(family, inputs, output, training=workload.training), whole=True)


def check_part(family: Family, inputs: Any, output: Output) -> Verdict | None:
    """A part of a timed call's output; None if the family has none to check. Raises Mismatch."""
    part = family.probe(inputs, output, torch.Generator().manual_seed(SEED))
    return None if part is None else _accepted(compare(family, *part), whole=False)


def _accepted(verdict: Verdict, *, whole: bool) -> Verdict:
    if not verdict.passed:
        raise Mismatch(verdict, whole=whole)
    return verdict

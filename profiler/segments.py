"""A long prefill in segments: the variant "segments=8192" of a prefill's points.

Engines split long prefills to bound their workspace; a segment continues from the state, or from
the cached keys and values, of those before it. The result is the same, the time and memory differ,
so both ways are measured.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from planner.errors import UsageError
from planner.workload import Workload
from profiler.providers.recurrence import RecurrentInputs
from profiler.providers.softmax import AttentionInputs
from profiler.providers.spec import Call, Kernel, Output, Provider

_VARIANT = re.compile(r"segments=(\d+)")


def variant_of(size: int) -> str:
    return f"segments={size}"


def segment_size(variant: str) -> int | None:
    """Tokens of a segment; None for the plain variant. Raises UsageError for any other text."""
    if not variant:
        return None
    match = _VARIANT.fullmatch(variant)
    if match is None or int(match[1]) < 1:
        raise UsageError(f'variant must be "" or such as "segments=8192", got {variant!r}')
    return int(match[1])


def segment_of(workload: Workload, size: int) -> Workload:
    """The prefill's second segment, which a provider has to be able to run."""
    return replace(workload, new_tokens=size, cached_tokens=size)


def bind_segments(provider: Provider, inputs: Any, size: int, *, whole_output: bool) -> Call:
    """The call that runs all segments in order.

    It returns the last one's output, as nothing needs the others joined; `whole_output` joins
    them, for the gate.
    """
    pieces = list(split(inputs, size))
    kernels: dict[object, Kernel] = {}
    for piece in pieces:
        if shape_of(piece) not in kernels:
            kernels[shape_of(piece)] = provider.prepare(provider.lay_out(piece))

    def call() -> Output:
        state = getattr(inputs, "state", None)
        outputs: list[torch.Tensor] = []
        for piece in pieces:
            continued = piece
            if isinstance(piece, RecurrentInputs):
                continued = replace(piece, state=state)
            output = kernels[shape_of(piece)](continued)
            state = output.state
            outputs = [*outputs, output.o] if whole_output else [output.o]
        o = torch.cat(outputs, dim=1) if whole_output else outputs[0]
        return Output(o=o, state=state)

    return call


def split(inputs: Any, size: int) -> Iterator[Any]:
    """The inputs of each segment; recurrent ones without the state they will continue from."""
    if isinstance(inputs, RecurrentInputs):
        for start in range(0, inputs.num_tokens, size):
            stop = min(start + size, inputs.num_tokens)
            yield inputs.part(slice(None), start, stop, None)
    elif isinstance(inputs, AttentionInputs):
        cached = inputs.num_keys - inputs.num_queries
        for start in range(0, inputs.num_queries, size):
            stop = min(start + size, inputs.num_queries)
            yield replace(
                inputs,
                q=inputs.q[:, start:stop],
                k=inputs.k[:, : cached + stop],
                v=inputs.v[:, : cached + stop],
            )
    else:
        raise UsageError(f"{type(inputs).__name__} does not split into segments")


def shape_of(piece: Any) -> tuple[torch.Size, torch.Size]:
    """What a kernel is prepared for."""
    return piece.q.shape, piece.k.shape

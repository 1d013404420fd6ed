"""Sliding-window attention on silicon. A window of W admits W keys, the query's own included.

Decode is full-attention decode over the last W keys of the cache, by the same providers.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from planner.workload import Workload
from profiler.device import Device
from profiler.providers.full_attention import ANY, HALF
from profiler.providers.softmax import (
    OWN_TRITON,
    AttentionInputs,
    decode_on_last_window,
    equal_head_dims,
    flex_limits,
    make_inputs,
    pin,
    prepare_flex,
    prepare_sdpa,
    prepare_varlen,
    probe,
    reference,
    sdpa_limits,
)
from profiler.providers.spec import NEEDS_FLA, NEEDS_TRITON, Family, Kernel, Output, Provider

MIN_BLOCK = 128


def prepare_chunked(inputs: AttentionInputs) -> Kernel:
    """Blocks of queries, each against only the keys it can see: linear in T, on plain SDPA.

    The band mask is the same for every block; blocks at the sequence's ends use a part of it.
    """
    T, S = inputs.num_queries, inputs.num_keys
    W = S if inputs.window is None else min(inputs.window, S)
    C = min(max(W, MIN_BLOCK), T)
    row, column = torch.arange(C)[:, None], torch.arange(C + W - 1)[None, :]
    band = (row <= column) & (column < row + W)
    attend = partial(
        scaled_dot_product_attention,
        scale=inputs.scale,
        enable_gqa=inputs.q.shape[2] != inputs.k.shape[2],
    )

    def block(q: Tensor, k: Tensor, v: Tensor, start: int) -> Tensor:
        stop = min(start + C, T)
        first = max(0, S - T + start - W + 1)
        last = S - T + stop
        skipped = W - 1 - (S - T + start - first)
        mask = band[: stop - start, skipped : skipped + last - first]
        return attend(q[:, :, start:stop], k[:, :, first:last], v[:, :, first:last], mask)

    def kernel(x: AttentionInputs) -> Output:
        pin("flash")
        q, k, v = x.q.transpose(1, 2), x.k.transpose(1, 2), x.v.transpose(1, 2)
        o = torch.cat([block(q, k, v, start) for start in range(0, T, C)], dim=2)
        return Output(o=o.transpose(1, 2))

    return kernel


def prepare_fla(inputs: AttentionInputs) -> Kernel:
    """fla's Triton `parallel_attn`, which skips the tiles left of the window."""
    from fla.ops.attn import parallel_attn

    def kernel(x: AttentionInputs) -> Output:
        return Output(o=parallel_attn(x.q, x.k, x.v, scale=x.scale, window_size=x.window))

    return kernel


def whole_prefill(workload: Workload, device: Device) -> str | None:
    if workload.cached_tokens:
        return "fla's parallel_attn takes whole sequences: no segments after a cache"
    return equal_head_dims(workload, device)


def _decode(
    name: str, backend: str, devices: tuple[Literal["cpu", "cuda"], ...], dtypes: tuple[str, ...]
) -> Provider:
    return Provider(
        name=name,
        prepare=decode_on_last_window(partial(prepare_sdpa, backend)),
        devices=devices,
        dtypes=dtypes,
        phases=("decode",),
        limits=partial(sdpa_limits, backend),
    )


SLIDING_WINDOW = Family(
    name="sliding_window",
    make_inputs=make_inputs,
    reference=reference,
    probe=probe,
    providers=(
        Provider(
            name="varlen",
            prepare=prepare_varlen,
            devices=("cuda",),
            dtypes=HALF,
            phases=("prefill", "decode", "training"),
            limits=equal_head_dims,
        ),
        OWN_TRITON,
        Provider(
            name="fla",
            prepare=prepare_fla,
            devices=("cuda",),
            dtypes=HALF,
            phases=("prefill", "training"),
            requires=(NEEDS_FLA,),
            limits=whole_prefill,
        ),
        Provider(
            name="flex",
            prepare=prepare_flex,
            devices=("cuda",),
            dtypes=ANY,
            phases=("prefill",),
            requires=(NEEDS_TRITON,),
            limits=flex_limits,
        ),
        _decode("sdpa_cudnn", "cudnn", ("cuda",), HALF),
        _decode("sdpa_flash", "flash", ("cuda",), HALF),
        Provider(
            name="chunked",
            prepare=prepare_chunked,
            devices=("cpu",),
            dtypes=("fp64", *ANY),
            phases=("prefill", "training"),
        ),
        _decode("sdpa_cpu", "flash", ("cpu",), ("fp64", *ANY)),
    ),
)

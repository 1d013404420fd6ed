"""Streams: what runs between the large kernels, each element read and written once.

Norms with their residuals, rotary codes and cache writes, gates, activations, routing, sampling.
Nobody measured these alone. Each takes the device's shortest measured call, for the launch, and
its bytes at a share of the bandwidth between those of two other streams: short convolutions in the
imported tables and a copy. The kernels counted are those of an engine that fuses what it can, four
to a layer of attention and MLP; plain torch runs more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from planner.architecture import Architecture
from planner.cost.analytic import EFFICIENCY, LAUNCH_FLOOR_S
from planner.cost.calls import shard, split_mlp, split_moe
from planner.mixers import MixerSpec, get_mixer
from planner.workload import StackOp

COPY_SHARE = 0.88
"""A copy on the H200: 4.2 TB/s, read plus written, of 4.8 (docs/log.md)."""

SHARE_OF_BANDWIDTH = math.sqrt(COPY_SHARE * EFFICIENCY["short_convolution", "prefill"].typical)

LOG_HALF_WIDTH = 0.69
"""Between half and twice: how much an engine fuses and hides. By assumption, and not for unfused
torch calls, which take 2 to 6 times as long (docs/log.md). The published steps of Llama 3.1 8B on
H100 and B200 (`data/end_to_end`) leave 0.3 to 0.8 ms to it and to the engine, of which 0.25 to 0.3
are counted here."""


@dataclass(frozen=True)
class Stream:
    """`count` kernels that move `elements` for each token, or each sequence's last one."""

    name: str
    count: int
    elements: int
    sees: Literal["tokens", "last"] = "tokens"

    def seconds(
        self, tokens: int, batch: int, *, launch_s: float, bandwidth: float, elem_bytes: float
    ) -> float:
        rows = tokens if self.sees == "tokens" else batch
        moved_s = rows * self.elements * elem_bytes / (SHARE_OF_BANDWIDTH * bandwidth)
        return self.count * (launch_s + moved_s)


def seconds_of(
    every: Iterable[Stream],
    tokens: int,
    batch: int,
    *,
    launch_s: float | None,
    bandwidth: float,
    elem_bytes: float,
) -> float:
    """All of them, one after the other; without `launch_s` a launch takes what is typical."""
    launch_s = LAUNCH_FLOOR_S if launch_s is None else launch_s
    return sum(
        stream.seconds(
            tokens, batch, launch_s=launch_s, bandwidth=bandwidth, elem_bytes=elem_bytes
        )
        for stream in every
    )


@lru_cache(maxsize=256)
def streams(arch: Architecture, degree: int) -> tuple[Stream, ...]:
    """Of one of `degree` devices; the residual stream is whole on each."""
    dense, sparse = arch.channel_layers()
    mixers = sum(arch.counts().values())
    columns = -(-arch.vocab_size // degree)
    return (
        # x and the residual read, the sum and its norm written; once more before the head
        Stream("norm and residual", mixers + dense + sparse + 1, 4 * arch.hidden_size),
        *(_of_mixer(shard(spec, degree), layers) for spec, layers in arch.counts().items()),
        *_of_channel(arch, degree, dense, sparse),
        Stream("embedding", 1, 2 * arch.hidden_size),
        Stream("sampling", 2, 2 * columns, "last"),
    )


def stack_streams(op: StackOp) -> Iterator[Stream]:
    """Of a stack of blocks by itself, without embedding and head."""
    layers = len(op.pattern)
    blocks = layers * (2 if op.mlp_size else 1)
    yield Stream("norm and residual", blocks, 4 * op.hidden_size)
    for letter, spec in op.kinds:
        if count := op.pattern.count(letter):
            yield _of_mixer(spec, count)
    if op.mlp_size:
        yield _activation("activation", layers, op.mlp_size, gated=op.mlp_gated)


def _of_mixer(spec: MixerSpec, layers: int) -> Stream:
    keys, values = spec.num_k_heads * spec.k_head_dim, spec.num_v_heads * spec.v_head_dim
    if get_mixer(spec.mixer).kind == "recurrent":
        return Stream(f"{spec.mixer} gated norm", layers, 3 * values)
    queries = spec.num_q_heads * spec.k_head_dim
    return Stream(f"{spec.mixer} rotary and cache", layers, 2 * (queries + keys + values))


def _of_channel(arch: Architecture, degree: int, dense: int, sparse: int) -> Iterator[Stream]:
    """Activations inside grouped experts are in the experts' own time."""
    if arch.mlp is not None and dense:
        mlp = split_mlp(arch.mlp, degree)
        yield _activation("activation", dense, mlp.intermediate_size, gated=mlp.gated)
    if arch.moe is not None and sparse:
        yield Stream("routing", sparse, 2 * arch.moe.num_experts)
        shared = split_moe(arch.moe, degree).shared_intermediate_size
        if shared:
            yield _activation("shared activation", sparse, shared, gated=arch.moe.gated)


def _activation(name: str, layers: int, width: int, *, gated: bool) -> Stream:
    return Stream(name, layers, (3 if gated else 2) * width)

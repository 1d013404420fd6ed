"""MixerSpec and Mixer: a token mixer's dimensions, and what they cost on paper.

A `MixerSpec` is data: which mixer, how many heads, how wide. A `Mixer` is the record of
functions that turn such data into FLOPs and bytes. Nothing here knows how long a kernel takes.

Legend: B batch, T new tokens, S cached tokens, H heads, K key dim, V value dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from planner.errors import UsageError

Count = Any
"""A token or batch count, or an integer array of them: every formula works on both."""

Number = Any
"""A FLOP or byte count, or a float array of them, shaped as the counts that went in."""


@dataclass(frozen=True, kw_only=True)
class MixerSpec:
    """A mixer with its dimensions. Heads are counted for queries, keys and values apart.

    Attention (GQA): `num_k_heads == num_v_heads` KV heads shared by groups of query heads.
    Gated DeltaNet: as many query as key heads, each shared by a group of value heads.
    Mamba-2: queries and keys are C and B (`num_q_heads == num_k_heads ==` groups, `k_head_dim`
    = state size N), values are x (`num_v_heads` heads of `v_head_dim` = P).
    MLA: `k_head_dim` is the part without position ("nope"); `rope_head_dim` comes on top.

    `window` is how many keys a query sees, itself included.
    """

    mixer: str
    num_q_heads: int
    num_k_heads: int
    num_v_heads: int
    k_head_dim: int
    v_head_dim: int
    window: int | None = None
    conv_size: int = 0
    output_gate: bool = False
    kv_lora_rank: int = 0
    q_lora_rank: int = 0
    rope_head_dim: int = 0

    def __post_init__(self) -> None:
        for name in ("num_q_heads", "num_k_heads", "num_v_heads", "k_head_dim", "v_head_dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.window is not None and self.window < 1:
            raise UsageError(
                f"window must be at least 1 (it counts the query itself), got {self.window}"
            )
        if (self.window is not None) != (self.mixer == "sliding_window"):
            raise UsageError(
                f"sliding_window needs a window and no other mixer has one, got "
                f"{self.mixer} with window {self.window}"
            )
        for name in ("num_q_heads", "num_v_heads"):
            if getattr(self, name) % self.num_k_heads:
                raise UsageError(
                    f"{name} must be a multiple of num_k_heads, got "
                    f"{getattr(self, name)} and {self.num_k_heads}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Only what differs from the defaults: stable identity when fields are added."""
        values = ((name, getattr(self, name)) for name in _DEFAULTS)
        return {name: value for name, value in values if value != _DEFAULTS[name]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MixerSpec:
        unknown = set(data) - {f.name for f in fields(cls)}
        if unknown:
            raise UsageError(
                f"unknown mixer field {sorted(unknown)[0]!r}; known: "
                f"{', '.join(f.name for f in fields(cls))}"
            )
        return cls(**data)

    def kernel(self) -> MixerSpec:
        """The dimensions that the mixer's own kernel sees.

        Output gates, short convolutions and a query's low rank belong to calls around it, so
        models that differ only in those share one measurement.
        """
        if not (self.output_gate or self.conv_size or self.q_lora_rank):
            return self
        return replace(self, output_gate=False, conv_size=0, q_lora_rank=0)

    def short(self) -> str:
        """As a person would write it: `full_attention 32/8x128`."""
        heads = f"{self.num_q_heads}/{self.num_v_heads}"
        dims = (
            f"{self.k_head_dim}"
            if self.k_head_dim == self.v_head_dim
            else f"{self.k_head_dim}+{self.v_head_dim}"
        )
        window = f" W{self.window}" if self.window is not None else ""
        return f"{self.mixer} {heads}x{dims}{window}"


_DEFAULTS = {f.name: f.default for f in fields(MixerSpec)}


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """A weight matrix of a layer: [tokens, in_features] @ [in_features, out_features].

    `of_cached`: a prefill runs it over the cached tokens too.
    """

    role: str
    in_features: int
    out_features: int
    of_cached: bool = False

    @property
    def parameters(self) -> int:
        return self.in_features * self.out_features


@dataclass(frozen=True, kw_only=True)
class Mixer:
    """A mixer on paper. Every function is vectorised over batch, new and cached tokens.

    - `model_flops(spec, batch, new, cached)`: algorithmic, causal-exact, multiply-add = 2.
    - `executed_flops(…)`: what the tiles or chunks of a usual kernel issue.
    - `min_bytes(spec, batch, new, cached, elem_bytes)`: each input read once, each output
      written once, from device memory.
    - `kv_cache_bytes(spec, context, elem_bytes)`: what one sequence stores per layer; grows.
    - `state_bytes(spec, elem_bytes)`: what one sequence stores per layer; constant.
    - `projections(spec, hidden_size)`: its weight matrices, fused as engines run them.
    - `conv_channels(spec)`: channels of its short convolution, 0 without one.
    - `matched(full, hidden_size)`: this mixer's usual dimensions in a model whose full-attention
      layers are `full`.
    """

    name: str
    letter: str
    title: str
    kind: Literal["full", "windowed", "recurrent"]
    model_flops: Callable[[MixerSpec, Count, Count, Count], Number]
    executed_flops: Callable[[MixerSpec, Count, Count, Count], Number]
    min_bytes: Callable[[MixerSpec, Count, Count, Count, float], Number]
    kv_cache_bytes: Callable[[MixerSpec, Count, float], Number]
    state_bytes: Callable[[MixerSpec, float], float]
    projections: Callable[[MixerSpec, int], tuple[Gemm, ...]]
    conv_channels: Callable[[MixerSpec], int]
    matched: Callable[[MixerSpec, int], MixerSpec]
    source: str

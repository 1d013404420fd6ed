"""Softmax attention on paper: full and sliding-window.

Cost is counted in query-key pairs: a pair costs one dot product (2 K FLOPs) and one weighted
sum (2 V FLOPs) for each query head. Softmax itself is ignored: no matrix unit runs it.

    >>> attended_pairs(4, 0, None)     # 1 + 2 + 3 + 4
    10
    >>> int(attended_pairs(4, 0, 2))   # 1 + 2 + 2 + 2
    7
"""

from __future__ import annotations

import numpy as np

from planner.mixers.spec import Count, Gemm, Mixer, MixerSpec, Number

TILE = 128  # rows and columns of a usual kernel's tile on Hopper and Ampere


def attended_pairs(new: Count, cached: Count, window: Count | None) -> Count:
    """Query-key pairs of causal attention of `new` tokens after `cached` ones.

    The query at position p (from 1) sees min(p, window) keys, itself included.
    """

    def up_to(n: Count) -> Count:
        w = n if window is None else np.minimum(n, window)
        return w * (w + 1) // 2 + (n - w) * w

    return up_to(cached + new) - up_to(cached)


def visible_keys(new: Count, cached: Count, window: int | None) -> Count:
    """How many keys at least one of the new queries sees: what must be read."""
    total = new + cached
    return total if window is None else np.minimum(total, new + window - 1)


def executed_pairs(new: Count, cached: Count, window: int | None) -> Number:
    """Pairs that tiles of `TILE` rows issue: whole tiles along the diagonal and the window's edge.

    A row in a tile of R rows runs to the tile's last key, (R - 1)/2 keys beyond its own on
    average; a windowed row also starts at the tile's first key, as if its window were (R - 1)/2
    wider (the mean of two whole windows where that is a half). One query (decode) wastes none.
    """
    rows = np.minimum(new, TILE)
    beyond = new * (rows - 1) / 2
    if window is None:
        return attended_pairs(new, cached, None) + beyond
    narrow = attended_pairs(new, cached, window + (rows - 1) // 2)
    wide = attended_pairs(new, cached, window + rows // 2)
    return (narrow + wide) / 2 + beyond


def flops_per_pair(spec: MixerSpec) -> float:
    return 2.0 * spec.num_q_heads * (spec.k_head_dim + spec.v_head_dim)


def kv_elements_per_token(spec: MixerSpec) -> int:
    return spec.num_k_heads * spec.k_head_dim + spec.num_v_heads * spec.v_head_dim


def model_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """QK^T and PV over the attended pairs; softmax ignored."""
    return batch * flops_per_pair(spec) * attended_pairs(new, cached, spec.window)


def executed_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    return batch * flops_per_pair(spec) * executed_pairs(new, cached, spec.window)


def min_bytes(
    spec: MixerSpec, batch: Count, new: Count, cached: Count, elem_bytes: float
) -> Number:
    """Reads q and every visible k and v once, writes o. Writing the cache is not the kernel's."""
    q_and_o = new * spec.num_q_heads * (spec.k_head_dim + spec.v_head_dim)
    kv = visible_keys(new, cached, spec.window) * kv_elements_per_token(spec)
    return batch * elem_bytes * (q_and_o + kv)


def kv_cache_bytes(spec: MixerSpec, context: Count, elem_bytes: float) -> Number:
    """Keys and values one sequence stores in one layer; a window caps what is kept."""
    kept = context if spec.window is None else np.minimum(context, spec.window)
    return kept * kv_elements_per_token(spec) * elem_bytes


def projections(spec: MixerSpec, hidden_size: int) -> tuple[Gemm, ...]:
    """Fused q, k, v (an output gate doubles q's columns, as in Qwen3-Next), and o."""
    q = spec.num_q_heads * spec.k_head_dim * (2 if spec.output_gate else 1)
    return (
        Gemm(role="qkv", in_features=hidden_size, out_features=q + kv_elements_per_token(spec)),
        Gemm(role="o", in_features=spec.num_q_heads * spec.v_head_dim, out_features=hidden_size),
    )


DEFAULT_WINDOW = 1024  # Gemma 3's (arXiv:2503.19786, table 1)


def _windowed(full: MixerSpec, hidden_size: int) -> MixerSpec:
    return MixerSpec(
        mixer="sliding_window",
        num_q_heads=full.num_q_heads,
        num_k_heads=full.num_k_heads,
        num_v_heads=full.num_v_heads,
        k_head_dim=full.k_head_dim,
        v_head_dim=full.v_head_dim,
        window=DEFAULT_WINDOW,
        output_gate=full.output_gate,
    )


FULL_ATTENTION = Mixer(
    name="full_attention",
    letter="F",
    title="Full attention",
    kind="full",
    model_flops=model_flops,
    executed_flops=executed_flops,
    min_bytes=min_bytes,
    kv_cache_bytes=kv_cache_bytes,
    state_bytes=lambda spec, elem_bytes: 0.0,
    projections=projections,
    conv_channels=lambda spec: 0,
    matched=lambda full, hidden_size: full,
    source="Dao et al. 2022, arXiv:2205.14135; causal halving exact: T(T+1)/2 pairs",
)

SLIDING_WINDOW = Mixer(
    name="sliding_window",
    letter="S",
    title="Sliding window",
    kind="windowed",
    model_flops=model_flops,
    executed_flops=executed_flops,
    min_bytes=min_bytes,
    kv_cache_bytes=kv_cache_bytes,
    state_bytes=lambda spec, elem_bytes: 0.0,
    projections=projections,
    conv_channels=lambda spec: 0,
    matched=_windowed,
    source="Beltagy et al. 2020, arXiv:2004.05150; pairs W T - W(W-1)/2 for T >= W",
)

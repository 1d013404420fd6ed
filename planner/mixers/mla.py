"""Multi-head latent attention on paper: softmax attention over a compressed cache.

The cache holds one latent of `kv_lora_rank` and one rotary key of `rope_head_dim` per token,
shared by all heads. Prefill expands the latents to per-head keys and values; decode folds the
expansion into queries and output and attends in the latent space.
"""

from __future__ import annotations

import numpy as np

from planner.mixers.attention import attended_pairs, executed_pairs
from planner.mixers.spec import Count, Gemm, Mixer, MixerSpec, Number


def flops_per_pair(spec: MixerSpec, new: Count) -> Number:
    """Expanded: 2H(K + rope + V). Absorbed, one query: 2H(2 lora + rope)."""
    expanded = spec.k_head_dim + spec.rope_head_dim + spec.v_head_dim
    absorbed = 2 * spec.kv_lora_rank + spec.rope_head_dim
    return 2.0 * spec.num_q_heads * np.where(np.asarray(new) == 1, absorbed, expanded)[()]


def model_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """Scores and weighted sum over the pairs; the latents' expansion counts as a projection."""
    return batch * flops_per_pair(spec, new) * attended_pairs(new, cached, None)


def executed_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    return batch * flops_per_pair(spec, new) * executed_pairs(new, cached, None)


def latent_elements(spec: MixerSpec) -> int:
    return spec.kv_lora_rank + spec.rope_head_dim


def min_bytes(
    spec: MixerSpec, batch: Count, new: Count, cached: Count, elem_bytes: float
) -> Number:
    """Prefill reads expanded q, k, v and writes o; a single query reads the latents once."""
    H, total = spec.num_q_heads, new + cached
    per_head = spec.k_head_dim + spec.rope_head_dim + spec.v_head_dim
    expanded = H * per_head * (new + total)
    absorbed = total * latent_elements(spec) + new * H * (
        2 * spec.kv_lora_rank + spec.rope_head_dim
    )
    return batch * elem_bytes * np.where(np.asarray(new) == 1, absorbed, expanded)[()]


def kv_cache_bytes(spec: MixerSpec, context: Count, elem_bytes: float) -> Number:
    return context * latent_elements(spec) * elem_bytes


def projections(spec: MixerSpec, hidden_size: int) -> tuple[Gemm, ...]:
    """q (through its own low rank where there is one), the latent, its expansion, o."""
    H = spec.num_q_heads
    q_columns = H * (spec.k_head_dim + spec.rope_head_dim)
    q: tuple[Gemm, ...] = (Gemm(role="q", in_features=hidden_size, out_features=q_columns),)
    if spec.q_lora_rank:
        q = (
            Gemm(role="q_down", in_features=hidden_size, out_features=spec.q_lora_rank),
            Gemm(role="q_up", in_features=spec.q_lora_rank, out_features=q_columns),
        )
    return (
        *q,
        Gemm(role="kv_down", in_features=hidden_size, out_features=latent_elements(spec)),
        Gemm(
            role="kv_up",
            in_features=spec.kv_lora_rank,
            out_features=H * (spec.k_head_dim + spec.v_head_dim),
            of_cached=True,
        ),
        Gemm(role="o", in_features=H * spec.v_head_dim, out_features=hidden_size),
    )


def _matched(full: MixerSpec, hidden_size: int) -> MixerSpec:
    """DeepSeek-V2's sizes with this model's query heads."""
    return MixerSpec(
        mixer="mla",
        num_q_heads=full.num_q_heads,
        num_k_heads=full.num_q_heads,
        num_v_heads=full.num_q_heads,
        k_head_dim=128,
        v_head_dim=128,
        kv_lora_rank=512,
        rope_head_dim=64,
    )


MLA = Mixer(
    name="mla",
    letter="A",
    title="Multi-head latent attention",
    kind="full",
    model_flops=model_flops,
    executed_flops=executed_flops,
    min_bytes=min_bytes,
    kv_cache_bytes=kv_cache_bytes,
    state_bytes=lambda spec, elem_bytes: 0.0,
    projections=projections,
    conv_channels=lambda spec: 0,
    matched=_matched,
    source="DeepSeek-V2, arXiv:2405.04434, sec. 2.1",
)

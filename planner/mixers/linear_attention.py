"""Linear attention on paper: no softmax, no decay, or one constant decay per head (lightning).

o_t = q_t S_t with S_t = γ S_{t-1} + k_t v_tᵀ; γ = 1 for plain linear attention.
"""

from __future__ import annotations

from functools import partial

from planner.mixers import recurrent
from planner.mixers.spec import Count, Gemm, Mixer, MixerSpec, Number


def model_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """Per token and head 4KV with the state and (C + 1)(K + V) inside the causal chunk."""
    K, V = spec.k_head_dim, spec.v_head_dim
    return (
        batch
        * spec.num_v_heads
        * recurrent.by_phase(new, lambda C: 4 * K * V + (C + 1) * (K + V), 4 * K * V)
    )


def executed_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """As `model_flops`, but the chunk's matrices are issued whole: 2C(K + V)."""
    K, V = spec.k_head_dim, spec.v_head_dim
    return (
        batch
        * spec.num_v_heads
        * recurrent.by_phase(new, lambda C: 4 * K * V + 2 * C * (K + V), 4 * K * V)
    )


def state_bytes(spec: MixerSpec, elem_bytes: float) -> float:
    """The [H, K, V] state; no convolution."""
    return recurrent.state_elements(spec) * elem_bytes


def projections(spec: MixerSpec, hidden_size: int) -> tuple[Gemm, ...]:
    """Fused q, k, v and, where the model has one (MiniMax), the output gate; o."""
    values = spec.num_v_heads * spec.v_head_dim
    keys = (spec.num_q_heads + spec.num_k_heads) * spec.k_head_dim
    columns = keys + values * (2 if spec.output_gate else 1)
    return (
        Gemm(role="qkv", in_features=hidden_size, out_features=columns),
        Gemm(role="o", in_features=values, out_features=hidden_size),
    )


def _matched(mixer: str, full: MixerSpec, hidden_size: int) -> MixerSpec:
    """One state per query head, keys and values as wide as the attention head."""
    return MixerSpec(
        mixer=mixer,
        num_q_heads=full.num_q_heads,
        num_k_heads=full.num_q_heads,
        num_v_heads=full.num_q_heads,
        k_head_dim=full.v_head_dim,
        v_head_dim=full.v_head_dim,
        output_gate=mixer == "lightning",
    )


def _mixer(name: str, letter: str, title: str, source: str) -> Mixer:
    return Mixer(
        name=name,
        letter=letter,
        title=title,
        kind="recurrent",
        model_flops=model_flops,
        executed_flops=executed_flops,
        min_bytes=partial(recurrent.min_bytes, fp32_gates_per_token=0),
        kv_cache_bytes=recurrent.no_kv_cache,
        state_bytes=state_bytes,
        projections=projections,
        conv_channels=lambda spec: 0,
        matched=partial(_matched, name),
        source=source,
    )


LINEAR_ATTENTION = _mixer(
    "linear_attention",
    "L",
    "Linear attention",
    "Katharopoulos et al. 2020, arXiv:2006.16236; chunked: Yang et al. 2023, arXiv:2312.06635",
)
LIGHTNING = _mixer(
    "lightning",
    "N",
    "Lightning attention",
    "Qin et al. 2024, arXiv:2401.04658; MiniMax-01, arXiv:2501.08313",
)

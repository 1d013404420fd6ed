"""Gated DeltaNet and KDA on paper: a fast-weight memory that overwrites what it finds.

S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,  o_t = q_t S_t. Gated DeltaNet has one decay
α per value head and token, KDA (Kimi Delta Attention) one per key channel.
"""

from __future__ import annotations

from planner.mixers import recurrent
from planner.mixers.spec import Count, Gemm, Mixer, MixerSpec, Number

STEP_FLOPS_PER_STATE_ELEMENT = 6  # k S, outer-product update, q S; decay ignored


def model_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """Per token and value head 6KV + C(2K + V) + C².

    With K = V = d this is Kimi Linear's eq. 13, 6Td² + 3TCd + TC² (arXiv:2510.26692).
    """
    K, V = spec.k_head_dim, spec.v_head_dim
    return (
        batch
        * spec.num_v_heads
        * recurrent.by_phase(
            new,
            lambda C: 6 * K * V + C * (2 * K + V) + C * C,
            STEP_FLOPS_PER_STATE_ELEMENT * K * V,
        )
    )


def executed_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """What fla's chunked kernels issue: 6KV + 6CK + 4CV + C²/3, counted from their products.

    KKᵀ 2CK, triangular solve C²/3, W 2CK, U 2CV, U - WS 2KV, Kᵀv 2KV, QS 2KV, QKᵀ 2CK, A v 2CV.
    """
    K, V = spec.k_head_dim, spec.v_head_dim
    return (
        batch
        * spec.num_v_heads
        * recurrent.by_phase(
            new,
            lambda C: 6 * K * V + 6 * C * K + 4 * C * V + C * C / 3,
            STEP_FLOPS_PER_STATE_ELEMENT * K * V,
        )
    )


def conv_channels(spec: MixerSpec) -> int:
    """Short convolutions run over q, k and v."""
    if not spec.conv_size:
        return 0
    return (
        spec.num_q_heads + spec.num_k_heads
    ) * spec.k_head_dim + spec.num_v_heads * spec.v_head_dim


def state_bytes(spec: MixerSpec, elem_bytes: float) -> float:
    """The [Hv, K, V] state and the convolution's tail, both in `elem_bytes`."""
    tail = recurrent.conv_tail_elements(spec, conv_channels(spec))
    return (recurrent.state_elements(spec) + tail) * elem_bytes


def _gdn_bytes(
    spec: MixerSpec, batch: Count, new: Count, cached: Count, elem_bytes: float
) -> Number:
    """Gates: the log decay and β, one of each per value head."""
    return recurrent.min_bytes(
        spec, batch, new, cached, elem_bytes, fp32_gates_per_token=2 * spec.num_v_heads
    )


def _kda_bytes(
    spec: MixerSpec, batch: Count, new: Count, cached: Count, elem_bytes: float
) -> Number:
    """Gates: a log decay per key channel, and β per head."""
    return recurrent.min_bytes(
        spec,
        batch,
        new,
        cached,
        elem_bytes,
        fp32_gates_per_token=spec.num_v_heads * (spec.k_head_dim + 1),
    )


def _gdn_projections(spec: MixerSpec, hidden_size: int) -> tuple[Gemm, ...]:
    """Qwen3-Next's layout: q, k, v, z in one matrix, β and decay in another, o."""
    values = spec.num_v_heads * spec.v_head_dim
    keys = (spec.num_q_heads + spec.num_k_heads) * spec.k_head_dim
    return (
        Gemm(role="qkvz", in_features=hidden_size, out_features=keys + 2 * values),
        Gemm(role="ba", in_features=hidden_size, out_features=2 * spec.num_v_heads),
        Gemm(role="o", in_features=values, out_features=hidden_size),
    )


def _kda_projections(spec: MixerSpec, hidden_size: int) -> tuple[Gemm, ...]:
    """Kimi Linear's layout: q, k, v; low-rank decay and output gates through one head dim; o."""
    values = spec.num_v_heads * spec.v_head_dim
    keys = spec.num_k_heads * spec.k_head_dim
    rank = spec.v_head_dim
    return (
        Gemm(
            role="qkv",
            in_features=hidden_size,
            out_features=spec.num_q_heads * spec.k_head_dim + keys + values,
        ),
        Gemm(role="gates_down", in_features=hidden_size, out_features=2 * rank + spec.num_v_heads),
        Gemm(role="decay_up", in_features=rank, out_features=keys),
        Gemm(role="gate_up", in_features=rank, out_features=values),
        Gemm(role="o", in_features=values, out_features=hidden_size),
    )


CONV_SIZE = 4  # Qwen3-Next and Kimi Linear config.json


def _matched_gdn(full: MixerSpec, hidden_size: int) -> MixerSpec:
    """Qwen's proportion: values as wide as the attention's queries, at most 16 key heads.

    Holds for Qwen3-Next 80B (16 x 256 = 32 x 128), Qwen3.5 27B and 397B (config.json of each).
    """
    dim = full_dim(full)
    value_heads = max(2, full.num_q_heads * full.k_head_dim // dim)
    key_heads = min(16, value_heads // 2)
    while value_heads % key_heads:
        key_heads -= 1
    return MixerSpec(
        mixer="gated_deltanet",
        num_q_heads=key_heads,
        num_k_heads=key_heads,
        num_v_heads=value_heads,
        k_head_dim=dim,
        v_head_dim=dim,
        conv_size=CONV_SIZE,
    )


def _matched_kda(full: MixerSpec, hidden_size: int) -> MixerSpec:
    """Kimi Linear's proportion: as wide as the attention's values together, in heads of one width
    for k and v."""
    dim = full_dim(full)
    heads = max(1, full.num_q_heads * full.v_head_dim // dim)
    return MixerSpec(
        mixer="kda",
        num_q_heads=heads,
        num_k_heads=heads,
        num_v_heads=heads,
        k_head_dim=dim,
        v_head_dim=dim,
        conv_size=CONV_SIZE,
    )


def full_dim(full: MixerSpec) -> int:
    """State heads are at most 128 wide in the released models and in their kernels."""
    return min(full.v_head_dim, 128)


GATED_DELTANET = Mixer(
    name="gated_deltanet",
    letter="G",
    title="Gated DeltaNet",
    kind="recurrent",
    model_flops=model_flops,
    executed_flops=executed_flops,
    min_bytes=_gdn_bytes,
    kv_cache_bytes=recurrent.no_kv_cache,
    state_bytes=state_bytes,
    projections=_gdn_projections,
    conv_channels=conv_channels,
    matched=_matched_gdn,
    source="Yang et al. 2024, arXiv:2412.06464; FLOPs: Kimi Linear eq. 13, arXiv:2510.26692",
)

KDA = Mixer(
    name="kda",
    letter="K",
    title="Kimi Delta Attention",
    kind="recurrent",
    model_flops=model_flops,
    executed_flops=executed_flops,
    min_bytes=_kda_bytes,
    kv_cache_bytes=recurrent.no_kv_cache,
    state_bytes=state_bytes,
    projections=_kda_projections,
    conv_channels=conv_channels,
    matched=_matched_kda,
    source="Kimi Linear, arXiv:2510.26692, eq. 13",
)

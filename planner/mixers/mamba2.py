"""Mamba-2 (SSD) on paper: linear attention with a data-dependent scalar decay per head.

S_t = exp(A dt_t) S_{t-1} + B_t (dt_t x_t)ᵀ,  y_t = C_t S_t + D x_t. C and B play queries and keys
and are shared by groups of heads; x plays the values.
"""

from __future__ import annotations

from planner.mixers import recurrent
from planner.mixers.spec import Count, Gemm, Mixer, MixerSpec, Number

STEP_FLOPS_PER_STATE_ELEMENT = 5  # decay, outer-product update, C·S
SSD_CHUNK = 256  # mamba_ssm's default chunk_size


def model_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """Per token C Bᵀ once per group, (C+1)N; per head (C+1)P in the chunk, 4NP with the state.

    The chunk is `recurrent.CHUNK` as for the other recurrent mixers, so that they compare.
    """
    N, P, G, H = spec.k_head_dim, spec.v_head_dim, spec.num_k_heads, spec.num_v_heads
    return batch * recurrent.by_phase(
        new,
        lambda C: G * (C + 1) * N + H * ((C + 1) * P + 4 * N * P),
        STEP_FLOPS_PER_STATE_ELEMENT * H * N * P,
    )


def executed_flops(spec: MixerSpec, batch: Count, new: Count, cached: Count) -> Number:
    """What mamba_ssm's chunk of 256 issues: G 2CN + H(2CP + 4NP) + 2HNP/C per token."""
    N, P, G, H = spec.k_head_dim, spec.v_head_dim, spec.num_k_heads, spec.num_v_heads
    widen = SSD_CHUNK // recurrent.CHUNK

    def per_token(C: Number) -> Number:
        c = C * widen
        return G * 2 * c * N + H * (2 * c * P + 4 * N * P) + 2 * H * N * P / c

    return batch * recurrent.by_phase(new, per_token, STEP_FLOPS_PER_STATE_ELEMENT * H * N * P)


def min_bytes(
    spec: MixerSpec, batch: Count, new: Count, cached: Count, elem_bytes: float
) -> Number:
    """Gates: dt, one per head; A and D are constants of the layer."""
    return recurrent.min_bytes(
        spec, batch, new, cached, elem_bytes, fp32_gates_per_token=spec.num_v_heads
    )


def conv_channels(spec: MixerSpec) -> int:
    """One short convolution over x, B and C."""
    if not spec.conv_size:
        return 0
    return spec.num_v_heads * spec.v_head_dim + 2 * spec.num_k_heads * spec.k_head_dim


def state_bytes(spec: MixerSpec, elem_bytes: float) -> float:
    """The [H, N, P] state and the convolution's tail, both in `elem_bytes`."""
    tail = recurrent.conv_tail_elements(spec, conv_channels(spec))
    return (recurrent.state_elements(spec) + tail) * elem_bytes


def projections(spec: MixerSpec, hidden_size: int) -> tuple[Gemm, ...]:
    """in_proj gives z, x, B, C and dt; out_proj."""
    inner = spec.num_v_heads * spec.v_head_dim
    columns = 2 * inner + 2 * spec.num_k_heads * spec.k_head_dim + spec.num_v_heads
    return (
        Gemm(role="in_proj", in_features=hidden_size, out_features=columns),
        Gemm(role="out_proj", in_features=inner, out_features=hidden_size),
    )


def _matched(full: MixerSpec, hidden_size: int) -> MixerSpec:
    """Mamba-2's defaults, as in Nemotron-H: expand 2, P = 64, N = 128; a group per KV head."""
    head_dim = 64
    heads = 2 * hidden_size // head_dim
    groups = full.num_k_heads if heads % full.num_k_heads == 0 else 1
    return MixerSpec(
        mixer="mamba2",
        num_q_heads=groups,
        num_k_heads=groups,
        num_v_heads=heads,
        k_head_dim=128,
        v_head_dim=head_dim,
        conv_size=4,
    )


MAMBA2 = Mixer(
    name="mamba2",
    letter="M",
    title="Mamba-2",
    kind="recurrent",
    model_flops=model_flops,
    executed_flops=executed_flops,
    min_bytes=min_bytes,
    kv_cache_bytes=recurrent.no_kv_cache,
    state_bytes=state_bytes,
    projections=projections,
    conv_channels=conv_channels,
    matched=_matched,
    source="Dao and Gu 2024, arXiv:2405.21060, sec. 6; Nemotron-H, arXiv:2504.03624",
)

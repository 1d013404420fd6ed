"""What the recurrent mixers share on paper: a [K, V] state per value head, run in chunks.

A chunked kernel does, for each chunk of C tokens, matrix products inside the chunk (quadratic
in C) and products with the carried state (linear in T). One token at a time, only the state
part remains. The formulas differ by mixer; the bytes differ by the gates they read.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from planner.mixers.spec import Count, MixerSpec, Number

CHUNK = 64  # fla's and Kimi Linear's chunk; Mamba-2's own kernels use 256

FP32_BYTES = 4


def state_elements(spec: MixerSpec) -> int:
    return spec.num_v_heads * spec.k_head_dim * spec.v_head_dim


def conv_tail_elements(spec: MixerSpec, channels: int) -> int:
    """The last conv_size - 1 inputs that a causal short convolution needs for its next step."""
    return channels * (spec.conv_size - 1) if spec.conv_size else 0


def by_phase(
    new: Count, per_token_chunked: Callable[[Number], Number], per_token_step: float
) -> Number:
    """FLOPs of `new` tokens: chunks of C = min(CHUNK, new), or one recurrent step if new = 1."""
    chunk = np.minimum(new, CHUNK)
    return np.where(new == 1, per_token_step, new * per_token_chunked(chunk))[()]


def min_bytes(
    spec: MixerSpec,
    batch: Count,
    new: Count,
    cached: Count,
    elem_bytes: float,
    *,
    fp32_gates_per_token: int,
) -> Number:
    """Reads q, k, v and fp32 gates, writes o; writes the fp32 state, reads it if one came in."""
    tokens = (
        new
        * elem_bytes
        * (
            (spec.num_q_heads + spec.num_k_heads) * spec.k_head_dim
            + 2 * spec.num_v_heads * spec.v_head_dim
        )
    )
    gates = new * FP32_BYTES * fp32_gates_per_token
    passes = 1 + (np.asarray(cached) > 0)
    state = passes * FP32_BYTES * state_elements(spec)
    return (batch * (tokens + gates + state))[()]


def no_kv_cache(spec: MixerSpec, context: Count, elem_bytes: float) -> Number:
    return (np.asarray(context) * 0.0)[()]

"""Linear attention with a scalar gate per head: one fused, chunked kernel, and its one-token step.

The recurrence, per head, with the state S a [K, V] matrix and g_t ≤ 0 a log-decay:

    S_t = exp(g_t) S_{t-1} + k_t v_tᵀ            o_t = scale · q_tᵀ S_t

serves plain linear attention (g = 0), lightning attention and RetNet (g constant per head),
simple gated attention, and Mamba-2's SSD (q = C, k = B, v = x weighted by Δt, g = Δt · A, the
heads of a group sharing q and k). Token by token it is all memory traffic, so it is computed by
chunks of C tokens (Yang et al. 2023, arXiv:2312.06635; Dao and Gu 2024, arXiv:2405.21060). With
b_i the sum of g over the chunk's tokens up to i, and S the state before the chunk,

    o_i = scale · ( exp(b_i) q_iᵀ S + Σ_{j ≤ i} exp(b_i - b_j) (q_i·k_j) v_j )
    S  ← exp(b_C) S + Σ_j exp(b_C - b_j) k_j v_jᵀ

which is four matrix products per chunk. All decays are exponentials of differences that are ≤ 0:
nothing overflows however strong the gate. A positive weight s_j on each value (Mamba-2's Δt) costs
nothing more: with c_j = b_j - log s_j in place of b_j above, v_j is weighted by s_j.

A program owns one head and a block of V, keeps its part of S in registers in fp32 from the first
chunk to the last, and reads q, k, v once. Sequence, head and block of V are independent; when they
are too few to fill the GPU, the sequence is cut into segments as well. The recurrence is affine
in S, so a segment's effect is a decay and a sum:

    S_end = exp(G) S_start + L         G = Σ g over the segment, L = its state started from zero

A first kernel computes (G, L) of every segment but the last, in parallel, from k and v alone; then
each program of the main kernel composes its own start from the segments before it.

    >>> o, state = chunked_linear_attention(q, k, v, log_decay=g, output_final_state=True)
    >>> o = linear_attention_step(q1, k1, v1, log_decay=g1, state=state)      # in place
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import torch
import triton
import triton.language as tl

from planner.errors import UsageError
from profiler.kernels.device import INTERPRETER, Device, device_of, newest_assembler
from profiler.kernels.flash_attention import block_dim
from profiler.kernels.rows import Access, load_rows, rows_of, tma_can_read

MAX_KEY_DIM = 256
LARGEST_CHUNK = 64
MAX_SEGMENTS = 64
WAVES = 2  # rounds of programs to aim for when a sequence is cut
MIN_SEGMENT_CHUNKS = 4


class Decay(IntEnum):
    """How the gate is given; known when a kernel is compiled."""

    NONE = 0
    CONSTANT = 1  # [Hv]
    TOKEN = 2  # [B, T, Hv]


CONSTANT = tl.constexpr(int(Decay.CONSTANT))
TOKEN = tl.constexpr(int(Decay.TOKEN))


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """Tile shapes and launch options of one compiled variant."""

    chunk: int
    block_v: int
    num_warps: int
    num_stages: int
    tma: bool = False


def linear_config(
    device: Device, dtype: torch.dtype, block_k: int, block_v: int, *, ragged: bool
) -> LinearConfig:
    """The variant for a shape on a device: the fastest measured that spills no registers.

    Key and value dims come padded to powers of two; `ragged` sequences may end inside a chunk.
    """
    if device is INTERPRETER:
        return LinearConfig(chunk=64, block_v=min(block_v, 64), num_warps=4, num_stages=1)
    if dtype == torch.float32:
        return LinearConfig(chunk=16, block_v=min(block_v, 16), num_warps=8, num_stages=1)
    if device.capability < (9, 0):
        chunk, num_warps = (32, 4) if block_k <= 128 else (16, 8)
        return LinearConfig(
            chunk=chunk, block_v=min(block_v, 32), num_warps=num_warps, num_stages=2
        )
    block_v = min(block_v, 16 if block_k > 128 else 32 if ragged else 64)
    return LinearConfig(chunk=LARGEST_CHUNK, block_v=block_v, num_warps=4, num_stages=2, tma=True)


def choose_segment_len(device: Device, programs: int, tokens: int, chunk: int) -> int:
    """Tokens per segment, a multiple of the chunk; `tokens` rounded up when nothing is cut.

    Args:
        device: gives the number of multiprocessors; two programs share one.
        programs: what runs without cutting.
        tokens: of the longest sequence.
        chunk: of the configuration.
    """
    chunks = triton.cdiv(tokens, chunk)
    slots = 2 * device.num_sms
    segments = 1
    if programs < slots:
        segments = min(WAVES * slots // programs, chunks // MIN_SEGMENT_CHUNKS, MAX_SEGMENTS)
    return triton.cdiv(chunks, max(1, segments)) * chunk


@triton.jit
def _bounds(cu_seqlens, n, T, PACKED: tl.constexpr):
    """Batch index, first token and end of sequence n."""
    if PACKED:
        b = n * 0
        start = tl.load(cu_seqlens + n).to(tl.int32)
        end = tl.load(cu_seqlens + n + 1).to(tl.int32)
    else:
        b = n
        start = n * 0
        end = start + T
    return b, start, end


@triton.jit(do_not_specialize=["T", "token_stride"])
def chunk_decay_kernel(
    log_decay,  # [HV] or [B, T, HV]
    value_scale,  # [B, T, HV]; unused unless SCALED
    cu_seqlens,  # [N + 1]; unused unless PACKED
    decays,  # out, b: [B, HV, T] in fp32
    sources,  # out, c: [B, HV, T] in fp32; unused unless SCALED
    T,
    token_stride,  # HV, or 0 for a constant
    HV: tl.constexpr,
    SCALED: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """b_i and c_j of every token, in units of log 2, head by head: a chunk's is one short read.

    One program per (sequence, chunk, block of heads).
    """
    LOG2E: tl.constexpr = 1.4426950408889634
    BLOCKS_H: tl.constexpr = (HV + BLOCK_H - 1) // BLOCK_H
    chunks = tl.cdiv(T, CHUNK)
    program = tl.program_id(0)
    heads = program % BLOCKS_H * BLOCK_H + tl.arange(0, BLOCK_H)
    n = program // (BLOCKS_H * chunks)
    b, start, end = _bounds(cu_seqlens, n, T, PACKED)
    row = start + program // BLOCKS_H % chunks * CHUNK
    if row < end:
        tokens = row + tl.arange(0, CHUNK)
        inside = (tokens < end)[:, None] & (heads < HV)[None, :]
        flat = b.to(tl.int64) * T + tokens
        gates = tl.load(log_decay + flat[:, None] * token_stride + heads[None, :], inside, 0.0)
        cumulative = tl.cumsum(gates.to(tl.float32) * LOG2E, 0)
        at = (b.to(tl.int64) * HV + heads)[None, :] * T + tokens[:, None]
        tl.store(decays + at, cumulative, mask=inside)
        if SCALED:
            scales = tl.load(value_scale + flat[:, None] * HV + heads[None, :], inside, 1.0)
            tl.store(sources + at, cumulative - tl.log2(scales.to(tl.float32)), mask=inside)


@triton.jit
def _load_decays(decays, sources, b, h, row, end, T, HV: tl.constexpr, CHUNK: tl.constexpr,
                 DECAYS: tl.constexpr, CHECKED: tl.constexpr):  # fmt: skip
    """b_i and c_j of the chunk at `row`, [CHUNK] each, and b at its end; as is from `end` on."""
    steps = tl.arange(0, CHUNK)
    if not DECAYS:
        cumulative = steps.to(tl.float32)
        source = cumulative
        total = 0.0
    else:
        at = (b.to(tl.int64) * HV + h) * T + row
        length = CHUNK
        if CHECKED:
            length = tl.minimum(end - row, CHUNK)
            steps = tl.minimum(steps, length - 1)
        cumulative = tl.load(decays + at + steps)
        source = tl.load(sources + at + steps)
        total = tl.load(decays + at + length - 1)
    return cumulative, source, total


@triton.jit
def _advance(state, k_tile, v_tile, source, total, DECAYS: tl.constexpr, PRECISION: tl.constexpr):
    """The state after a chunk. The values carry the decay: they are the narrower operand."""
    if DECAYS:
        weights = tl.exp2(total - source)
        v_tile = (v_tile * weights[:, None]).to(v_tile.dtype)
        state = state * tl.exp2(total)
    return tl.dot(k_tile.T, v_tile, state, input_precision=PRECISION)


@triton.jit
def _chunk(
    state,
    q,
    k,
    v,
    o,
    decays,
    sources,
    b,
    h,
    dim_v,
    row,
    end,
    T,
    scale,
    HK: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    DECAYS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCESS: tl.constexpr,
    CHECKED: tl.constexpr,
):
    """Writes the outputs of the chunk at `row` and returns the state after it."""
    h_k = h // (HV // HK)
    # Queries past the end make rows that are not stored, so a bulk copy of q stays as it came.
    BOUNDED: tl.constexpr = CHECKED and ACCESS == 0
    q_tile = load_rows(q, b, row, h_k, 0, T, end, HK, K, CHUNK, BLOCK_K, BOUNDED, ACCESS)
    k_tile = load_rows(k, b, row, h_k, 0, T, end, HK, K, CHUNK, BLOCK_K, CHECKED, ACCESS)
    cumulative, source, total = _load_decays(
        decays, sources, b, h, row, end, T, HV, CHUNK, DECAYS, CHECKED
    )

    tokens = row + tl.arange(0, CHUNK)
    causal = tokens[:, None] >= tokens[None, :]
    scores = tl.dot(q_tile, k_tile.T, input_precision=PRECISION)
    if DECAYS:
        # Above the diagonal the exponent may be positive and overflow; it is masked after.
        scores *= tl.exp2(cumulative[:, None] - source[None, :])
    scores = tl.where(causal, scores, 0.0).to(q_tile.dtype)
    out = tl.dot(q_tile, state.to(q_tile.dtype), input_precision=PRECISION)
    if DECAYS:
        out *= tl.exp2(cumulative)[:, None]
    v_tile = load_rows(v, b, row, h, dim_v, T, end, HV, V, CHUNK, BLOCK_V, CHECKED, ACCESS)
    out = tl.dot(scores, v_tile, out, input_precision=PRECISION)
    state = _advance(state, k_tile, v_tile, source, total, DECAYS, PRECISION)

    rows = tl.arange(0, CHUNK)[:, None]
    dims = dim_v + tl.arange(0, BLOCK_V)[None, :]
    at = o + ((b.to(tl.int64) * T + row) * HV + h) * V + rows * (HV * V) + dims
    out = (out * scale).to(o.dtype.element_ty)
    if CHECKED:
        tl.store(at, out, mask=(row + rows < end) & (dims < V))
    elif V % BLOCK_V:
        tl.store(at, out, mask=dims < V)
    else:
        tl.store(at, out)
    return state


@triton.jit(do_not_specialize=["T", "segment_len", "num_segments"])
def segment_state_kernel(
    k,  # descriptor or pointer, [B, T, HK, K]
    v,  # descriptor or pointer, [B, T, HV, V]
    decays,  # b: [B, HV, T] in fp32; unused unless DECAYS
    sources,  # c: as decays, or decays itself
    cu_seqlens,  # [N + 1]; unused unless PACKED
    states,  # out, L: [N, num_segments - 1, HV, K, V] in fp32
    totals,  # out, G: [N, num_segments - 1, HV] in fp32
    T,
    segment_len,
    num_segments,
    HK: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    DECAYS: tl.constexpr,
    PACKED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCESS: tl.constexpr,
    ASSEMBLER: tl.constexpr,  # not read; part of the compiled kernel's key (`newest_assembler`)
):
    """(G, L) of a segment. One program per (sequence, segment but the last, head, block of V)."""
    BLOCKS_V: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    dim_v = program % BLOCKS_V * BLOCK_V
    h = program // BLOCKS_V % HV
    segment = program // (BLOCKS_V * HV) % (num_segments - 1)
    n = program // (BLOCKS_V * HV * (num_segments - 1))
    b, start, end = _bounds(cu_seqlens, n, T, PACKED)
    first = start + segment * segment_len
    # Only a segment with another behind it is asked for its state, so it is always whole.
    if first + segment_len < end:
        h_k = h // (HV // HK)
        state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
        decay = 0.0
        for row in tl.range(first, first + segment_len, CHUNK):
            k_tile = load_rows(k, b, row, h_k, 0, T, end, HK, K, CHUNK, BLOCK_K, False, ACCESS)
            v_tile = load_rows(v, b, row, h, dim_v, T, end, HV, V, CHUNK, BLOCK_V, False, ACCESS)
            _, source, total = _load_decays(
                decays, sources, b, h, row, end, T, HV, CHUNK, DECAYS, False
            )
            state = _advance(state, k_tile, v_tile, source, total, DECAYS, PRECISION)
            decay += total
        slot = (n.to(tl.int64) * (num_segments - 1) + segment) * HV + h
        dims_k = tl.arange(0, BLOCK_K)[:, None]
        dims_v = dim_v + tl.arange(0, BLOCK_V)[None, :]
        at = states + slot * (K * V) + dims_k * V + dims_v
        tl.store(at, state, mask=(dims_k < K) & (dims_v < V))
        tl.store(totals + slot, decay)  # every block of V writes the same number


@triton.jit(do_not_specialize=["T", "segment_len", "num_segments"])
def linear_attention_kernel(
    q,  # descriptor or pointer, [B, T, HK, K]
    k,  # descriptor or pointer, [B, T, HK, K]
    v,  # descriptor or pointer, [B, T, HV, V]
    o,  # pointer, [B, T, HV, V]
    decays,  # b: [B, HV, T] in fp32; unused unless DECAYS
    sources,  # c: as decays, or decays itself
    cu_seqlens,  # [N + 1]; unused unless PACKED
    initial_state,  # [N, HV, K, V] in fp32; unused unless HAS_INITIAL
    final_state,  # out, as initial_state; unused unless HAS_FINAL
    states,  # L: [N, num_segments - 1, HV, K, V] in fp32; unused with one segment
    totals,  # G: [N, num_segments - 1, HV] in fp32
    T,
    segment_len,
    num_segments,
    scale,
    HK: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    DECAYS: tl.constexpr,
    PACKED: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    SEGMENTED: tl.constexpr,
    RAGGED: tl.constexpr,  # whether a sequence may end inside a chunk
    CHUNK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCESS: tl.constexpr,
    ASSEMBLER: tl.constexpr,  # not read; part of the compiled kernel's key (`newest_assembler`)
):
    """One program per (sequence, segment, head, block of V)."""
    BLOCKS_V: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    dim_v = program % BLOCKS_V * BLOCK_V
    h = program // BLOCKS_V % HV
    segment = program // (BLOCKS_V * HV) % num_segments
    n = program // (BLOCKS_V * HV * num_segments)
    b, start, end = _bounds(cu_seqlens, n, T, PACKED)
    first = start + segment * segment_len
    stop = tl.minimum(first + segment_len, end)

    dims_k = tl.arange(0, BLOCK_K)[:, None]
    dims_v = dim_v + tl.arange(0, BLOCK_V)[None, :]
    state_dims = dims_k * V + dims_v
    is_state = (dims_k < K) & (dims_v < V)
    # A sequence shorter than others has fewer segments; an empty one still passes its state on.
    if (first < end) | (segment == 0):
        if HAS_INITIAL:
            slot_in = (n.to(tl.int64) * HV + h) * (K * V)
            state = tl.load(initial_state + slot_in + state_dims, mask=is_state, other=0.0)
        else:
            state = tl.zeros([BLOCK_K, BLOCK_V], dtype=tl.float32)
        if SEGMENTED:
            for before in tl.range(0, segment):
                slot = (n.to(tl.int64) * (num_segments - 1) + before) * HV + h
                local = tl.load(states + slot * (K * V) + state_dims, mask=is_state, other=0.0)
                state = state * tl.exp2(tl.load(totals + slot)) + local

        whole = first + (stop - first) // CHUNK * CHUNK  # where the last full chunk ends
        for row in tl.range(first, whole, CHUNK):
            state = _chunk(
                state, q, k, v, o, decays, sources, b, h, dim_v, row, end, T, scale, HK, HV,
                K, V, DECAYS, CHUNK, BLOCK_K, BLOCK_V, PRECISION, ACCESS, False,
            )  # fmt: skip
        if RAGGED and whole < stop:
            state = _chunk(
                state, q, k, v, o, decays, sources, b, h, dim_v, whole, end, T, scale, HK, HV,
                K, V, DECAYS, CHUNK, BLOCK_K, BLOCK_V, PRECISION, ACCESS, True,
            )  # fmt: skip

        if HAS_FINAL and first + segment_len >= end:
            slot_out = (n.to(tl.int64) * HV + h) * (K * V)
            tl.store(final_state + slot_out + state_dims, state, mask=is_state)


@triton.jit
def linear_step_kernel(
    q,  # [B, HK, K]
    k,  # [B, HK, K]
    v,  # [B, HV, V]
    log_decay,  # [HV] or [B, HV]; unused without decay
    state,  # in and out, [B, HV, K, V]
    o,  # [B, HV, V]
    scale,
    HK: tl.constexpr,
    HV: tl.constexpr,
    K: tl.constexpr,
    V: tl.constexpr,
    DECAY: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One program per (sequence, head, block of V): reads and writes its part of S once."""
    BLOCKS_V: tl.constexpr = (V + BLOCK_V - 1) // BLOCK_V
    program = tl.program_id(0)
    head = (program // BLOCKS_V).to(tl.int64)  # of the flat [B * HV]
    h = program // BLOCKS_V % HV
    head_k = head // HV * HK + h // (HV // HK)
    dims_k = tl.arange(0, BLOCK_K)
    dims_v = program % BLOCKS_V * BLOCK_V + tl.arange(0, BLOCK_V)
    is_state = (dims_k < K)[:, None] & (dims_v < V)[None, :]
    at = state + head * (K * V) + dims_k[:, None] * V + dims_v[None, :]
    s = tl.load(at, mask=is_state, other=0.0).to(tl.float32)
    q_head = tl.load(q + head_k * K + dims_k, mask=dims_k < K, other=0.0).to(tl.float32)
    k_head = tl.load(k + head_k * K + dims_k, mask=dims_k < K, other=0.0).to(tl.float32)
    v_head = tl.load(v + head * V + dims_v, mask=dims_v < V, other=0.0).to(tl.float32)
    if DECAY == CONSTANT:
        s *= tl.exp(tl.load(log_decay + h).to(tl.float32))
    if DECAY == TOKEN:
        s *= tl.exp(tl.load(log_decay + head).to(tl.float32))
    s += k_head[:, None] * v_head[None, :]
    out = tl.sum(q_head[:, None] * s, 0) * scale
    tl.store(at, s.to(state.dtype.element_ty), mask=is_state)
    tl.store(o + head * V + dims_v, out.to(o.dtype.element_ty), mask=dims_v < V)


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor | None,
    cu_seqlens: torch.Tensor | None,
) -> Decay:
    """How the gate is given, after checking that the shapes fit together.

    Raises: UsageError, naming the argument, what it is and what it may be.
    """
    if {q.ndim, k.ndim, v.ndim} != {4}:
        raise UsageError(
            f"q, k and v must be [B, T, H, D], got {[list(t.shape) for t in (q, k, v)]}"
        )
    if q.shape != k.shape or q.shape[:2] != v.shape[:2] or v.shape[2] % k.shape[2]:
        raise UsageError(
            "q and k must be [B, T, Hk, K] and v [B, T, Hv, V] with Hv a multiple of Hk, got "
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        )
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise UsageError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if k.shape[3] > MAX_KEY_DIM:
        raise UsageError(f"key dims go up to {MAX_KEY_DIM}, got {k.shape[3]}")
    if cu_seqlens is not None and q.shape[0] != 1:
        raise UsageError(f"packed sequences (cu_seqlens) need B = 1, got {q.shape[0]}")
    if log_decay is None:
        return Decay.NONE
    if log_decay.shape == v.shape[2:3]:
        return Decay.CONSTANT
    if log_decay.shape == v.shape[:3]:
        return Decay.TOKEN
    raise UsageError(
        f"log_decay must be [Hv] = {list(v.shape[2:3])} or [B, T, Hv] = {list(v.shape[:3])}, "
        f"got {list(log_decay.shape)}"
    )


def _check_state(state: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
    if state.shape != shape or not state.is_contiguous():
        raise UsageError(
            f"{name} must be contiguous {list(shape)}, got {list(state.shape)}"
            f"{'' if state.is_contiguous() else ', not contiguous'}"
        )


def chunked_linear_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    log_decay: torch.Tensor | None = None,
    value_scale: torch.Tensor | None = None,
    scale: float = 1.0,
    initial_state: torch.Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: torch.Tensor | None = None,
    segment_len: int | None = None,
    config: LinearConfig | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Linear attention over whole sequences, or over a segment of them with the state carried.

    Args:
        q: [B, T, Hk, K], K up to 256.
        k: [B, T, Hk, K].
        v: [B, T, Hv, V], Hv a multiple of Hk; head h reads q and k of head h // (Hv / Hk).
        log_decay: None, [Hv] (one constant per head) or [B, T, Hv]; natural log, <= 0.
        value_scale: None or [B, T, Hv], >= 0: weight of each value in the state; needs log_decay.
        scale: of the output.
        initial_state: [N, Hv, K, V] in fp32, contiguous; zeros if None.
        output_final_state: whether to return the state after the last token.
        cu_seqlens: [N + 1] integers, where packed sequences start and end; then B is 1.
        segment_len: tokens one program walks over, rounded up to chunks; chosen unless given.
        config: overrides the configuration chosen for the shape.

    Returns: o [B, T, Hv, V] in q's dtype and the final state [N, Hv, K, V] in fp32 or None.
    Inputs that are not contiguous are copied first.
    """
    decay = _check(q, k, v, log_decay, cu_seqlens)
    device = device_of(q, k, v)
    B, T, HK, K = k.shape
    HV, V = v.shape[2:]
    N = B if cu_seqlens is None else cu_seqlens.numel() - 1
    if value_scale is not None and (log_decay is None or value_scale.shape != v.shape[:3]):
        raise UsageError(
            f"value_scale must be [B, T, Hv] = {list(v.shape[:3])} and come with log_decay, "
            f"got {list(value_scale.shape)}"
        )
    if initial_state is not None:
        _check_state(initial_state, (N, HV, K, V), "initial_state")
    BLOCK_K = block_dim(K)
    ragged = cu_seqlens is not None or T % LARGEST_CHUNK != 0
    config = config or linear_config(device, q.dtype, BLOCK_K, block_dim(V), ragged=ragged)
    chunk, block_v = config.chunk, config.block_v
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    o = torch.empty_like(v)
    flat = config.tma and K == BLOCK_K and V % block_v == 0 and tma_can_read(q, k, v)
    access = Access.FLAT if flat else Access.POINTER

    rest = HV * triton.cdiv(V, block_v)
    if segment_len is None:
        segment_len = choose_segment_len(device, N * rest, T, chunk)
    segment_len = triton.cdiv(segment_len, chunk) * chunk
    segments = max(1, triton.cdiv(T, segment_len))
    final_state = v.new_empty(N, HV, K, V, dtype=torch.float32) if output_final_state else None
    # Stand-ins for what this variant of the kernels never touches.
    states = totals = decays = sources = sequences = o
    if segments > 1:
        states = v.new_empty(N, segments - 1, HV, K, V, dtype=torch.float32)
        totals = v.new_empty(N, segments - 1, HV, dtype=torch.float32)
    if cu_seqlens is not None:
        sequences = cu_seqlens
    packed = cu_seqlens is not None

    with torch.cuda.device_of(q), newest_assembler(device) as assembler:
        if log_decay is not None:
            decays = v.new_empty(B, HV, T, dtype=torch.float32)
            sources = decays if value_scale is None else torch.empty_like(decays)
            block_h = min(32, triton.next_power_of_2(HV))
            grid = (N * triton.cdiv(T, chunk) * triton.cdiv(HV, block_h),)
            chunk_decay_kernel[grid](
                log_decay.contiguous(),
                log_decay if value_scale is None else value_scale.contiguous(),
                sequences,
                decays,
                sources,
                T,
                HV if decay is Decay.TOKEN else 0,
                HV=HV,
                SCALED=value_scale is not None,
                PACKED=packed,
                CHUNK=chunk,
                BLOCK_H=block_h,
                num_warps=4,
            )
        k_rows = rows_of(k, chunk, BLOCK_K, access)
        v_rows = rows_of(v, chunk, block_v, access)
        common = {
            "HK": HK,
            "HV": HV,
            "K": K,
            "V": V,
            "DECAYS": log_decay is not None,
            "PACKED": packed,
            "CHUNK": chunk,
            "BLOCK_K": BLOCK_K,
            "BLOCK_V": block_v,
            "PRECISION": "ieee",  # fp32 products in fp32; 16-bit ones are exact anyway
            "ACCESS": int(access),
            "ASSEMBLER": assembler,
            "num_warps": config.num_warps,
            "num_stages": config.num_stages,
        }
        if segments > 1:
            segment_state_kernel[(N * (segments - 1) * rest,)](
                k_rows, v_rows, decays, sources, sequences, states, totals,
                T, segment_len, segments, **common,
            )  # fmt: skip
        linear_attention_kernel[(N * segments * rest,)](
            rows_of(q, chunk, BLOCK_K, access),
            k_rows,
            v_rows,
            o,
            decays,
            sources,
            sequences,
            o if initial_state is None else initial_state,
            o if final_state is None else final_state,
            states,
            totals,
            T,
            segment_len,
            segments,
            scale,
            HAS_INITIAL=initial_state is not None,
            HAS_FINAL=output_final_state,
            SEGMENTED=segments > 1,
            RAGGED=packed or T % chunk != 0,
            **common,
        )
    return o, final_state


def linear_attention_step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    state: torch.Tensor,
    log_decay: torch.Tensor | None = None,
    scale: float = 1.0,
) -> torch.Tensor:
    """One token of the recurrence. Reads and writes the state once, which is all its cost.

    Args:
        q: [B, 1, Hk, K].
        k: [B, 1, Hk, K].
        v: [B, 1, Hv, V], Hv a multiple of Hk.
        state: [B, Hv, K, V], fp32 as the prefill leaves it; updated in place.
        log_decay: None, [Hv] or [B, 1, Hv]; natural log.
        scale: of the output.

    Returns: o [B, 1, Hv, V] in q's dtype.
    """
    decay = _check(q, k, v, log_decay, None)
    if q.shape[1] != 1:
        raise UsageError(f"a step takes one token, got {q.shape[1]}")
    device_of(q, k, v, state)
    B, _, HK, K = k.shape
    HV, V = v.shape[2:]
    _check_state(state, (B, HV, K, V), "state")
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    o = torch.empty_like(v)
    block_v = min(32, block_dim(V))
    with torch.cuda.device_of(q):
        linear_step_kernel[(B * HV * triton.cdiv(V, block_v),)](
            q,
            k,
            v,
            o if log_decay is None else log_decay.contiguous(),
            state,
            o,
            scale,
            HK=HK,
            HV=HV,
            K=K,
            V=V,
            DECAY=int(decay),
            BLOCK_K=block_dim(K),
            BLOCK_V=block_v,
            num_warps=4,
        )
    return o

"""Causal softmax attention over a segment of tokens, tile by tile (FlashAttention).

For query i at position p_i = T_k - T_q + i (the queries are the last T_q tokens) and keys j,

    o_i = Σ_j softmax_j(scale · q_i·k_j) v_j      over   max(0, p_i - W + 1) ≤ j ≤ p_i

with W the window: how many keys a query sees, itself included (none: all of them). A program owns
BLOCK_Q queries of one head and walks over the keys they see in tiles of BLOCK_K. It never stores
the scores: it carries, per query, the peak m of the scores so far, the sum l of their
exponentials and the unnormalised output a, and when a tile raises the peak to m',

    l ← l·2^(m - m') + Σ_j 2^(s_j - m')      a ← a·2^(m - m') + Σ_j 2^(s_j - m') v_j

with s in units of log 2, because the hardware has exp2 and not exp (Milakov and Gimelshein 2018,
arXiv:1805.02867; Dao 2023, arXiv:2307.08691). o = a / l at the end.

What makes it fast:
- keys no query of the tile sees are never loaded, and only the tiles that the causal diagonal or
  the window's left edge crosses are masked: three loops, of which the long one has no masks;
- programs of one KV head run together, its query heads side by side, so that K and V are read
  from memory once and from L2 afterwards; within a head the longest rows start first, so that
  the short ones fill the gaps at the end;
- on Hopper K and V come by the bulk copy engine, three tiles ahead, and the two warp groups of a
  program drift apart: one multiplies while the other takes exponentials. In step, they would
  leave the matrix units idle a third of the time (1,024 of 3,072 cycles per 128 x 128 tile).

    >>> o = flash_attention(q, k, v)                    # prefill: Tq == Tk
    >>> o = flash_attention(q[:, -512:], k, v)          # last 512 tokens after cached ones
    >>> o = flash_attention(q, k, v, window=1024)       # sliding window
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from planner.errors import UsageError
from profiler.kernels.device import INTERPRETER, Device, device_of, dot_precision
from profiler.kernels.rows import Access, load_rows, rows_of, tma_can_read

LOG2_E = 1.4426950408889634
MAX_HEAD_DIM = 256


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Tile shapes and launch options of one compiled variant."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int
    tma: bool = False
    max_registers: int | None = None  # per thread; None leaves it to the compiler


def attention_config(device: Device, dtype: torch.dtype, head_dim: int) -> AttentionConfig:
    """The variant for a shape on a device: the fastest measured that spills no registers.

    `head_dim` is the larger of the key's and the value's, rounded up to a power of two.
    """
    if device is INTERPRETER:
        return AttentionConfig(block_q=64, block_k=64, num_warps=4, num_stages=1)
    if dtype == torch.float32:
        block_q, block_k, num_warps = (16, 16, 8) if head_dim > 128 else (16, 32, 4)
        return AttentionConfig(block_q=block_q, block_k=block_k, num_warps=num_warps, num_stages=1)
    if device.capability < (9, 0):
        block_q = 128 if head_dim <= 128 else 64
        num_warps = 8 if head_dim > 64 else 4
        return AttentionConfig(block_q=block_q, block_k=32, num_warps=num_warps, num_stages=2)
    if head_dim > 128:
        return AttentionConfig(block_q=128, block_k=64, num_warps=8, num_stages=2, tma=True)
    return AttentionConfig(block_q=128, block_k=128, num_warps=8, num_stages=3, tma=True)


@triton.jit
def _attend(
    accumulator,
    peak,
    total,
    q_tile,
    k,
    v,
    b,
    h,
    Tk,
    positions,
    start,
    stop,
    scale_log2,
    window,
    H: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    WINDOWED: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCESS: tl.constexpr,
):
    """Key tiles [start, stop) into the running (a, m, l) of `q_tile`; see the module docstring."""
    CHECKED: tl.constexpr = MASKED and ACCESS == 0  # a box ends where the tensor does
    for n in tl.range(start, stop, BLOCK_K):
        # Both tiles are awaited here, at one barrier. A second one, before the product with V,
        # would make the two warp groups take their exponentials at the same time, with the matrix
        # units idle; as it is, one multiplies while the other exponentiates.
        k_tile = load_rows(k, b, n, h, 0, Tk, Tk, H, D, BLOCK_K, BLOCK_D, CHECKED, ACCESS)
        v_tile = load_rows(v, b, n, h, 0, Tk, Tk, H, DV, BLOCK_K, BLOCK_DV, CHECKED, ACCESS)
        scores = tl.dot(q_tile, k_tile.T, input_precision=PRECISION)
        if MASKED:
            keys = n + tl.arange(0, BLOCK_K)
            seen = keys[None, :] <= positions[:, None]
            if WINDOWED:
                seen &= keys[None, :] > positions[:, None] - window
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weights, 1)
        accumulator = accumulator * fade[:, None]
        accumulator = tl.dot(
            weights.to(v_tile.dtype), v_tile, accumulator, input_precision=PRECISION
        )
        peak = new_peak
    return accumulator, peak, total


@triton.jit(do_not_specialize=["Tq", "Tk", "window"])
def flash_attention_kernel(
    q,  # pointer, [B, Tq, HQ, D]
    k,  # descriptor or pointer, [B, Tk, HQ / GROUP, D]
    v,  # descriptor or pointer, [B, Tk, HQ / GROUP, DV]
    o,  # pointer, [B, Tq, HQ, DV]
    Tq,
    Tk,
    scale_log2,  # softmax scale times log2(e)
    window,  # unused unless WINDOWED
    HQ: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    WINDOWED: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
    ACCESS: tl.constexpr,
):
    """One program per (batch, KV head, query tile, query head of the group), in this order."""
    HKV: tl.constexpr = HQ // GROUP
    num_tiles = tl.cdiv(Tq, BLOCK_Q)
    program = tl.program_id(0)
    h = program % GROUP
    row = (num_tiles - 1 - program // GROUP % num_tiles) * BLOCK_Q
    h_kv = program // (GROUP * num_tiles) % HKV
    b = program // (GROUP * num_tiles * HKV)
    h += h_kv * GROUP

    first = Tk - Tq + row  # position of the tile's first query
    stop = tl.minimum(first + BLOCK_Q, Tk)
    positions = first + tl.arange(0, BLOCK_Q)
    q_tile = load_rows(q, b, row, h, 0, Tq, Tq, HQ, D, BLOCK_Q, BLOCK_D, True, 0)
    accumulator = tl.zeros([BLOCK_Q, BLOCK_DV], dtype=tl.float32)
    # Finite, so that a row whose first tile is wholly masked gives 2^-inf and not 2^(inf - inf).
    peak = tl.full([BLOCK_Q], -1.0e30, dtype=tl.float32)
    total = tl.zeros([BLOCK_Q], dtype=tl.float32)

    diagonal = (first + 1) // BLOCK_K * BLOCK_K  # tiles before it lie left of every query
    inner = 0  # tiles from here to the diagonal lie in every query's window
    if WINDOWED:
        edge = tl.maximum(first - window + 1, 0) // BLOCK_K * BLOCK_K
        inner = tl.maximum(tl.cdiv(stop - window, BLOCK_K) * BLOCK_K, edge)
        inner = tl.minimum(inner, diagonal)
        accumulator, peak, total = _attend(
            accumulator, peak, total, q_tile, k, v, b, h_kv, Tk, positions, edge, inner,
            scale_log2, window, HKV, D, DV, WINDOWED, True, BLOCK_K, BLOCK_D, BLOCK_DV, PRECISION,
            ACCESS,
        )  # fmt: skip
    accumulator, peak, total = _attend(
        accumulator, peak, total, q_tile, k, v, b, h_kv, Tk, positions, inner, diagonal,
        scale_log2, window, HKV, D, DV, WINDOWED, False, BLOCK_K, BLOCK_D, BLOCK_DV, PRECISION,
        ACCESS,
    )  # fmt: skip
    accumulator, peak, total = _attend(
        accumulator, peak, total, q_tile, k, v, b, h_kv, Tk, positions, diagonal, stop,
        scale_log2, window, HKV, D, DV, WINDOWED, True, BLOCK_K, BLOCK_D, BLOCK_DV, PRECISION,
        ACCESS,
    )  # fmt: skip

    rows = tl.arange(0, BLOCK_Q)[:, None]
    dims = tl.arange(0, BLOCK_DV)[None, :]
    at = o + ((b.to(tl.int64) * Tq + row) * HQ + h) * DV + rows * (HQ * DV) + dims
    out = (accumulator / total[:, None]).to(o.dtype.element_ty)
    tl.store(at, out, mask=(row + rows < Tq) & (dims < DV))


def block_dim(dim: int) -> int:
    """The power of two that holds a head dim: tiles are padded with zeros up to it."""
    return max(16, triton.next_power_of_2(dim))


def check_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None, scale: float | None
) -> float:
    """The softmax scale to use, after checking that the shapes make one attention.

    Raises: UsageError, naming the argument, what it is and what it may be.
    """
    if {q.ndim, k.ndim, v.ndim} != {4}:
        raise UsageError(
            f"q, k and v must be [B, T, H, D], got {[list(t.shape) for t in (q, k, v)]}"
        )
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise UsageError(
            "k and v must share [B, Tk, Hkv], q and k must share B and D, got "
            f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
        )
    if q.dtype != k.dtype or q.dtype != v.dtype:
        raise UsageError(f"q, k and v must have one dtype, got {q.dtype}, {k.dtype} and {v.dtype}")
    if q.shape[2] % k.shape[2]:
        raise UsageError(
            f"query heads must be a multiple of KV heads, got {q.shape[2]} and {k.shape[2]}"
        )
    if not 1 <= q.shape[1] <= k.shape[1]:
        raise UsageError(
            f"queries are the last tokens of the keys: 1 <= Tq <= Tk, got {q.shape[1]} "
            f"and {k.shape[1]}"
        )
    if max(q.shape[3], v.shape[3]) > MAX_HEAD_DIM:
        raise UsageError(
            f"head dims go up to {MAX_HEAD_DIM}, got {q.shape[3]} (keys) and {v.shape[3]} (values)"
        )
    if window is not None and window < 1:
        raise UsageError(f"a window counts the query's own key, so it is >= 1, got {window}")
    if scale is not None and scale <= 0:
        raise UsageError(f"scale must be positive, got {scale}")
    return q.shape[3] ** -0.5 if scale is None else scale


def flash_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    config: AttentionConfig | None = None,
) -> torch.Tensor:
    """Causal attention of the last Tq tokens over all Tk, grouped-query and windowed.

    Args:
        q: [B, Tq, Hq, D]; D up to 256, fastest at 64, 128 and 256.
        k: [B, Tk, Hkv, D], Tk >= Tq and Hq a multiple of Hkv.
        v: [B, Tk, Hkv, Dv], Dv up to 256.
        window: keys a query sees, itself included; None sees all before it.
        scale: of the scores, D ** -0.5 unless given.
        config: overrides the configuration chosen for the shape.

    Returns: [B, Tq, Hq, Dv] in q's dtype. Inputs that are not contiguous are copied first.
    """
    scale = check_attention(q, k, v, window, scale)
    device = device_of(q, k, v)
    B, Tq, HQ, D = q.shape
    _, Tk, HKV, DV = v.shape
    BLOCK_D, BLOCK_DV = block_dim(D), block_dim(DV)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    o = q.new_empty(B, Tq, HQ, DV)
    config = config or attention_config(device, q.dtype, max(BLOCK_D, BLOCK_DV))
    access = Access.BOX if config.tma and tma_can_read(k, v) else Access.POINTER
    if window is None or window >= Tk:
        window = 0
    grid = (B * HQ * triton.cdiv(Tq, config.block_q),)
    with torch.cuda.device_of(q):
        flash_attention_kernel[grid](
            q,
            rows_of(k, config.block_k, BLOCK_D, access),
            rows_of(v, config.block_k, BLOCK_DV, access),
            o,
            Tq,
            Tk,
            scale * LOG2_E,
            window,
            HQ=HQ,
            GROUP=HQ // HKV,
            D=D,
            DV=DV,
            WINDOWED=window > 0,
            BLOCK_Q=config.block_q,
            BLOCK_K=config.block_k,
            BLOCK_D=BLOCK_D,
            BLOCK_DV=BLOCK_DV,
            PRECISION=dot_precision(q.dtype),
            ACCESS=int(access),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            maxnreg=config.max_registers,
        )
    return o

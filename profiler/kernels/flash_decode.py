"""Softmax attention of the newest token over a long cache, split over the keys.

A decode step reads the whole cache once and computes almost nothing, so its floor is
bytes / bandwidth, and the task is to keep every multiprocessor loading. There are only
B · Hkv independent (sequence, KV head) pairs, too few at small batch, so the keys are cut into
splits (Flash-Decoding, Dao et al. 2023). Each split s leaves its peak m_s, its sum l_s and its
unnormalised output a_s (see flash_attention.py), and a second small kernel merges them:

    m = max_s m_s      o = Σ_s 2^(m_s - m) a_s / Σ_s 2^(m_s - m) l_s

The query heads of one KV head form the rows of one matrix tile: they share every byte loaded,
and a tile has at least 16 rows anyway. A few tokens (speculative drafts) ride along as more rows.

    >>> o = flash_decode(q, k, v)                        # q [B, 1, Hq, D], k and v [B, S, Hkv, D]
    >>> o = flash_decode(q, k, v, window=4096)           # reads the last 4096 keys only
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from planner.errors import UsageError
from profiler.kernels.device import INTERPRETER, Device, device_of, dot_precision
from profiler.kernels.flash_attention import LOG2_E, block_dim, check_attention
from profiler.kernels.rows import load_rows

MAX_ROWS = 128  # tokens times query heads per KV head that one tile holds
MAX_SPLITS = 128
MIN_SPLIT_KEYS = 256  # shorter splits spend their time starting and merging
MAX_ROUNDS = 6  # programs per multiprocessor, at most
FULL_BYTES = 64 * 1024  # in flight, with which one multiprocessor takes its share of the bandwidth
NEAR_BEST = 0.95


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Tile shape and launch options of one compiled variant."""

    block_k: int
    num_warps: int
    num_stages: int


def decode_config(device: Device, dtype: torch.dtype, head_dim: int, rows: int) -> DecodeConfig:
    """The variant for a shape on a device. `head_dim` and `rows` are padded to powers of two."""
    if device is INTERPRETER:
        return DecodeConfig(block_k=64, num_warps=4, num_stages=1)
    if dtype == torch.float32:
        return DecodeConfig(block_k=16, num_warps=8 if head_dim > 128 else 4, num_stages=1)
    deep = device.capability >= (8, 0)  # copies to shared memory that need no registers
    if head_dim > 128 or rows > 32:
        return DecodeConfig(block_k=32, num_warps=4, num_stages=3 if deep else 2)
    return DecodeConfig(block_k=64, num_warps=4, num_stages=4 if deep else 2)


def choose_num_splits(device: Device, programs: int, keys: int, in_flight: int) -> int:
    """The fewest splits that load all multiprocessors, and all alike.

    Programs of a decode step are equally long, so what idles is the multiprocessors that get one
    fewer than others, and those whose programs have too few bytes under way. More splits than
    needed cost their starts, and one instead of two saves the merge: docs/log.md has the times.

    Args:
        device: gives the number of multiprocessors.
        programs: what runs without splitting.
        keys: that each of them reads.
        in_flight: bytes that a program has under way while it computes.
    """
    needed = triton.cdiv(FULL_BYTES, max(in_flight, FULL_BYTES // MAX_ROUNDS))

    def load(splits: int) -> float:
        rounds = triton.cdiv(programs * splits, device.num_sms)
        return programs * splits / (rounds * device.num_sms) * min(1.0, rounds / needed)

    most = min(MAX_ROUNDS * device.num_sms // programs, keys // MIN_SPLIT_KEYS, MAX_SPLITS)
    candidates = range(1, max(1, most) + 1)
    enough = NEAR_BEST * max(map(load, candidates))
    return next(splits for splits in candidates if load(splits) >= enough)


@triton.jit(do_not_specialize=["S", "start", "split_keys", "num_splits", "window"])
def flash_decode_kernel(
    q,  # [B, Tq, HQ, D]
    k,  # [B, S, HQ / GROUP, D]
    v,  # [B, S, HQ / GROUP, DV]
    o,  # [B, Tq, HQ, DV], or partial outputs [B, Tq, HQ, SPLITS, DV] in fp32
    peaks,  # [B, Tq, HQ, SPLITS] in fp32; unused with one split
    totals,  # as peaks
    S,
    start,  # first key any query sees
    split_keys,  # keys of one split, a multiple of BLOCK_K
    scale_log2,
    num_splits,
    window,  # unused unless WINDOWED
    Tq: tl.constexpr,
    HQ: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    DV: tl.constexpr,
    WINDOWED: tl.constexpr,
    ROWS: tl.constexpr,  # Tq * GROUP, padded
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    SPLIT: tl.constexpr,  # whether partial results are left for the merge
    PRECISION: tl.constexpr,
):
    """One program per (batch, KV head, split). Rows of the tile are (token, head of the group)."""
    HKV: tl.constexpr = HQ // GROUP
    program = tl.program_id(0)
    split = program % num_splits
    h_kv = program // num_splits % HKV
    b = program // (num_splits * HKV)

    rows = tl.arange(0, ROWS)
    token = rows // GROUP
    is_row = rows < Tq * GROUP
    positions = S - Tq + token
    # Row of the flat [B * Tq * HQ] query heads.
    heads = (b.to(tl.int64) * Tq + token) * HQ + h_kv * GROUP + rows % GROUP
    dims = tl.arange(0, BLOCK_D)
    q_tile = tl.load(
        q + heads[:, None] * D + dims[None, :],
        mask=is_row[:, None] & (dims < D)[None, :],
        other=0.0,
    )
    accumulator = tl.zeros([ROWS, BLOCK_DV], dtype=tl.float32)
    peak = tl.full([ROWS], -1.0e30, dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)

    first = start + split * split_keys
    last = tl.minimum(first + split_keys, S)
    for n in tl.range(first, last, BLOCK_K):
        k_tile = load_rows(k, b, n, h_kv, 0, S, last, HKV, D, BLOCK_K, BLOCK_D, True, 0)
        scores = tl.dot(q_tile, k_tile.T, input_precision=PRECISION)
        keys = n + tl.arange(0, BLOCK_K)
        seen = (keys < last)[None, :] & (keys[None, :] <= positions[:, None])
        if WINDOWED:
            seen &= keys[None, :] > positions[:, None] - window
        scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weights, 1)
        accumulator = accumulator * fade[:, None]
        v_tile = load_rows(v, b, n, h_kv, 0, S, last, HKV, DV, BLOCK_K, BLOCK_DV, True, 0)
        accumulator = tl.dot(
            weights.to(v_tile.dtype), v_tile, accumulator, input_precision=PRECISION
        )
        peak = new_peak

    dims_v = tl.arange(0, BLOCK_DV)
    inside = is_row[:, None] & (dims_v < DV)[None, :]
    if SPLIT:
        slots = heads * num_splits + split
        tl.store(o + slots[:, None] * DV + dims_v[None, :], accumulator, mask=inside)
        tl.store(peaks + slots, peak, mask=is_row)
        tl.store(totals + slots, total, mask=is_row)
    else:
        # Padding rows saw no key they may divide by; they are not stored.
        out = accumulator / tl.where(is_row, total, 1.0)[:, None]
        tl.store(o + heads[:, None] * DV + dims_v[None, :], out.to(o.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["num_splits"])
def merge_splits_kernel(
    partial,  # [heads, num_splits, DV] in fp32
    peaks,  # [heads, num_splits] in fp32
    totals,  # as peaks
    o,  # [heads, DV]
    num_splits,
    DV: tl.constexpr,
    BLOCK_SPLITS: tl.constexpr,  # num_splits, padded
    BLOCK_DV: tl.constexpr,
    CHUNK: tl.constexpr,  # splits read at a time
):
    """One program per query head: the weighted mean of its splits."""
    head = tl.program_id(0).to(tl.int64)
    splits = tl.arange(0, BLOCK_SPLITS)
    is_split = splits < num_splits
    peak = tl.load(peaks + head * num_splits + splits, mask=is_split, other=-1.0e30)
    total = tl.load(totals + head * num_splits + splits, mask=is_split, other=0.0)
    top = tl.max(peak, 0)
    norm = tl.sum(tl.exp2(peak - top) * total, 0)

    dims = tl.arange(0, BLOCK_DV)
    accumulator = tl.zeros([BLOCK_DV], dtype=tl.float32)
    for s in tl.range(0, num_splits, CHUNK):
        chunk = s + tl.arange(0, CHUNK)
        inside = chunk < num_splits
        weights = tl.exp2(tl.load(peaks + head * num_splits + chunk, inside, -1.0e30) - top)
        rows = tl.load(
            partial + (head * num_splits + chunk)[:, None] * DV + dims[None, :],
            mask=inside[:, None] & (dims < DV)[None, :],
            other=0.0,
        )
        accumulator += tl.sum(weights[:, None] * rows, 0)
    tl.store(o + head * DV + dims, (accumulator / norm).to(o.dtype.element_ty), mask=dims < DV)


def flash_decode(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    window: int | None = None,
    scale: float | None = None,
    num_splits: int | None = None,
    config: DecodeConfig | None = None,
) -> torch.Tensor:
    """Attention of the newest token (or the few newest) over a cache of S tokens, itself in it.

    Args:
        q: [B, Tq, Hq, D], Tq usually 1 and Tq · Hq / Hkv at most 128.
        k: [B, S, Hkv, D], the new tokens' keys at its end.
        v: [B, S, Hkv, Dv].
        window: keys a query sees, itself included; None sees all.
        scale: of the scores, D ** -0.5 unless given.
        num_splits: pieces the keys are cut into, at most; chosen for the device unless given.
        config: overrides the configuration chosen for the shape.

    Returns: [B, Tq, Hq, Dv] in q's dtype. Inputs that are not contiguous are copied first.
    """
    scale = check_attention(q, k, v, window, scale)
    B, Tq, HQ, D = q.shape
    _, S, HKV, DV = v.shape
    GROUP = HQ // HKV
    if Tq * GROUP > MAX_ROWS:
        raise UsageError(
            f"flash_decode holds up to {MAX_ROWS} rows of tokens times query heads per KV head, "
            f"got {Tq} times {GROUP}; use flash_attention"
        )
    device = device_of(q, k, v)
    ROWS = max(16, triton.next_power_of_2(Tq * GROUP))
    BLOCK_D, BLOCK_DV = block_dim(D), block_dim(DV)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    config = config or decode_config(device, q.dtype, max(BLOCK_D, BLOCK_DV), ROWS)

    if window is None or window >= S:
        window = 0
    start = max(0, S - Tq - window + 1) if window else 0
    in_flight = (config.num_stages - 1) * config.block_k * (D + DV) * k.element_size()
    splits = num_splits or choose_num_splits(device, B * HKV, S - start, in_flight)
    tiles_per_split = triton.cdiv(triton.cdiv(S - start, config.block_k), splits)
    split_keys = tiles_per_split * config.block_k
    splits = triton.cdiv(S - start, split_keys)

    o = q.new_empty(B, Tq, HQ, DV)
    peaks = totals = partial = o
    if splits > 1:
        partial = q.new_empty(B, Tq, HQ, splits, DV, dtype=torch.float32)
        peaks = q.new_empty(B, Tq, HQ, splits, dtype=torch.float32)
        totals = torch.empty_like(peaks)
    with torch.cuda.device_of(q):
        flash_decode_kernel[(B * HKV * splits,)](
            q,
            k,
            v,
            partial,
            peaks,
            totals,
            S,
            start,
            split_keys,
            scale * LOG2_E,
            splits,
            window,
            Tq=Tq,
            HQ=HQ,
            GROUP=GROUP,
            D=D,
            DV=DV,
            WINDOWED=window > 0,
            ROWS=ROWS,
            BLOCK_K=config.block_k,
            BLOCK_D=BLOCK_D,
            BLOCK_DV=BLOCK_DV,
            SPLIT=splits > 1,
            PRECISION=dot_precision(q.dtype),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if splits > 1:
            merge_splits_kernel[(B * Tq * HQ,)](
                partial,
                peaks,
                totals,
                o,
                splits,
                DV=DV,
                BLOCK_SPLITS=triton.next_power_of_2(splits),
                BLOCK_DV=BLOCK_DV,
                CHUNK=16,
                num_warps=4,
            )
    return o

"""Multi-head latent attention of the newest token: every head against one shared key per token.

Absorbed, a cached token is one row c_j of `lora` latent entries followed by `rope` rotary ones.
With the key's expansion folded into the query, head h of a sequence computes

    o_h = Σ_j softmax_j(scale · q_h·c_j) c_j[:lora]

so a row is read once for all heads, and its first part serves as key and as value. Per row of
2 (lora + rope) bytes there are 2H (2 lora + rope) FLOPs: at 32 heads 60 FLOPs a byte, so reading
the cache is still the floor, and at 128 heads 240, where arithmetic is. The latent and the
rotary part are two products, 512 and 64 deep, because a tile's width is a power of two.

Keys are cut into splits whose partial results a second kernel merges, as in flash_decode.py.

    >>> o = latent_decode(q, cache, lora=512)         # q [B, 1, H, 576], cache [B, S, 1, 576]
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from planner.errors import UsageError
from profiler.kernels.device import INTERPRETER, Device, device_of, dot_precision
from profiler.kernels.flash_attention import LOG2_E
from profiler.kernels.flash_decode import FULL_BYTES, choose_num_splits, merge_splits_kernel

MAX_LORA = 512


@dataclass(frozen=True, kw_only=True)
class LatentConfig:
    """Heads and keys of a tile, and launch options of one compiled variant."""

    block_h: int
    block_k: int
    num_warps: int
    num_stages: int


FEW_SHARE = 1 / 8


def latent_config(device: Device, dtype: torch.dtype, batch: int, heads: int) -> LatentConfig:
    """The variant for a shape on a device: of those tried in three shapes on an H100 the fastest.

    Blocks of 64 heads are what Hopper's matrix units want. 32 heads read the cache at 93 % of the
    bandwidth with 64 keys and three stages; where few sequences would be cut into many splits,
    blocks of 16 heads instead need fewer of them, and so less to merge. docs/log.md has the times.
    """
    if device is INTERPRETER:
        return LatentConfig(block_h=16, block_k=32, num_warps=4, num_stages=1)
    wanted = max(16, triton.next_power_of_2(heads))
    # Other GPUs have less shared memory, and fp32 takes twice as much.
    if device.capability[0] not in (9, 10) or dtype == torch.float32:
        return LatentConfig(block_h=min(32, wanted), block_k=32, num_warps=8, num_stages=2)
    if wanted >= 64:
        return LatentConfig(block_h=64, block_k=64, num_warps=8, num_stages=2)
    if wanted == 16 or batch <= FEW_SHARE * device.num_sms:
        return LatentConfig(block_h=16, block_k=64, num_warps=4, num_stages=3)
    return LatentConfig(block_h=32, block_k=64, num_warps=8, num_stages=3)


@triton.jit
def _rows(source, first, last, rows, dims, WIDTH: tl.constexpr, D: tl.constexpr):
    """[rows, dims] of a row-major matrix `WIDTH` wide; zeros from row `last` and dim `D` on."""
    at = source + (first + rows).to(tl.int64)[:, None] * WIDTH + dims[None, :]
    return tl.load(at, mask=(first + rows < last)[:, None] & (dims < D)[None, :], other=0.0)


@triton.jit(do_not_specialize=["S", "split_keys", "num_splits"])
def latent_decode_kernel(
    q,  # [B, H, LORA + ROPE]
    cache,  # [B, S, LORA + ROPE]
    o,  # [B, H, LORA], or partial outputs [B, H, SPLITS, LORA] in fp32
    peaks,  # [B, H, SPLITS] in fp32; unused with one split
    totals,  # as peaks
    S,
    split_keys,  # keys of one split, a multiple of BLOCK_K
    scale_log2,
    num_splits,
    H: tl.constexpr,
    LORA: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_LORA: tl.constexpr,
    BLOCK_ROPE: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program per (batch, split, block of heads), in this order: neighbours share keys."""
    WIDTH: tl.constexpr = LORA + ROPE
    BLOCKS: tl.constexpr = (H + BLOCK_H - 1) // BLOCK_H
    program = tl.program_id(0)
    first_head = program % BLOCKS * BLOCK_H
    split = program // BLOCKS % num_splits
    b = (program // (BLOCKS * num_splits)).to(tl.int64)

    heads = tl.arange(0, BLOCK_H)
    keys = tl.arange(0, BLOCK_K)
    latent = tl.arange(0, BLOCK_LORA)
    rotary = tl.arange(0, BLOCK_ROPE)
    q += b * H * WIDTH
    cache += b * S * WIDTH
    q_latent = _rows(q, first_head, H, heads, latent, WIDTH, LORA)
    q_rotary = _rows(q + LORA, first_head, H, heads, rotary, WIDTH, ROPE)
    accumulator = tl.zeros([BLOCK_H, BLOCK_LORA], dtype=tl.float32)
    peak = tl.full([BLOCK_H], -1.0e30, dtype=tl.float32)
    total = tl.zeros([BLOCK_H], dtype=tl.float32)

    first = split * split_keys
    last = tl.minimum(first + split_keys, S)
    for n in tl.range(first, last, BLOCK_K):
        rows = _rows(cache, n, last, keys, latent, WIDTH, LORA)
        turned = _rows(cache + LORA, n, last, keys, rotary, WIDTH, ROPE)
        scores = tl.dot(q_latent, rows.T, input_precision=PRECISION)
        scores = tl.dot(q_rotary, turned.T, scores, input_precision=PRECISION)
        scores = tl.where((n + keys < last)[None, :], scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weights, 1)
        accumulator = accumulator * fade[:, None]
        accumulator = tl.dot(weights.to(rows.dtype), rows, accumulator, input_precision=PRECISION)
        peak = new_peak

    head = first_head + heads
    inside = (head < H)[:, None] & (latent < LORA)[None, :]
    row = b * H + head
    if SPLIT:
        slots = row * num_splits + split
        tl.store(o + slots[:, None] * LORA + latent[None, :], accumulator, mask=inside)
        tl.store(peaks + slots, peak, mask=head < H)
        tl.store(totals + slots, total, mask=head < H)
    else:
        out = (accumulator / total[:, None]).to(o.dtype.element_ty)
        tl.store(o + row[:, None] * LORA + latent[None, :], out, mask=inside)


def check_latent(q: torch.Tensor, cache: torch.Tensor, lora: int) -> None:
    """Raises UsageError, naming the argument, what it is and what it may be."""
    if q.ndim != 4 or cache.ndim != 4 or q.shape[1] != 1 or cache.shape[2] != 1:
        raise UsageError(
            f"q must be [B, 1, H, D] and cache [B, S, 1, D], got {list(q.shape)} and "
            f"{list(cache.shape)}"
        )
    if q.shape[0] != cache.shape[0] or q.shape[3] != cache.shape[3]:
        raise UsageError(
            f"q and cache must share B and D, got {list(q.shape)} and {list(cache.shape)}"
        )
    if q.dtype != cache.dtype:
        raise UsageError(f"q and cache must have one dtype, got {q.dtype} and {cache.dtype}")
    if not 1 <= lora < q.shape[3] or lora > MAX_LORA:
        raise UsageError(
            f"lora must be at least 1, below D = {q.shape[3]} and at most {MAX_LORA}, got {lora}"
        )


def latent_decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    *,
    lora: int,
    scale: float | None = None,
    num_splits: int | None = None,
    config: LatentConfig | None = None,
) -> torch.Tensor:
    """Absorbed latent attention of the newest token over S cached rows, its own among them.

    Args:
        q: [B, 1, H, lora + rope], the key's expansion folded in.
        cache: [B, S, 1, lora + rope].
        lora: width of the latent, up to 512; the rest of a row is the rotary key.
        scale: of the scores, (lora + rope) ** -0.5 unless given.
        num_splits: pieces the keys are cut into, at most; chosen for the device unless given.
        config: overrides the configuration chosen for the shape.

    Returns: [B, 1, H, lora] in q's dtype. Inputs that are not contiguous are copied first.
    """
    check_latent(q, cache, lora)
    device = device_of(q, cache)
    B, _, H, D = q.shape
    S = cache.shape[1]
    config = config or latent_config(device, q.dtype, B, H)
    q, cache = q.contiguous(), cache.contiguous()
    blocks = triton.cdiv(H, config.block_h)
    # A program's registers or shared memory leave a multiprocessor no room for a second.
    splits = num_splits or choose_num_splits(device, B * blocks, S, FULL_BYTES)
    split_keys = triton.cdiv(triton.cdiv(S, config.block_k), splits) * config.block_k
    splits = triton.cdiv(S, split_keys)

    o = q.new_empty(B, 1, H, lora)
    peaks = totals = partial = o
    if splits > 1:
        partial = q.new_empty(B, H, splits, lora, dtype=torch.float32)
        peaks = q.new_empty(B, H, splits, dtype=torch.float32)
        totals = torch.empty_like(peaks)
    block_lora = max(16, triton.next_power_of_2(lora))
    with torch.cuda.device_of(q):
        latent_decode_kernel[(B * splits * blocks,)](
            q,
            cache,
            partial,
            peaks,
            totals,
            S,
            split_keys,
            (D**-0.5 if scale is None else scale) * LOG2_E,
            splits,
            H=H,
            LORA=lora,
            ROPE=D - lora,
            BLOCK_H=config.block_h,
            BLOCK_K=config.block_k,
            BLOCK_LORA=block_lora,
            BLOCK_ROPE=max(16, triton.next_power_of_2(D - lora)),
            SPLIT=splits > 1,
            PRECISION=dot_precision(q.dtype),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        if splits > 1:
            merge_splits_kernel[(B * H,)](
                partial,
                peaks,
                totals,
                o,
                splits,
                DV=lora,
                BLOCK_SPLITS=triton.next_power_of_2(splits),
                BLOCK_DV=block_lora,
                CHUNK=16,
                num_warps=4,
            )
    return o

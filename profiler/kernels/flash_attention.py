import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def load_rows(source, b, row, h, T, H: tl.constexpr, D: tl.constexpr, ROWS: tl.constexpr,
              BLOCK_D: tl.constexpr, CHECKED: tl.constexpr, TMA: tl.constexpr):
    if TMA:
        tile = source.load([b, row, h, 0]).reshape(ROWS, BLOCK_D)
    else:
        start = source + ((b.to(tl.int64) * T + row) * H + h) * D
        rows = tl.arange(0, ROWS)[:, None]
        dims = tl.arange(0, BLOCK_D)[None, :]
        at = start + rows * (H * D) + dims
        if CHECKED and BLOCK_D > D:
            tile = tl.load(at, mask=(row + rows < T) & (dims < D), other=0.0)
        elif CHECKED:
            tile = tl.load(at, mask=row + rows < T, other=0.0)
        elif BLOCK_D > D:
            tile = tl.load(at, mask=dims < D, other=0.0)
        else:
            tile = tl.load(at)
    return tile


@triton.jit
def _attend(acc, peak, total, q, k, v, b, h, Tk, positions, lo, hi, scale_log2,
            H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr, MASKED: tl.constexpr, BN: tl.constexpr, BLOCK_D: tl.constexpr,
            BLOCK_DV: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr):
    for n in tl.range(lo, hi, BN):
        k_tile = load_rows(k, b, n, h, Tk, H, D, BN, BLOCK_D, MASKED, TMA)
        scores = tl.dot(q, k_tile.T, input_precision=PRECISION)
        if MASKED:
            keys = n + tl.arange(0, BN)
            seen = keys[None, :] <= positions[:, None]
            if WINDOW > 0:
                seen &= keys[None, :] > positions[:, None] - WINDOW
            scores = tl.where(seen, scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        weights = tl.exp2(scores * scale_log2 - new_peak[:, None])
        fade = tl.exp2(peak - new_peak)
        total = total * fade + tl.sum(weights, 1)
        acc = acc * fade[:, None]
        v_tile = load_rows(v, b, n, h, Tk, H, DV, BN, BLOCK_DV, MASKED, TMA)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc, input_precision=PRECISION)
        peak = new_peak
    return acc, peak, total


@triton.jit
def flash_attention_kernel(
    q, k, v, o, Tq, Tk, scale_log2,
    HQ: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DV: tl.constexpr, WINDOW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr, TMA: tl.constexpr
):
    HKV: tl.constexpr = HQ // GROUP
    tiles = tl.cdiv(Tq, BM)
    pid = tl.program_id(0)
    tile = tiles - 1 - (pid // GROUP) % tiles
    bh = pid // (GROUP * tiles)
    h_kv = bh % HKV
    b = bh // HKV
    h = h_kv * GROUP + pid % GROUP

    m = tile * BM
    first = Tk - Tq + m
    last = tl.minimum(first + BM, Tk)  # one past
    positions = first + tl.arange(0, BM)
    q_tile = load_rows(q, b, m, h, Tq, HQ, D, BM, BLOCK_D, True, False)
    acc = tl.zeros([BM, BLOCK_DV], dtype=tl.float32)
    peak = tl.full([BM], -1e30, dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    full_hi = (first + 1) // BN * BN
    full_lo = 0
    if WINDOW > 0:
        lo = tl.maximum(first - WINDOW + 1, 0) // BN * BN
        full_lo = tl.minimum(tl.maximum(tl.cdiv(last - WINDOW, BN) * BN, lo), full_hi)
        acc, peak, total = _attend(acc, peak, total, q_tile, k, v, b, h_kv, Tk, positions, lo,
                                   full_lo, scale_log2, HKV, D, DV, WINDOW, True, BN, BLOCK_D, BLOCK_DV, PRECISION, TMA)
    acc, peak, total = _attend(acc, peak, total, q_tile, k, v, b, h_kv, Tk, positions, full_lo,
                               full_hi, scale_log2, HKV, D, DV, WINDOW, False, BN, BLOCK_D, BLOCK_DV, PRECISION, TMA)
    acc, peak, total = _attend(acc, peak, total, q_tile, k, v, b, h_kv, Tk, positions, full_hi,
                               last, scale_log2, HKV, D, DV, WINDOW, True, BN, BLOCK_D, BLOCK_DV, PRECISION, TMA)
    rows = tl.arange(0, BM)[:, None]
    dims = tl.arange(0, BLOCK_DV)[None, :]
    at = o + ((b.to(tl.int64) * Tq + m) * HQ + h) * DV + rows * (HQ * DV) + dims
    tl.store(at, (acc / total[:, None]).to(o.dtype.element_ty), mask=(m + rows < Tq) & (dims < DV))

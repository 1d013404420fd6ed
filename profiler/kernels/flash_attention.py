import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor


@triton.jit
def _attend(acc, peak, total, q, k_desc, v_desc, b, h, positions, lo, hi, scale_log2,
            WINDOW: tl.constexpr, MASKED: tl.constexpr, BN: tl.constexpr, D: tl.constexpr,
            DV: tl.constexpr, PRECISION: tl.constexpr):
    for n in tl.range(lo, hi, BN):
        k = k_desc.load([b, n, h, 0]).reshape(BN, D)
        scores = tl.dot(q, k.T, input_precision=PRECISION)
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
        v = v_desc.load([b, n, h, 0]).reshape(BN, DV)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        peak = new_peak
    return acc, peak, total


@triton.jit
def flash_attention_kernel(
    q_desc, k_desc, v_desc, o_desc, Tq, Tk, scale_log2,
    H: tl.constexpr, GROUP: tl.constexpr, WINDOW: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles = tl.cdiv(Tq, BM)
    pid = tl.program_id(0)
    hg = pid % GROUP
    tile = tiles - 1 - (pid // GROUP) % tiles
    bh = pid // (GROUP * tiles)
    h_kv = bh % (H // GROUP)
    b = bh // (H // GROUP)
    h = h_kv * GROUP + hg

    m = tile * BM
    first = Tk - Tq + m
    last = tl.minimum(first + BM, Tk)  # one past
    positions = first + tl.arange(0, BM)
    q = q_desc.load([b, m, h, 0]).reshape(BM, D)
    acc = tl.zeros([BM, DV], dtype=tl.float32)
    peak = tl.full([BM], -1e30, dtype=tl.float32)
    total = tl.zeros([BM], dtype=tl.float32)
    if WINDOW > 0:
        lo = tl.maximum(first - WINDOW + 1, 0) // BN * BN
        full_lo = tl.maximum(tl.cdiv(last - WINDOW, BN) * BN, lo)
    else:
        lo = 0
        full_lo = 0
    full_hi = tl.maximum((first + 1) // BN * BN, full_lo)
    if WINDOW > 0:
        full_lo = tl.minimum(full_lo, last)
        full_hi = tl.minimum(full_hi, last)
        acc, peak, total = _attend(acc, peak, total, q, k_desc, v_desc, b, h_kv, positions, lo,
                                   full_lo, scale_log2, WINDOW, True, BN, D, DV, PRECISION)
    acc, peak, total = _attend(acc, peak, total, q, k_desc, v_desc, b, h_kv, positions, full_lo,
                               full_hi, scale_log2, WINDOW, False, BN, D, DV, PRECISION)
    acc, peak, total = _attend(acc, peak, total, q, k_desc, v_desc, b, h_kv, positions, full_hi,
                               last, scale_log2, WINDOW, True, BN, D, DV, PRECISION)
    o = (acc / total[:, None]).to(o_desc.dtype)
    o_desc.store([b, m, h, 0], o.reshape(1, BM, 1, DV))

"""The causal depthwise convolution of a few tokens with the SiLU after it, and its one-token step.

Every channel c of the queries, keys and values of a recurrent mixer is mixed with its W - 1
predecessors (W is 4 in all models of the catalog) before the state sees it:

    y[t, c] = silu(Σ_i w[c, i] x[t - W + 1 + i, c])        silu(a) = a / (1 + e^-a)

It is a handful of operations per element, so its cost is one read of x and one write of y, if the
W shifted reads of a tile are served by the cache. A step keeps the last W inputs of each sequence
as its tail, reads them once and moves them up by one in the same pass. Weights are [C, W] in any
layout; with the channels side by side, as `w.T.contiguous().T`, a tap of many is one wide read.

    >>> y = short_convolution(x, w)                     # x [B, T, C], w [C, W]
    >>> y = short_convolution_step(x, w, tail=tail)     # x [B, 1, C]; tail [B, W, C], in place
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from planner.errors import UsageError
from profiler.kernels.device import device_of

BLOCK_T = 32
BLOCK_C = 128
STEP_BLOCK_C = 256


@triton.jit
def _silu(a):
    return a / (1.0 + tl.exp(-a))


@triton.jit(do_not_specialize=["T"])
def short_convolution_kernel(
    x,  # [B, T, C]
    w,  # [C, W]
    tail,  # [B, W, C], the W inputs before x; unused without TAIL
    y,  # [B, T, C]
    T,
    C: tl.constexpr,
    W: tl.constexpr,
    W_CHANNEL: tl.constexpr,
    W_TAP: tl.constexpr,
    TAIL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per (batch, block of tokens, block of channels)."""
    CHANNEL_BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    channels = program % CHANNEL_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    token_blocks = tl.cdiv(T, BLOCK_T)
    first = program // CHANNEL_BLOCKS % token_blocks * BLOCK_T
    b = (program // (CHANNEL_BLOCKS * token_blocks)).to(tl.int64)
    tokens = first + tl.arange(0, BLOCK_T)
    is_channel = channels < C

    total = tl.zeros([BLOCK_T, BLOCK_C], dtype=tl.float32)
    for i in tl.static_range(W):
        at = tokens + i - (W - 1)
        seen = tl.load(
            x + (b * T + at)[:, None] * C + channels[None, :],
            mask=((at >= 0) & (at < T))[:, None] & is_channel[None, :],
            other=0.0,
        ).to(tl.float32)
        if TAIL:
            seen += tl.load(
                tail + (b * W + W + at)[:, None] * C + channels[None, :],
                mask=(at < 0)[:, None] & is_channel[None, :],
                other=0.0,
            ).to(tl.float32)
        weight = tl.load(w + channels * W_CHANNEL + i * W_TAP, mask=is_channel, other=0.0)
        total += weight.to(tl.float32)[None, :] * seen
    tl.store(
        y + (b * T + tokens)[:, None] * C + channels[None, :],
        _silu(total).to(y.dtype.element_ty),
        mask=(tokens < T)[:, None] & is_channel[None, :],
    )


@triton.jit
def short_convolution_step_kernel(
    x,  # [B, C]
    w,  # [C, W]
    tail,  # [B, W, C], updated
    y,  # [B, C]
    C: tl.constexpr,
    W: tl.constexpr,
    W_CHANNEL: tl.constexpr,
    W_TAP: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program per (batch, block of channels)."""
    CHANNEL_BLOCKS: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    channels = tl.program_id(0) % CHANNEL_BLOCKS * BLOCK_C + tl.arange(0, BLOCK_C)
    b = (tl.program_id(0) // CHANNEL_BLOCKS).to(tl.int64)
    is_channel = channels < C

    # All loads stand before the first store: none may pass it, for rows overwrite each other.
    rows = ()
    for i in tl.static_range(1, W):
        row = tl.load(tail + (b * W + i) * C + channels, mask=is_channel, other=0.0)
        rows += (row,)  # type: ignore[assignment]  # a tuple of the compiler's, which grows
    rows += (tl.load(x + b * C + channels, mask=is_channel, other=0.0),)  # type: ignore[assignment]
    total = tl.zeros((BLOCK_C,), tl.float32)
    for i in tl.static_range(W):
        weight = tl.load(w + channels * W_CHANNEL + i * W_TAP, mask=is_channel, other=0.0)
        total += weight.to(tl.float32) * rows[i].to(tl.float32)

    for i in tl.static_range(W):
        tl.store(tail + (b * W + i) * C + channels, rows[i], mask=is_channel)
    tl.store(y + b * C + channels, _silu(total).to(y.dtype.element_ty), mask=is_channel)


def short_convolution(
    x: torch.Tensor, w: torch.Tensor, *, tail: torch.Tensor | None = None
) -> torch.Tensor:
    """The convolution of whole sequences, with the inputs before them if there are any.

    Args:
        x: [B, T, C].
        w: [C, W].
        tail: [B, W, C], the last W inputs before x; its first row is not needed.

    Returns: y [B, T, C] in x's dtype. An x or tail that is not contiguous is copied first.
    """
    B, T, C, W = _check(x, w, tail)
    x = x.contiguous()
    y = torch.empty_like(x)
    programs = B * triton.cdiv(T, BLOCK_T) * triton.cdiv(C, BLOCK_C)
    with torch.cuda.device_of(x):
        short_convolution_kernel[(programs,)](
            x,
            w,
            x if tail is None else tail.contiguous(),
            y,
            T,
            C=C,
            W=W,
            W_CHANNEL=w.stride(0),
            W_TAP=w.stride(1),
            TAIL=tail is not None,
            BLOCK_T=BLOCK_T,
            BLOCK_C=BLOCK_C,
            num_warps=4,
        )
    return y


def short_convolution_step(
    x: torch.Tensor, w: torch.Tensor, *, tail: torch.Tensor
) -> torch.Tensor:
    """One token of each sequence; `tail` moves up by it, in place.

    Args:
        x: [B, 1, C].
        w: [C, W].
        tail: [B, W, C], contiguous, the last W inputs.

    Returns: y [B, 1, C] in x's dtype.
    """
    B, T, C, W = _check(x, w, tail)
    if T != 1:
        raise UsageError(f"a step takes one token, got {T}")
    if not tail.is_contiguous():
        raise UsageError("tail is updated in place and must be contiguous")
    x = x.contiguous()
    y = torch.empty_like(x)
    with torch.cuda.device_of(x):
        short_convolution_step_kernel[(B * triton.cdiv(C, STEP_BLOCK_C),)](
            x,
            w,
            tail,
            y,
            C=C,
            W=W,
            W_CHANNEL=w.stride(0),
            W_TAP=w.stride(1),
            BLOCK_C=STEP_BLOCK_C,
            num_warps=2,
        )
    return y


def _check(
    x: torch.Tensor, w: torch.Tensor, tail: torch.Tensor | None
) -> tuple[int, int, int, int]:
    """(B, T, C, W); raises UsageError naming what does not fit."""
    if x.ndim != 3 or w.ndim != 2 or w.shape[0] != x.shape[2]:
        raise UsageError(
            f"x must be [B, T, C] and w [C, W], got {list(x.shape)} and {list(w.shape)}"
        )
    (B, T, C), W = x.shape, w.shape[1]
    if tail is not None and tuple(tail.shape) != (B, W, C):
        raise UsageError(f"tail must be {[B, W, C]}, got {list(tail.shape)}")
    device_of(*(t for t in (x, w, tail) if t is not None))
    return B, T, C, W

"""One tile of consecutive tokens of one head, out of a [B, T, H, D] tensor.

Two ways to bring it on chip, chosen when the kernel is compiled:

- a **tensor descriptor** (Hopper's bulk copy engine, TMA): one thread asks for the whole tile, the
  hardware computes the addresses and fills rows beyond T with zeros. It costs no registers, which
  is what lets two programs share a multiprocessor;
- a **pointer** (any GPU): every thread computes 64-bit addresses. Strides are compile-time
  constants, so most of that folds into the instructions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

_ALIGNMENT = 16  # bytes; what the bulk copy engine asks of addresses and strides


def tma_can_read(tensor: torch.Tensor) -> bool:
    """Whether base and rows of a contiguous [B, T, H, D] tensor are aligned for descriptors."""
    row_bytes = tensor.shape[-1] * tensor.element_size()
    return row_bytes % _ALIGNMENT == 0 and tensor.data_ptr() % _ALIGNMENT == 0


def rows_of(
    tensor: torch.Tensor, rows: int, block_dim: int, *, tma: bool
) -> torch.Tensor | TensorDescriptor:
    """What `load_rows` reads tiles of `rows` tokens from: a descriptor, or the tensor itself."""
    if not tma:
        return tensor
    shape: Sequence[int] = tensor.shape
    return TensorDescriptor(tensor, list(shape), list(tensor.stride()), [1, rows, 1, block_dim])


@triton.jit
def load_rows(
    source,
    b,
    row,
    h,
    dim,
    T,
    end,
    H: tl.constexpr,
    D: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CHECKED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Tokens from `row` and dims from `dim` of head h, [ROWS, BLOCK_D]; zero beyond D.

    CHECKED: zero from token `end` on, too. T is the length the tensor has, `end` ≤ T where this sequence stops. A descriptor stops at T
    by itself, so its callers check only when sequences lie packed behind one another.
    """
    if TMA:
        tile = source.load([b, row, h, dim]).reshape(ROWS, BLOCK_D)
        if CHECKED:
            inside = row + tl.arange(0, ROWS) < end
            tile = tl.where(inside[:, None], tile, 0.0).to(tile.dtype)
    else:
        rows = tl.arange(0, ROWS)[:, None]
        dims = dim + tl.arange(0, BLOCK_D)[None, :]
        at = source + ((b.to(tl.int64) * T + row) * H + h) * D + rows * (H * D) + dims
        if CHECKED and D % BLOCK_D:
            tile = tl.load(at, mask=(row + rows < end) & (dims < D), other=0.0)
        elif CHECKED:
            tile = tl.load(at, mask=row + rows < end, other=0.0)
        elif D % BLOCK_D:
            tile = tl.load(at, mask=dims < D, other=0.0)
        else:
            tile = tl.load(at)
    return tile

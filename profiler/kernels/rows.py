"""One tile of consecutive tokens of one head, out of a contiguous [B, T, H, D] tensor.

Three ways to bring it on chip, known when a kernel is compiled:

- `POINTER` (any GPU): every thread computes 64-bit addresses. Strides are compile-time constants,
  so most of that folds into the instructions.
- `BOX` (Hopper's bulk copy engine, TMA): one thread asks for the whole tile of a 4-D tensor and
  the hardware computes the addresses. It costs no registers, and rows past T and dims past D come
  as zeros. Triton holds such a tile in shared memory as the *second* operand of a product only; as
  the first it goes through registers.
- `FLAT` (TMA): the same on the [B · T, H · D] matrix. Both operands stay in shared memory, but a
  tile that runs past the end of its sequence or head shows the next one, so dims must fill the
  tile and the caller asks for `CHECKED` where a sequence may end.
"""

from __future__ import annotations

from enum import IntEnum

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

ALIGNMENT_BYTES = 16  # what the bulk copy engine asks of addresses and strides


class Access(IntEnum):
    """How `load_rows` reads; see the module docstring."""

    POINTER = 0
    BOX = 1
    FLAT = 2


BOX = tl.constexpr(int(Access.BOX))
FLAT = tl.constexpr(int(Access.FLAT))


def tma_can_read(*tensors: torch.Tensor) -> bool:
    """Whether base and rows of contiguous [B, T, H, D] tensors are aligned for descriptors."""
    return all(
        tensor.shape[-1] * tensor.element_size() % ALIGNMENT_BYTES == 0
        and tensor.data_ptr() % ALIGNMENT_BYTES == 0
        for tensor in tensors
    )


def rows_of(
    tensor: torch.Tensor, rows: int, dims: int, access: Access
) -> torch.Tensor | TensorDescriptor:
    """What `load_rows` reads tiles of [rows, dims] from: a descriptor, or the tensor itself."""
    if access is Access.POINTER:
        return tensor
    B, T, H, D = tensor.shape
    if access is Access.FLAT:
        return TensorDescriptor(tensor, [B * T, H * D], [H * D, 1], [rows, dims])
    return TensorDescriptor(tensor, [B, T, H, D], list(tensor.stride()), [1, rows, 1, dims])


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
    DIMS: tl.constexpr,
    CHECKED: tl.constexpr,
    ACCESS: tl.constexpr,
):
    """Tokens from `row` and dims from `dim` of head h as [ROWS, DIMS]; zeros from dim D on.

    CHECKED: zeros from token `end` on too, the end of this sequence; T is the tensor's length.
    """
    if ACCESS == BOX:
        tile = source.load([b, row, h, dim]).reshape(ROWS, DIMS)
    elif ACCESS == FLAT:
        tl.static_assert(D % DIMS == 0, "a flat tile would show the next head")
        tile = source.load([b * T + row, h * D + dim])
    else:
        rows = tl.arange(0, ROWS)[:, None]
        dims = dim + tl.arange(0, DIMS)[None, :]
        at = source + ((b.to(tl.int64) * T + row) * H + h) * D + rows * (H * D) + dims
        if CHECKED and D % DIMS:
            tile = tl.load(at, mask=(row + rows < end) & (dims < D), other=0.0)
        elif CHECKED:
            tile = tl.load(at, mask=row + rows < end, other=0.0)
        elif D % DIMS:
            tile = tl.load(at, mask=dims < D, other=0.0)
        else:
            tile = tl.load(at)
    if CHECKED and ACCESS != 0:
        inside = row + tl.arange(0, ROWS) < end
        tile = tl.where(inside[:, None], tile, 0.0).to(tile.dtype)
    return tile

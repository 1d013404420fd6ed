"""Stored dtypes: what weights, caches and states kept in fewer bytes do to a call's time.

No kernel was measured on every combination. The time in the compute dtype is scaled by the ratio
of the two roofline bounds: traffic shrinks with the stored bytes; a matrix of weights is
multiplied at the stored dtype's rate where the device has such a unit, else at the compute rate.
"""

from __future__ import annotations

from typing import Protocol

from planner.hardware import Hardware
from planner.mixers import get_mixer
from planner.mixers.recurrent import FP32_BYTES, state_elements
from planner.workload import DenseOp, ExpertsOp, MixerOp, Op, dtype_bytes


class Dtypes(Protocol):
    """What a deployment computes in and keeps things in."""

    @property
    def hardware(self) -> Hardware: ...
    @property
    def compute_dtype(self) -> str: ...
    @property
    def weights_dtype(self) -> str: ...
    @property
    def kv_dtype(self) -> str: ...
    @property
    def state_dtype(self) -> str: ...


HALF_WIDTH = 0.2


def stored_dtype_ratio(op: Op, at: tuple[int, int, int], d: Dtypes) -> tuple[float, float]:
    """(time with the stored dtypes over that with all in the compute dtype and states in fp32,
    half-width of its log); (1, 0) where they are the same."""
    saved = saved_bytes(op, at, d)
    if saved == 0.0:
        return 1.0, 0.0
    rate = d.weights_dtype if isinstance(op, DenseOp | ExpertsOp) else d.compute_dtype
    flops, moved = op.model_flops(*at), op.min_bytes(*at, dtype_bytes(d.compute_dtype))
    before = d.hardware.lower_bound_s(flops, moved, d.compute_dtype)
    after = d.hardware.lower_bound_s(flops, max(moved - saved, 0.0), rate)
    return float(after / before), HALF_WIDTH


def saved_bytes(op: Op, at: tuple[int, int, int], d: Dtypes) -> float:
    """Bytes that a call moves less than with everything in the compute dtype; may be negative."""
    computed = dtype_bytes(d.compute_dtype)
    if isinstance(op, DenseOp):
        return op.in_features * op.out_features * (computed - dtype_bytes(d.weights_dtype))
    if isinstance(op, ExpertsOp):
        weights = op.touched(at[0] * at[1]) * op.expert_parameters
        return float(weights * (computed - dtype_bytes(d.weights_dtype)))
    if not isinstance(op, MixerOp):
        return 0.0
    batch, _, cached = at
    if get_mixer(op.spec.mixer).kind == "recurrent":
        passes = 2 if cached > 0 else 1
        return passes * batch * state_elements(op.spec) * (FP32_BYTES - dtype_bytes(d.state_dtype))
    elements = batch * get_mixer(op.spec.mixer).kv_cache_bytes(op.spec, cached, 1.0)
    return float(elements * (computed - dtype_bytes(d.kv_dtype)))

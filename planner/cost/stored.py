"""Stored dtypes: what weights, caches and states kept in fewer bytes do to a call's time.

Few kernels were measured in every dtype. On paper the ratio of the two roofline bounds tells the
gain: traffic shrinks with the stored bytes, and a matrix of weights is multiplied at the stored
dtype's rate where the device has such a unit, else at the compute rate. Kernels realise only a
share of it: they also quantise activations, or convert what they read.

    time = time in the compute dtype x (ratio of bounds) ^ share

The shares are those of aiconfigurator-core 0.12.0's whole H200 tables (the wheel that
data/measurements/imported/README.md names; the shipped subset is bf16): calls of 30 us or more in
bf16 against the same in fp8, by vLLM 0.24, SGLang 0.5.14 and TensorRT-LLM 1.3.0rc20.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import numpy as np

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


class Share(NamedTuple):
    """Share of the log ratio of bounds that is realised: tenth percentile, median, ninetieth."""

    low: float
    typical: float
    high: float


WEIGHTS = Share(-0.18, 0.47, 0.87)
"""36,566 matrices of 1,024 to 65,536 rows and columns: fp8 makes the median one 1.4 times faster.
Other dtypes of weights are taken alike."""

KV_CACHE = Share(-0.36, 0.17, 1.16)
"""22,767 decode steps of full attention: 1.02 (SGLang), 1.04 (vLLM), 1.5 times (TensorRT-LLM)."""

STATE = Share(0.0, 0.5, 1.0)
"""No tables: anything between no gain and all of it."""


class Change(NamedTuple):
    """What a stored dtype does to a time: its ratio, and how far its log may be off."""

    ratio: float
    down: float
    up: float


def stored_dtype_change(op: Op, at: tuple[int, int, int], d: Dtypes) -> Change | None:
    """Against everything in the compute dtype and states in fp32; None where that is so."""
    saved = saved_bytes(op, at, d)
    if saved == 0.0:
        return None
    weights = isinstance(op, DenseOp | ExpertsOp)
    rate = d.weights_dtype if weights else d.compute_dtype
    flops, moved = op.model_flops(*at), op.min_bytes(*at, dtype_bytes(d.compute_dtype))
    before = d.hardware.lower_bound_s(flops, moved, d.compute_dtype)
    after = d.hardware.lower_bound_s(flops, max(moved - saved, 0.0), rate)
    log_ratio = float(np.log(after / before))
    share = WEIGHTS if weights else STATE if is_recurrent(op) else KV_CACHE
    ends = [log_ratio * (s - share.typical) for s in (share.low, share.high)]
    return Change(math.exp(log_ratio * share.typical), -min(ends), max(ends))


def is_recurrent(op: Op) -> bool:
    return isinstance(op, MixerOp) and get_mixer(op.spec.mixer).kind == "recurrent"


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
    if is_recurrent(op):
        passes = 2 if cached > 0 else 1
        return passes * batch * state_elements(op.spec) * (FP32_BYTES - dtype_bytes(d.state_dtype))
    elements = batch * get_mixer(op.spec.mixer).kv_cache_bytes(op.spec, cached, 1.0)
    return float(elements * (computed - dtype_bytes(d.kv_dtype)))

"""Break-even: from which context a decode step over a state is cheaper than over keys and values.

By formula, a step reads and writes the state where attention reads the whole cache:

    context* = 2 x state bytes / KV bytes per token

which holds where both kernels run at bandwidth: at serving batch. Fixed costs rule at small batch,
so the measured context stands beside it, and by how much the formula misses it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planner.cost.basis import Basis
from planner.cost.crossover import Crossover, Side, crossover
from planner.cost.kernel import KernelCost
from planner.cost.memory import break_even_context
from planner.mixers import MixerSpec
from planner.mixers.recurrent import FP32_BYTES
from planner.workload import MixerOp, dtype_bytes

CONTEXTS = np.unique(np.geomspace(64, 1 << 20, 257).astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class KernelCrossing:
    """Where two kernels' decode times cross, in tokens, with its 80 % interval.

    `context` is NaN where the state's kernel never stays ahead up to a million tokens, and the
    first context looked at where it always is. `residual` is context / by formula - 1.
    """

    context: float
    low: float
    high: float
    residual: float
    full_provider: str
    state_provider: str
    basis: Basis


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """The context in tokens by formula, and by the kernels' times.

    `measured` is None where cache or state is not kept in the bytes that kernels were measured in.
    """

    batch_size: int
    by_formula: float
    measured: KernelCrossing | None


def break_even(
    kernels: KernelCost,
    full: MixerSpec,
    recurrent: MixerSpec,
    batch_size: int,
    *,
    dtype: str = "bf16",
    kv_dtype: str = "bf16",
    state_dtype: str = "fp32",
    full_provider: str | None = None,
    state_provider: str | None = None,
    mode: str | None = None,
) -> BreakEven:
    """The formula's context and that at which the two kernels' decode times cross.

    The mixers alone, as in the formula: no projection, no convolution. Without a provider the
    fastest is taken, and those that meet at the crossing are named.
    """
    kv_elem, state_elem = dtype_bytes(kv_dtype), dtype_bytes(state_dtype)
    formula = break_even_context(full, recurrent.kernel(), kv_elem=kv_elem, state_elem=state_elem)
    measured = None
    if (kv_elem, state_elem) == (dtype_bytes(dtype), FP32_BYTES):
        sides = (_side(full, full_provider), _side(recurrent, state_provider))
        found = crossover(
            kernels, *sides, CONTEXTS, [batch_size], phase="decode", dtype=dtype,
            mode=mode or "graph",
        )  # fmt: skip
        measured = _crossing(found, formula)
    return BreakEven(batch_size=batch_size, by_formula=formula, measured=measured)


def _crossing(found: Crossover, formula: float) -> KernelCrossing:
    context = float(found.line.context[0])
    at = min(int(np.searchsorted(CONTEXTS, context)), len(CONTEXTS) - 1)
    return KernelCrossing(
        context=context,
        residual=context / formula - 1,
        low=float(found.line.low[0]),
        high=float(found.line.high[0]),
        full_provider=str(found.first_provider[0, at]),
        state_provider=str(found.second_provider[0, at]),
        basis=Basis(int(found.basis[0, at])),
    )


def _side(spec: MixerSpec, provider: str | None) -> Side:
    op = MixerOp(spec)
    return Side(spec.mixer, (op,), {op.family: provider} if provider else {})

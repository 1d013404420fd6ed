"""Break-even: the formula against imported decode times of an H200."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from planner.catalog import load_hardware, load_model
from planner.cost.basis import Basis
from planner.cost.break_even import BreakEven, break_even
from planner.cost.kernel import KernelCost
from planner.cost.observations import Observation
from planner.mixers import MixerSpec


@pytest.fixture(scope="module")
def kernels(imported: Callable[[str], list[Observation]]) -> KernelCost:
    return KernelCost.fit(imported("h200_sxm"), load_hardware("h200-sxm"))


def found(kernels: KernelCost, heads: tuple[int, int, int], values: int, batch: int) -> BreakEven:
    queries, kv, dim = heads
    full = MixerSpec(
        mixer="full_attention", num_q_heads=queries, num_k_heads=kv, num_v_heads=kv,
        k_head_dim=dim, v_head_dim=dim,
    )  # fmt: skip
    state = MixerSpec(
        mixer="gated_deltanet", num_q_heads=16, num_k_heads=16, num_v_heads=values,
        k_head_dim=128, v_head_dim=128,
    )  # fmt: skip
    return break_even(
        kernels, full, state, batch,
        full_provider="sglang_fa3@0.5.14", state_provider="vllm_fused_recurrent@0.24",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "values", "formula", "measured"),
    [
        # 2 x 32 x 128 x 128 x 4 bytes over 2 x 8 x 128 x 2 bytes
        ((32, 8, 128), 32, 1024, 965),
        ((16, 2, 256), 32, 2048, 1987),
        ((24, 4, 256), 48, 1536, 1465),
    ],
)
def test_the_formula_holds_at_serving_batch(
    kernels: KernelCost, heads: tuple[int, int, int], values: int, formula: int, measured: int
) -> None:
    both = found(kernels, heads, values, 128)
    assert both.by_formula == formula
    at = both.measured
    assert at is not None
    assert at.context == pytest.approx(measured, rel=0.01)
    assert at.low < at.context < at.high
    assert at.residual == pytest.approx(measured / formula - 1, abs=0.01)
    assert abs(at.residual) < 0.06
    assert at.basis == Basis.INTERPOLATED
    assert at.full_provider.startswith("sglang") and at.state_provider.startswith("vllm")


def test_the_formula_fails_at_small_batch(kernels: KernelCost) -> None:
    """Fixed costs rule there: the state's kernel is ahead long before its bytes are fewer."""
    at = [found(kernels, (24, 4, 256), 48, b).measured for b in (8, 32, 128)]
    residuals = [each.residual for each in at if each is not None]
    assert len(residuals) == 3
    assert residuals == sorted(residuals)
    assert residuals[0] < -0.8


def test_a_state_that_never_stays_ahead_has_no_break_even(kernels: KernelCost) -> None:
    # a cache of one narrow head against 64 states: beyond a million tokens
    full = MixerSpec(
        mixer="full_attention", num_q_heads=1, num_k_heads=1, num_v_heads=1, k_head_dim=16,
        v_head_dim=16,
    )  # fmt: skip
    state = MixerSpec(
        mixer="gated_deltanet", num_q_heads=128, num_k_heads=128, num_v_heads=8192,
        k_head_dim=128, v_head_dim=128,
    )  # fmt: skip
    at = break_even(kernels, full, state, 128)
    assert at.by_formula == 2 * 8192 * 128 * 128 * 4 / (2 * 16 * 2)
    assert at.measured is not None
    assert math.isnan(at.measured.context) and math.isnan(at.measured.residual)


@pytest.mark.parametrize(
    ("stored", "formula"),
    [({"kv_dtype": "fp8"}, 2048), ({"state_dtype": "bf16"}, 512)],
)
def test_what_is_kept_in_fewer_bytes_has_a_formula_and_no_measured_context(
    kernels: KernelCost, stored: dict[str, str], formula: int
) -> None:
    llama = load_model("llama-3.1-8b")
    hybrid = llama.with_mixer("gated_deltanet", "3:1")
    state = next(spec for spec in hybrid.counts() if spec.mixer == "gated_deltanet")
    at = break_even(kernels, llama.full_spec(), state, 128, **stored)  # type: ignore[arg-type]
    assert (at.by_formula, at.measured) == (formula, None)

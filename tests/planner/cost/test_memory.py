"""Memory: bytes by formula, pages, windows, what fits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.cost.memory import IDEAL, PAGED, MemoryModel, break_even_context

GIB = 2**30
MIB = 2**20


def ideal(model: str, **changes: object) -> MemoryModel:
    facts = {"arch": load_model(model), "memory_bytes": 141e9, "rules": IDEAL}
    return MemoryModel(**{**facts, **changes})  # type: ignore[arg-type]


def test_llama_3_70b_at_128k() -> None:
    # 2 (K and V) x 80 layers x 8 heads x 128 x 131072 tokens x 2 bytes
    assert ideal("llama-3-70b").kv_bytes(131072) == 2 * 80 * 8 * 128 * 131072 * 2 == 42949672960


def test_qwen3_6_27b_at_262144() -> None:
    model = ideal("qwen3.6-27b")
    # 16 full layers x 2 x 4 heads x 256 x 2 bytes = 65,536 bytes a token
    assert model.kv_bytes(262144) / MIB == 16384.0
    # 48 layers x (48 x 128 x 128 state + 10240 channels x 3 tail) x 4 bytes, four sequences
    assert 4 * model.state_bytes() / MIB == 598.5


def test_a_3_1_hybrid_has_a_quarter_of_the_slope() -> None:
    full = load_model("llama-3.1-8b")
    hybrid = full.with_mixer("gated_deltanet", "3:1")
    for context in (1024, 131072):
        assert hybrid.kv_slope_bytes(context) * 4 == full.kv_slope_bytes(context)


def test_windowed_layers_stop_growing() -> None:
    arch = load_model("llama-3.1-8b").with_mixer("sliding_window", "1:0")
    model = MemoryModel(arch=arch, memory_bytes=141e9, rules=IDEAL)
    assert model.kv_bytes(1024) == model.kv_bytes(1 << 20)
    assert model.kv_line(1 << 17)[1] == 0.0
    kept_long = replace(model, rules=replace(IDEAL, windowed_at_full_length=True))
    assert kept_long.kv_bytes(1 << 20) == 1024 * model.kv_bytes(1024)


def test_pages_round_up() -> None:
    model = ideal("llama-3.1-8b", rules=PAGED)
    assert model.kv_bytes(1) == model.kv_bytes(16) == 16 * ideal("llama-3.1-8b").kv_bytes(1)


def test_kv_heads_are_replicated_once_the_degree_exceeds_them() -> None:
    one = ideal("llama-3.1-8b").kv_bytes(1024)
    assert ideal("llama-3.1-8b", tensor_parallel=8).kv_bytes(1024) == one / 8
    assert ideal("llama-3.1-8b", tensor_parallel=16).kv_bytes(1024) == one / 8


def test_the_latent_of_mla_is_whole_on_every_device() -> None:
    one = ideal("kimi-k2").kv_bytes(4096)
    assert one == 61 * 576 * 2 * 4096
    assert ideal("kimi-k2", tensor_parallel=8).kv_bytes(4096) == one


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_greatest_context_fits_and_the_next_does_not(batch_size: int) -> None:
    model = ideal("llama-3.1-8b", rules=PAGED)
    longest = model.max_context(batch_size)
    assert model.at(longest, batch_size).fits
    assert not model.at(longest + 1, batch_size).fits


def test_the_greatest_concurrency_fits_and_one_more_does_not() -> None:
    model = ideal("qwen3.6-27b", rules=PAGED)
    most = model.max_concurrency(131072)
    assert model.at(131072, most).fits
    assert not model.at(131072, most + 1).fits


def test_weights_that_do_not_fit_leave_no_room() -> None:
    model = ideal("qwen3-next-80b-a3b", rules=PAGED)
    assert model.max_concurrency(1024) == 0
    assert replace(model, weights_dtype="int4").max_concurrency(1024) > 0


def test_break_even_against_a_state() -> None:
    # a 2 MiB state read and written, against 2 x 8 x 128 x 2 bytes a token: 1,024 tokens
    arch = load_model("llama-3.1-8b")
    gdn = replace(arch.spec_for("gated_deltanet"), num_v_heads=32, conv_size=0)
    assert break_even_context(arch.full_spec(), gdn) == 1024.0

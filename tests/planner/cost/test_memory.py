"""Memory: published byte counts by formula; engines' pages, pools and windows; what fits."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from planner.catalog import engine_ids, load_engine, load_model
from planner.cost.memory import IDEAL, UNBOUNDED, MemoryModel, break_even_context
from planner.mixers import MixerSpec

GIB = 2**30
MIB = 2**20
PAGED = load_engine("paged")
H200 = 150_754_820_096


def ideal(model: str, **changes: object) -> MemoryModel:
    facts = {"arch": load_model(model), "memory_bytes": 141e9, "rules": IDEAL}
    return MemoryModel(**{**facts, **changes})  # type: ignore[arg-type]


def reserved(model: str, engine: str, **changes: object) -> MemoryModel:
    return ideal(model, rules=load_engine(engine), memory_bytes=H200, **changes)


# Published byte counts, reproduced by formula alone


PUBLISHED = [
    # table "KV cache memory scales for Llama 3.1 70B at BF16", 131,072 tokens, one user:
    # www.spheron.network/blog/kv-cache-optimization-guide
    ("llama-3-70b", "kv", 131072, 42.9e9),
    # "Gemma-3 27B … Correct Estimate 10.41 GB" (GiB) at its context of 131,072:
    # github.com/unslothai/unsloth/pull/4757
    ("gemma-3-27b", "kv", 131072, 10.41 * GIB),
    # llama.cpp's log "size = 16384.00 MiB (262144 cells, 16 layers)":
    # github.com/lmstudio-ai/lmstudio-bug-tracker/issues/1862
    ("qwen3.6-27b", "kv", 262144, 16384.00 * MIB),
    # the same log, four sequences in fp32: "llama_memory_recurrent: size = 598.50 MiB"
    ("qwen3.6-27b", "state", 0, 598.50 * MIB / 4),
    # "Cache Size (64k)" of Qwen2.5-1.5B, 1,792 MB: the table of Jet-Nemotron's main results
    # (arXiv:2508.15884) in github.com/NVlabs/Jet-Nemotron, assets/main-results.png
    ("qwen2.5-1.5b", "kv", 65536, 1792 * MIB),
    # Ollama's log of gpt-oss:20b: memory.required.kv is 300.0 MiB at 8,192 tokens and 972.0 MiB at
    # 36,864 (github.com/ollama/ollama issues 11711 and 11753): this many bytes for 28,672 tokens
    ("gpt-oss-20b", "growth", 28672, (972.0 - 300.0) * MIB),
    # "128.0 MiB" of KV at 8,192 tokens for Nemotron-H-8B, from its config: a public derivation
    # ("Speculative decoding and rollback with recurrent state", sec. 2)
    ("nemotron-h-8b", "kv", 8192, 128.0 * MIB),
    # there too: "49.41 MiB per request" of state, in bf16
    ("nemotron-h-8b", "state bf16", 0, 49.41 * MIB),
]


@pytest.mark.parametrize(
    ("model", "what", "tokens", "published"), PUBLISHED, ids=lambda value: str(value)
)
def test_published_byte_counts(model: str, what: str, tokens: int, published: float) -> None:
    """Within 1 %, in ideal mode."""
    memory = ideal(model, state_dtype="bf16" if what == "state bf16" else "fp32")
    if what == "kv":
        counted = memory.kv_bytes(tokens)
    elif what == "growth":
        counted = memory.kv_bytes(8192 + tokens) - memory.kv_bytes(8192)
    else:
        counted = memory.state_bytes()
    assert counted == pytest.approx(published, rel=0.01)


def test_llama_3_70b_at_128k_to_the_byte() -> None:
    # 2 (K and V) x 80 layers x 8 heads x 128 x 131072 tokens x 2 bytes
    assert ideal("llama-3-70b").kv_bytes(131072) == 2 * 80 * 8 * 128 * 131072 * 2 == 42949672960


@pytest.mark.parametrize(
    ("model", "published"),
    [
        # bf16 weights: gemma-3's report, table 3, "54.0" GB raw for 27B, vision encoder left out
        ("gemma-3-27b", 54.0e9),
        ("llama-3-70b", 2 * 70.6e9),
        ("qwen2.5-1.5b", 2 * 1.54e9),
        ("nemotron-h-8b", 2 * 8.1e9),
        ("gpt-oss-20b", 2 * 20.9e9),
    ],
)
def test_weights(model: str, published: float) -> None:
    assert ideal(model).weights_bytes() == pytest.approx(published, rel=0.01)


# What engines reserve, against what they print


@pytest.mark.parametrize(
    ("spec", "state_dtype", "tokens", "padding"),
    [
        # vllm-project/vllm pull request 37467, Qwen3.5-9B: "Setting attention block size to 528
        # tokens", "Padding mamba page size by 0.76%"
        ("qwen", "fp32", 528, 0.0076),
        # vllm-project/vllm issue 24280, Nemotron Nano 9B v2 with its state in bf16: 672 tokens
        ("nemotron", "bf16", 672, None),
    ],
)
def test_vllm_raises_its_blocks_to_hold_a_state(
    spec: str, state_dtype: str, tokens: int, padding: float | None
) -> None:
    attention, recurrent = {
        "qwen": (heads("full_attention", 16, 4, 256), gdn(32)),
        "nemotron": (heads("full_attention", 40, 8, 128), mamba(128, 80)),
    }[spec]
    skeleton = load_model("llama-3.1-8b").with_mixer("gated_deltanet", "3:1")
    arch = replace(skeleton, kinds={"F": attention, "G": recurrent})
    model = MemoryModel(
        arch=arch, memory_bytes=H200, state_dtype=state_dtype, rules=load_engine("vllm")
    )
    cache, state = (
        next(k for k in model._kinds if bool(k.page_tokens) is wanted) for wanted in (True, False)
    )
    assert cache.page_tokens == tokens
    assert cache.page_bytes == state.page_bytes
    if padding is not None:
        needed = model._layer_state_bytes(recurrent)
        assert cache.page_bytes / needed - 1 == pytest.approx(padding, abs=5e-5)


def heads(mixer: str, queries: int, kv: int, dim: int) -> MixerSpec:
    return MixerSpec(
        mixer=mixer, num_q_heads=queries, num_k_heads=kv, num_v_heads=kv, k_head_dim=dim,
        v_head_dim=dim,
    )  # fmt: skip


def gdn(value_heads: int) -> MixerSpec:
    return MixerSpec(
        mixer="gated_deltanet", num_q_heads=16, num_k_heads=16, num_v_heads=value_heads,
        k_head_dim=128, v_head_dim=128, conv_size=4,
    )  # fmt: skip


def mamba(value_heads: int, width: int) -> MixerSpec:
    return MixerSpec(
        mixer="mamba2", num_q_heads=8, num_k_heads=8, num_v_heads=value_heads, k_head_dim=128,
        v_head_dim=width, conv_size=4,
    )  # fmt: skip


def test_vllm_pads_the_last_group_of_layers() -> None:
    # Gemma 3: 10 full layers set the group size; 52 windowed ones make 6 groups, so 60 layers
    kept = {kind.spec.window: kind.layers for kind in reserved("gemma-3-27b", "vllm")._kinds}
    assert kept == {None: 10, 1024: 60}
    # each holds 65 pages: 1,023 earlier tokens fill 64 and straddle one more
    windowed = 60 * 65 * 16 * 8192
    assert reserved("gemma-3-27b", "vllm").kv_bytes(1 << 17) == windowed + 10 * 8192 * (1 << 17)


def test_vllm_keeps_two_states_a_request() -> None:
    hybrid = reserved("qwen3.6-27b", "vllm")
    # pages of 784 tokens x 4,096 bytes, 48 layers, twice
    assert hybrid.state_bytes() == 2 * 48 * 784 * 4096


def test_sglang_keeps_windowed_layers_at_four_fifths_of_the_length() -> None:
    model, context = reserved("gpt-oss-20b", "sglang"), 100_000
    per_layer = 2 * 8 * 64 * 2
    assert model.kv_bytes(context) == 12 * per_layer * (context + 80_000)
    assert model.kv_line(context) == (0, 12 * per_layer * 1.8)
    # shorter than the window: no less than all of it
    assert model.kv_bytes(100) == 24 * per_layer * 100


def test_sglangs_pools_run_out_alone() -> None:
    model = reserved("nemotron-h-8b", "sglang")
    assert (model.limited_by(8192), model.limited_by(1 << 17)) == ("state", "kv_cache")
    most = model.max_concurrency(8192)
    # 0.9 / 1.9 of what is free, five states each
    assert most == int(model.free_bytes * 0.9 / 1.9 // model.state_bytes())
    assert model.at(8192, most).fits and not model.at(8192, most + 1).fits
    assert model.at(8192, most + 1).total < model.capacity


def test_llama_cpp_pads_contexts_and_windows_to_256_cells() -> None:
    model = reserved("gemma-3-27b", "llama-cpp")
    per_layer = 2 * 16 * 128 * 2
    # window 1,024 and ubatch 512: 1,536 cells; 5,000 tokens: 5,120 cells
    assert model.kv_bytes(5000) == per_layer * (52 * 1536 + 10 * 5120)
    assert model.capacity == H200 - GIB


@pytest.mark.parametrize("engine", engine_ids())
@pytest.mark.parametrize("model", ["gemma-3-27b", "qwen3.6-27b", "kimi-linear-48b-a3b"])
def test_no_engine_reserves_less_than_the_formulas(model: str, engine: str) -> None:
    counted, kept = ideal(model, state_dtype="bf16"), reserved(model, engine, state_dtype="bf16")
    for context in (1, 1000, 131072):
        assert kept.kv_bytes(context) >= counted.kv_bytes(context)
    assert kept.state_bytes() >= counted.state_bytes()


@pytest.mark.parametrize("engine", engine_ids())
@pytest.mark.parametrize("context", [5000, 131072])
def test_a_line_describes_the_cache_from_page_to_page(engine: str, context: int) -> None:
    model = reserved("gemma-3-27b", engine)
    fixed, slope = model.kv_line(context)
    for further in (256 * 40, 256 * 400):
        at = math.ceil(context / 256) * 256 + further
        assert fixed + slope * at == pytest.approx(model.kv_bytes(at), rel=1e-6)


# Windows, replication, what fits


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
    kept_long = replace(model, rules=replace(IDEAL, window_share=1.0))
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
@pytest.mark.parametrize("engine", ["paged", "vllm", "sglang"])
def test_the_greatest_context_fits_and_the_next_does_not(engine: str, batch_size: int) -> None:
    model = reserved("nemotron-h-8b", engine)
    longest = model.max_context(batch_size)
    assert model.at(longest, batch_size).fits
    assert not model.at(longest + 1, batch_size).fits


@pytest.mark.parametrize("engine", engine_ids())
@pytest.mark.parametrize("context", [1024, 131072])
def test_the_greatest_concurrency_fits_and_one_more_does_not(engine: str, context: int) -> None:
    model = reserved("qwen3.6-27b", engine)
    most = model.max_concurrency(context)
    assert model.at(context, most).fits
    assert not model.at(context, most + 1).fits


def test_a_pure_recurrent_model_has_no_longest_context() -> None:
    arch = load_model("llama-3.1-8b").with_mixer("gated_deltanet", "1:0")
    model = MemoryModel(arch=arch, memory_bytes=141e9, rules=load_engine("sglang"))
    assert model.max_context(8) == UNBOUNDED
    assert model.limited_by(1 << 20) == "memory"


def test_weights_that_do_not_fit_leave_no_room() -> None:
    model = ideal("qwen3-next-80b-a3b", rules=PAGED)
    assert (model.max_concurrency(1024), model.limited_by(1024)) == (0, "weights")
    assert replace(model, weights_dtype="int4").max_concurrency(1024) > 0


def test_break_even_against_a_state() -> None:
    # a 2 MiB state read and written, against 2 x 8 x 128 x 2 bytes a token: 1,024 tokens
    arch = load_model("llama-3.1-8b")
    state = replace(arch.spec_for("gated_deltanet"), num_v_heads=32, conv_size=0)
    assert break_even_context(arch.full_spec(), state) == 1024.0

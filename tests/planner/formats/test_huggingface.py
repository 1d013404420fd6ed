"""config.json files: what each family says equals the catalog; what is not understood is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.architecture import Mlp, Moe
from planner.catalog import load_model, model_entry
from planner.errors import EnvironmentProblem, PlannerError, UsageError
from planner.formats.huggingface import parse_config, read_config
from planner.formats.huggingface.families import FAMILIES, NOT_ON_PAPER

Config = dict[str, Any]

GPT_OSS: Config = {
    "model_type": "gpt_oss", "hidden_size": 2880, "num_hidden_layers": 24, "vocab_size": 201088,
    "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "intermediate_size": 2880,
    "num_local_experts": 32, "num_experts_per_tok": 4, "experts_per_token": 4,
    "sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072, "attention_bias": True, "attention_dropout": 0.0,
    "router_aux_loss_coef": 0.9, "tie_word_embeddings": False, "swiglu_limit": 7.0,
}  # fmt: skip
LLAMA: Config = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128256,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "max_position_embeddings": 131072, "rope_theta": 500000.0, "mlp_bias": False,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN3_NEXT: Config = {
    "model_type": "qwen3_next", "hidden_size": 2048, "num_hidden_layers": 48,
    "vocab_size": 151936, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 256,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32,
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
    "num_experts": 512, "num_experts_per_tok": 10, "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512, "intermediate_size": 5120, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "norm_topk_prob": True, "max_position_embeddings": 262144,
}  # fmt: skip
QWEN3_6: Config = {
    "model_type": "qwen3_5", "tie_word_embeddings": False, "vision_config": {"depth": 27},
    "text_config": {
        "model_type": "qwen3_5_text", "hidden_size": 5120, "num_hidden_layers": 64,
        "vocab_size": 248320, "num_attention_heads": 24, "num_key_value_heads": 4,
        "head_dim": 256, "attn_output_gate": True, "intermediate_size": 17408,
        "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
        "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_key_head_dim": 128,
        "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "mtp_num_hidden_layers": 1,
        "mamba_ssm_dtype": "float32", "max_position_embeddings": 262144,
    },
}  # fmt: skip
KIMI_LINEAR: Config = {
    "model_type": "kimi_linear", "hidden_size": 2304, "num_hidden_layers": 27,
    "vocab_size": 163840, "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 72,
    "q_lora_rank": None, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "v_head_dim": 128, "mla_use_nope": True, "intermediate_size": 9216,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [n for n in range(1, 28) if n % 4 and n != 27],
        "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4,
    },
    "num_experts": 256, "num_experts_per_token": 8, "num_shared_experts": 1,
    "moe_intermediate_size": 1024, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "model_max_length": 1048576,
}  # fmt: skip
KIMI_K2: Config = {
    "model_type": "kimi_k2", "hidden_size": 7168, "num_hidden_layers": 61, "vocab_size": 163840,
    "num_attention_heads": 64, "num_key_value_heads": 64, "kv_lora_rank": 512,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "intermediate_size": 18432, "n_routed_experts": 384, "num_experts_per_tok": 8,
    "n_shared_experts": 1, "moe_intermediate_size": 2048, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "n_group": 1, "topk_group": 1, "max_position_embeddings": 131072,
}  # fmt: skip
GEMMA_3: Config = {
    "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 5376, "intermediate_size": 21504,
        "num_hidden_layers": 62, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 128, "sliding_window": 1024, "query_pre_attn_scalar": 168,
        "max_position_embeddings": 131072,
    },
}  # fmt: skip
MINIMAX: Config = {
    "model_type": "minimax_text_01", "hidden_size": 6144, "num_hidden_layers": 80,
    "vocab_size": 200064, "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 128,
    "intermediate_size": 9216, "num_local_experts": 32, "num_experts_per_tok": 2,
    "attn_type_list": ([0] * 7 + [1]) * 10, "shared_intermediate_size": 0,
    "layernorm_linear_attention_alpha": 3.5565588200778455, "max_position_embeddings": 4096000,
}  # fmt: skip
NEMOTRON: Config = {
    "model_type": "nemotron_h", "hidden_size": 4096, "num_hidden_layers": 52,
    "vocab_size": 131072, "hybrid_override_pattern": "M-M-M-M*" + "-M-M-M-M-M*" * 3
    + "-M-M-M-M-M-", "num_attention_heads": 32, "num_key_value_heads": 8,
    "attention_head_dim": 128, "mamba_num_heads": 128, "mamba_head_dim": 64,
    "ssm_state_size": 128, "n_groups": 8, "conv_kernel": 4, "expand": 2, "chunk_size": 128,
    "intermediate_size": 21504, "max_position_embeddings": 8192, "sliding_window": None,
}  # fmt: skip
BAMBA: Config = {
    "model_type": "bamba", "hidden_size": 4096, "num_hidden_layers": 32, "vocab_size": 128256,
    "attn_layer_indices": [9, 18, 27], "num_attention_heads": 32, "num_key_value_heads": 8,
    "intermediate_size": 14336, "mamba_n_heads": 128, "mamba_d_head": "auto",
    "mamba_d_state": 128, "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2,
    "mamba_chunk_size": 256, "max_position_embeddings": 4096,
}  # fmt: skip
FLA: Config = {
    "model_type": "gated_deltanet", "hidden_size": 2048, "num_hidden_layers": 24,
    "vocab_size": 32000, "num_heads": 6, "head_dim": 256, "expand_v": 2.0, "conv_size": 4,
    "use_gate": True, "use_short_conv": True, "hidden_ratio": 4, "intermediate_size": None,
    "attn": {"layers": [5, 11, 17, 23], "num_heads": 32, "num_kv_heads": 8, "window_size": None},
    "attn_mode": "chunk", "fuse_norm": True,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (GPT_OSS, "gpt-oss-20b"),
        (LLAMA, "llama-3.1-8b"),
        (QWEN3_NEXT, "qwen3-next-80b-a3b"),
        (QWEN3_6, "qwen3.6-27b"),
        (KIMI_LINEAR, "kimi-linear-48b-a3b"),
        (KIMI_K2, "kimi-k2"),
        (MINIMAX, "minimax-text-01"),
        (NEMOTRON, "nemotron-h-8b"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_released_models_file_is_its_catalog_entry(config: Config, model: str) -> None:
    known = load_model(model)
    found = parse_config(config, "config.json", title=known.name)
    assert found == known
    assert found.kinds == known.kinds and found.parameters() == known.parameters()
    published = 1e9 * model_entry(model).parameters_b
    assert found.parameters() == pytest.approx(published, rel=0.03)


def test_gemma_3_leaves_out_what_its_class_says() -> None:
    known = load_model("gemma-3-27b")
    found = parse_config(GEMMA_3, "config.json", title=known.name)
    assert found.kinds == known.kinds and found.pattern == known.pattern
    assert found.tied_embeddings and found.vocab_size == 262_208  # padded in the checkpoint


def test_bamba_counts_its_attention_layers_from_0_and_divides_its_heads() -> None:
    found = parse_config(BAMBA, "config.json")
    assert found.pattern.every_full_at("F") == (9, 18, 27)
    mamba = found.kinds["M"]
    # expand 2 x hidden 4096 = 8192 channels over 128 heads
    assert (mamba.num_v_heads, mamba.v_head_dim, mamba.k_head_dim) == (128, 64, 128)
    assert found.describe() == "≈10:1 (29+3) mamba2:full"
    types = ["mamba"] * 9 + ["attention"]
    newer = {**BAMBA, "layer_types": types * 3 + ["mamba"] * 2, "attn_layer_indices": None}
    assert parse_config(newer, "config.json").pattern.every_full_at("F") == (9, 19, 29)


def test_kimi_linear_as_transformers_saves_it() -> None:
    """Flat fields and lists by layer say the same model as the published file."""
    flat = {
        **{k: v for k, v in KIMI_LINEAR.items() if k not in ("linear_attn_config",
           "first_k_dense_replace", "num_experts", "num_experts_per_token")},
        "layer_types": ["full_attention" if n in (4, 8, 12, 16, 20, 24, 27) else
                        "linear_attention" for n in range(1, 28)],
        "mlp_layer_types": ["dense"] + ["sparse"] * 26, "linear_head_dim": 128,
        "linear_num_heads": 32, "linear_conv_kernel_dim": 4, "num_local_experts": 256,
        "num_experts_per_tok": 8, "dense_ffn_hidden": 9216,
    }  # fmt: skip
    assert parse_config(flat, "config.json") == parse_config(KIMI_LINEAR, "config.json")


def test_dimensions_of_a_mixer_that_no_layer_has_lie_idle() -> None:
    pure = parse_config({**BAMBA, "attn_layer_indices": []}, "config.json")
    assert pure.describe() == "1:0 all mamba2"
    full = parse_config({**QWEN3_NEXT, "full_attention_interval": 1}, "config.json")
    assert full.describe() == "0:1 all full"


def test_fla_models_take_attention_where_it_is_listed() -> None:
    found = parse_config(FLA, "config.json")
    assert found.describe() == "5:1 gated_deltanet:full"
    delta = found.kinds["G"]
    assert (delta.num_v_heads, delta.k_head_dim, delta.v_head_dim) == (6, 256, 512)
    # 2/3 x 4 x 2048 = 5461, in steps of 256
    assert found.mlp == Mlp(intermediate_size=5632)
    local = {"layers": [0], "num_heads": 16, "window_size": 512}
    several = parse_config({**FLA, "attn": [FLA["attn"], local]}, "config.json")
    assert several.pattern.letters.startswith("SGGGGF")
    assert several.describe() == "5:1 sliding_window+gated_deltanet:full"
    assert several.kinds["S"].window == 512 and several.kinds["S"].num_k_heads == 16


def test_a_pure_mamba2_stack_goes_without_channel_mixers() -> None:
    config = {
        "model_type": "mamba2", "hidden_size": 2560, "num_hidden_layers": 64, "num_heads": 80,
        "head_dim": 64, "state_size": 128, "n_groups": 1, "conv_kernel": 4, "expand": 2,
        "vocab_size": 50288,
    }  # fmt: skip
    assert not parse_config(config, "config.json").tied_embeddings  # as the class's default
    found = parse_config({**config, "tie_word_embeddings": True}, "config.json")
    assert found.describe() == "1:0 all mamba2" and found.mlp is None and found.tied_embeddings
    # Mamba-2 2.7B: 64 layers of 2560 x (2 x 5120 + 256 + 80) + 5120 x 2560, and the embedding
    assert found.parameters() == 64 * (2560 * 10576 + 5120 * 2560) + 50288 * 2560


def test_a_long_pattern_is_read_to_its_end() -> None:
    deep = {**NEMOTRON, "hybrid_override_pattern": "M-" * 149 + "*-", "num_hidden_layers": None}
    assert parse_config(deep, "config.json").describe() == "149:1 mamba2:full"


def test_nemotron_3_counts_experts_as_layers() -> None:
    experts: Config = {
        **NEMOTRON, "hybrid_override_pattern": "MEM*E", "num_hidden_layers": 5,
        "n_routed_experts": 128, "num_experts_per_tok": 6, "moe_intermediate_size": 1856,
        "n_shared_experts": 1, "moe_shared_expert_intermediate_size": 3712,
    }  # fmt: skip
    found = parse_config(experts, "config.json")
    assert found.pattern.letters == "M-MF-" and found.channel_layers() == (0, 2)
    assert found.moe == Moe(
        num_experts=128, top_k=6, expert_intermediate_size=1856, shared_intermediate_size=3712,
        gated=False,
    )  # fmt: skip


def test_a_window_counts_only_where_the_family_uses_it() -> None:
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": 4096}
    assert parse_config(mistral, "c").describe() == "1:0 all sliding_window"
    assert parse_config({**mistral, "sliding_window": None}, "c").describe() == "0:1 all full"
    phi = {**LLAMA, "model_type": "phi3", "max_position_embeddings": 131072}
    for window, said in ((262144, "0:1 all full"), (131072, "0:1 all full"),
                         (131071, "1:0 all sliding_window")):  # fmt: skip
        assert parse_config({**phi, "sliding_window": window}, "c").describe() == said
    qwen = {**LLAMA, "model_type": "qwen3", "sliding_window": 4096, "max_window_layers": 28}
    assert parse_config(qwen, "c").describe() == "0:1 all full"
    windowed = parse_config({**qwen, "use_sliding_window": True}, "c")
    assert windowed.pattern.run_length() == "28F 4S"


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "llama9"}, "unknown model_type 'llama9'; did you mean 'llama'?"),
        ({"model_type": 7}, "model_type must be text"),
        ({"model_type": "jamba"}, "model_type 'jamba' has Mamba-1 layers"),
        ({**LLAMA, "vocab_size": None}, "vocab_size is missing"),
        ({**LLAMA, "num_hidden_layers": 10**9}, "num_hidden_layers must be a whole number from 1"),
        ({**LLAMA, "num_hidden_layers": True}, "num_hidden_layers must be a number"),
        ({**LLAMA, "hidden_size": 4096.5}, "hidden_size must be a whole number"),
        ({**LLAMA, "num_attention_heads": 24}, "is not a multiple of num_attention_heads 24"),
        ({**LLAMA, "num_key_value_heads": 5}, "num_q_heads must be a multiple of num_k_heads"),
        ({**LLAMA, "index_topk": 2048}, "index_topk (2048) is not understood"),
        ({**LLAMA, "attention_chunk_size": 8192}, "attention_chunk_size (8192) is not understood"),
        ({**LLAMA, "num_kv_shared_layers": 10}, "num_kv_shared_layers (10) is not understood"),
        ({**LLAMA, "sliding_window": 512}, "sliding_window (512) is not understood"),
        ({**GPT_OSS, "layer_types": ["full_attention"]}, "lists 1 layers, num_hidden_layers"),
        ({**GPT_OSS, "layer_types": ["conv"] * 24}, "layer 0 has type 'conv'"),
        ({**GPT_OSS, "layer_types": "__import__('os')"}, "layer_types must be a list"),
        ({**GPT_OSS, "sliding_window": None}, "sliding_window is missing"),
        ({**GPT_OSS, "num_experts_per_tok": 64}, "top_k must be between 1 and num_experts"),
        ({**MINIMAX, "attn_type_list": [2] * 80}, "attn_type_list must hold whole numbers"),
        ({**MINIMAX, "model_type": "minimax"}, "attn_type_list is ignored by transformers"),
        ({**NEMOTRON, "hybrid_override_pattern": "MX"}, "hybrid_override_pattern may have M*-E"),
        ({**NEMOTRON, "hybrid_override_pattern": 7}, "must be a letter a layer"),
        ({**NEMOTRON, "hybrid_override_pattern": "M" * 9999}, "must be a letter a layer"),
        ({**NEMOTRON, "moe_latent_size": 1024}, "moe_latent_size (1024) is not understood"),
        ({**KIMI_LINEAR, "linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1],
          "head_dim": 128, "num_heads": 32, "short_conv_kernel_size": 4}}, "each layer from 1"),
        ({**KIMI_LINEAR, "mlp_layer_types": ["sparse", "dense"]}, "must be dense, then sparse"),
        ({**KIMI_LINEAR, "mlp_layer_types": ["dense", "wide"]}, "must be dense, then sparse"),
        ({**QWEN3_NEXT, "decoder_sparse_step": 2}, "decoder_sparse_step: only 1"),
        ({**FLA, "attn": {"layers": [24], "num_heads": 32}}, "layers must hold whole numbers"),
        ({**FLA, "attn": [FLA["attn"], FLA["attn"]]}, "layer 5 is listed twice"),
        ({"text_config": [1]}, "text_config must be an object"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_named(config: Config, reason: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_config(config, "config.json")
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_refused_and_known_types_do_not_overlap() -> None:
    assert not set(FAMILIES) & set(NOT_ON_PAPER)
    for name in NOT_ON_PAPER:
        with pytest.raises(UsageError, match=name):
            parse_config({"model_type": name}, "config.json")


def test_a_file_or_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    for path in (folder, folder / "config.json"):
        assert read_config(path).name == "my-model"
    assert read_config(folder, origin="converted").origin == "converted"
    known = replace(load_model("llama-3.1-8b"), name="my-model")
    assert read_config(folder) == known


@pytest.mark.parametrize(
    ("content", "error", "reason"),
    [
        (b"[]", UsageError, "a config.json is an object"),
        (b"{", UsageError, "is not JSON"),
        (b"\xff", UsageError, "is not UTF-8"),
        (b" " * (5 << 20), UsageError, "is 5 MiB, at most 4 are read"),
        (None, EnvironmentProblem, "does not exist"),
    ],
)
def test_a_broken_file_is_one_line(
    tmp_path: Path, content: bytes | None, error: type[PlannerError], reason: str
) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=reason):
        read_config(path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
EVERY = (GPT_OSS, LLAMA, QWEN3_NEXT, QWEN3_6, KIMI_LINEAR, KIMI_K2, GEMMA_3, MINIMAX, NEMOTRON,
         BAMBA, FLA)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_anywhere_is_a_model_or_one_line(data: st.DataObject) -> None:
    config = data.draw(st.sampled_from(EVERY))
    config = json.loads(json.dumps(config))
    inner = config.get("text_config", config)
    inner[data.draw(st.sampled_from(sorted(inner)))] = data.draw(JSON_VALUES)
    try:
        found = parse_config(config, "config.json")
    except PlannerError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert found.parameters() > 0 and found.describe()

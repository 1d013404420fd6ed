"""The shipped data loads, agrees with what publishers say, and bad data is refused in one line."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from planner import catalog
from planner.errors import EnvironmentProblem, UnknownName, UsageError
from planner.mixers import get_mixer

MODELS = catalog.model_ids()
DEVICES = catalog.hardware_ids()

GOOD_MODEL = """
id = "small"
name = "Small"
hidden_size = 64
vocab_size = 100
pattern = [["LLF", 2]]
parameters_b = 0.0003
source = "a test"
read_on = 2026-11-23
mlp = { intermediate_size = 128, gated = true }

[kinds.L]
mixer = "linear_attention"
num_q_heads = 1
num_k_heads = 1
num_v_heads = 1
k_head_dim = 64
v_head_dim = 64

[kinds.F]
mixer = "full_attention"
num_q_heads = 1
num_k_heads = 1
num_v_heads = 1
k_head_dim = 64
v_head_dim = 64
"""


def folder_with(tmp_path: Path, name: str, text: str) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / name).write_text(text)
    return folder


def model_of(tmp_path: Path, text: str) -> catalog.ModelEntry:
    return catalog.model_from(
        catalog.read_folder(folder_with(tmp_path, "small.toml", text))["small"]
    )


def test_the_catalog_holds_what_the_planner_promises():
    assert {"h200-sxm", "h100-sxm", "a100-80g-sxm", "b200-sxm", "l40s", "rtx-4090"} <= set(DEVICES)
    assert {
        "llama-3.1-8b",
        "llama-3-70b",
        "qwen3-next-80b-a3b",
        "qwen3.6-27b",
        "kimi-linear-48b-a3b",
        "gemma-3-27b",
        "gpt-oss-20b",
        "minimax-text-01",
        "nemotron-h-8b",
        "kimi-k2",
        "tiny",
    } <= set(MODELS)


@pytest.mark.parametrize("id", DEVICES)
def test_a_device_is_complete_and_plausible(id):
    device = catalog.load_hardware(id)
    assert device.id == id
    assert {"bf16", "fp16", "tf32", "fp32"} <= set(device.peak_flops)
    assert device.peak("bf16") == device.peak("fp16") >= device.peak("tf32")
    assert device.peak("int8") >= 2 * device.peak("bf16") * 0.99
    assert 20 < device.peak("bf16") / device.bandwidth < 500  # FLOP per byte: the roofline's knee
    assert 20e9 < device.memory_bytes < 200e9
    assert device.l2_bytes > 30e6
    assert device.compute_units > 100
    assert device.tdp_w > 300
    assert date.fromisoformat(device.read_on)
    for name in device.device_names:
        assert catalog.hardware_for_device(name.upper()) is device


def test_hopper_peaks_are_dense():
    """The H100 datasheet's 1,979 TFLOP/s in bf16 are with 2:4 sparsity."""
    assert catalog.load_hardware("h100-sxm").peak("bf16") == 1979e12 / 2


def test_a_device_the_catalog_lacks_is_none():
    assert catalog.hardware_for_device("NVIDIA H100 80GB HBM3 MIG 1g.10gb") is None


@pytest.mark.parametrize("id", MODELS)
def test_parameters_agree_with_the_publisher(id):
    """Within 3 %: norms, biases, convolutions, vision towers and MTP layers are not counted."""
    entry = catalog.model_entry(id)
    assert entry.architecture.parameters() / 1e9 == pytest.approx(entry.parameters_b, rel=0.03)


@pytest.mark.parametrize("id", MODELS)
def test_letters_mean_the_mixers_they_stand_for(id):
    for letter, spec in catalog.load_model(id).kinds.items():
        assert letter == get_mixer(spec.mixer).letter


@pytest.mark.parametrize(
    ("id", "active_b"),
    [
        ("gpt-oss-20b", 3.6),
        ("kimi-k2", 32.6),
        ("minimax-text-01", 45.9),
        ("kimi-linear-48b-a3b", 3.0),
    ],
)
def test_active_parameters_agree_with_the_publisher(id, active_b):
    """Within 5 %: publishers differ in whether embeddings count."""
    entry = catalog.model_entry(id)
    assert entry.active_parameters_b == active_b
    assert entry.architecture.active_parameters() / 1e9 == pytest.approx(active_b, rel=0.05)


@pytest.mark.parametrize(
    ("id", "ratio"),
    [
        ("gemma-3-27b", "≈5:1 (52+10)"),
        ("kimi-linear-48b-a3b", "≈3:1 (20+7)"),
        ("kimi-k2", "0:1"),
        ("qwen3-next-80b-a3b", "3:1"),
        ("qwen3.6-27b", "3:1"),
        ("minimax-text-01", "7:1"),
        ("gpt-oss-20b", "1:1"),
        ("nemotron-h-8b", "6:1"),
        ("llama-3-70b", "0:1"),
    ],
)
def test_ratio_labels(id, ratio):
    assert catalog.load_model(id).ratio_label() == ratio


def test_kimi_k2_is_not_a_hybrid():
    assert catalog.load_model("kimi-k2").describe() == "0:1 all mla"


def test_kimi_linears_full_layers_are_those_of_its_config():
    """full_attn_layers of config.json, counted from 1 there."""
    full = catalog.load_model("kimi-linear-48b-a3b").pattern.every_full_at("A")
    assert [i + 1 for i in full] == [4, 8, 12, 16, 20, 24, 27]


def test_nemotron_h_has_24_mamba_4_attention_and_24_mlp_layers():
    model = catalog.load_model("nemotron-h-8b")
    assert [model.pattern.count(c) for c in "MF-"] == [24, 4, 24]
    assert model.pattern.letters == (
        "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-".replace("*", "F")
    )
    assert model.channel_layers() == (24, 0)


def test_llama_3_70b_cache_at_128k():
    """80 layers x 131,072 tokens x 8 heads x 128 x (K and V) x 2 bytes."""
    assert 80 * 131072 * 8 * 128 * 2 * 2 == 42_949_672_960
    assert catalog.load_model("llama-3-70b").kv_cache_bytes(131072) == 42_949_672_960


def test_qwen3_6_27b_memory_at_256k():
    """KV: 16 layers x 262,144 x 4 x 256 x 2 x 2 B. State, one sequence and layer: 48 x 128 x 128
    plus a tail of 3 inputs of 2 x 16 x 128 + 48 x 128 channels, in fp32."""
    model = catalog.load_model("qwen3.6-27b")
    assert model.kv_cache_bytes(262_144) / 2**20 == 16_384.00
    by_hand = 48 * (48 * 128 * 128 + 3 * (2 * 16 * 128 + 48 * 128)) * 4
    assert model.state_bytes() == by_hand
    assert 4 * model.state_bytes() / 2**20 == 598.50


def test_prices_are_for_known_devices_and_dated():
    found = catalog.prices()
    assert {p.hardware for p in found} == set(DEVICES)
    assert all(0.1 < p.usd_per_hour < 20 for p in found)
    assert all(p.source and date.fromisoformat(p.read_on) for p in found)


def test_unknown_names_list_what_exists():
    with pytest.raises(UnknownName, match=r"unknown hardware 'h300';.*h200-sxm"):
        catalog.load_hardware("h300")
    with pytest.raises(UnknownName, match="did you mean 'llama-3-70b'"):
        catalog.load_model("llama-3-70")


def test_entries_are_copies():
    catalog.entries("hardware")["l40s"]["bandwidth"] = 0
    assert catalog.entries("hardware")["l40s"]["bandwidth"] > 0


def test_a_good_model_loads(tmp_path):
    entry = model_of(tmp_path, GOOD_MODEL)
    assert entry.architecture.pattern.letters == "LLFLLF"
    assert (entry.read_on, entry.notes) == ("2026-11-23", "")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('source = "a test"', "", r"^models/small.toml has no source: every entry needs"),
        ("read_on = 2026-11-23", "", r"has no read_on"),
        ("= 2026-11-23", '= "yesterday"', r"read_on must be a date .* 'yesterday'"),
        ("vocab_size = 100", "vocab_sise = 100", r"unknown key 'vocab_sise'; known: "),
        ("vocab_size = 100", "", r"^models/small.toml: vocab_size is missing$"),
        ("gated = true", "gatid = true", r"^models/small.toml mlp: unknown key 'gatid'"),
        ("intermediate_size = 128, ", "", "intermediate_size is missing"),
        ("num_q_heads = 1", "num_q_head = 1", r"kinds.L: unknown key 'num_q_head'"),
        ("num_q_heads = 1", "num_q_heads = 0", r"kinds.L: num_q_heads must be at least 1, got 0"),
        ('"linear_attention"', '"mamba9"', r"unknown mixer 'mamba9'"),
        ('[["LLF", 2]]', '"LLFLLF"', r"pattern must be \[\[letters, times\]"),
        ('[["LLF", 2]]', '[["LLF", 0]]', r"pattern must be"),
        ('[["LLF", 2]]', '[["LLG", 2]]', r"layer letter 'G' has no mixer"),
        ("= 0.0003", '= "3e-4"', r"parameters_b must be a number above 0, got '3e-4'"),
        ("= 0.0003", "= -1", r"parameters_b must be a number above 0"),
        ('name = "Small"', 'name = "Small"\nname = "Big"', "overwrite .*line 4"),
        ('[["LLF", 2]]', '[["LLF", 2]', r"^models/small.toml is not TOML: .*line 7"),
        ('id = "small"', 'id = "other"', r"id must be the file's name, got 'other'"),
    ],
)
def test_a_bad_model_is_refused_in_one_line(tmp_path, old, new, message):
    with pytest.raises(UsageError, match=message) as caught:
        model_of(tmp_path, GOOD_MODEL.replace(old, new, 1))
    assert "\n" not in str(caught.value)
    assert "small.toml" in str(caught.value)


@pytest.mark.parametrize("text", ["just words", "- a\n- b\n"])
def test_text_that_is_not_toml_is_refused(tmp_path, text):
    with pytest.raises(UsageError, match="is not TOML"):
        catalog.read_folder(folder_with(tmp_path, "small.toml", text))


def test_binary_junk_is_refused(tmp_path):
    folder = folder_with(tmp_path, "small.toml", "")
    (folder / "small.toml").write_bytes(b"\xff\xfe\x00junk")
    with pytest.raises(UsageError, match=r"small.toml is not TOML"):
        catalog.read_folder(folder)


def test_a_missing_folder_is_the_environments_fault(tmp_path):
    with pytest.raises(EnvironmentProblem, match="use_cases is missing"):
        catalog.read_folder(tmp_path / "use_cases")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bandwidth", "4.8e12", r"bandwidth must be a number above 0, got '4.8e12'"),
        ("peak_flops", {}, "peak_flops must list FLOP/s per dtype"),
        ("peak_flops", {"bf16": -1}, r"peak_flops.bf16 must be a number above 0"),
        ("memory_bytes", None, "memory_bytes must be a number"),
        ("colour", "green", "unknown key 'colour'"),
    ],
)
def test_a_bad_device_is_refused(key, value, message):
    with pytest.raises(UsageError, match=message):
        catalog.hardware_from({**catalog.entries("hardware")["l40s"], key: value})


PRICE_HEADER = "hardware,usd_per_hour,kind,source,read_on\n"


def test_a_users_own_price_list(tmp_path):
    mine = tmp_path / "mine.csv"
    mine.write_text(PRICE_HEADER + "l40s,0.5,reserved,our contract,2026-01-02\n")
    (price,) = catalog.prices(mine)
    assert (price.hardware, price.usd_per_hour, price.kind) == ("l40s", 0.5, "reserved")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hardware,price\nl40s,1\n", "not a price list: column 'usd_per_hour' is missing"),
        (PRICE_HEADER + "l40s,free,reserved,us,2026-01-02\n", "row 2: usd_per_hour must be"),
        (PRICE_HEADER + "l40s,0,reserved,us,2026-01-02\n", "above 0, got '0'"),
        (PRICE_HEADER + "l41s,1,reserved,us,2026-01-02\n", "row 2: unknown hardware 'l41s'"),
        (PRICE_HEADER + "l40s,1,spot,us,2026-01-02\n", "kind must be one of on-demand"),
        (PRICE_HEADER + "l40s,1,reserved,,2026-01-02\n", "row 2 has no source"),
        (PRICE_HEADER + "l40s,1,reserved,us\n", "row 2 has no read_on"),
    ],
)
def test_a_bad_price_list_is_refused(tmp_path, text, message):
    mine = tmp_path / "mine.csv"
    mine.write_text(text)
    with pytest.raises(UsageError, match=message):
        catalog.prices(mine)


def test_a_price_list_that_is_not_there(tmp_path):
    with pytest.raises(EnvironmentProblem, match="does not exist"):
        catalog.prices(tmp_path / "none.csv")

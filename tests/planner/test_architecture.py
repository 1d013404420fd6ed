"""Patterns at any ratio and placement, and what a whole model stores and weighs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.architecture import (
    PLACEMENTS,
    Architecture,
    LayerPattern,
    Mlp,
    Moe,
    full_layer_indices,
    parse_placement,
    parse_ratio,
)
from planner.catalog import load_model
from planner.errors import UnknownName, UsageError
from planner.mixers import MIXERS, MixerSpec

FULL = MixerSpec(
    mixer="full_attention", num_q_heads=8, num_k_heads=2, num_v_heads=2,
    k_head_dim=64, v_head_dim=64,
)  # fmt: skip
LINEAR = MixerSpec(
    mixer="gated_deltanet", num_q_heads=4, num_k_heads=4, num_v_heads=8,
    k_head_dim=64, v_head_dim=64, conv_size=4,
)  # fmt: skip

ratios = st.tuples(st.integers(0, 12), st.integers(0, 3)).filter(any)


def model(letters: str = "GGGF", **changes: object) -> Architecture:
    facts: dict = {
        "name": "small",
        "pattern": LayerPattern(letters),
        "kinds": {"G": LINEAR, "F": FULL},
        "hidden_size": 512,
        "vocab_size": 1000,
        "mlp": Mlp(intermediate_size=1408),
    }
    return Architecture(**{**facts, **changes})


# Ratios


@pytest.mark.parametrize(
    ("text", "parts"), [("3:1", (3, 1)), ("0:1", (0, 1)), (" 12:5 ", (12, 5))]
)
def test_ratios_are_linear_to_full(text, parts):
    assert parse_ratio(text) == parts


@pytest.mark.parametrize("text", ["3:0:1", "3", "", "0:0", "a:b", "-3:1", "3.5:1", "3:"])
def test_bad_ratios_are_refused(text):
    with pytest.raises(UsageError, match=r"ratio must be linear:full .* got ") as caught:
        parse_ratio(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("ratio", "layers", "letters"),
    [
        ("3:1", 8, "GGGFGGGF"),
        ("3:1", 10, "GGGFGGGFGG"),  # the remainder is linear
        ("5:1", 8, "GGGGGFGG"),
        ("0:1", 4, "FFFF"),
        ("1:0", 4, "GGGG"),
        ("1:3", 8, "GFFFGFFF"),
        ("3:2", 10, "GGGFFGGGFF"),
        ("3:1", 2, "GG"),
    ],
)
def test_a_ratio_generates_a_pattern(ratio, layers, letters):
    assert LayerPattern.from_ratio(ratio, layers, linear="G").letters == letters


@given(r=st.integers(0, 12), layers=st.integers(1, 200))
def test_full_layers_stand_at_r_and_every_r_plus_1_after(r, layers):
    pattern = LayerPattern.from_ratio(f"{r}:1", layers, linear="G")
    assert pattern.every_full_at("F") == tuple(range(r, layers, r + 1))


@pytest.mark.parametrize(
    ("letters", "label"),
    [
        ("GGGF" * 12, "3:1"),
        (("S" * 5 + "F") * 10 + "SS", "≈5:1 (52+10)"),
        ("KKKF" * 6 + "KKF", "≈3:1 (20+7)"),
        ("FFFF", "0:1"),
        ("GGGG", "1:0"),
        ("GFGF", "1:1"),
        ("GFFF", "1:3"),
        ("GFFFFFFFGF", "1:4"),
        ("GGFFFFF", "≈1:2 (2+5)"),
        ("M-M-F-M-", "3:1"),  # layers without a mixer do not count
    ],
)
def test_ratio_labels(letters, label):
    assert LayerPattern(letters).ratio_label("F") == label


@given(ratio=ratios, periods=st.integers(1, 20))
def test_a_label_reads_back_as_the_pattern_it_names(ratio, periods):
    """Whole periods of r:1 or 1:r keep their ratio through pattern and label."""
    a, b = ratio
    if a > 1 and b > 1:
        a, b = a, 1
    pattern = LayerPattern.from_ratio(f"{a}:{b}", (a + b) * periods, linear="G")
    again = LayerPattern.from_ratio(pattern.ratio_label(), len(pattern), linear="G")
    assert again == pattern


# Placements


@given(layers=st.integers(1, 128), data=st.data())
def test_placements_place_exactly_that_many_layers(layers, data):
    count = data.draw(st.integers(0, layers))
    for placement in PLACEMENTS:
        at = full_layer_indices(layers, count, placement)
        assert len(set(at)) == len(at) == count
        assert all(0 <= i < layers for i in at)
        assert list(at) == sorted(at)


@pytest.mark.parametrize(
    ("placement", "at"),
    [
        ("uniform", (3, 7, 11)),
        ("start", (0, 1, 2)),
        ("middle", (4, 5, 6)),
        ("end", (9, 10, 11)),
        ("first_last", (0, 6, 11)),
    ],
)
def test_placements_by_hand(placement, at):
    assert full_layer_indices(12, 3, placement) == at


@given(ratio=ratios, layers=st.integers(1, 128))
def test_a_placement_moves_full_layers_and_keeps_their_number(ratio, layers):
    text = f"{ratio[0]}:{ratio[1]}"
    uniform = LayerPattern.from_ratio(text, layers, linear="G")
    for placement in PLACEMENTS:
        moved = LayerPattern.from_ratio(text, layers, linear="G", placement=placement)
        assert moved.count("F") == uniform.count("F")
        assert len(moved) == layers


def test_bad_placements_are_refused():
    with pytest.raises(UsageError, match="unknown placement 'top'; known: uniform, start"):
        parse_placement("top")
    with pytest.raises(UsageError, match="unknown placement 'top'"):
        full_layer_indices(4, 2, "top")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="between 0 and 4, got 5"):
        full_layer_indices(4, 5, "uniform")


# Patterns


@given(st.sets(st.integers(0, 39)))
def test_indices_round_trip(at):
    pattern = LayerPattern.from_indices(40, at, linear="G")
    assert pattern.every_full_at("F") == tuple(sorted(at))


def test_indices_outside_are_refused():
    with pytest.raises(UsageError, match="layer index must be between 0 and 3, got 4"):
        LayerPattern.from_indices(4, [1, 4], linear="G")


def test_layer_types_of_a_config_are_read():
    types = ["linear_attention"] * 3 + ["full_attention"]
    letters = {"linear_attention": "G", "full_attention": "F"}
    assert LayerPattern.from_layer_types(types, letters).letters == "GGGF"
    with pytest.raises(UsageError, match=r"layer 1 has unknown type 'x'; known: full_attention"):
        LayerPattern.from_layer_types(["full_attention", "x"], letters)


@given(st.text(alphabet="FGSM-", min_size=1, max_size=80))
def test_run_lengths_expand_to_the_pattern(letters):
    def expand(run: str) -> str:
        return run[-1] * int(run[:-1] or 1)

    runs = LayerPattern(letters).run_length().split(" ")
    assert "".join(expand(run) for run in runs) == letters


def test_run_length_by_hand():
    assert LayerPattern("GGGFGGGF").run_length() == "3G F 3G F"


@pytest.mark.parametrize(
    ("letters", "message"),
    [("", "at least one layer"), ("GG F", r"has ' '; letters, \* and - are allowed"),
     ("G1F", "has '1'")],
)  # fmt: skip
def test_bad_patterns_are_refused(letters, message):
    with pytest.raises(UsageError, match=message):
        LayerPattern(letters)


# Architectures


def test_parameters_by_hand():
    """512 wide: 3 Gated DeltaNet and 1 attention layer, 4 MLPs, two embeddings of 1,000."""
    linear = 512 * (2 * 4 * 64 + 2 * 8 * 64) + 512 * 2 * 8 + 8 * 64 * 512
    full = 512 * (8 * 64 + 2 * 2 * 64) + 8 * 64 * 512
    mlp = 3 * 512 * 1408
    assert model().parameters() == 3 * linear + full + 4 * mlp + 2 * 1000 * 512
    assert model(tied_embeddings=True).parameters() == 3 * linear + full + 4 * mlp + 1000 * 512
    assert model().active_parameters() == model().parameters() - 1000 * 512


def test_experts_by_hand():
    """4 experts of 256, 2 active, one shared of 128, a router; the first layer is dense."""
    moe = Moe(num_experts=4, top_k=2, expert_intermediate_size=256, shared_intermediate_size=128)
    sparse = model(moe=moe, num_dense_layers=1)
    one, shared, router = 3 * 512 * 256, 3 * 512 * 128, 512 * 4
    dense = model().parameters()
    assert sparse.channel_layers() == (1, 3)
    assert sparse.parameters() == dense - 3 * 3 * 512 * 1408 + 3 * (4 * one + shared + router)
    assert sparse.parameters() - sparse.active_parameters() == 3 * 2 * one + 1000 * 512


def test_only_layers_without_a_mixer_have_the_mlp_where_there_are_any():
    assert model("G-F-G").channel_layers() == (2, 0)
    assert model("GGFG").channel_layers() == (4, 0)


def test_an_ungated_mlp_has_two_matrices():
    assert [g.parameters for g in Mlp(intermediate_size=100, gated=False).projections(10)] == [
        1000,
        1000,
    ]


def test_memory_by_hand():
    """One attention layer of 2 x 64 K and V in bf16; three states of 8 x 64 x 64 with a tail of
    3 x (4 + 4 + 8) x 64 in fp32."""
    assert model().kv_cache_bytes(1000) == 1000 * 2 * 2 * 64 * 2
    assert model().kv_slope_bytes(1000) == 2 * 2 * 64 * 2
    assert model().state_bytes() == 3 * 4 * (8 * 64 * 64 + 3 * 16 * 64)


@pytest.mark.parametrize("id", ["llama-3-70b", "llama-3.1-8b", "kimi-k2"])
@pytest.mark.parametrize("mixer", ["gated_deltanet", "kda", "mamba2", "linear_attention"])
def test_a_3_to_1_hybrid_has_a_quarter_of_the_slope(id, mixer):
    full = load_model(id)
    layers = full.num_layers - full.num_layers % 4
    full = model(
        "F" * layers, kinds={"F": next(iter(full.kinds.values()))}, hidden_size=full.hidden_size
    )
    hybrid = full.with_mixer(mixer, "3:1")
    for context in (1, 4096, 131072):
        assert hybrid.kv_slope_bytes(context) == full.kv_slope_bytes(context) / 4
    assert hybrid.state_bytes() > full.state_bytes() == 0


def test_a_window_stops_the_slope():
    gemma = load_model("gemma-3-27b")
    per_layer = 2 * 16 * 128 * 2
    assert gemma.kv_slope_bytes(1023) == 62 * per_layer
    assert gemma.kv_slope_bytes(1024) == 10 * per_layer


@pytest.mark.parametrize("mixer", sorted(MIXERS))
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_any_mixer_at_any_placement(mixer, placement):
    base = load_model("llama-3.1-8b")
    hybrid = base.with_mixer(mixer, "3:1", placement=placement)
    assert hybrid.num_layers == 32
    if MIXERS[mixer].kind == "full":
        assert hybrid.ratio_label() == "0:1"
    else:
        assert (hybrid.ratio_label(), hybrid.full_attention_share) == ("3:1", 0.25)
        assert hybrid.linear_mixer == mixer
        assert hybrid.describe() == f"3:1 {mixer}:full"


def test_a_hybrid_of_an_mla_model_keeps_mla():
    hybrid = load_model("kimi-k2").with_mixer("kda", "3:1")
    assert {s.mixer for s in hybrid.kinds.values()} == {"kda", "mla"}
    assert hybrid.describe() == "≈3:1 (46+15) kda:mla"


def test_layers_without_a_mixer_keep_their_place():
    hybrid = load_model("nemotron-h-8b").with_mixer("gated_deltanet", "6:1")
    before = load_model("nemotron-h-8b").pattern.letters
    assert [c == "-" for c in hybrid.pattern.letters] == [c == "-" for c in before]
    assert hybrid.ratio_label() == "6:1"


def test_pure_models_need_no_other_kind():
    assert set(load_model("llama-3.1-8b").with_mixer("kda", "1:0").kinds) == {"K"}
    assert set(load_model("gemma-3-27b").with_mixer("full_attention", "0:1").kinds) == {"F"}


def test_a_model_keeps_its_own_dimensions_of_a_mixer():
    qwen = load_model("qwen3.6-27b")
    assert qwen.spec_for("gated_deltanet") is qwen.kinds["G"]
    assert qwen.spec_for("sliding_window").output_gate
    assert load_model("kimi-k2").spec_for("full_attention").num_v_heads == 64


def test_a_model_without_attention_has_no_heads_to_match():
    pure = model("GGGG", kinds={"G": LINEAR})
    with pytest.raises(UsageError, match="has no attention layer"):
        pure.spec_for("mamba2")


def test_any_letter_may_name_any_mixer():
    swapped = model("FFFG", kinds={"G": FULL, "F": LINEAR})
    assert swapped.ratio_label() == "3:1"
    assert swapped.full_letters == {"G"}


def test_counts_are_per_distinct_mixer():
    assert model("GGGF").counts() == {LINEAR: 3, FULL: 1}


def test_several_linear_mixers_have_no_single_name():
    window = MixerSpec(
        mixer="sliding_window", num_q_heads=8, num_k_heads=2, num_v_heads=2,
        k_head_dim=64, v_head_dim=64, window=128,
    )  # fmt: skip
    mixed = model("GSGF", kinds={"G": LINEAR, "F": FULL, "S": window})
    assert mixed.ratio_label() == "3:1"
    with pytest.raises(UsageError, match="several linear mixers: gated_deltanet, sliding_window"):
        _ = mixed.linear_mixer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": {"F": FULL}}, "small: layer letter 'G' has no mixer; kinds has F"),
        ({"mlp": None}, "small: needs mlp, moe or both"),
    ],
)
def test_bad_architectures_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        model(**changes)


def test_unknown_mixers_are_refused():
    with pytest.raises(UnknownName, match="unknown mixer 'hyena'"):
        model().with_mixer("hyena", "3:1")
    with pytest.raises(UsageError, match="top_k must be between 1 and num_experts = 4, got 5"):
        Moe(num_experts=4, top_k=5, expert_intermediate_size=8)

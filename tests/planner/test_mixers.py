"""Every formula of `planner.mixers` against a hand-computed case, a brute-force mask or a law."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import UnknownName, UsageError
from planner.mixers import MIXERS, MixerSpec, get_mixer
from planner.mixers.attention import attended_pairs, executed_pairs, visible_keys

GQA = MixerSpec(
    mixer="full_attention", num_q_heads=32, num_k_heads=8, num_v_heads=8,
    k_head_dim=128, v_head_dim=128,
)  # fmt: skip
WINDOWED = MixerSpec(
    mixer="sliding_window", num_q_heads=32, num_k_heads=8, num_v_heads=8,
    k_head_dim=128, v_head_dim=128, window=1024,
)  # fmt: skip
LINEAR = MixerSpec(
    mixer="linear_attention", num_q_heads=16, num_k_heads=16, num_v_heads=16,
    k_head_dim=128, v_head_dim=128,
)  # fmt: skip
LIGHTNING = MixerSpec(
    mixer="lightning", num_q_heads=64, num_k_heads=64, num_v_heads=64,
    k_head_dim=128, v_head_dim=128, output_gate=True,
)  # fmt: skip
GDN = MixerSpec(
    mixer="gated_deltanet", num_q_heads=16, num_k_heads=16, num_v_heads=48,
    k_head_dim=128, v_head_dim=128, conv_size=4,
)  # fmt: skip
KDA = MixerSpec(
    mixer="kda", num_q_heads=32, num_k_heads=32, num_v_heads=32,
    k_head_dim=128, v_head_dim=128, conv_size=4,
)  # fmt: skip
SSD = MixerSpec(
    mixer="mamba2", num_q_heads=8, num_k_heads=8, num_v_heads=128,
    k_head_dim=128, v_head_dim=64, conv_size=4,
)  # fmt: skip
MLA = MixerSpec(
    mixer="mla", num_q_heads=64, num_k_heads=64, num_v_heads=64,
    k_head_dim=128, v_head_dim=128, kv_lora_rank=512, q_lora_rank=1536, rope_head_dim=64,
)  # fmt: skip

SPECS = (GQA, WINDOWED, LINEAR, LIGHTNING, GDN, KDA, SSD, MLA)
ATTENTION = (GQA, WINDOWED, MLA)
RECURRENT = (LINEAR, LIGHTNING, GDN, KDA, SSD)

each_spec = pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.mixer)
each_attention = pytest.mark.parametrize("spec", ATTENTION, ids=lambda s: s.mixer)
each_recurrent = pytest.mark.parametrize("spec", RECURRENT, ids=lambda s: s.mixer)

lengths = st.integers(min_value=1, max_value=1 << 20)
short = st.integers(min_value=1, max_value=60)


def masked_pairs(new: int, cached: int, window: int | None) -> int:
    """The definition: query p sees key k where 0 <= p - k < window."""
    w = window or new + cached
    return sum(0 <= p - k < w for p in range(cached, cached + new) for k in range(cached + new))


def tiled_pairs(new: int, window: int | None, tile: int = 128) -> int:
    """The definition: each tile of rows runs from its first row's first key to its last row."""
    w = window or new
    return sum(tile * (end - max(0, end - tile - (w - 1))) for end in range(tile, new + 1, tile))


def test_every_spec_here_is_a_registered_mixer_and_all_are_covered():
    assert {s.mixer for s in SPECS} == set(MIXERS)
    assert len({m.letter for m in MIXERS.values()}) == len(MIXERS)


# Pairs of softmax attention


@given(new=short, cached=st.integers(0, 60), window=st.none() | st.integers(1, 130))
def test_attended_pairs_count_the_mask(new, cached, window):
    assert attended_pairs(new, cached, window) == masked_pairs(new, cached, window)


@given(new=short, cached=st.integers(0, 60), window=st.none() | st.integers(1, 130))
def test_visible_keys_are_those_some_query_sees(new, cached, window):
    w = window or new + cached
    seen = {k for p in range(cached, cached + new) for k in range(cached + new) if 0 <= p - k < w}
    assert visible_keys(new, cached, window) == len(seen)


@given(first=lengths, rest=lengths, window=st.none() | st.integers(1, 1 << 20))
def test_a_prefill_is_the_sum_of_its_segments(first, rest, window):
    whole = attended_pairs(first + rest, 0, window)
    assert whole == attended_pairs(first, 0, window) + attended_pairs(rest, first, window)


@given(new=lengths, cached=st.integers(0, 1 << 20), window=st.integers(1, 1 << 21))
def test_a_window_sees_no_more_and_a_wide_one_sees_all(new, cached, window):
    full, windowed = (attended_pairs(new, cached, w) for w in (None, window))
    assert windowed == full if window >= new + cached else windowed < full


def test_window_of_one_sees_itself():
    assert attended_pairs(63, 1000, 1) == 63


@pytest.mark.parametrize("tiles", [1, 2, 17])
def test_executed_pairs_of_full_attention_are_whole_tiles(tiles):
    assert executed_pairs(128 * tiles, 0, None) == tiled_pairs(128 * tiles, None)


@pytest.mark.parametrize("window", [128, 512, 1024, 4096])
def test_executed_pairs_of_a_window_are_whole_tiles(window):
    assert executed_pairs(8192, 0, window) == pytest.approx(tiled_pairs(8192, window), rel=0.01)


@pytest.mark.parametrize(("new", "cached"), [(1, 5000), (63, 0), (1000, 24), (4096, 0)])
def test_a_window_wider_than_the_context_executes_as_full_attention(new, cached):
    wide = executed_pairs(new, cached, new + cached)
    assert wide == executed_pairs(new, cached, None)
    assert executed_pairs(new, cached, 1 << 30) == wide


def test_a_small_window_wastes_more_than_half_its_tiles():
    """W = 128 in tiles of 128 rows: 255 keys a row against 128."""
    waste = executed_pairs(1 << 20, 0, 128) / attended_pairs(1 << 20, 0, 128)
    assert waste == pytest.approx(255 / 128, rel=1e-3)


# FLOPs, by hand


def test_full_attention_flops_by_hand():
    """3 tokens: 1 + 2 + 3 = 6 pairs; a pair is 2 x 128 for QK^T and for PV, in 32 heads."""
    assert get_mixer("full_attention").model_flops(GQA, 1, 3, 0) == 6 * 32 * (2 * 128 + 2 * 128)


def test_decode_flops_by_hand():
    """One query after 4,095: 4,096 keys, batch 8."""
    flops = get_mixer("full_attention").model_flops(GQA, 8, 1, 4095)
    assert flops == 8 * 4096 * 32 * 4 * 128


def test_windowed_decode_sees_the_window():
    flops = get_mixer("sliding_window").model_flops(WINDOWED, 1, 1, 100_000)
    assert flops == 1024 * 32 * 4 * 128


@pytest.mark.parametrize("spec", [GDN, KDA], ids=lambda s: s.mixer)
def test_delta_rule_flops_are_kimi_linears_equation_13(spec):
    """6 T d² + 3 T C d + T C² per head, with d = 128 and chunk C = 64: 126,976 a token."""
    T, d, C = 8192, 128, 64
    assert (6 * T * d**2 + 3 * T * C * d + T * C**2) / T == 126_976
    flops = get_mixer(spec.mixer).model_flops(spec, 2, T, 0)
    assert flops == 2 * spec.num_v_heads * (6 * T * d**2 + 3 * T * C * d + T * C**2)


@pytest.mark.parametrize("spec", [GDN, KDA], ids=lambda s: s.mixer)
def test_delta_rule_executed_flops_by_hand(spec):
    """Products of one chunk over 64: KKᵀ, QKᵀ and W are 2CK each, U and A v 2CV, three with the
    state 2KV, the triangular solve C²/3."""
    d, C = 128, 64
    per_token = 3 * 2 * C * d + 2 * 2 * C * d + 3 * 2 * d * d + C * C / 3
    flops = get_mixer(spec.mixer).executed_flops(spec, 1, 4096, 0)
    assert flops == pytest.approx(4096 * spec.num_v_heads * per_token)


@pytest.mark.parametrize("spec", [GDN, KDA], ids=lambda s: s.mixer)
def test_delta_rule_step_by_hand(spec):
    """k S, the outer product and q S: 2KV each."""
    flops = get_mixer(spec.mixer).model_flops(spec, 4, 1, 9999)
    assert flops == 4 * spec.num_v_heads * 6 * 128 * 128


@pytest.mark.parametrize("spec", [LINEAR, LIGHTNING], ids=lambda s: s.mixer)
def test_linear_attention_flops_by_hand(spec):
    """A chunk of 64: 64 x 65 / 2 pairs of 2K + 2V, and Kᵀv and QS with the state, 2KV each."""
    pairs = 64 * 65 // 2
    chunk = pairs * (2 * 128 + 2 * 128) + 64 * (2 + 2) * 128 * 128
    flops = get_mixer(spec.mixer).model_flops(spec, 1, 64 * 5, 0)
    assert flops == 5 * chunk * spec.num_v_heads
    issued = 64 * 64 * (2 * 128 + 2 * 128) + 64 * (2 + 2) * 128 * 128
    assert get_mixer(spec.mixer).executed_flops(spec, 1, 64 * 5, 0) == (
        5 * issued * spec.num_v_heads
    )


def test_ssd_flops_by_hand():
    """N = 128, P = 64, 8 groups, 128 heads, chunk 64: C Bᵀ once a group over 64 x 65 / 2 pairs,
    those pairs times x in each head, and the state in and out, 2NP each."""
    pairs = 64 * 65 // 2
    chunk = 8 * pairs * 2 * 128 + 128 * (pairs * 2 * 64 + 64 * 2 * 2 * 128 * 64)
    assert get_mixer("mamba2").model_flops(SSD, 3, 64 * 7, 0) == 3 * 7 * chunk


def test_ssd_executes_chunks_of_256():
    """Whole 256 x 256 matrices, and passing the state once a chunk: 2NP a head."""
    square = 256 * 256
    chunk = 8 * square * 2 * 128 + 128 * (square * 2 * 64 + 256 * 4 * 128 * 64 + 2 * 128 * 64)
    assert get_mixer("mamba2").executed_flops(SSD, 1, 512, 0) == pytest.approx(2 * chunk)


def test_ssd_step_by_hand():
    """Decay, outer product (2) and C·S (2): 5 H N P."""
    assert get_mixer("mamba2").model_flops(SSD, 1, 1, 77) == 5 * 128 * 128 * 64


def test_mla_prefill_is_expanded_and_decode_absorbed():
    mla = get_mixer("mla")
    assert mla.model_flops(MLA, 1, 3, 0) == 6 * 64 * 2 * (128 + 64 + 128)
    assert mla.model_flops(MLA, 1, 1, 4095) == 4096 * 64 * 2 * ((512 + 64) + 512)


# Laws of FLOPs


@each_spec
@given(batch=st.integers(1, 512), new=lengths, cached=st.integers(0, 1 << 20))
def test_what_is_issued_is_at_least_what_is_needed(spec, batch, new, cached):
    mixer = get_mixer(spec.mixer)
    needed = mixer.model_flops(spec, batch, new, cached)
    assert mixer.executed_flops(spec, batch, new, cached) >= needed > 0


@each_spec
@given(batch=st.integers(1, 512), new=lengths, cached=st.integers(0, 1 << 20))
def test_cost_is_proportional_to_the_batch(spec, batch, new, cached):
    mixer = get_mixer(spec.mixer)
    for cost in (mixer.model_flops, mixer.executed_flops):
        assert cost(spec, batch, new, cached) == pytest.approx(batch * cost(spec, 1, new, cached))
    assert mixer.min_bytes(spec, batch, new, cached, 2) == pytest.approx(
        batch * mixer.min_bytes(spec, 1, new, cached, 2)
    )


@pytest.mark.parametrize("spec", [GQA, WINDOWED], ids=lambda s: s.mixer)
@given(first=lengths, rest=lengths)
def test_attention_flops_add_over_segments(spec, first, rest):
    flops = get_mixer(spec.mixer).model_flops
    assert flops(spec, 1, first + rest, 0) == pytest.approx(
        flops(spec, 1, first, 0) + flops(spec, 1, rest, first), rel=1e-12
    )


@given(first=st.integers(2, 1 << 20), rest=st.integers(2, 1 << 20))
def test_mla_flops_add_over_segments_of_more_than_one_token(first, rest):
    flops = get_mixer("mla").model_flops
    assert flops(MLA, 1, first + rest, 0) == pytest.approx(
        flops(MLA, 1, first, 0) + flops(MLA, 1, rest, first), rel=1e-12
    )


@each_recurrent
@given(chunks=st.integers(1, 4096), times=st.integers(1, 64))
def test_recurrent_flops_are_linear_in_length(spec, chunks, times):
    flops = get_mixer(spec.mixer).model_flops
    T = 64 * chunks
    assert flops(spec, 1, T * times, 0) == pytest.approx(times * flops(spec, 1, T, 0), rel=1e-12)


@each_recurrent
@given(new=lengths, cached=st.integers(0, 1 << 20))
def test_recurrent_flops_do_not_see_the_past(spec, new, cached):
    flops = get_mixer(spec.mixer).model_flops
    assert flops(spec, 1, new, cached) == flops(spec, 1, new, 0)


@each_attention
def test_attention_grows_quadratically_only_without_a_window(spec):
    flops = get_mixer(spec.mixer).model_flops
    growth = flops(spec, 1, 1 << 20, 0) / flops(spec, 1, 1 << 19, 0)
    assert growth == pytest.approx(2 if spec.window else 4, rel=0.01)


@each_spec
@pytest.mark.parametrize("cost", ["model_flops", "executed_flops"])
def test_formulas_are_vectorised(spec, cost):
    function = getattr(get_mixer(spec.mixer), cost)
    cases = [(1, 1, 0), (2, 1, 5000), (3, 63, 0), (4, 1000, 24), (5, 4096, 131072)]
    batch, new, cached = np.array(cases).T
    expected = [float(function(spec, *case)) for case in cases]
    np.testing.assert_allclose(function(spec, batch, new, cached), expected)


# Bytes


@each_spec
def test_bytes_are_vectorised(spec):
    mixer = get_mixer(spec.mixer)
    cases = [(1, 1, 0), (2, 1, 5000), (3, 63, 0), (4, 1000, 24), (5, 4096, 131072)]
    batch, new, cached = np.array(cases).T
    expected = [float(mixer.min_bytes(spec, *case, 2.0)) for case in cases]
    np.testing.assert_allclose(mixer.min_bytes(spec, batch, new, cached, 2.0), expected)
    stored = [float(mixer.kv_cache_bytes(spec, int(n), 2.0)) for n in new]
    np.testing.assert_allclose(mixer.kv_cache_bytes(spec, new, 2.0), stored)


def test_attention_bytes_by_hand():
    """Decode at 4,096 keys: q and o of 32 x 128, K and V of 8 x 128 for each key, 2 bytes."""
    found = get_mixer("full_attention").min_bytes(GQA, 1, 1, 4095, 2)
    assert found == 2 * (2 * 32 * 128 + 4096 * 2 * 8 * 128)


def test_windowed_bytes_by_hand():
    """A segment of 100 after 5,000 reads the 100 + 1,023 keys that some query sees."""
    found = get_mixer("sliding_window").min_bytes(WINDOWED, 1, 100, 5000, 2)
    assert found == 2 * (100 * 2 * 32 * 128 + 1123 * 2 * 8 * 128)


def test_gated_deltanet_bytes_by_hand():
    """Decode: q, k of 16 x 128, v, o of 48 x 128 in bf16; two fp32 gates a value head; the fp32
    state of 48 x 128 x 128 in and out."""
    found = get_mixer("gated_deltanet").min_bytes(GDN, 1, 1, 9999, 2)
    assert found == 2 * (2 * 16 * 128 + 2 * 48 * 128) + 4 * 2 * 48 + 2 * 4 * 48 * 128 * 128


def test_a_prefill_only_writes_the_state():
    mixer = get_mixer("gated_deltanet")
    fresh, carried = (mixer.min_bytes(GDN, 1, 64, cached, 2) for cached in (0, 64))
    assert carried - fresh == 4 * 48 * 128 * 128


def test_kda_reads_a_gate_for_each_key_channel():
    """Per token: decays of 32 x 128 and β of 32, in fp32, on top of q, k, v, o in bf16."""
    mixer = get_mixer("kda")
    per_token = mixer.min_bytes(KDA, 1, 65, 0, 2) - mixer.min_bytes(KDA, 1, 64, 0, 2)
    assert per_token == 2 * 4 * 32 * 128 + 4 * (32 * 128 + 32)


def test_ssd_bytes_by_hand():
    """C, B of 8 x 128, x, y of 128 x 64 in bf16; dt in fp32; the state written once."""
    found = get_mixer("mamba2").min_bytes(SSD, 1, 1000, 0, 2)
    per_token = 2 * (2 * 8 * 128 + 2 * 128 * 64) + 4 * 128
    assert found == 1000 * per_token + 4 * 128 * 128 * 64


def test_mla_reads_576_elements_a_token_in_decode():
    """Latent 512 + rotary 64, shared by the heads; absorbed q of 576 and o of 512 a head."""
    found = get_mixer("mla").min_bytes(MLA, 1, 1, 4095, 2)
    assert found == 2 * (4096 * 576 + 64 * (576 + 512))


def test_mla_prefill_reads_expanded_heads():
    """q and k of 192, v and o of 128 a head."""
    assert get_mixer("mla").min_bytes(MLA, 1, 100, 0, 2) == 2 * 64 * 100 * 2 * (192 + 128)


def test_mla_stores_576_elements_a_token():
    assert get_mixer("mla").kv_cache_bytes(MLA, 1000, 2) == 1000 * 576 * 2
    assert get_mixer("mla").kv_cache_bytes(MLA, 1000, 1) == 1000 * 576


def test_a_window_caps_what_is_stored():
    kv = get_mixer("sliding_window").kv_cache_bytes
    assert kv(WINDOWED, 500, 2) == 500 * 2 * 8 * 128 * 2
    assert kv(WINDOWED, 131072, 2) == kv(WINDOWED, 1024, 2) == 1024 * 2 * 8 * 128 * 2


@each_spec
def test_only_attention_stores_keys_and_only_recurrence_a_state(spec):
    mixer = get_mixer(spec.mixer)
    assert (mixer.kv_cache_bytes(spec, 4096, 2) == 0) == (mixer.kind == "recurrent")
    assert (mixer.state_bytes(spec, 4) > 0) == (mixer.kind == "recurrent")


@pytest.mark.parametrize(
    ("spec", "elements"),
    [
        (LINEAR, 16 * 128 * 128),
        (LIGHTNING, 64 * 128 * 128),
        (GDN, 48 * 128 * 128 + 3 * (16 * 128 + 16 * 128 + 48 * 128)),
        (KDA, 32 * 128 * 128 + 3 * (3 * 32 * 128)),
        (SSD, 128 * 128 * 64 + 3 * (128 * 64 + 2 * 8 * 128)),
    ],
    ids=lambda v: getattr(v, "mixer", ""),
)
def test_state_by_hand(spec, elements):
    """The [H, K, V] state and a tail of conv_size - 1 = 3 inputs of each convolved channel."""
    assert get_mixer(spec.mixer).state_bytes(spec, 4) == 4 * elements


def test_no_convolution_no_tail():
    bare = MixerSpec.from_dict({k: v for k, v in GDN.to_dict().items() if k != "conv_size"})
    assert get_mixer("gated_deltanet").conv_channels(bare) == 0
    assert get_mixer("gated_deltanet").state_bytes(bare, 4) == 4 * 48 * 128 * 128


# Projections: columns as in the released models


@pytest.mark.parametrize(
    ("spec", "hidden", "columns"),
    [
        (GQA, 4096, {"qkv": 4096 + 2 * 1024, "o": 4096}),
        (LINEAR, 2048, {"qkv": 3 * 2048, "o": 2048}),
        (LIGHTNING, 6144, {"qkv": 4 * 8192, "o": 6144}),  # q, k, v and output gate
        (GDN, 5120, {"qkvz": 2 * 2048 + 2 * 6144, "ba": 96, "o": 5120}),
        (
            KDA,
            2304,
            {"qkv": 3 * 4096, "gates_down": 2 * 128 + 32, "decay_up": 4096, "gate_up": 4096,
             "o": 2304},
        ),
        (SSD, 4096, {"in_proj": 2 * 8192 + 2 * 1024 + 128, "out_proj": 4096}),
        (
            MLA,
            7168,
            {"q_down": 1536, "q_up": 64 * 192, "kv_down": 576, "kv_up": 64 * 256, "o": 7168},
        ),
    ],
    ids=lambda v: getattr(v, "mixer", ""),
)  # fmt: skip
def test_projections_by_hand(spec, hidden, columns):
    found = get_mixer(spec.mixer).projections(spec, hidden)
    assert {g.role: g.out_features for g in found} == columns
    assert found[0].in_features == hidden


def test_an_output_gate_doubles_the_query_columns():
    """Qwen3-Next: q_proj gives 16 x 256 queries and as many gates."""
    gated = MixerSpec(
        mixer="full_attention", num_q_heads=16, num_k_heads=2, num_v_heads=2,
        k_head_dim=256, v_head_dim=256, output_gate=True,
    )  # fmt: skip
    qkv, o = get_mixer("full_attention").projections(gated, 2048)
    assert qkv.out_features == 2 * 16 * 256 + 2 * 2 * 256
    assert o.parameters == 16 * 256 * 2048


@each_spec
def test_matched_dimensions_make_a_layer_of_about_the_models_width(spec):
    """Values as wide as one to two times the hidden size, and a spec of the right mixer."""
    matched = get_mixer(spec.mixer).matched(GQA, 4096)
    assert matched.mixer == spec.mixer
    assert 4096 <= max(matched.num_q_heads, matched.num_v_heads) * matched.v_head_dim <= 2 * 4096
    assert get_mixer(spec.mixer).model_flops(matched, 1, 4096, 0) > 0


@pytest.mark.parametrize("mixer", ["gated_deltanet", "kda", "linear_attention", "lightning"])
def test_matched_states_are_as_wide_together_as_heads_of_256(mixer):
    """Qwen3.6 27B's 24 heads of 256; a state's are at most 128 wide where kernels say so."""
    wide = MixerSpec(
        mixer="full_attention", num_q_heads=24, num_k_heads=4, num_v_heads=4,
        k_head_dim=256, v_head_dim=256,
    )  # fmt: skip
    matched = get_mixer(mixer).matched(wide, 5120)
    assert matched.num_v_heads * matched.v_head_dim == 24 * 256


# Specs


@each_spec
def test_specs_round_trip(spec):
    assert MixerSpec.from_dict(spec.to_dict()) == spec


def test_specs_say_what_they_are():
    assert GQA.short() == "full_attention 32/8x128"
    assert WINDOWED.short() == "sliding_window 32/8x128 W1024"
    assert SSD.short() == "mamba2 8/128x128+64"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_k_heads": 0}, "num_k_heads must be at least 1, got 0"),
        ({"num_q_heads": 7, "num_k_heads": 2}, "num_q_heads must be a multiple of num_k_heads, "
                                               "got 7 and 2"),
        ({"num_v_heads": 9}, "num_v_heads must be a multiple of num_k_heads, got 9 and 8"),
        ({"window": 512}, "sliding_window needs a window and no other mixer has one"),
        ({"mixer": "sliding_window"}, "got sliding_window with window None"),
        ({"mixer": "sliding_window", "window": 0}, "window must be at least 1 .*, got 0"),
        ({"heads": 3}, "unknown mixer field 'heads'; known: mixer, num_q_heads"),
    ],
)  # fmt: skip
def test_bad_specs_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        MixerSpec.from_dict({**GQA.to_dict(), **change})


def test_an_unknown_mixer_lists_the_known_ones():
    with pytest.raises(UnknownName, match="unknown mixer 'mamba3'; did you mean 'mamba2'"):
        get_mixer("mamba3")

"""Lengths as people write them, one kernel call, one user's load."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog import data_dir
from planner.errors import UnknownName, UsageError
from planner.hardware import Hardware
from planner.mixers import MixerSpec, get_mixer
from planner.workload import (
    AllReduceOp,
    ConvOp,
    DenseOp,
    ExpertsOp,
    MixerOp,
    StackOp,
    Traffic,
    Workload,
    canonical_json,
    dtype_bytes,
    format_tokens,
    layer_ops,
    operation_from,
    parse_lengths,
    parse_tokens,
)

FULL = MixerSpec(
    mixer="full_attention", num_q_heads=8, num_k_heads=2, num_v_heads=2,
    k_head_dim=64, v_head_dim=64,
)  # fmt: skip
LINEAR = MixerSpec(
    mixer="gated_deltanet", num_q_heads=4, num_k_heads=4, num_v_heads=8,
    k_head_dim=64, v_head_dim=64, conv_size=4,
)  # fmt: skip
OPS = (
    MixerOp(FULL),
    MixerOp(LINEAR),
    DenseOp(512, 1024),
    ConvOp(1024, 4),
    ExpertsOp(512, 256, 8, 2),
    AllReduceOp(8),
    StackOp("GGGF", (("G", LINEAR), ("F", FULL)), 512),
    StackOp("GGGF", (("G", LINEAR), ("F", FULL)), 512, mlp_size=1024, mlp_gated=False),
)


# Lengths


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("4096", 4096), ("128k", 131072), ("1M", 1048576), (" 2K ", 2048), ("0", 0)],
)
def test_tokens_are_read(text, tokens):
    assert parse_tokens(text) == tokens


@pytest.mark.parametrize("text", ["", "k", "-1k", "1.5k", "1kb", "1 k", "1e3"])
def test_bad_tokens_are_refused(text):
    with pytest.raises(UsageError, match="length must be a whole number of tokens"):
        parse_tokens(text)


@given(st.integers(0, 1 << 40))
def test_tokens_round_trip(tokens):
    assert parse_tokens(format_tokens(tokens)) == tokens


@pytest.mark.parametrize(("tokens", "text"), [(131072, "128k"), (1 << 20, "1m"), (3000, "3000")])
def test_tokens_are_written(tokens, text):
    assert format_tokens(tokens) == text


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("1k:8k", [1024, 2048, 4096, 8192]),
        ("1k:3k", [1024, 2048]),
        ("1000:4000", [1000, 2000, 4000]),
        ("4k,1k,3000", [1024, 3000, 4096]),
        ("1k:4k,2k,63", [63, 1024, 2048, 4096]),
        ("512", [512]),
        ("1k:1k", [1024]),
    ],
)
def test_lengths_are_read(text, lengths):
    assert parse_lengths(text) == lengths


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8k:1k", "length range must rise from at least 1, got '8k:1k'"),
        ("0:4k", "must rise from at least 1"),
        ("0", "lengths must be at least 1, got '0'"),
        ("1k:", "whole number of tokens"),
        ("-4k", "got '-4k'"),
        ("1k,,2k", "got ''"),
    ],
)
def test_bad_lengths_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_lengths(text)


def test_unknown_dtypes_are_refused():
    assert [dtype_bytes(d) for d in ("fp32", "bf16", "fp8", "int4")] == [4, 2, 1, 0.5]
    with pytest.raises(UsageError, match="unknown dtype 'fp7'; known: fp64, fp32"):
        dtype_bytes("fp7")


# Operations


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.family)
def test_operations_round_trip_through_json(op):
    stored = canonical_json(op.to_dict())
    again = operation_from(op.family, json.loads(stored))
    assert again == op
    assert canonical_json(again.to_dict()) == stored
    assert op.short()


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.family)
@given(batch=st.integers(1, 64), new=st.integers(1, 1 << 16), cached=st.integers(0, 1 << 16))
def test_operations_cost_something_and_issue_no_less(op, batch, new, cached):
    needed = op.model_flops(batch, new, cached)
    assert op.executed_flops(batch, new, cached) >= needed > 0
    assert op.min_bytes(batch, new, cached, 2.0) > 0


def test_models_that_differ_around_the_kernel_share_its_measurements():
    """Qwen3-Next's output gate and Gated DeltaNet's convolution are calls of their own."""
    gated = MixerSpec.from_dict({**FULL.to_dict(), "output_gate": True})
    bare = MixerSpec.from_dict({**LINEAR.to_dict(), "conv_size": 0})
    assert MixerOp(gated) == MixerOp(FULL)
    assert MixerOp(bare) == MixerOp(LINEAR)
    assert MixerOp(LINEAR).to_dict() == bare.to_dict()


def test_dense_by_hand():
    """10 rows times 512 x 1,024: two operations a weight; weights, inputs and outputs once."""
    op = DenseOp(512, 1024)
    assert op.model_flops(2, 5, 999) == 2 * 10 * 512 * 1024
    assert op.min_bytes(2, 5, 999, 2.0) == 2 * (512 * 1024 + 10 * (512 + 1024))


def test_short_convolution_by_hand():
    """4 taps a channel; each token in and out, and the 3-token tail in and out if one came in."""
    op = ConvOp(1000, 4)
    assert op.model_flops(2, 5, 0) == 2 * 2 * 5 * 1000 * 4
    assert op.min_bytes(2, 5, 0, 2.0) == 2 * 2 * 1000 * 2 * 5
    assert op.min_bytes(2, 5, 1, 2.0) == 2 * 2 * 1000 * (2 * 5 + 2 * 3)


def test_experts_by_hand():
    """8 experts of three 512 x 256 matrices, 2 a token: one token touches 2, two touch 3.5."""
    op = ExpertsOp(512, 256, 8, 2)
    one = 3 * 512 * 256
    assert op.model_flops(1, 10, 0) == 2 * 10 * 2 * one
    assert op.touched(1) == pytest.approx(2)
    assert op.touched(2) == pytest.approx(8 * (1 - 0.75**2)) == pytest.approx(3.5)
    assert op.min_bytes(1, 1, 0, 2.0) == pytest.approx(2 * (2 * one + 2 * 512))
    assert ExpertsOp(512, 256, 8, 2, gated=False).expert_parameters == 2 * 512 * 256


def test_all_reduce_by_hand():
    """1,000 elements on 8 devices: 7 additions each; read and written once."""
    assert AllReduceOp(8).model_flops(1, 1000, 0) == 7000
    assert AllReduceOp(8).min_bytes(1, 1000, 0, 2.0) == 4000


def test_a_layer_is_its_mixer_convolution_and_projections():
    """q, k of 4 x 64 and v of 8 x 64: 1,024 channels."""
    assert layer_ops(FULL, 512) == [MixerOp(FULL), DenseOp(512, 768), DenseOp(512, 512)]
    linear = layer_ops(LINEAR, 512)
    assert linear[:2] == [MixerOp(LINEAR), ConvOp(1024, 4)]
    assert linear[2:] == [DenseOp(512, 1536), DenseOp(512, 16), DenseOp(512, 512)]


LATENT = MixerSpec(
    mixer="mla", num_q_heads=32, num_k_heads=32, num_v_heads=32, k_head_dim=128, v_head_dim=128,
    kv_lora_rank=512, rope_head_dim=64,
)  # fmt: skip


@pytest.mark.parametrize(("new", "cached", "expanded"), [(100, 0, 100), (8, 92, 100), (1, 99, 1)])
def test_a_stack_of_mla_expands_its_cached_latents_unless_it_decodes(new, cached, expanded):
    """Kimi Linear's: q 2304x6144, latent 2304x576, expansion 512x8192, o 4096x2304."""
    stack = StackOp("A", (("A", LATENT),), 2304)
    mixer = get_mixer("mla")
    projections = 2304 * 6144 + 2304 * 576 + 4096 * 2304
    flops = 2 * 2 * (new * projections + expanded * 512 * 8192)
    flops += mixer.model_flops(LATENT, 2, new, cached)
    assert stack.model_flops(2, new, cached) == flops
    rows = 2 * new * (2304 + 6144 + 2304 + 576 + 4096 + 2304) + 2 * expanded * (512 + 8192)
    moved = 2 * (rows + projections + 512 * 8192) + mixer.min_bytes(LATENT, 2, new, cached, 2)
    assert stack.min_bytes(2, new, cached, 2) == moved
    several = stack.model_flops(2, np.array([new, new]), np.array([cached, cached]))
    assert several.tolist() == [flops, flops]


def test_stored_stacks_keep_their_keys():
    """The spelling under which stacks were stored before MLPs could be plain."""
    op = StackOp("F", (("F", FULL),), 512)
    kinds = {"F": FULL.to_dict()}
    plain = {"pattern": "F", "kinds": kinds, "hidden_size": 512}
    assert op.to_dict() == plain
    assert replace(op, mlp_gated=False) == op  # no MLP, no gate
    assert replace(op, mlp_size=1024).to_dict() == {**plain, "mlp_size": 1024}
    ungated = replace(op, mlp_size=1024, mlp_gated=False)
    assert ungated.to_dict() == {**plain, "mlp_size": 1024, "mlp_gated": False}
    assert operation_from("stack", ungated.to_dict()) == ungated


def test_shipped_stacks_read_back_to_the_spelling_they_are_stored_under():
    """Every stack of the shipped data: what the point keys were hashed from."""
    specs: set[str] = set()
    for file in (data_dir() / "measurements").glob("*.csv"):
        rows = pd.read_csv(file, usecols=["family", "spec"])
        specs |= set(rows.loc[rows["family"] == "stack", "spec"])
    assert len(specs) > 10
    for spec in specs:
        assert canonical_json(operation_from("stack", json.loads(spec)).to_dict()) == spec


def test_a_stack_is_the_sum_of_its_layers():
    stack = StackOp("GGGF", (("G", LINEAR), ("F", FULL)), 512)
    one = {s: layer_ops(s, 512) for s in (LINEAR, FULL)}
    for cost in ("model_flops", "executed_flops"):
        layers = [sum(getattr(op, cost)(2, 100, 0) for op in one[s]) for s in (LINEAR, FULL)]
        assert getattr(stack, cost)(2, 100, 0) == 3 * layers[0] + layers[1]


@pytest.mark.parametrize(
    ("family", "data", "message"),
    [
        ("dense", {"in_features": 1, "rows": 2}, "not the dimensions of a 'dense' operation"),
        ("stack", {"pattern": "F"}, "not the dimensions of a 'stack' operation: 'kinds'"),
        ("full_attention", {"mixer": "full_attention"}, "not the dimensions of a"),
        ("kda", FULL.to_dict(), "spec of family 'kda' names mixer 'full_attention'"),
        ("full_attention", {**FULL.to_dict(), "heads": 3}, "unknown mixer field 'heads'"),
    ],
)
def test_bad_operations_are_refused(family, data, message):
    with pytest.raises(UsageError, match=message):
        operation_from(family, data)


def test_an_unknown_family_lists_the_mixers():
    with pytest.raises(UnknownName, match="unknown mixer 'hyena'"):
        operation_from("hyena", {**FULL.to_dict(), "mixer": "hyena"})


# Workloads


@pytest.mark.parametrize(
    ("new", "cached", "training", "phase"),
    [
        (4096, 0, False, "prefill"),
        (1, 4096, False, "decode"),
        (512, 4096, False, "prefill"),
        (5, 4096, False, "prefill"),  # a speculative check
        (1, 0, False, "prefill"),  # a prompt of one token
        (4096, 0, True, "training"),
    ],
)
def test_phases(new, cached, training, phase):
    workload = Workload(
        op=MixerOp(FULL), batch_size=1, new_tokens=new, cached_tokens=cached, training=training
    )
    assert workload.phase == phase
    assert workload.context == new + cached


def test_a_workload_asks_its_mixer():
    workload = Workload(op=MixerOp(FULL), batch_size=3, new_tokens=7, cached_tokens=11)
    mixer = get_mixer("full_attention")
    assert workload.model_flops == mixer.model_flops(FULL, 3, 7, 11)
    assert workload.executed_flops == mixer.executed_flops(FULL, 3, 7, 11)
    assert workload.min_bytes == mixer.min_bytes(FULL, 3, 7, 11, 2)


def test_training_is_forward_and_backward():
    """Backward is 2.5 times forward in attention: five products of two."""
    forward, both = (
        Workload(op=MixerOp(FULL), batch_size=1, new_tokens=100, training=t) for t in (False, True)
    )
    assert both.model_flops == 3.5 * forward.model_flops
    assert both.min_bytes == 3.5 * forward.min_bytes


def test_identity_tells_workloads_apart():
    def identity(**changes):
        facts = {"op": MixerOp(FULL), "batch_size": 1, "new_tokens": 7, **changes}
        return canonical_json(Workload(**facts).identity())

    base = identity()
    assert base == identity(cached_tokens=0, dtype="bf16")
    for change in (
        {"op": MixerOp(LINEAR)}, {"batch_size": 2}, {"new_tokens": 8}, {"cached_tokens": 1},
        {"dtype": "fp16"}, {"training": True},
    ):  # fmt: skip
        assert identity(**change) != base


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({"new_tokens": 131072}, "full_attention 8/2x64 prefill 128k b1 bf16"),
        ({"new_tokens": 1, "cached_tokens": 4096}, "full_attention 8/2x64 decode @4k b1 bf16"),
        ({"new_tokens": 512, "cached_tokens": 3000},
         "full_attention 8/2x64 prefill 512 after 3000 b1 bf16"),
    ],
)  # fmt: skip
def test_workloads_say_what_they_are(facts, text):
    assert Workload(op=MixerOp(FULL), batch_size=1, **facts).short() == text


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"new_tokens": 0}, "new_tokens must be at least 1, got 0"),
        ({"cached_tokens": -1}, "cached_tokens must not be negative, got -1"),
        ({"dtype": "half"}, "unknown dtype 'half'"),
    ],
)
def test_bad_workloads_are_refused(facts, message):
    with pytest.raises(UsageError, match=message):
        Workload(**{"op": MixerOp(FULL), "batch_size": 1, "new_tokens": 1, **facts})


# Traffic


def test_traffic_by_hand():
    traffic = Traffic(prompt_tokens=1001, output_tokens=100, prefix_hit_rate=0.5)
    assert traffic.context == 1101
    assert traffic.cached_prompt_tokens == 500
    assert traffic.mean_decode_context == 1051


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens must be at least 1, got 0"),
        ({"output_tokens": -4}, "output_tokens must be at least 1, got -4"),
        ({"concurrency": 0}, "concurrency must be at least 1"),
        ({"prefix_hit_rate": 1.0}, r"prefix_hit_rate must be in \[0, 1\), got 1.0"),
        ({"utilisation": 0.0}, r"utilisation must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_traffic_is_refused(facts, message):
    with pytest.raises(UsageError, match=message):
        Traffic(**{"prompt_tokens": 1, "output_tokens": 1, **facts})


# The roofline


DEVICE = Hardware(
    id="d", name="Device", peak_flops={"bf16": 1e12, "fp32": 5e11}, bandwidth=1e9,
    memory_bytes=10**9,
)  # fmt: skip


def test_the_roofline_is_the_slower_of_arithmetic_and_traffic():
    assert DEVICE.lower_bound_s(2e12, 1e9, "bf16") == 2.0
    assert DEVICE.lower_bound_s(1e12, 3e9, "bf16") == 3.0
    workload = Workload(op=DenseOp(512, 1024), batch_size=1, new_tokens=1)
    assert DEVICE.lower_bound_of(workload) == workload.min_bytes / 1e9


def test_a_dtype_without_a_unit_is_an_error():
    with pytest.raises(UsageError, match="Device has no fp8 peak; it lists: bf16, fp32"):
        DEVICE.peak("fp8")
    assert DEVICE.compute_dtype("int4") == "bf16"


def test_a_stack_with_an_unknown_letter_is_refused():
    with pytest.raises(UsageError, match="stack 'GFG': letter 'G' has no mixer"):
        StackOp("GFG", (("F", FULL),), 512)
    with pytest.raises(UsageError, match="a stack needs at least one layer"):
        StackOp("", (), 512)

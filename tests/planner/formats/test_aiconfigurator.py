"""Other people's tables in our terms: on a small package of known rows, and on what ships."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from planner.catalog import data_dir, hardware_for_device
from planner.cost.observations import SLOW_IMPORT_FLAG
from planner.errors import EnvironmentProblem, UnknownName, UsageError
from planner.formats import aiconfigurator
from planner.formats.aiconfigurator import checks, read_package, write_csv
from planner.formats.aiconfigurator.names import provider_name, version_order
from planner.formats.aiconfigurator.subset import newest_versions, shipped
from planner.formats.aiconfigurator.tables import KEY
from planner.store.files import read_points
from planner.store.store import Store
from planner.workload import AllReduceOp, ConvOp, DenseOp, ExpertsOp, operation_from

READ_ON = datetime(2026, 11, 23, tzinfo=UTC)

ATTENTION: dict[str, Any] = {
    "framework": "VLLM",
    "version": "0.24.0",
    "device": "NVIDIA H200",
    "kernel_source": "vllm_flash_attn_fa3",
    "batch_size": 1,
    "isl": 4096,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "attn_dtype": "bfloat16",
    "kv_cache_dtype": "bfloat16",
    "step": 0,
    "window_size": 0,
    "latency": 0.268,
}
GDN: dict[str, Any] = {
    "version": "0.24.0",
    "device": "NVIDIA H200",
    "kernel_source": "chunk_gated_delta_rule_flashinfer",
    "phase": "context",
    "batch_size": 1,
    "seq_len": 4096,
    "d_conv": 4,
    "num_k_heads": 16,
    "head_k_dim": 128,
    "num_v_heads": 32,
    "head_v_dim": 128,
    "latency": 0.4,
}
GEMM: dict[str, Any] = {
    "version": "0.24.0",
    "device": "NVIDIA H200",
    "kernel_source": "torch.nn.functional.linear",
    "gemm_dtype": "bfloat16",
    "m": 64,
    "n": 6144,
    "k": 4096,
    "latency": 0.02,
}
MOE: dict[str, Any] = {
    "version": "0.24.0",
    "device": "NVIDIA H200",
    "kernel_source": "vllm_unquantizedfusedmoe_triton_tritonexperts",
    "moe_dtype": "bfloat16",
    "num_tokens": 64,
    "hidden_size": 2048,
    "inter_size": 1024,
    "topk": 10,
    "num_experts": 512,
    "moe_tp_size": 2,
    "moe_ep_size": 1,
    "distribution": "balanced",
    "latency": 2.0,
}
REDUCE: dict[str, Any] = {
    "version": "0.24.0",
    "device": "NVIDIA H200",
    "kernel_source": "vLLM_custom_eager",
    "allreduce_dtype": "bfloat16",
    "num_gpus": 8,
    "message_size": 8192,
    "latency": 0.02,
}

Tables = dict[str, list[dict[str, Any]]]
Build = Callable[[Tables], Path]


@pytest.fixture
def package(tmp_path: Path) -> Build:
    """Builds a package from rows by "family/framework/version/table"."""

    def build(tables: Tables) -> Path:
        root = tmp_path / "aiconfigurator_core"
        (tmp_path / "aiconfigurator_core-0.12.0.dist-info").mkdir()
        for place, rows in tables.items():
            path = root / "systems" / "data" / "h200_sxm" / f"{place}_perf.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.DataFrame(rows).to_parquet(path)
        return tmp_path

    return build


VLLM_ATTENTION = "attention/vllm/0.24.0/context_attention"
VLLM_GDN = "linear_attention/vllm/0.24.0/gdn"


def only(found: aiconfigurator.Imported) -> dict[str, Any]:
    """The one row of an import, its spec parsed."""
    (row,) = found.rows.to_dict("records")
    return {**row, "spec": json.loads(row["spec"])}


# Names


@pytest.mark.parametrize(
    ("framework", "source", "version", "name"),
    [
        ("vllm", "vllm_flash_attn_fa3", "0.24.0", "vllm_fa3@0.24"),
        ("sglang", "fa3", "0.5.14", "sglang_fa3@0.5.14"),
        ("trtllm", "torch_flow", "1.3.0rc20", "trtllm@1.3.0rc20"),
        ("vllm", "flashkda_fwd", "0.1.dev19262+gb6bbf29", "vllm_flashkda@0.1.dev19262"),
        ("nccl", "NCCL", "2.29.2", "nccl@2.29.2"),
        ("vllm", "vllm_Some.New/Kernel", "0.30.1", "vllm_some_new_kernel@0.30.1"),
    ],
)
def test_providers_are_framework_kernel_and_version(framework, source, version, name):
    assert provider_name(framework, source, version) == name


def test_release_candidates_are_ordered_by_number():
    assert version_order("trtllm@1.3.0rc20") > version_order("trtllm@1.3.0rc10")
    assert version_order("vllm_fa3@0.24") > version_order("vllm_fa3@0.9.2")


# Readers


def test_a_context_row_is_a_prefill(package):
    row = only(read_package(package({VLLM_ATTENTION: [ATTENTION]})))
    assert (row["batch_size"], row["new_tokens"], row["cached_tokens"]) == (1, 4096, 0)
    assert (row["family"], row["dtype"], row["variant"]) == ("full_attention", "bf16", "")
    assert row["samples_s"] == [0.268e-3]
    assert row["spec"] == {
        "mixer": "full_attention", "num_q_heads": 32, "num_k_heads": 8, "num_v_heads": 8,
        "k_head_dim": 128, "v_head_dim": 128,
    }  # fmt: skip


def test_a_generation_row_is_a_step_after_what_is_cached(package):
    step = {**ATTENTION, "isl": 1, "step": 8191, "latency": 0.019}
    row = only(read_package(package({"attention/vllm/0.24.0/generation_attention": [step]})))
    assert (row["new_tokens"], row["cached_tokens"]) == (1, 8191)


@pytest.mark.parametrize(
    ("theirs", "family", "ours"), [(0, "full_attention", None), (1024, "sliding_window", 1024)]
)
def test_windows_count_the_query_and_zero_is_none(package, theirs, family, ours):
    row = only(read_package(package({VLLM_ATTENTION: [{**ATTENTION, "window_size": theirs}]})))
    assert row["family"] == family
    assert row["spec"].get("window") == ours


def test_tables_of_before_windows_are_full_attention(package):
    old = {k: v for k, v in ATTENTION.items() if k != "window_size"}
    found = read_package(package({VLLM_ATTENTION: [old]}))
    assert only(found)["family"] == "full_attention"


def test_another_cache_dtype_is_another_variant(package):
    row = only(read_package(package({VLLM_ATTENTION: [{**ATTENTION, "kv_cache_dtype": "fp8"}]})))
    assert (row["dtype"], row["variant"]) == ("bf16", "kv=fp8")


def test_sglangs_chunked_attention_is_not_a_window(package):
    chunked = {**ATTENTION, "kernel_source": "fa3", "window_size": 8192}
    place = "attention/sglang/0.5.14/context_attention"
    found = read_package(package({place: [chunked], VLLM_ATTENTION: [ATTENTION]}))
    assert len(found.rows) == 1
    assert found.dropped == {"of chunked attention, which is no mixer here": 1}


def test_sglangs_192_wide_heads_have_128_wide_values(package):
    place = "attention/sglang/0.5.14/context_attention"
    row = only(read_package(package({place: [{**ATTENTION, "head_dim": 192}]})))
    assert (row["spec"]["k_head_dim"], row["spec"]["v_head_dim"]) == (192, 128)


def test_a_recurrent_table_holds_the_mixer_and_its_convolution(package):
    conv = {**GDN, "kernel_source": "causal_conv1d_fn", "latency": 0.1}
    found = read_package(package({VLLM_GDN: [GDN, conv]}))
    ops = {operation_from(r.family, json.loads(r.spec)) for r in found.rows.itertuples()}
    assert ConvOp(2 * 16 * 128 + 32 * 128, 4) in ops
    assert {op.family for op in ops} == {"gated_deltanet", "short_convolution"}


def test_early_tables_convolve_keys_alone_and_keep_a_bf16_state(package):
    step = {**GDN, "phase": "generation", "seq_len": 1, "latency": 0.05,
            "kernel_source": "fused_recurrent_gated_delta_rule"}  # fmt: skip
    conv = {**GDN, "kernel_source": "causal_conv1d_fn", "latency": 0.1}
    found = read_package(package({"linear_attention/trtllm/1.3.0rc20/gdn": [step, conv]}))
    by_family = found.rows.set_index("family")
    assert json.loads(by_family.loc["short_convolution", "spec"]) == {"channels": 2048, "size": 4}
    assert by_family.loc["gated_deltanet", "variant"] == "state=bf16"
    assert by_family.loc["gated_deltanet", "cached_tokens"] == 1


def test_matrix_products_are_rows_by_k_by_n(package):
    block = {**GEMM, "gemm_dtype": "fp8_block"}
    unnamed = {**GEMM, "gemm_dtype": "nvfp4"}
    found = read_package(package({"gemm/vllm/0.24.0/gemm": [GEMM, block, unnamed]}))
    assert {(r.dtype, r.variant) for r in found.rows.itertuples()} == {
        ("bf16", ""), ("fp8", "blockwise"),
    }  # fmt: skip
    row = found.rows.iloc[0]
    assert operation_from("dense", json.loads(row["spec"])) == DenseOp(4096, 6144)
    assert (row["batch_size"], row["new_tokens"], row["cached_tokens"]) == (1, 64, 0)
    assert found.dropped == {"of a dtype without a name here": 1}


def test_experts_are_one_devices_and_narrowed_by_tensor_parallelism(package):
    spread = {**MOE, "moe_ep_size": 4}
    skewed = {**MOE, "distribution": "power_law_1.2"}
    nemotron = {**MOE, "topk": 22}
    found = read_package(package({"moe/vllm/0.24.0/moe": [MOE, spread, skewed, nemotron]}))
    ops = [operation_from("experts", json.loads(s)) for s in found.rows["spec"]]
    assert ops == [
        ExpertsOp(2048, 512, 512, 10), ExpertsOp(2048, 512, 512, 10),
        ExpertsOp(2048, 512, 512, 22, gated=False),
    ]  # fmt: skip
    assert list(found.rows["variant"]) == ["", "power_law_1.2", ""]
    assert found.dropped == {"of experts spread over devices": 1}


def test_all_reduce_counts_elements(package):
    row = only(read_package(package({"comm/vllm/0.24.0/custom_allreduce": [REDUCE]})))
    assert operation_from("all_reduce", row["spec"]) == AllReduceOp(8)
    assert (row["new_tokens"], row["mode"]) == (8192, "eager")


def test_of_nccls_collectives_only_all_reduce_is_read(package):
    nccl = {**REDUCE, "version": "2.29.2", "kernel_source": "NCCL", "nccl_dtype": "half"}
    rows = [{**nccl, "op_name": name} for name in ("all_reduce", "all_gather")]
    found = read_package(package({"comm/nccl/2.29.2/nccl": rows}))
    assert (only(found)["provider"], only(found)["dtype"]) == ("nccl@2.29.2", "fp16")
    assert found.dropped == {"of other collectives": 1}


# Checks


def test_repeats_that_agree_are_samples_of_one_point(package):
    again = {**GDN, "latency": 0.42}
    found = read_package(package({VLLM_GDN: [GDN, again]}))
    row = only(found)
    assert row["samples_s"] == pytest.approx([0.4e-3, 0.42e-3])
    assert row["latency_s"] == pytest.approx(0.41e-3)
    assert (found.read, found.repeats, found.dropped) == (2, 1, {})


def test_repeats_that_disagree_are_dropped_and_counted(package):
    others = [{**GDN, "seq_len": 1024 * i, "latency": 0.1 * i} for i in range(5, 10) for _ in "ab"]
    found = read_package(package({VLLM_GDN: [GDN, {**GDN, "latency": 0.45}, *others]}))
    assert 4096 not in set(found.rows["new_tokens"])
    assert (len(found.rows), found.repeats) == (5, 5)
    assert found.dropped == {"whose repeats differ by more than 10%": 2}


def test_a_kernel_whose_repeats_often_disagree_is_not_trusted_alone(package):
    noisy = [{**GDN, "latency": t} for t in (0.4, 0.9)]
    steady = [{**GDN, "seq_len": 2048, "latency": 0.2} for _ in range(2)]
    alone = [{**GDN, "seq_len": 8192, "latency": 0.8}]
    found = read_package(package({VLLM_GDN: noisy + steady + alone}))
    assert list(found.rows["new_tokens"]) == [2048]
    assert found.dropped == {
        "whose repeats differ by more than 10%": 2,
        "of a kernel whose repeats often differ": 1,
    }


def test_times_below_the_devices_bound_are_dropped(package):
    """32 heads, 4,096 tokens: 4 x 32 x 128 x 4096 x 4097 / 2 = 137 GFLOP; 139 us at 989.5 T."""
    bound_s = 4 * 32 * 128 * 4096 * 4097 / 2 / 989.5e12
    assert bound_s == pytest.approx(139e-6, rel=0.01)
    saw_no_keys = {**ATTENTION, "latency": 0.1}
    found = read_package(package({VLLM_ATTENTION: [saw_no_keys, {**ATTENTION, "isl": 8192,
                                                                 "latency": 0.938}]}))  # fmt: skip
    assert list(found.rows["new_tokens"]) == [8192]
    assert found.dropped == {"faster than the device can be, or larger than it": 1}


def test_a_cache_larger_than_the_device_was_never_read(package):
    """2,048 sequences of 131,072 tokens: 2 x 8 x 128 x 2 bytes a token are a terabyte."""
    huge = {**ATTENTION, "batch_size": 2048, "isl": 1, "step": 131071, "latency": 1e6}
    found = read_package(package({"attention/vllm/0.24.0/generation_attention": [huge],
                                  VLLM_ATTENTION: [ATTENTION]}))  # fmt: skip
    assert len(found.rows) == 1
    assert found.dropped == {"faster than the device can be, or larger than it": 1}


def test_a_device_the_catalog_lacks_is_not_checked(package):
    unknown = {**ATTENTION, "device": "NVIDIA X1", "latency": 1e-3}
    assert len(read_package(package({VLLM_ATTENTION: [unknown]})).rows) == 1


@pytest.mark.parametrize("latency", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_are_none_are_dropped(package, latency):
    bad = {**ATTENTION, "isl": 8192, "latency": latency}
    found = read_package(package({VLLM_ATTENTION: [ATTENTION, bad]}))
    assert found.dropped == {"whose time is not positive": 1}


def test_slow_kernels_are_kept_and_flagged(package):
    """Over calls of at least 100 us, three times the best; a launch-bound call decides nothing."""
    lengths = {4096: 0.268, 8192: 0.938, 128: 0.015}
    best = [{**ATTENTION, "isl": n, "latency": t} for n, t in lengths.items()]
    slow = [{**r, "kernel_source": "triton", "latency": 10 * r["latency"]} for r in best]
    near = [{**r, "kernel_source": "torch_flow", "latency": 2 * r["latency"]} for r in best]
    found = read_package(
        package({
            VLLM_ATTENTION: best,
            "attention/sglang/0.5.14/context_attention": slow,
            "attention/trtllm/1.3.0rc20/context_attention": near,
        })
    )  # fmt: skip
    flagged = found.rows[found.rows["slow"].notna()]
    assert set(flagged["provider"]) == {"sglang_triton@0.5.14"}
    assert len(flagged) == found.flagged == 3
    assert flagged["slow"].to_numpy() == pytest.approx(10)
    telemetry = [p.telemetry for p in aiconfigurator.points(found, read_on=READ_ON)]
    assert telemetry.count({SLOW_IMPORT_FLAG: 10.0}) == 3


def test_the_flag_is_the_one_the_cost_model_reads():
    assert aiconfigurator.SLOW_FLAG == SLOW_IMPORT_FLAG


def test_slow_is_judged_on_one_device_only():
    rows = pd.DataFrame(
        {
            **dict.fromkeys(KEY, "x"), "device": ["A", "B"], "latency_s": [1e-3, 1e-2],
            "new_tokens": 1, "cached_tokens": 0,
        }
    )  # fmt: skip
    assert checks.mark_slow(rows)["slow"].isna().all()


# Packages


def test_every_row_read_is_accounted_for(package):
    rows = [GDN, GDN, {**GDN, "latency": float("nan")}, {**GDN, "seq_len": 2048, "latency": 0.2}]
    path = package({VLLM_GDN: rows, "gemm/vllm/0.24.0/gemm": [GEMM]})
    found = read_package(path, keep=lambda r: r[r["family"] != "dense"])
    lost = found.repeats + found.left_out + sum(found.dropped.values())
    assert found.read == 5 == len(found.rows) + lost
    assert found.summary().startswith("5 rows of 2 tables: 2 points kept (0 of slow kernels)")


def test_rows_are_imported_warm_and_apart(package):
    found = read_package(package({VLLM_ATTENTION: [ATTENTION]}))
    (point,) = aiconfigurator.points(found, read_on=READ_ON)
    environment = found.environments[point.environment_id]
    assert (environment.device, environment.device_kind) == ("NVIDIA H200", "imported")
    assert environment.versions == {"aiconfigurator-core": "0.12.0", "vllm": "0.24.0"}
    assert (point.cache_state, point.mode, point.provider) == ("warm", "graph", "vllm_fa3@0.24")
    assert (point.num_samples or len(point.samples_s), point.measured_at) == (1, READ_ON)


def test_a_written_file_loads_into_a_store(package, tmp_path):
    again = {**GDN, "latency": 0.42}
    found = read_package(package({VLLM_ATTENTION: [ATTENTION], VLLM_GDN: [GDN, again]}))
    path = tmp_path / "imported.csv"
    assert write_csv(found, path, read_on=READ_ON) == 2
    store = Store.open("sqlite:///:memory:", shipped=False)
    assert store.import_csv(path) == (2, 0)
    frame = store.points(device_kind="imported").set_index("family")
    assert frame.loc["full_attention", "median_s"] == pytest.approx(0.268e-3)
    assert frame.loc["gated_deltanet", "samples_s"] == [0.0004, 0.00042]


def test_importing_again_replaces_the_rows(package):
    found = read_package(package({VLLM_ATTENTION: [ATTENTION], VLLM_GDN: [GDN]}))
    store = Store.open("sqlite:///:memory:", shipped=False)
    for _ in "ab":
        assert aiconfigurator.into_store(found, store, read_on=READ_ON) == 2
    assert len(store.points()) == 2
    assert list(store.datasets()) == ["aiconfigurator-core 0.12.0 h200_sxm"]


def test_the_package_itself_or_what_holds_it_will_do(package):
    path = package({VLLM_ATTENTION: [ATTENTION]})
    assert aiconfigurator.find_root(path) == path / "aiconfigurator_core"
    assert aiconfigurator.find_root(path / "aiconfigurator_core") == path / "aiconfigurator_core"


def test_what_is_no_package_says_what_to_run(tmp_path):
    with pytest.raises(EnvironmentProblem, match="no systems/data .* run `pip download"):
        read_package(tmp_path)


def test_an_unknown_system_lists_what_there_is(package):
    with pytest.raises(UnknownName, match="unknown system 'h300_sxm'.* known: h200_sxm"):
        read_package(package({VLLM_ATTENTION: [ATTENTION]}), systems=["h300_sxm"])


def test_a_table_of_another_shape_names_the_column(package):
    renamed = {k: v for k, v in ATTENTION.items() if k != "isl"}
    with pytest.raises(UsageError, match="context_attention_perf.parquet has no column 'isl'"):
        read_package(package({VLLM_ATTENTION: [renamed]}))


def test_a_broken_table_is_named(package):
    path = package({VLLM_ATTENTION: [ATTENTION]})
    (table,) = path.rglob("*.parquet")
    table.write_text("not Parquet")
    with pytest.raises(UsageError, match="cannot read context_attention_perf.parquet"):
        read_package(path)


def test_newest_versions_are_kept_for_each_framework():
    providers = ["vllm_fa3@0.24", "vllm_fa2@0.9.1", "trtllm@1.3.0rc20", "trtllm@1.3.0rc9"]
    rows = pd.DataFrame({"device": "d", "family": "f", "provider": providers})
    assert list(newest_versions(rows)["provider"]) == ["vllm_fa3@0.24", "trtllm@1.3.0rc20"]


def test_the_shipped_subset_keeps_catalog_shapes_and_leaves_others(package):
    other = {**ATTENTION, "num_heads": 5, "num_key_value_heads": 5}
    short = {**ATTENTION, "isl": 64, "latency": 0.02}
    fp8 = {**ATTENTION, "kv_cache_dtype": "fp8"}
    found = read_package(package({VLLM_ATTENTION: [ATTENTION, other, short, fp8]}), keep=shipped)
    assert only(found)["new_tokens"] == 4096
    assert found.left_out == 3


# What ships

SHIPPED = sorted((data_dir() / "measurements" / "imported").glob("aiconfigurator_*.csv"))
NUMBERS = {"a100_sxm": 2399, "b200_sxm": 5007, "h100_sxm": 5133, "h200_sxm": 9823}


def shipped_rows(system: str) -> pd.DataFrame:
    path = data_dir() / "measurements" / "imported" / f"aiconfigurator_{system}.csv"
    rows = pd.read_csv(path, keep_default_na=False)
    return rows.assign(
        spec=rows["spec"].map(json.loads),
        ms=[1e3 * np.median(json.loads(s)) for s in rows["samples_s"]],
    )


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_files_are_points_of_devices_the_catalog_has(path):
    environments, points = read_points(path)
    assert len(points) == NUMBERS[path.stem.removeprefix("aiconfigurator_")]
    assert path.stat().st_size < 3e6
    for environment in environments.values():
        assert environment.device_kind == "imported"
        assert hardware_for_device(environment.device) is not None
    assert {p.cache_state for p in points} == {"warm"}
    assert all("@" in p.provider for p in points)
    assert max(Counter(p.key for p in points).values()) == 1


def test_published_h200_times_are_there():
    """Full attention 32/8x128, batch 1, FlashAttention 3 in vLLM 0.24: 514, 586, 652 TFLOP/s.
    Gated DeltaNet step 16/32x128: 4.7 us for one sequence, 137 us for 128."""
    rows = shipped_rows("h200_sxm")
    rows["heads"] = [f"{s.get('num_q_heads')}/{s.get('num_v_heads')}" for s in rows["spec"]]
    full = rows.query(
        "provider == 'vllm_fa3@0.24' and family == 'full_attention' and heads == '32/8' "
        "and batch_size == 1 and cached_tokens == 0"
    ).set_index("new_tokens")["ms"]
    for tokens, tflops in ((4096, 514), (8192, 586), (16384, 652)):
        flops = 4 * 32 * 128 * tokens * (tokens + 1) / 2
        assert flops / full[tokens] / 1e9 == pytest.approx(tflops, rel=0.01)
    step = rows.query(
        "provider == 'vllm_fused_recurrent@0.24' and family == 'gated_deltanet' "
        "and heads == '16/32' and cached_tokens == 1"
    ).set_index("batch_size")["ms"]
    assert step[1] == pytest.approx(4.7e-3, rel=0.01)
    assert step[128] == pytest.approx(0.137, rel=0.01)


def test_the_windowed_kernel_that_skips_no_tiles_is_flagged():
    rows = shipped_rows("h200_sxm")
    slow = rows[rows["telemetry"].ne("{}") & rows["family"].eq("sliding_window")]
    assert set(slow["provider"]) == {"sglang_triton@0.5.14"}

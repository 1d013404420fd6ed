"""Reads the kernel times that NVIDIA's aiconfigurator-core ships (Apache-2.0), as imported points.

The package holds Parquet tables, one per device, operation, framework and version: attention with
windows, latent attention, Gated DeltaNet, KDA, short convolutions, matrix products, experts and
all-reduce. Each time is the mean over CUDA graph replays of the same buffers: warm, no spread.

    >>> found = read_package(Path("site-packages/aiconfigurator_core"))      # doctest: +SKIP
    >>> found.rows.groupby(["device", "family"]).size()                      # doctest: +SKIP

Theirs becomes ours so:

    provider   framework, kernel and version: `vllm_fa3@0.24`. Other people's rows are providers of
               their own, never blended with measured ones.
    window     0 is none; W counts the query itself, as here (their FlashAttention left is W - 1).
    phase      context: isl new tokens, none cached. generation: one new after `step` cached. A
               recurrent step does not see how many are cached: 1 stands for some.
    variant    what their row differs in from ours: "kv=fp8", "state=bf16", "blockwise" …
    repeats    the same call measured for several models: samples of one point, if they agree.

Rows that cannot be used are dropped and counted by reason. A kernel that is consistently several
times slower than the best of its device is kept and flagged: it is shown, not recommended.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from planner.architecture import Architecture
from planner.catalog import hardware_for_device, load_model, model_ids
from planner.errors import EnvironmentProblem, UsageError
from planner.hardware import Hardware
from planner.mixers import MIXERS, MixerSpec
from planner.store.files import COLUMNS, FORMAT_VERSION, environments_path
from planner.store.records import Environment, Outcome, Point
from planner.store.store import point_columns
from planner.workload import (
    AllReduceOp,
    ConvOp,
    DenseOp,
    ExpertsOp,
    MixerOp,
    Op,
    Workload,
    canonical_json,
    dtype_bytes,
    layer_ops,
    operation_from,
)

Frame = pd.DataFrame

SLOW_FLAG = "slow"
"""Telemetry key of a flagged row; its value is how many times slower than the best it is."""

REPEATS_AGREE = 1.10
"""Largest over smallest time of the same call for its repeats to count as agreeing."""

SLOW = 3.0
"""Median ratio to the device's best kernel from which a kernel is flagged …"""

SLOW_FROM_S = 100e-6
"""… over calls that take the best kernel at least this long (below it, launches decide)."""

SHORTEST = 128
"""Calls of the shipped subset see at least this many tokens: below, a launch's length is all."""

FRAMEWORKS = ("vllm", "sglang", "trtllm", "nccl")

TOLERANCE = 0.98
"""A time may undercut the device's bound by this much: clocks boost above the datasheet's."""

DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8",
}

KERNELS = {
    "vllm_flash_attn": "flash_attn",
    "vllm_flash_attn_fa2": "fa2",
    "vllm_flash_attn_fa3": "fa3",
    "vllm_flash_attn_fa4": "fa4",
    "flash_attention": "flash_attn",
    "vllm_flashinfer_fiprefill": "flashinfer",
    "vllm_flashinfer_fidecode": "flashinfer",
    "vllm_flashinfer_trtllmprefill": "flashinfer_trtllm",
    "vllm_flashinfer_trtllmdecode": "flashinfer_trtllm",
    "vllm_triton_attn": "triton",
    "torch_flow": "",
    "torch_flow_flashinfer": "flashinfer",
    "default": "",
    "trtllm": "",
    "chunk_gated_delta_rule": "chunk",
    "chunk_gated_delta_rule_flashinfer": "flashinfer",
    "fused_recurrent_gated_delta_rule": "fused_recurrent",
    "fused_recurrent_gated_delta_rule_packed_decode": "fused_recurrent",
    "chunk_kda": "chunk",
    "flashkda_fwd": "flashkda",
    "fused_recurrent_kda": "fused_recurrent",
    "fused_recurrent_kda_packed_decode": "fused_recurrent",
    "fused_sigmoid_gating_delta_rule_update": "fused_gating",
    "causal_conv1d_fn": "causal_conv1d",
    "causal_conv1d_fn_qkv3": "causal_conv1d",
    "causal_conv1d_update": "causal_conv1d",
    "torch.nn.functional.linear": "linear",
    "sglang_torch_linear": "linear",
    "vllm_custom_graph": "custom",
    "vllm_custom_eager": "custom",
    "sglang_customallreduce_graph": "custom",
    "sglang_customallreduce_eager": "custom",
}
"""Their `kernel_source`, in small letters, to the kernel's part of a provider's name."""

CONV_FUSED = ("fused_kda_decode", "kda_fused_decode", "fused_kda_decode_mtp_dspark")
"""KDA steps that run the short convolution in the same kernel."""

MLA_DIMS = {"k_head_dim": 128, "v_head_dim": 128, "kv_lora_rank": 512, "rope_head_dim": 64}
"""DeepSeek-V3's and Kimi K2's latent attention, the only one their MLA tables hold."""

SGLANG_CHUNKED_WINDOW = 8192
"""SGLang's rows of this window run Llama 4's chunked attention, which restarts every 8,192 tokens
(attention_chunk_size in the collector's Llama 4 cases): not a sliding window."""

NON_GATED_TOP_K = 22
NON_GATED_EXPERTS = (128, 6, 1856)
"""Nemotron 3's experts have two matrices (relu2); vLLM's and SGLang's rows do not say so. Super and
Ultra are the only models that route to 22; Nano is (experts, top k, intermediate size)."""

EARLY_GDN = {("trtllm", "1.3.0rc20"), ("sglang", "0.5.10")}
"""Tables whose collector convolves the keys alone and steps from a state in bf16, not fp32."""

KEY = ["provider", "family", "spec", "batch_size", "new_tokens", "cached_tokens", "dtype",
       "variant", "mode"]  # fmt: skip
CALL = [c for c in KEY if c != "provider"]


@dataclass(frozen=True)
class Table:
    """One Parquet file of a device."""

    system: str
    framework: str
    version: str
    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What a package held: usable rows, their environments, and what became of the others.

    `rows` has one row per point: KEY, `device`, `environment_id`, `samples_s` (a list, seconds)
    and `slow` (NaN unless flagged). `dropped` counts rows by reason, `repeats` those that became
    further samples of a point.
    """

    rows: Frame
    environments: dict[str, Environment]
    read: int
    repeats: int
    dropped: dict[str, int]
    tables: tuple[Table, ...]

    @property
    def flagged(self) -> int:
        return int(self.rows["slow"].notna().sum())

    def summary(self) -> str:
        """One line: rows read, kept, merged, dropped by reason, flagged."""
        lost = ", ".join(f"{n:,} {why}" for why, n in sorted(self.dropped.items()))
        return (
            f"{self.read:,} rows of {len(self.tables)} tables: {len(self.rows):,} points kept "
            f"({self.flagged:,} of slow kernels), {self.repeats:,} repeats merged; dropped: "
            f"{lost or 'none'}"
        )


def find_root(path: Path) -> Path:
    """The package's folder, given it, or the site-packages or unpacked wheel that holds it."""
    for candidate in (path, path / "aiconfigurator_core"):
        if (candidate / "systems" / "data").is_dir():
            return candidate
    raise EnvironmentProblem(
        f"{path} holds no aiconfigurator-core: no systems/data folder in it; run `pip download "
        f"aiconfigurator-core==0.12.0 --no-deps`, unzip the wheel, and give that folder"
    )


def package_version(root: Path) -> str:
    """From the dist-info beside the package; "unknown" without one."""
    found = sorted(root.parent.glob("aiconfigurator_core-*.dist-info"))
    return found[-1].name.split("-")[1].removesuffix(".dist") if found else "unknown"


def tables(root: Path, systems: Iterable[str] | None = None) -> Iterator[Table]:
    """The tables that have a reader, by device. Raises UsageError for a device not there."""
    data = root / "systems" / "data"
    known = sorted(p.name for p in data.iterdir() if p.is_dir())
    for system in known if systems is None else systems:
        if system not in known:
            raise UsageError(
                f"no such system {system!r} in the package; it has {', '.join(known)}"
            )
        for path in sorted((data / system).glob("*/*/*/*_perf.parquet")):
            name = path.name.removesuffix("_perf.parquet")
            framework, version = path.parts[-3], path.parts[-2]
            if name in READERS:
                yield Table(system, framework, version, name, path)


def read_package(
    path: Path,
    *,
    systems: Iterable[str] | None = None,
    keep: Callable[[Frame], Frame] | None = None,
) -> Imported:
    """Reads every table that has a reader, one device after the other.

    `keep` narrows a device's settled rows (after the checks, which need all of them).

    Raises: EnvironmentProblem if there is no package at `path`, UsageError for a system it lacks
    or a table that is not as expected.
    """
    root = find_root(path)
    release = package_version(root)
    per_system: dict[str, list[Table]] = {}
    for table in tables(root, systems):
        per_system.setdefault(table.system, []).append(table)
    dropped: Counter[str] = Counter()
    environments: dict[str, Environment] = {}
    read = repeats = 0
    kept = []
    for found in per_system.values():
        device_rows = []
        for table in found:
            rows = read_table(table, dropped)
            read += rows.attrs["read"]
            if rows.empty:
                continue
            settled = settle_repeats(rows, dropped)
            repeats += int((settled["samples_s"].map(len) - 1).sum())
            _environments(settled, table, release, environments)
            device_rows.append(settled)
        rows = drop_impossible(pd.concat(device_rows, ignore_index=True), dropped)
        rows = mark_slow(rows)
        kept.append(keep(rows) if keep else rows)
    return Imported(
        rows=pd.concat(kept, ignore_index=True),
        environments=environments,
        read=read,
        repeats=repeats,
        dropped=dict(dropped),
        tables=tuple(t for found in per_system.values() for t in found),
    )


def read_table(table: Table, dropped: Counter[str]) -> Frame:
    """One table's rows in our terms: KEY, device, exact_version, latency_s."""
    import pyarrow
    from pyarrow import parquet

    try:
        raw: Frame = parquet.read_table(table.path).to_pandas()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UsageError(f"cannot read {table.path.name}: {error}") from None
    count = len(raw)
    if "device" not in raw:
        dropped["in tables that do not name the device"] += count
        raw = raw.iloc[:0].assign(device="", version="")
    try:
        rows = READERS[table.name](raw, table, dropped)
        rows = rows.assign(
            device=raw["device"],
            exact_version=raw.get("version", table.version),
            latency_s=raw["latency"] / 1e3,
        )
    except KeyError as error:
        raise UsageError(f"{table.path.name} has no column {error}; is it version 0.12?") from None
    rows = _only(rows, rows["dtype"].notna(), dropped, "of a dtype without a name here")
    positive = np.isfinite(rows["latency_s"]) & (rows["latency_s"] > 0)
    rows = _only(rows, positive, dropped, "whose time is not positive")
    rows.attrs["read"] = count
    return rows


def _only(rows: Frame, mask: Any, dropped: Counter[str], reason: str) -> Frame:
    lost = int((~mask).sum())
    if lost:
        dropped[reason] += lost
    return rows[mask]


# Readers: a raw table to KEY columns, index kept. What a reader drops, it counts.


def provider_name(framework: str, kernel_source: str, version: str) -> str:
    """`vllm_fa3@0.24`: framework, kernel, version without build and trailing zero."""
    source = kernel_source.casefold()
    kernel = KERNELS.get(source)
    if kernel is None:
        kernel = re.sub(r"\W+", "_", source.removeprefix(f"{framework}_")).strip("_")
    short = re.sub(r"^(\d+\.\d+)\.0$", r"\1", version.split("+")[0])
    return (
        f"{framework}_{kernel}@{short}"
        if kernel and kernel != framework
        else (f"{framework}@{short}")
    )


def _providers(raw: Frame, table: Table) -> pd.Series[str]:
    names = {s: provider_name(table.framework, s, table.version)
             for s in raw["kernel_source"].unique()}  # fmt: skip
    return raw["kernel_source"].map(names)


def _with_ops(rows: Frame, by: Frame, make: Callable[..., Op]) -> Frame:
    """Adds family and spec: `make` is called once for each distinct row of `by`."""
    names: dict[tuple[Any, ...], tuple[str, str]] = {}
    for shape in by.drop_duplicates().itertuples(index=False):
        op = make(*shape)
        names[tuple(shape)] = (op.family, canonical_json(op.to_dict()))
    shapes = pd.MultiIndex.from_frame(by)
    found = [names[tuple(s)] for s in shapes]
    return rows.assign(family=[f for f, _ in found], spec=[s for _, s in found])


def _attention(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
    """Columns isl, step, heads, head_dim, window_size (0: none), attn_dtype, kv_cache_dtype."""
    window = raw["window_size"] if "window_size" in raw else pd.Series(0, raw.index)
    chunked = (table.framework == "sglang") & (window == SGLANG_CHUNKED_WINDOW)
    raw = _only(raw, ~chunked, dropped, "of chunked attention, which is no mixer here")
    heads = raw[["num_heads", "num_key_value_heads", "head_dim"]]
    # SGLang's 192-wide heads are MiMo-V2's, whose values are 128 wide; the collector pins that.
    values = raw["head_dim"].where((raw["head_dim"] != 192) | (table.framework != "sglang"), 128)

    def make(q: int, kv: int, k_dim: int, v_dim: int, w: int) -> MixerOp:
        return MixerOp(
            MixerSpec(
                mixer="sliding_window" if w else "full_attention",
                num_q_heads=q,
                num_k_heads=kv,
                num_v_heads=kv,
                k_head_dim=k_dim,
                v_head_dim=v_dim,
                window=w or None,
            )
        )

    rows = pd.DataFrame(
        {
            "provider": _providers(raw, table),
            "batch_size": raw["batch_size"],
            "new_tokens": raw["isl"],
            "cached_tokens": raw["step"],
            "dtype": raw["attn_dtype"].map(DTYPES),
            "variant": _cache_variant(raw["attn_dtype"], raw["kv_cache_dtype"]),
            "mode": "graph",
        }
    )
    return _with_ops(rows, heads.assign(v=values, window=window.loc[raw.index]), make)


def _cache_variant(compute: pd.Series[Any], cache: pd.Series[Any]) -> pd.Series[str]:
    return ("kv=" + cache.map(DTYPES).fillna("other")).where(compute != cache, "")


def _mla(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
    """num_heads is per device; expanded in context, absorbed in generation, as here."""

    def make(heads: int) -> MixerOp:
        return MixerOp(
            MixerSpec(
                mixer="mla", num_q_heads=heads, num_k_heads=heads, num_v_heads=heads, **MLA_DIMS
            )
        )

    rows = pd.DataFrame(
        {
            "provider": _providers(raw, table),
            "batch_size": raw["batch_size"],
            "new_tokens": raw["isl"],
            "cached_tokens": raw["step"],
            "dtype": raw["mla_dtype"].map(DTYPES),
            "variant": _cache_variant(raw["mla_dtype"], raw["kv_cache_dtype"]),
            "mode": "graph",
        }
    )
    return _with_ops(rows, raw[["num_heads"]], make)


def _recurrent(mixer: str) -> Callable[[Frame, Table, Counter[str]], Frame]:
    """Gated DeltaNet or KDA, and the convolution before it: phase, seq_len, heads, kernel."""

    def read(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
        conv = raw["kernel_source"].str.startswith("causal_conv1d")
        early = (table.framework, table.version) in EARLY_GDN
        shape = ["num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim", "d_conv"]

        def make(k: int, k_dim: int, v: int, v_dim: int, size: int, is_conv: bool) -> Op:
            if is_conv:
                return ConvOp(k * k_dim if early else 2 * k * k_dim + v * v_dim, size)
            return MixerOp(
                MixerSpec(
                    mixer=mixer,
                    num_q_heads=k,
                    num_k_heads=k,
                    num_v_heads=v,
                    k_head_dim=k_dim,
                    v_head_dim=v_dim,
                )
            )

        variant = pd.Series("", raw.index)
        variant[raw["kernel_source"].isin(CONV_FUSED)] = "with convolution"
        if early:
            variant[(raw["phase"] == "generation") & ~conv] = "state=bf16"
        return _with_ops(_steps(raw, table, variant), raw[shape].assign(conv=conv), make)

    return read


def _steps(raw: Frame, table: Table, variant: pd.Series[str] | str = "") -> Frame:
    """Rows of tables that tell phases by name; a state holds some past unless in context."""
    return pd.DataFrame(
        {
            "provider": _providers(raw, table),
            "batch_size": raw["batch_size"],
            "new_tokens": raw["seq_len"],
            "cached_tokens": (raw["phase"] != "context").astype(int),
            "dtype": "bf16",
            "variant": variant,
            "mode": "graph",
        },
        index=raw.index,
    )


def _mamba2(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
    """Holds the convolution over x, B and C alone, not the scan."""

    def make(heads: int, head_dim: int, groups: int, state: int, size: int) -> ConvOp:
        return ConvOp(heads * head_dim + 2 * groups * state, size)

    shape = raw[["nheads", "head_dim", "n_groups", "d_state", "d_conv"]]
    return _with_ops(_steps(raw, table), shape, make)


def _gemm(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
    """[m, k] by [k, n]: m is rows."""
    rows = pd.DataFrame(
        {
            "provider": _providers(raw, table),
            "batch_size": 1,
            "new_tokens": raw["m"],
            "cached_tokens": 0,
            "dtype": raw["gemm_dtype"].map(DTYPES),
            "variant": _blockwise(raw["gemm_dtype"]),
            "mode": "graph",
        }
    )
    return _with_ops(rows, raw[["k", "n"]], DenseOp)


def _blockwise(dtype: pd.Series[Any]) -> pd.Series[str]:
    """fp8 with one scale a block of 128 x 128 weights, DeepSeek's way, against one a tensor."""
    return pd.Series("blockwise", dtype.index).where(dtype == "fp8_block", "")


def _experts(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
    """One device's whole layer; tensor parallelism narrows each expert."""
    raw = _only(raw, raw["moe_ep_size"] == 1, dropped, "of experts spread over devices")
    experts, top_k, inter = NON_GATED_EXPERTS
    plain = (
        raw["kernel_source"].str.contains("nongated")
        | (raw["topk"] == NON_GATED_TOP_K)
        | (raw[["num_experts", "topk", "inter_size"]] == (experts, top_k, inter)).all(axis=1)
    )
    narrowed = raw["inter_size"] // raw["moe_tp_size"]
    shape = raw[["hidden_size"]].assign(
        inter=narrowed, experts=raw["num_experts"], topk=raw["topk"], gated=~plain
    )
    routing = raw["distribution"].where(raw["distribution"] != "balanced", "")
    blockwise = _blockwise(raw["moe_dtype"])
    both = (blockwise != "") & (routing != "")
    rows = pd.DataFrame(
        {
            "provider": _providers(raw, table),
            "batch_size": 1,
            "new_tokens": raw["num_tokens"],
            "cached_tokens": 0,
            "dtype": raw["moe_dtype"].map(DTYPES),
            "variant": blockwise + pd.Series(" ", raw.index).where(both, "") + routing,
            "mode": "graph",
        }
    )
    return _with_ops(rows, shape, ExpertsOp)


def _all_reduce(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
    """message_size is in elements."""
    eager = raw["kernel_source"].str.endswith("eager")
    return _reduced(raw, table, raw["allreduce_dtype"], eager)


def _nccl(raw: Frame, table: Table, dropped: Counter[str]) -> Frame:
    raw = _only(raw, raw["op_name"] == "all_reduce", dropped, "of other collectives")
    return _reduced(raw, table, raw["nccl_dtype"], pd.Series(True, raw.index))


def _reduced(raw: Frame, table: Table, dtype: pd.Series[Any], eager: pd.Series[bool]) -> Frame:
    rows = pd.DataFrame(
        {
            "provider": _providers(raw, table),
            "batch_size": 1,
            "new_tokens": raw["message_size"],
            "cached_tokens": 0,
            "dtype": dtype.map(DTYPES),
            "variant": "",
            "mode": eager.map({True: "eager", False: "graph"}),
        }
    )
    return _with_ops(rows, raw[["num_gpus"]], AllReduceOp)


READERS: dict[str, Callable[[Frame, Table, Counter[str]], Frame]] = {
    "context_attention": _attention,
    "generation_attention": _attention,
    "context_mla": _mla,
    "generation_mla": _mla,
    "gdn": _recurrent("gated_deltanet"),
    "kda": _recurrent("kda"),
    "mamba2": _mamba2,
    "gemm": _gemm,
    "moe": _experts,
    "custom_allreduce": _all_reduce,
    "nccl": _nccl,
}


# Checks


def settle_repeats(rows: Frame, dropped: Counter[str]) -> Frame:
    """One row per call: repeats that agree become samples, those that do not are dropped.

    A table may hold a call once for each model that makes it.
    """
    again = rows.duplicated(KEY, keep=False)
    alone = rows[~again].assign(samples_s=[[t] for t in rows.loc[~again, "latency_s"]])
    if not again.any():
        return alone
    columns = [c for c in rows if c not in (*KEY, "latency_s")]
    merged = (
        rows[again]
        .groupby(KEY, sort=False)
        .agg(**{c: (c, "first") for c in columns}, samples_s=("latency_s", list))
        .reset_index()
    )
    agree = merged["samples_s"].map(lambda s: max(s) <= REPEATS_AGREE * min(s))
    lost = int(merged.loc[~agree, "samples_s"].map(len).sum())
    if lost:
        dropped[f"whose repeats differ by more than {REPEATS_AGREE - 1:.0%}"] += lost
    merged = merged[agree]
    merged["latency_s"] = merged["samples_s"].map(np.median)
    return pd.concat([alone, merged], ignore_index=True)


def drop_impossible(rows: Frame, dropped: Counter[str]) -> Frame:
    """Drops times below the device's bound: such a call did not do the work it names.

    It saw no window, or no cache: some tables hold steps over caches larger than the device's
    memory. Arithmetic at the dense peak; traffic beyond what the L2 cache may hold from the last
    replay. Devices the catalog does not have are not checked.
    """
    possible = pd.Series(True, rows.index)
    for (device, family, spec, dtype, variant), part in rows.groupby(
        ["device", "family", "spec", "dtype", "variant"]
    ):
        hardware = hardware_for_device(str(device))
        if hardware is not None:
            op = operation_from(str(family), json.loads(str(spec)))
            bound = _bound_s(op, part, str(dtype), str(variant), hardware)
            possible[part.index] = part["latency_s"] >= TOLERANCE * bound
    return _only(rows, possible, dropped, "faster than the device can be or larger than it")


def _bound_s(op: Op, part: Frame, dtype: str, variant: str, hardware: Hardware) -> Any:
    call = [part[c].to_numpy() for c in ("batch_size", "new_tokens", "cached_tokens")]
    # A variant may store half as much and multiply in fp8, or route tokens to fewer experts.
    share = 1.0 if not variant else 0.0 if isinstance(op, ExpertsOp) else 0.5
    unit = "fp8" if "kv=fp8" in variant else dtype
    arithmetic = op.model_flops(*call) / hardware.peak_flops.get(unit, np.inf)
    moved = share * op.min_bytes(*call, dtype_bytes(dtype))
    traffic = (moved - hardware.l2_bytes) / hardware.bandwidth
    return np.where(moved > hardware.memory_bytes, np.inf, np.maximum(arithmetic, traffic))


def mark_slow(rows: Frame) -> Frame:
    """Adds `slow`: how many times slower than the device's best a flagged kernel is, else NaN.

    A kernel is a provider on one shape, phase and dtype. Flagged if its median ratio to the best
    provider, over calls the best needs SLOW_FROM_S for, is at least SLOW.
    """
    best = rows.groupby(["device", *CALL])["latency_s"].transform("min")
    kernel = ["device", "provider", "family", "spec", "dtype", "variant", "mode", "decode"]
    decode = (rows["new_tokens"] == 1) & (rows["cached_tokens"] > 0)
    ratio = (rows["latency_s"] / best).where(best >= SLOW_FROM_S)
    typical = rows.assign(decode=decode, ratio=ratio).groupby(kernel)["ratio"].transform("median")
    return rows.assign(slow=typical.where(typical >= SLOW))


def _environments(rows: Frame, table: Table, release: str, known: dict[str, Environment]) -> None:
    """Sets `environment_id`, one for each device, framework and exact version."""
    ids = {}
    for device, version in rows[["device", "exact_version"]].drop_duplicates().itertuples(False):
        environment = Environment(
            device=device,
            device_kind="imported",
            versions={"aiconfigurator-core": release, table.framework: version},
            facts={
                "source": "NVIDIA aiconfigurator-core, https://github.com/ai-dynamo/aiconfigurator",
                "license": "Apache-2.0",
                "statistic": "mean over CUDA graph replays, warm cache; no spread kept",
            },
        )
        known[environment.id] = environment
        ids[device, version] = environment.id
    rows["environment_id"] = [
        ids[pair] for pair in zip(rows["device"], rows["exact_version"], strict=True)
    ]


# What to keep, and where it goes


def of_the_catalog(rows: Frame) -> Frame:
    """What planning a catalog model asks for: bf16 calls of its operations, newest tables only.

    Mixers are those of every catalog model, its own or in place of its own. Where the tables have
    other shapes, near ones are kept: all of KDA; the largest of each window and head width; of
    matrix products and experts the nearest sizes, at powers of two of rows. Calls that see fewer
    than SHORTEST tokens are left out.
    """
    rows = newest_versions(rows[rows["variant"].eq("") & rows["dtype"].isin(["bf16", "fp16"])])
    mixers, others = catalog_operations()
    wanted = {(op.family, canonical_json(op.to_dict())) for op in mixers}
    wanted |= _largest_windows(rows) | _nearest(rows, others)
    named = pd.Series(list(zip(rows["family"], rows["spec"], strict=True)), rows.index)
    whole = rows["family"].isin(["kda", "all_reduce"])
    return rows[(named.isin(wanted) | whole) & ~_too_short(rows) & ~_between_powers(rows)]


def _too_short(rows: Frame) -> pd.Series[bool]:
    mixer = rows["family"].isin(MIXERS) | rows["family"].eq("short_convolution")
    stepping = (rows["new_tokens"] == 1) & (rows["cached_tokens"] == 1)
    recurrent = ~rows["family"].isin([m.name for m in MIXERS.values() if m.kind != "recurrent"])
    return (
        mixer & (rows["new_tokens"] + rows["cached_tokens"] < SHORTEST) & ~(stepping & recurrent)
    )


def _between_powers(rows: Frame) -> pd.Series[bool]:
    return rows["family"].isin(["dense", "experts"]) & (np.log2(rows["new_tokens"]) % 1 > 0)


def first_framework(rows: Frame) -> Frame:
    """For each device and family the rows of one framework, the first of FRAMEWORKS it has."""
    rank = _framework(rows).map({name: i for i, name in enumerate(FRAMEWORKS)})
    return rows[rank == rank.groupby([rows["device"], rows["family"]]).transform("min")]


def _framework(rows: Frame) -> pd.Series[str]:
    return rows["provider"].str.extract(r"^([a-z]+)")[0]


def newest_versions(rows: Frame) -> Frame:
    """For each device, family and framework the rows of its newest version."""
    version = rows["provider"].str.partition("@")[2]
    order = {v: i for i, v in enumerate(sorted(version.unique(), key=_version_order))}
    rank = version.map(order)
    newest = rank.groupby([rows["device"], rows["family"], _framework(rows)]).transform("max")
    return rows[rank == newest]


def _version_order(version: str) -> list[int]:
    """Numbers of a version in order; a release candidate's number comes after its release's."""
    return [int(n) for n in re.findall(r"\d+", version)]


def catalog_operations() -> tuple[set[Op], set[Op]]:
    """The catalog models' mixers with any mixer in place, convolutions; and their other calls."""
    mixers: set[Op] = set()
    others: set[Op] = set()
    for id in model_ids():
        arch = load_model(id)
        for mixer in MIXERS:
            calls = layer_ops(arch.spec_for(mixer), arch.hidden_size)
            mixers.update(op for op in calls if not isinstance(op, DenseOp))
        for spec in arch.kinds.values():
            calls = layer_ops(spec, arch.hidden_size)
            mixers.update(op for op in calls if not isinstance(op, DenseOp))
            others.update(op for op in calls if isinstance(op, DenseOp))
        others.update(_channel_operations(arch))
    return mixers, others


def _channel_operations(arch: Architecture) -> Iterator[Op]:
    hidden = arch.hidden_size
    yield DenseOp(hidden, arch.vocab_size)
    gemms = arch.mlp.projections(hidden) if arch.mlp else ()
    if arch.moe:
        moe = arch.moe
        gemms = (*gemms, *moe.shared(hidden), moe.router(hidden))
        yield ExpertsOp(
            hidden, moe.expert_intermediate_size, moe.num_experts, moe.top_k, moe.gated
        )
    for gemm in gemms:
        yield DenseOp.of(gemm)


def _largest_windows(rows: Frame) -> set[tuple[str, str]]:
    """Of each window and head width, the grouped shape with the most query heads."""
    found: dict[tuple[int, int], tuple[int, str]] = {}
    for text in rows.loc[rows["family"] == "sliding_window", "spec"].unique():
        spec = json.loads(text)
        q, kv = spec["num_q_heads"], spec["num_k_heads"]
        at = spec["window"], spec["k_head_dim"]
        if kv < q and (q, text) > found.get(at, (0, "")):
            found[at] = (q, text)
    return {("sliding_window", text) for _, text in found.values()}


def _nearest(rows: Frame, ops: Iterable[Op]) -> set[tuple[str, str]]:
    """For each wanted matrix or experts' layer the measured one of nearest sizes, in ratio."""
    wanted = list(ops)
    found: set[tuple[str, str]] = set()
    for family in ("dense", "experts"):
        texts = rows.loc[rows["family"] == family, "spec"].unique()
        if len(texts) == 0:
            continue
        grid = np.array([_log_sizes(json.loads(text)) for text in texts])
        for op in wanted:
            if op.family == family:
                distance = np.abs(grid - _log_sizes(op.to_dict())).sum(axis=1)
                found.add((family, str(texts[int(distance.argmin())])))
    return found


def _log_sizes(spec: dict[str, Any]) -> list[float]:
    return [float(np.log(1 + spec[name])) for name in sorted(spec)]


def points(found: Imported, *, read_on: datetime | None = None) -> Iterator[Point]:
    """The rows as points of the store. When they were measured is not told: `read_on` stands."""
    at = read_on or datetime.now(UTC)
    ops: dict[tuple[str, str], Op] = {}
    for row in found.rows.to_dict("records"):
        name = (row["family"], row["spec"])
        if name not in ops:
            ops[name] = operation_from(row["family"], json.loads(row["spec"]))
        yield Point(
            workload=Workload(
                op=ops[name],
                batch_size=row["batch_size"],
                new_tokens=row["new_tokens"],
                cached_tokens=row["cached_tokens"],
                dtype=row["dtype"],
            ),
            provider=row["provider"],
            environment_id=row["environment_id"],
            outcome=Outcome.OK,
            variant=row["variant"],
            mode=row["mode"],
            cache_state="warm",
            method_version=METHOD,
            samples_s=row["samples_s"],
            num_samples=len(row["samples_s"]),
            timing_method=TIMING,
            telemetry={} if np.isnan(row["slow"]) else {SLOW_FLAG: round(row["slow"], 1)},
            measured_at=at,
        )


METHOD = "aiconfigurator"
TIMING = "imported mean"


def write_csv(found: Imported, path: Path, *, read_on: datetime) -> int:
    """Writes the rows as a measurements file with its environments beside it; returns how many."""
    lines = [point_columns(p) for p in points(found, read_on=read_on)]
    used = set(found.rows["environment_id"])
    meta = {
        "format_version": FORMAT_VERSION,
        "environments": {
            i: e.to_dict() for i, e in sorted(found.environments.items()) if i in used
        },
    }
    frame = pd.DataFrame(lines, columns=list(COLUMNS)).sort_values(
        ["family", "spec", "provider", "batch_size", "cached_tokens", "new_tokens"]
    )
    frame.to_csv(path, index=False, lineterminator="\n")
    environments_path(path).write_text(json.dumps(meta, indent=1, sort_keys=True) + "\n")
    return len(frame)

"""aiconfigurator's Parquet tables, one by one, in our terms.

A reader turns a raw table into a frame of KEY columns, index kept. Rows it cannot use it drops,
and counts by reason. What the columns mean is read off the collectors that wrote them
(https://github.com/ai-dynamo/aiconfigurator, collector/, August 2026).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from planner.errors import UnknownName, UsageError
from planner.formats.aiconfigurator.names import DTYPES, provider_name
from planner.mixers import MixerSpec
from planner.workload import (
    AllReduceOp,
    ConvOp,
    DenseOp,
    ExpertsOp,
    MixerOp,
    Op,
    canonical_json,
)

Frame = pd.DataFrame
Dropped = Counter[str]

KEY = [
    "provider",
    "family",
    "spec",
    "batch_size",
    "new_tokens",
    "cached_tokens",
    "dtype",
    "variant",
    "mode",
]
"""What makes two rows the same call by the same provider."""

CONV_FUSED = ("fused_kda_decode", "kda_fused_decode", "fused_kda_decode_mtp_dspark")
"""KDA steps that run the short convolution in the same kernel."""

SGLANG_CHUNKED_WINDOW = 8192
"""SGLang's rows of this window run Llama 4's chunked attention, which restarts every 8,192 tokens
(attention_chunk_size in the collector's Llama 4 cases): not a sliding window."""

EARLY_GDN = {("trtllm", "1.3.0rc20"), ("sglang", "0.5.10")}
"""Tables whose collector convolves the keys alone and steps from a state in bf16, not fp32."""

NON_GATED_TOP_K = 22
NON_GATED_EXPERTS = (128, 6, 1856)
"""Nemotron 3's experts have two matrices (relu2); vLLM's and SGLang's rows do not say so. Super
and Ultra are the only models that route to 22; Nano is (experts, top k, intermediate size)."""


@dataclass(frozen=True)
class Table:
    """One Parquet file of a device, from one framework's version."""

    system: str
    framework: str
    version: str
    name: str
    path: Path


def tables(root: Path, systems: Iterable[str] | None = None) -> Iterator[Table]:
    """The tables that have a reader. Raises UnknownName for a system the package lacks."""
    data = root / "systems" / "data"
    known = sorted(p.name for p in data.iterdir() if p.is_dir())
    for system in known if systems is None else systems:
        if system not in known:
            raise UnknownName("system", system, known)
        for path in sorted((data / system).glob("*/*/*/*_perf.parquet")):
            name = path.name.removesuffix("_perf.parquet")
            if name in READERS:
                yield Table(system, path.parts[-3], path.parts[-2], name, path)


def read_table(table: Table, dropped: Dropped) -> tuple[Frame, int]:
    """The usable rows (KEY, device, exact_version, latency_s), and how many rows there were.

    Raises: UsageError naming the file if it is not a table of this kind.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        raw: Frame = parquet.read_table(table.path).to_pandas()
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise UsageError(f"cannot read {table.path.name}: {error}") from None
    if "device" not in raw:
        dropped["in tables that do not name the device"] += len(raw)
        return Frame(), len(raw)
    try:
        rows = READERS[table.name](raw, table, dropped)
        told = raw.loc[rows.index]
        rows = rows.assign(
            device=told["device"], exact_version=told["version"], latency_s=told["latency"] / 1e3
        )
    except KeyError as error:
        raise UsageError(f"{table.path.name} has no column {error}; is it of 0.12?") from None
    rows = keep(rows, rows["dtype"].notna(), dropped, "of a dtype without a name here")
    positive = np.isfinite(rows["latency_s"]) & (rows["latency_s"] > 0)
    return keep(rows, positive, dropped, "whose time is not positive"), len(raw)


def keep(rows: Frame, mask: pd.Series[bool], dropped: Dropped, reason: str) -> Frame:
    """Rows where `mask`; the others are counted under `reason`."""
    lost = int((~mask).sum())
    if lost:
        dropped[reason] += lost
    return rows.loc[mask]


def _rows(raw: Frame, table: Table, **columns: Any) -> Frame:
    """KEY columns but for the operation, by name; scalars are repeated."""
    sources = raw["kernel_source"]
    names = {s: provider_name(table.framework, s, table.version) for s in sources.unique()}
    defaults = {"batch_size": 1, "cached_tokens": 0, "variant": "", "mode": "graph"}
    return Frame({"provider": sources.map(names), **defaults, **columns}, index=raw.index)


def _with_ops(rows: Frame, shapes: Frame, make: Callable[..., Op]) -> Frame:
    """Adds family and spec: `make` is called once for each distinct row of `shapes`."""
    names: dict[tuple[Any, ...], tuple[str, str]] = {}
    for shape in shapes.drop_duplicates().itertuples(index=False, name=None):
        op = make(*shape)
        names[shape] = op.family, canonical_json(op.to_dict())
    found = [names[shape] for shape in shapes.itertuples(index=False, name=None)]
    return rows.assign(family=[f for f, _ in found], spec=[s for _, s in found])


def _attention(raw: Frame, table: Table, dropped: Dropped) -> Frame:
    """isl new tokens after `step`; window_size 0 is none, W counts the query itself, as here."""
    if "window_size" not in raw:
        raw = raw.assign(window_size=0)
    chunked = raw["window_size"].eq(SGLANG_CHUNKED_WINDOW) & (table.framework == "sglang")
    raw = keep(raw, ~chunked, dropped, "of chunked attention, which is no mixer here")
    # SGLang's 192-wide heads are MiMo-V2's, whose values are 128 wide; the collector pins that.
    narrow = raw["head_dim"].eq(192) & (table.framework == "sglang")
    shapes = raw[["num_heads", "num_key_value_heads", "head_dim"]].assign(
        v_dim=raw["head_dim"].mask(narrow, 128), window=raw["window_size"]
    )
    rows = _rows(
        raw,
        table,
        batch_size=raw["batch_size"],
        new_tokens=raw["isl"],
        cached_tokens=raw["step"],
        dtype=raw["attn_dtype"].map(DTYPES),
        variant=_cache_variant(raw["attn_dtype"], raw["kv_cache_dtype"]),
    )
    return _with_ops(rows, shapes, _attention_op)


def _attention_op(q: int, kv: int, k_dim: int, v_dim: int, window: int) -> MixerOp:
    return MixerOp(
        MixerSpec(
            mixer="sliding_window" if window else "full_attention",
            num_q_heads=q,
            num_k_heads=kv,
            num_v_heads=kv,
            k_head_dim=k_dim,
            v_head_dim=v_dim,
            window=window or None,
        )
    )


def _cache_variant(compute: pd.Series[Any], cache: pd.Series[Any]) -> pd.Series[str]:
    return ("kv=" + cache.map(DTYPES).fillna("other")).where(compute != cache, "")


def _mla(raw: Frame, table: Table, dropped: Dropped) -> Frame:
    """Expanded heads in context, absorbed in generation, as here; num_heads is per device."""
    rows = _rows(
        raw,
        table,
        batch_size=raw["batch_size"],
        new_tokens=raw["isl"],
        cached_tokens=raw["step"],
        dtype=raw["mla_dtype"].map(DTYPES),
        variant=_cache_variant(raw["mla_dtype"], raw["kv_cache_dtype"]),
    )
    return _with_ops(rows, raw[["num_heads"]], _mla_op)


def _mla_op(heads: int) -> MixerOp:
    """DeepSeek-V3's and Kimi K2's sizes: the only ones the tables hold."""
    return MixerOp(
        MixerSpec(
            mixer="mla",
            num_q_heads=heads,
            num_k_heads=heads,
            num_v_heads=heads,
            k_head_dim=128,
            v_head_dim=128,
            kv_lora_rank=512,
            rope_head_dim=64,
        )
    )


def _recurrent(mixer: str) -> Callable[[Frame, Table, Dropped], Frame]:
    """Reader of a table with both a recurrent mixer and the convolution before it."""

    def make(k: int, k_dim: int, v: int, v_dim: int, size: int, convolved: int) -> Op:
        if convolved:
            return ConvOp(convolved, size)
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

    def read(raw: Frame, table: Table, dropped: Dropped) -> Frame:
        conv = raw["kernel_source"].str.startswith("causal_conv1d")
        early = (table.framework, table.version) in EARLY_GDN
        keys = raw["num_k_heads"] * raw["head_k_dim"]
        channels = keys if early else 2 * keys + raw["num_v_heads"] * raw["head_v_dim"]
        shapes = raw[["num_k_heads", "head_k_dim", "num_v_heads", "head_v_dim", "d_conv"]]
        variant = pd.Series("", raw.index)
        variant[raw["kernel_source"].isin(CONV_FUSED)] = "with convolution"
        variant[early & raw["phase"].eq("generation") & ~conv] = "state=bf16"
        rows = _steps(raw, table, variant)
        return _with_ops(rows, shapes.assign(convolved=channels.where(conv, 0)), make)

    return read


def _steps(raw: Frame, table: Table, variant: pd.Series[str] | str) -> Frame:
    """A table that names its phases. A step does not see how much is cached: 1 stands for some."""
    return _rows(
        raw,
        table,
        batch_size=raw["batch_size"],
        new_tokens=raw["seq_len"],
        cached_tokens=raw["phase"].ne("context").astype(int),
        dtype="bf16",
        variant=variant,
    )


def _mamba2(raw: Frame, table: Table, dropped: Dropped) -> Frame:
    """Holds the convolution over x, B and C alone, not the scan."""
    inner = raw["nheads"] * raw["head_dim"]
    shapes = Frame({"channels": inner + 2 * raw["n_groups"] * raw["d_state"], "s": raw["d_conv"]})
    return _with_ops(_steps(raw, table, ""), shapes, ConvOp)


def _gemm(raw: Frame, table: Table, dropped: Dropped) -> Frame:
    """[m, k] by [k, n]: m is rows."""
    rows = _rows(
        raw,
        table,
        new_tokens=raw["m"],
        dtype=raw["gemm_dtype"].map(DTYPES),
        variant=_blockwise(raw["gemm_dtype"]),
    )
    return _with_ops(rows, raw[["k", "n"]], DenseOp)


def _blockwise(dtype: pd.Series[Any]) -> pd.Series[str]:
    """fp8 with one scale per block of 128 x 128 weights (DeepSeek's), against one per tensor."""
    return pd.Series("", dtype.index).mask(dtype == "fp8_block", "blockwise")


def _experts(raw: Frame, table: Table, dropped: Dropped) -> Frame:
    """One device's whole layer; tensor parallelism narrows each expert."""
    raw = keep(raw, raw["moe_ep_size"] == 1, dropped, "of experts spread over devices")
    sizes = raw[["num_experts", "topk", "inter_size"]]
    plain = (
        raw["kernel_source"].str.contains("nongated")
        | raw["topk"].eq(NON_GATED_TOP_K)
        | sizes.eq(list(NON_GATED_EXPERTS)).all(axis=1)
    )
    shapes = Frame(
        {
            "hidden_size": raw["hidden_size"],
            "expert_intermediate_size": raw["inter_size"] // raw["moe_tp_size"],
            "num_experts": raw["num_experts"],
            "top_k": raw["topk"],
            "gated": ~plain,
        }
    )
    routing = raw["distribution"].mask(raw["distribution"] == "balanced", "")
    rows = _rows(
        raw,
        table,
        new_tokens=raw["num_tokens"],
        dtype=raw["moe_dtype"].map(DTYPES),
        variant=(_blockwise(raw["moe_dtype"]) + " " + routing).str.strip(),
    )
    return _with_ops(rows, shapes, ExpertsOp)


def _all_reduce(raw: Frame, table: Table, dropped: Dropped) -> Frame:
    eager = raw["kernel_source"].str.endswith("eager")
    return _reduced(raw, table, raw["allreduce_dtype"], eager)


def _nccl(raw: Frame, table: Table, dropped: Dropped) -> Frame:
    raw = keep(raw, raw["op_name"] == "all_reduce", dropped, "of other collectives")
    return _reduced(raw, table, raw["nccl_dtype"], pd.Series(True, raw.index))


def _reduced(raw: Frame, table: Table, dtype: pd.Series[Any], eager: pd.Series[bool]) -> Frame:
    """message_size counts elements."""
    rows = _rows(
        raw,
        table,
        new_tokens=raw["message_size"],
        dtype=dtype.map(DTYPES),
        mode=eager.map({True: "eager", False: "graph"}),
    )
    return _with_ops(rows, raw[["num_gpus"]], AllReduceOp)


READERS: dict[str, Callable[[Frame, Table, Dropped], Frame]] = {
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

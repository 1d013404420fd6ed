"""The part of aiconfigurator's tables that ships: what planning a catalog model asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from planner.architecture import Architecture
from planner.catalog import load_model, model_ids
from planner.formats.aiconfigurator.names import framework_of, version_order
from planner.formats.aiconfigurator.package import Imported, read_package, write_csv
from planner.formats.aiconfigurator.tables import Frame
from planner.mixers import MIXERS
from planner.workload import DenseOp, ExpertsOp, Op, canonical_json, layer_ops

SYSTEMS = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm")

COMPARED_ON = "NVIDIA H200"
"""Where every framework's mixers ship; elsewhere the first framework's that has the family."""

FRAMEWORKS = ("vllm", "sglang", "trtllm", "nccl")

SHORTEST = 128
"""Mixer calls that see fewer tokens are left out: a launch is all they take."""

Named = set[tuple[str, str]]
"""Operations by family and canonical spec."""


def write_shipped(package: Path, folder: Path, *, read_on: datetime) -> dict[str, Imported]:
    """Writes one measurements file a device into `folder`; returns what was read for each."""
    found = {}
    for system in SYSTEMS:
        found[system] = read_package(package, systems=[system], keep=shipped)
        write_csv(found[system], folder / f"aiconfigurator_{system}.csv", read_on=read_on)
    return found


def shipped(rows: Frame) -> Frame:
    """Of the catalog, and from one framework but for mixers on COMPARED_ON."""
    rows = of_the_catalog(rows)
    rank = _framework(rows).map({name: i for i, name in enumerate(FRAMEWORKS)})
    first = rank == rank.groupby([rows["device"], rows["family"]]).transform("min")
    return rows.loc[first | (rows["device"].eq(COMPARED_ON) & rows["family"].isin(MIXERS))]


def of_the_catalog(rows: Frame) -> Frame:
    """bf16 calls of the catalog's operations, from each framework's newest tables.

    Mixers are those of every model, its own or in place of its own. Where the tables have other
    shapes, near ones are kept: all of KDA; the largest of each window and head width; of matrix
    products and experts the nearest sizes, at powers of two of rows.
    """
    rows = newest_versions(rows.loc[rows["variant"].eq("") & rows["dtype"].isin(["bf16", "fp16"])])
    mixers, others = catalog_operations()
    wanted = {(op.family, canonical_json(op.to_dict())) for op in mixers}
    wanted |= _largest_windows(rows) | _nearest(rows, others)
    names = zip(rows["family"], rows["spec"], strict=True)
    named = pd.Series([name in wanted for name in names], rows.index, dtype=bool)
    whole = rows["family"].isin(["kda", "all_reduce"])
    return rows.loc[(named | whole) & ~_too_short(rows) & ~_between_powers(rows)]


def newest_versions(rows: Frame) -> Frame:
    """For each device, family and framework the rows of its newest version."""
    versions = {name: version_order(name) for name in rows["provider"].unique()}
    order = sorted(set(versions.values()))
    place = rows["provider"].map({name: order.index(v) for name, v in versions.items()})
    newest = place.groupby([rows["device"], rows["family"], _framework(rows)]).transform("max")
    return rows.loc[place == newest]


def _framework(rows: Frame) -> pd.Series[str]:
    return rows["provider"].map({p: framework_of(p) for p in rows["provider"].unique()})


def _too_short(rows: Frame) -> pd.Series[bool]:
    """Calls of mixers and convolutions below SHORTEST, but for a recurrent step (1 after some)."""
    softmax = [m.name for m in MIXERS.values() if m.kind != "recurrent"]
    step = rows["new_tokens"].eq(1) & rows["cached_tokens"].eq(1) & ~rows["family"].isin(softmax)
    short = rows["new_tokens"] + rows["cached_tokens"] < SHORTEST
    mixer = rows["family"].isin([*MIXERS, "short_convolution"])
    return mixer & short & ~step


def _between_powers(rows: Frame) -> pd.Series[bool]:
    powers = [1 << i for i in range(40)]
    return rows["family"].isin(["dense", "experts"]) & ~rows["new_tokens"].isin(powers)


def catalog_operations() -> tuple[set[Op], set[Op]]:
    """The catalog models' mixers and convolutions, with any mixer in place; and other calls."""
    mixers: set[Op] = set()
    others: set[Op] = set()
    for id in model_ids():
        arch = load_model(id)
        own = set(arch.kinds.values())
        for spec in own | {arch.spec_for(mixer) for mixer in MIXERS}:
            for op in layer_ops(spec, arch.hidden_size):
                if not isinstance(op, DenseOp):
                    mixers.add(op)
                elif spec in own:
                    others.add(op)
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


def _largest_windows(rows: Frame) -> Named:
    """Of each window and head width, the grouped shape with the most query heads."""
    found: dict[tuple[int, int], tuple[int, str]] = {}
    for text in rows.loc[rows["family"] == "sliding_window", "spec"].unique():
        spec = json.loads(text)
        at, size = (spec["window"], spec["k_head_dim"]), (spec["num_q_heads"], text)
        if spec["num_k_heads"] < spec["num_q_heads"] and size > found.get(at, (0, "")):
            found[at] = size
    return {("sliding_window", text) for _, text in found.values()}


def _nearest(rows: Frame, wanted: Iterable[Op]) -> Named:
    """For each wanted matrix or layer of experts the measured one of nearest sizes, in ratio."""
    wanted = list(wanted)
    found: Named = set()
    for family in ("dense", "experts"):
        texts = list(rows.loc[rows["family"] == family, "spec"].unique())
        grid = np.array([_log_sizes(json.loads(text)) for text in texts])
        for op in wanted:
            if texts and op.family == family:
                distance = np.abs(grid - _log_sizes(op.to_dict())).sum(axis=1)
                found.add((family, texts[int(distance.argmin())]))
    return found


def _log_sizes(spec: dict[str, Any]) -> list[float]:
    return [float(np.log(1 + spec[name])) for name in sorted(spec)]
